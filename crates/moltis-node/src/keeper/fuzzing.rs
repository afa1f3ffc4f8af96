//! What the targets in `fuzz/` reach of a keeper's files: journals that are written, damaged and read
//! again, and spools. Compiled for them, which `cfg(fuzzing)` says, and for tests.

pub mod spool;

use std::borrow::Cow;
use std::collections::HashMap;

use moltis_proto::key::Digest;
use moltis_proto::run::outbox::SpoolHeader;
use moltis_proto::run::{Command, Ending, Outcome, RunSpec, StdinMode, Totals};
use moltis_proto::{BootId, JournalId, RunId};

use super::journal::{Past, Record, Told, encode_into, opening};
use super::spool as file;
use super::spool::Page;

/// Bytes of the page that a spool begins with.
pub const PAGE_BYTES: usize = file::PAGE_BYTES;

const JOURNAL: JournalId = JournalId::from_bytes([1; 16]);
const BOOT: BootId = BootId::from_bytes([2; 16]);

/// What a keeper writes into its journal, about a run by its number.
#[derive(Debug, Clone, Copy)]
pub enum Step {
    /// It was taken; so many bytes are its command.
    Accepted(u8, u16),
    /// Its child exists.
    Started(u8, u32),
    /// It is over; so many bytes tell how, and so many it wrote.
    Ended(u8, u8, u64),
    /// The gateway has all of it.
    Forgotten(u8),
}

/// What becomes of the bytes before they are read.
#[derive(Debug, Clone, Default)]
pub struct Damage {
    /// Nothing stands from here on.
    pub cut_at: Option<usize>,
    /// These stand here now. Four bytes in a row are what a checksum always notices.
    pub changed: Option<(usize, [u8; 4])>,
    /// These stand behind all.
    pub behind: Vec<u8>,
}

/// Writes a journal, damages it, and reads it: everything before the damage has to be there, and
/// nothing behind it. Then the keeper that took it over goes on writing, and is read too.
///
/// # Panics
/// If one of these is not so.
pub fn journal(steps: &[Step], damage: &Damage) {
    let mut bytes = opening(JOURNAL, BOOT, "1.2.3").expect("it fits");
    let opening_bytes = bytes.len();
    let mut ends = vec![opening_bytes];
    for step in steps {
        encode_into(&step.record(), &mut bytes).expect("it fits");
        ends.push(bytes.len());
    }
    let whole = bytes.clone();
    spoil(&mut bytes, damage);
    let same = same(&whole, &bytes);
    let Some(told) = Told::read(&bytes) else {
        assert!(
            same < opening_bytes,
            "a journal whose opening is whole is none"
        );
        return;
    };
    assert!(
        same >= opening_bytes,
        "a journal without a whole opening is believed"
    );
    assert_eq!((told.id, told.boot_id), (JOURNAL, BOOT));
    let good = ends.iter().rposition(|to| *to <= same);
    let good = good.expect("the opening is whole");
    let to = ends[good];
    assert!(told.length >= to, "a good record before the damage is lost");
    if told.length > to {
        // By chance, or because the bytes behind were made so, a record follows whose checksum holds.
        assert!(has_checksum(&bytes[to..]), "a bad record is believed");
    } else {
        let (runs, forgotten) = remembered(&steps[..good]);
        assert_eq!(told.runs, runs);
        assert!(told.index.forgotten.iter().eq(&forgotten));
    }
    go_on(bytes, &told);
}

fn id(number: u8) -> RunId {
    RunId::from_bytes([number; 16])
}

fn digest(number: u8) -> Digest {
    Digest::from_bytes([number; 32])
}

fn past(number: u8) -> Past {
    Past {
        digest: digest(number),
        pid: None,
        ended: None,
    }
}

/// Returns what a keeper knows that has written these: its runs, and whom it has forgotten.
fn remembered(steps: &[Step]) -> (HashMap<RunId, Past>, Vec<RunId>) {
    let (mut runs, mut forgotten) = (HashMap::new(), Vec::new());
    for step in steps {
        match *step {
            Step::Accepted(number, _) => {
                runs.insert(id(number), past(number));
            }
            Step::Started(number, pid) => {
                if let Some(past) = runs.get_mut(&id(number)) {
                    past.pid = Some(pid);
                }
            }
            Step::Ended(number, length, stdout) => {
                if let Some(past) = runs.get_mut(&id(number)) {
                    past.ended = Some((ending(length), Totals { stdout, stderr: 0 }));
                }
            }
            Step::Forgotten(number) => {
                runs.remove(&id(number));
                forgotten.push(id(number));
            }
        }
    }
    (runs, forgotten)
}

