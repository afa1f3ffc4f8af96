//! What a keeper does about its dead predecessors: their journals become its own, their running
//! runs end as `lost`, and whatever output they had spooled is delivered.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use moltis_proto::run::outbox::{Outbox, OutboxLimits, Recovered};
use moltis_proto::run::{Ending, Outcome, Reason, Stream, Totals};
use moltis_proto::{BootId, RunId};

use super::StartLock;
use super::disk::Disk;
use super::door::{LEAVING, SOCKET};
use super::journal::{self, Found, Journal, Past, Record, Taken};
use super::kernel::{Kernel, Name};
use super::run::Run;
use super::spool::Spool;

/// What was found in a directory.
#[derive(Debug, Default)]
pub(super) struct Estate {
    /// The journals of the dead.
    pub(super) journals: Vec<Journal>,
    /// Their runs, all of them over.
    pub(super) runs: Vec<Run>,
    /// The ids of runs that were forgotten, the oldest of each journal first.
    pub(super) forgotten: Vec<RunId>,
    /// The journals of keepers that live.
    living: Vec<PathBuf>,
}

/// What is known of the processes that a dead keeper's running runs had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Processes {
    /// They ended with their boot.
    OfAnotherBoot,
    /// They were all found, and ended.
    Ended,
    /// Some may live on.
    MayLive,
}

/// Takes over every journal in `dir` whose keeper is dead. One that cannot be read is left alone
/// and reported: a keeper that does not start would help nobody.
///
/// What the running ones of this boot have left behind is ended first: nobody would hear of it.
///
/// Of keepers that live beside this one it takes over what they have forgotten: a gateway whose
/// database was put back may ask for those runs again, and it asks the newest keeper. `ours` are the
/// journals that the caller writes. Files without a beginning are taken away where the caller holds
/// the lock that every keeper begins under: else one of them may be a journal about to be written.
pub(super) fn take_over_all(
    kernel: &Kernel,
    disk: &Disk,
    dir: &Path,
    boot_id: BootId,
    ours: &[Journal],
    starting: Option<&StartLock>,
) -> io::Result<Estate> {
    let mut estate = Estate::default();
    let mut is_all_read = true;
    for path in journal::all(dir)? {
        match Journal::take_over(disk, &path) {
            Ok(Taken::Over(found)) => {
                // Spools may be of runs that stood in it.
                is_all_read &= !found.is_spoiled;
                estate.inherit(kernel, disk, dir, *found, boot_id);
            }
            Ok(Taken::Spoiled) => is_all_read = false,
            Ok(Taken::Lives) => {
                if ours.iter().all(|journal| journal.path() != path) {
                    estate.forgotten.extend(journal::forgotten_in(&path));
                }
                estate.living.push(path);
            }
            Ok(Taken::Nothing) if starting.is_some() => journal::delete_nothing(disk, &path),
            Ok(Taken::Nothing) => {}
            Err(error) => {
                tracing::error!(error = %error, "a dead keeper's runs are lost, until its journal can be read");
                is_all_read = false;
            }
        }
    }
    if estate.living.is_empty() && is_all_read {
        delete_strays(disk, dir, &estate.runs);
    }
    Ok(estate)
}

impl Estate {
    /// Returns whether a keeper of this version takes new runs here.
    pub(super) fn has_keeper_of(&self, version: &str) -> bool {
        let mut living = self.living.iter();
        living.any(|journal| {
            journal.with_extension(SOCKET).exists()
                && journal::version_of(journal).as_deref() == Some(version)
        })
    }

    fn inherit(&mut self, kernel: &Kernel, disk: &Disk, dir: &Path, found: Found, boot_id: BootId) {
        let Found {
            mut journal,
            boot_id: then,
            runs,
            forgotten,
            is_spoiled: _,
        } = found;
        self.forgotten.extend(forgotten);
        // Nobody listens behind its socket, and whoever saw it beside a journal that is locked would
        // take us for a keeper of that version.
        for kind in [SOCKET, LEAVING] {
            fs::remove_file(journal.path().with_extension(kind)).ok(); // it need not be there
        }
        let processes = if then == boot_id {
            let running = runs.iter().filter(|(_, past)| past.ended.is_none());
            let names = running.map(|(id, _)| Name {
                run: *id,
                journal: journal.id(),
            });
            let file = journal.path().file_name().unwrap_or_default();
            if kernel.end_leftovers(&names.collect::<Vec<_>>(), &file.to_string_lossy()) {
                Processes::Ended
            } else {
                Processes::MayLive
            }
        } else {
            Processes::OfAnotherBoot
        };
        for (id, past) in runs {
            let spools = Stream::BOTH.map(|stream| Spool::new(disk, dir, id, stream));
            self.runs
                .push(revive(spools, &mut journal, id, past, processes));
        }
        if journal.is_blank() {
            journal.delete();
        }
        self.journals.push(journal);
    }
}