impl Step {
    fn record(self) -> Record<'static> {
        match self {
            Self::Accepted(number, length) => Record::Accepted {
                run_id: id(number),
                digest: digest(number),
                spec: Cow::Owned(spec(length)),
            },
            Self::Started(number, pid) => Record::Started {
                run_id: id(number),
                pid,
            },
            Self::Ended(number, length, stdout) => Record::Ended {
                run_id: id(number),
                ending: Cow::Owned(ending(length)),
                totals: Totals { stdout, stderr: 0 },
            },
            Self::Forgotten(number) => Record::Forgotten { run_id: id(number) },
        }
    }
}

fn spoil(bytes: &mut Vec<u8>, damage: &Damage) {
    if let Some((at, changed)) = damage.changed {
        for (byte, to) in bytes.iter_mut().skip(at).zip(changed) {
            *byte = to;
        }
    }
    if let Some(at) = damage.cut_at {
        bytes.truncate(at);
    }
    bytes.extend_from_slice(&damage.behind);
}

/// Returns how many bytes at the front are the same.
fn same(a: &[u8], b: &[u8]) -> usize {
    let pieces = a.chunks_exact(64).zip(b.chunks_exact(64));
    let whole = 64 * pieces.take_while(|(a, b)| a == b).count();
    let rest = a[whole..].iter().zip(&b[whole..]);
    whole + rest.take_while(|(a, b)| a == b).count()
}

/// Returns whether a record stands here whose checksum is that of its body.
fn has_checksum(bytes: &[u8]) -> bool {
    let Some((head, rest)) = bytes.split_first_chunk::<8>() else {
        return false;
    };
    let [a, b, c, d, crc @ ..] = *head;
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    let body = rest.get(..length);
    body.is_some_and(|body| crc32fast::hash(body) == u32::from_be_bytes(crc))
}

/// What is behind the last good record is cut off; what is appended then is read.
fn go_on(mut bytes: Vec<u8>, told: &Told) {
    bytes.truncate(told.length);
    let next = Step::Accepted(0xee, 1);
    encode_into(&next.record(), &mut bytes).expect("it fits");
    let again = Told::read(&bytes).expect("it was a journal");
    assert_eq!(
        again.length,
        bytes.len(),
        "what a new keeper appends is not read"
    );
    let mut expected = told.runs.clone();
    expected.insert(id(0xee), past(0xee));
    assert_eq!(again.runs, expected);
    assert_eq!(again.index.forgotten, told.index.forgotten);
}

pub(super) fn spec(length: u16) -> RunSpec {
    RunSpec {
        command: Command::Shell("x".repeat(length.into())),
        cwd: None,
        env: std::collections::BTreeMap::new(),
        timeout_ms: None,
        grace_ms: 0,
        stdin: StdinMode::Empty,
        tty: None,
    }
}

fn ending(length: u8) -> Ending {
    Ending {
        outcome: Outcome::Exited,
        reason: None,
        status: None,
        detail: "x".repeat(length.into()),
        duration_ms: 7,
        descendants_may_survive: false,
    }
}

/// Reads the first bytes of a spool: what it holds, and the checksum of the block that grows.
pub fn read_page(page: &[u8; PAGE_BYTES]) -> Option<(SpoolHeader, Option<u32>)> {
    file::read_page(page).map(|page| (page.header, page.growing))
}

/// Returns the first bytes of a spool, or of one without checksums.
///
/// # Panics
/// Never: six numbers fit a page.
pub fn page_of(header: &SpoolHeader, growing: Option<u32>) -> [u8; PAGE_BYTES] {
    let page = Page {
        header: *header,
        growing,
    };
    file::page_of(&page).expect("six numbers fit a page")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0..4u8, 0..200u16).prop_map(|(run, length)| Step::Accepted(run, length)),
            (0..4u8, any::<u32>()).prop_map(|(run, pid)| Step::Started(run, pid)),
            (0..4u8, any::<u8>(), any::<u64>())
                .prop_map(|(run, length, wrote)| Step::Ended(run, length, wrote)),
            (0..4u8).prop_map(Step::Forgotten),
        ];
        prop::collection::vec(step, 0..12)
    }

    proptest! {
        #[test]
        fn a_journal_tells_what_was_written_before_its_damage_and_no_more(
            steps in steps(),
            cut_at in prop::option::of(0..2_000usize),
            changed in prop::option::of((0..2_000usize, any::<[u8; 4]>())),
            behind in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            journal(&steps, &Damage { cut_at, changed, behind });
        }

        #[test]
        fn a_header_is_the_one_that_was_written_or_none(
            at in 0..PAGE_BYTES,
            changed in any::<u8>(),
            growing in any::<Option<u32>>(),
            (base, head_bytes, ring_bytes, written) in (0..99u64, 0..99u64, 1..99u64, 0..50u64),
        ) {
            let from = base + head_bytes;
            let header = SpoolHeader { base, head_bytes, ring_bytes, from, to: base + written };
            let sound = header.is_sound().then_some((header, growing));
            let mut page = page_of(&header, growing);
            prop_assert_eq!(read_page(&page), sound);
            page[at] = changed;
            let found = read_page(&page);
            prop_assert!(found.is_none() || found == sound);
        }
    }
}