/// Makes a run of what is left of it.
fn revive(
    mut spools: [Spool; 2],
    journal: &mut Journal,
    id: RunId,
    past: Past,
    processes: Processes,
) -> Run {
    let headers = spools.each_mut().map(Spool::header);
    if processes == Processes::OfAnotherBoot {
        for spool in &mut spools {
            spool.doubt();
        }
    }
    // Of a lost run the journal has what its spools had, and a gateway may have got more.
    let known = past.ended.as_ref();
    let totals = known.filter(|(ending, _)| ending.outcome != Outcome::Lost);
    let totals = totals.map(|(_, totals)| *totals);
    let streams = Stream::BOTH.map(|stream| Recovered {
        header: headers[stream.index()],
        total: totals.map(|totals| totals.of(stream)),
    });
    let is_known = past.ended.is_some();
    let ending = match past.ended {
        Some((ending, _)) => ending,
        None => lost(past.pid, processes),
    };
    let outbox = Outbox::recovered(OutboxLimits::default(), streams, ending.clone());
    if !is_known {
        let record = Record::Ended {
            run_id: id,
            ending: Cow::Owned(ending),
            totals: Totals::default(),
        };
        // The totals of a lost run are what its spools have; whoever reads them again knows.
        if processes != Processes::OfAnotherBoot
            && let Err(error) = note_lost(journal, &record, &outbox)
        {
            tracing::warn!(run.id = %id, error = %error, "a lost run will be found again");
        }
    }
    Run::over((id, past.digest, journal.id()), outbox, spools)
}

fn note_lost(
    journal: &mut Journal,
    record: &Record<'_>,
    outbox: &Outbox,
) -> Result<(), journal::JournalError> {
    let Record::Ended { run_id, ending, .. } = record else {
        return Ok(());
    };
    journal.append(&Record::Ended {
        run_id: *run_id,
        ending: ending.clone(),
        totals: outbox.totals(),
    })
}

fn lost(pid: Option<u32>, processes: Processes) -> Ending {
    let (reason, detail) = match (processes, pid) {
        (Processes::OfAnotherBoot, _) => (
            Reason::NodeRebooted,
            "the machine was started anew".to_owned(),
        ),
        (Processes::Ended, _) => (
            Reason::KeeperDied,
            "the keeper of this run died; what it had left running was ended".to_owned(),
        ),
        (Processes::MayLive, Some(pid)) => (
            Reason::KeeperDied,
            format!("the keeper of this run died; process {pid} may still live"),
        ),
        (Processes::MayLive, None) => (
            Reason::KeeperDied,
            "the keeper of this run died while it started it".to_owned(),
        ),
    };
    Ending {
        descendants_may_survive: processes == Processes::MayLive,
        ..Ending::without_status(Outcome::Lost, Some(reason), detail)
    }
}

/// Deletes spools that belong to no run. Only where no other keeper lives, and every journal was
/// read, whose they could be.
fn delete_strays(disk: &Disk, dir: &Path, runs: &[Run]) {
    let known: HashSet<RunId> = runs.iter().map(|run| run.id).collect();
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        let is_spool = path
            .extension()
            .is_some_and(|extension| extension == "out" || extension == "err");
        let id = path.file_stem().and_then(|stem| stem.to_str());
        let id = id.and_then(|stem| stem.parse::<RunId>().ok());
        if is_spool && id.is_some_and(|id| !known.contains(&id)) {
            // Tried again by the next keeper.
            disk.step("spool.stray", &path, || fs::remove_file(&path))
                .ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use moltis_proto::JournalId;
    use moltis_proto::run::GapReason;
    use moltis_proto::run::outbox::{SpoolDone, SpoolOp};

    use super::*;
    use crate::keeper::kernel::System;

    /// A directory with a spool of a run that no journal names, and a way to see whether a keeper
    /// that begins there deletes it.
    fn deletes_strays(prepare: impl FnOnce(&Path)) -> bool {
        let dir = tempfile::tempdir().unwrap();
        let stray = dir
            .path()
            .join(format!("{}.out", RunId::from_bytes([7; 16])));
        fs::write(&stray, "of nobody").unwrap();
        prepare(&dir.path().join("k00000000000000000000000000000001.journal"));
        let (kernel, boot_id) = (
            Kernel::System(System::default()),
            BootId::from_bytes([1; 16]),
        );
        let estate =
            take_over_all(&kernel, &Disk::default(), dir.path(), boot_id, &[], None).unwrap();
        assert!(estate.journals.is_empty() && estate.living.is_empty());
        !stray.exists()
    }

    /// Has a keeper spool something, and a page of it go missing; returns what one that begins in this
    /// boot reads there.
    fn reads_what_is_missing(boot_id: BootId) -> SpoolDone {
        let dir = tempfile::tempdir().unwrap();
        let (disk, then) = (Disk::default(), BootId::from_bytes([1; 16]));
        let id = JournalId::from_bytes([2; 16]);
        let mut journal = Journal::create(&disk, dir.path(), id, then, "1.2.3").unwrap();
        let run_id = RunId::from_bytes([7; 16]);
        let (ending, totals) = (lost(None, Processes::Ended), Totals::default());
        let digest = moltis_proto::key::Digest::from_bytes([3; 32]);
        let mut outbox = Outbox::new(OutboxLimits::default());
        outbox.handle_output(Stream::Stdout, vec![7; 5_000].into(), start());
        outbox.spill(start());
        let mut spool = Spool::new(&disk, dir.path(), run_id, Stream::Stdout);
        let op = outbox.poll_spool(Stream::Stdout).unwrap();
        spool.perform(op).unwrap();
        let path = dir.path().join(format!("{run_id}.out"));
        let mut file = fs::read(&path).unwrap();
        let length = file.len();
        file[length - 5_000..length - 904].fill(0);
        fs::write(&path, file).unwrap();
        let spec = crate::keeper::fuzzing::spec(3);
        journal
            .append(&Record::Accepted {
                run_id,
                digest,
                spec: Cow::Owned(spec),
            })
            .unwrap();
        journal
            .append(&Record::Ended {
                run_id,
                ending: Cow::Owned(ending),
                totals,
            })
            .unwrap();
        drop(journal);
        let kernel = Kernel::System(System::default());
        let estate = take_over_all(&kernel, &disk, dir.path(), boot_id, &[], None).unwrap();
        let run = estate.runs.into_iter().next().unwrap();
        let mut spool = run.into_spools().into_iter().next().unwrap();
        spool
            .perform(SpoolOp::Read {
                position: 0,
                length: 5_000,
            })
            .unwrap()
    }

    #[test]
    fn behind_another_boot_a_spool_is_asked_for_its_checksums() {
        let same = reads_what_is_missing(BootId::from_bytes([1; 16]));
        assert!(matches!(same, SpoolDone::Read(_)), "{same:?}");
        let another = reads_what_is_missing(BootId::from_bytes([9; 16]));
        let gone = SpoolDone::Gone {
            length: 4_096,
            reason: GapReason::PowerCut,
        };
        assert_eq!(another, gone);
    }

    #[expect(clippy::disallowed_methods, reason = "nothing here takes time")]
    fn start() -> std::time::Instant {
        std::time::Instant::now()
    }

    #[test]
    fn a_journal_whose_beginning_was_lost_with_the_power_is_no_living_keepers() {
        assert!(deletes_strays(|journal| fs::write(journal, "").unwrap()));
        assert!(deletes_strays(
            |journal| fs::write(journal, "moltis keep").unwrap()
        ));
    }

    #[test]
    fn what_a_living_keeper_has_forgotten_is_known_to_the_next_one() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, boot_id) = (Disk::default(), BootId::from_bytes([1; 16]));
        let id = JournalId::from_bytes([2; 16]);
        let mut living = Journal::create(&disk, dir.path(), id, boot_id, "1.2.3").unwrap();
        let run_id = RunId::from_bytes([7; 16]);
        living.append(&Record::Forgotten { run_id }).unwrap();
        let kernel = Kernel::System(System::default());
        let found = |ours: &[Journal]| {
            let estate = take_over_all(&kernel, &disk, dir.path(), boot_id, ours, None).unwrap();
            assert_eq!((estate.journals.len(), estate.living.len()), (0, 1));
            estate.forgotten
        };
        assert_eq!(found(&[]), [run_id]);
        assert!(found(&[living]).is_empty(), "its own it knows");
    }

    #[test]
    fn a_dead_keepers_socket_does_not_speak_for_who_took_its_journal_over() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, boot_id) = (Disk::default(), BootId::from_bytes([1; 16]));
        let id = JournalId::from_bytes([2; 16]);
        let mut dead = Journal::create(&disk, dir.path(), id, boot_id, "1.2.3").unwrap();
        let run_id = RunId::from_bytes([7; 16]);
        dead.append(&Record::Forgotten { run_id }).unwrap();
        fs::write(dead.path().with_extension(SOCKET), "").unwrap();
        drop(dead);
        let kernel = Kernel::System(System::default());
        let look = || take_over_all(&kernel, &disk, dir.path(), boot_id, &[], None).unwrap();
        let older = look();
        assert_eq!(older.journals.len(), 1);
        let next = look();
        assert_eq!(next.living.len(), 1);
        assert!(!next.has_keeper_of("1.2.3"));
    }

    #[test]
    fn a_file_without_a_beginning_is_taken_away_where_no_keeper_can_be_about_to_write_it() {
        let dir = tempfile::tempdir().unwrap();
        let (kernel, disk) = (Kernel::System(System::default()), Disk::default());
        let nothing = dir.path().join("k00000000000000000000000000000001.journal");
        fs::write(&nothing, "").unwrap();
        let look = |starting: Option<&StartLock>| {
            let boot_id = BootId::from_bytes([1; 16]);
            take_over_all(&kernel, &disk, dir.path(), boot_id, &[], starting).unwrap();
            nothing.exists()
        };
        assert!(look(None), "a keeper may be about to write it");
        let starting = StartLock::take(dir.path()).unwrap();
        assert!(!look(Some(&starting)));
    }

    #[test]
    fn of_a_damaged_journal_the_runs_before_the_damage_are_told_and_a_copy_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, boot_id) = (Disk::default(), BootId::from_bytes([1; 16]));
        let id = JournalId::from_bytes([2; 16]);
        let mut dead = Journal::create(&disk, dir.path(), id, boot_id, "1.2.3").unwrap();
        let run_id = |number| RunId::from_bytes([number; 16]);
        for number in [3, 4] {
            dead.append(&Record::Accepted {
                run_id: run_id(number),
                digest: moltis_proto::key::Digest::from_bytes([3; 32]),
                spec: Cow::Owned(crate::keeper::fuzzing::spec(3)),
            })
            .unwrap();
        }
        let path = dead.path().to_owned();
        drop(dead);
        let kernel = Kernel::System(System::default());
        let look = || take_over_all(&kernel, &disk, dir.path(), boot_id, &[], None).unwrap();
        let good = fs::read(&path).unwrap();
        let kept = path.with_extension("journal-bad");
        let mut bad = good.clone();
        *bad.last_mut().unwrap() ^= 0x10;
        fs::write(&path, &bad).unwrap();
        let estate = look();
        let runs: Vec<_> = estate.runs.iter().map(|run| run.id).collect();
        assert_eq!(runs, [run_id(3)]);
        assert_eq!(fs::read(&kept).unwrap(), bad);
        // The same where nothing can be read.
        drop(estate);
        let mut bad = good;
        bad[2] ^= 0x10;
        fs::write(&path, &bad).unwrap();
        assert!(look().runs.is_empty());
        assert_eq!(fs::read(&kept).unwrap(), bad);
        assert!(!path.exists());
    }

    #[test]
    fn no_spool_is_given_up_while_a_journal_cannot_be_read() {
        assert!(!deletes_strays(|journal| fs::create_dir(journal).unwrap()));
    }
}
