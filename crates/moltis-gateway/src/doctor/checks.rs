//! The checks, but for the one of files: each from what was seen to how it stands.

use jiff::{SignedDuration, Timestamp};
use moltis_proto::limits::disk_reserve_bytes;

use super::words::{ago, list, quoted, size, span};
use super::{
    AtRest, Database, DefaultRoute, Diagnosis, Disk, Level, Node, Room, Running, SettingsState,
};
use crate::http::tls::{TlsStatus, Validity};
use crate::session::chain;
use crate::store::{Inspected, StoreError};

/// Below so much room somebody should look: one run may write as much output by default. On a small
/// disk it is a quarter of it.
const FREE_BYTES_FEW: u64 = 1024 * 1024 * 1024;

/// See [`FREE_BYTES_FEW`]: each run with long output makes some files.
const FREE_FILES_FEW: u64 = 1000;

/// Clocks that differ by more than this are told. What a node says of its clock may have been on
/// the way for some seconds, which looks the same.
const SKEW_MAX: SignedDuration = SignedDuration::from_secs(10);

/// Is the file of settings the one that was read?
pub(super) fn config(settings: &SettingsState) -> Diagnosis {
    match settings {
        SettingsState::Embedded => {
            Diagnosis::ok("the settings come from the program that the gateway is a part of")
        }
        SettingsState::AsRead(path) => Diagnosis::ok(format!(
            "`{}` is as the gateway read it when it started",
            path.display()
        )),
        SettingsState::Missing(path) => Diagnosis::ok(format!(
            "there is no `{}`: everything is as by default",
            path.display()
        )),
        SettingsState::Changed(path) => Diagnosis::warning(format!(
            "`{}` has changed since the gateway started, which reads it only then",
            path.display()
        ))
        .hint("restart the gateway; commands that run go on"),
    }
}

/// Who can reach the gateway?
pub(super) fn listen(seen: &Running) -> Diagnosis {
    match &seen.tls {
        Some(tls) => certificate(tls, seen.now).unwrap_or_else(|| reach(seen)),
        None => reach(seen),
    }
}

/// What is wrong with the certificate; `None` where nothing is.
fn certificate(tls: &TlsStatus, now: Timestamp) -> Option<Diagnosis> {
    let about = &tls.certificate;
    let path = about.path.display();
    if let Some(problem) = about.problem(now) {
        return Some(Diagnosis::error(format!("{problem}: nodes and commands refuse it"))
            .hint("put a new one in its place, which is taken up within seconds, or start the gateway with --tls-generate"));
    }
    if let Some(trouble) = &tls.trouble {
        return Some(Diagnosis::error(format!(
            "the certificate was changed and cannot be used: {trouble}; the one that was read before is in use for another {}",
            span(about.not_after.duration_since(now))
        ))
        .hint("mend the file: it is taken up within seconds"));
    }
    if about.validity(now) == Validity::EndsSoon {
        return Some(
            Diagnosis::warning(format!(
                "the certificate `{path}` expires in {}",
                span(about.not_after.duration_since(now))
            ))
            .hint("renew it: a new file in its place is taken up within seconds"),
        );
    }
    None
}

fn reach(seen: &Running) -> Diagnosis {
    let all = list(seen.listening.iter().map(ToString::to_string));
    let Some(first) = seen.listening.first() else {
        return Diagnosis::warning("the gateway listens on no address: no node can reach it")
            .hint("moltis gateway --listen 0.0.0.0:9090");
    };
    if seen
        .listening
        .iter()
        .all(|address| address.ip().is_loopback())
    {
        return Diagnosis::ok(format!(
            "listens on {all}, which other machines cannot reach"
        ))
        .hint(format!(
            "so that they can: moltis gateway --listen 0.0.0.0:{}",
            first.port()
        ));
    }
    if seen.insecure_http {
        return Diagnosis::warning(format!(
            "listens on {all} and serves everything there without TLS: who is on the way can read tokens"
        ))
        .hint("administer it over the Unix socket or an SSH tunnel, and turn `insecure_http` off");
    }
    match &seen.tls {
        Some(tls) => Diagnosis::ok(format!(
            "listens on {all} and serves https there, by a certificate that holds for another {}",
            span(tls.certificate.not_after.duration_since(seen.now))
        )),
        None => Diagnosis::ok(format!(
            "listens on {all}; other machines are served /ws and /healthz there"
        )),
    }
}

/// May strangers ask to pair?
pub(super) fn pairing_window(seen: &Running) -> Diagnosis {
    match seen.pairing_closes_at {
        None => Diagnosis::ok("closed: no new node may ask to pair"),
        Some(then) => Diagnosis::warning(format!(
            "open: any machine that reaches the gateway may ask to pair for another {}",
            span(then.duration_since(seen.now))
        ))
        .hint("when all machines have joined: moltis node pairing disable"),
    }
}

/// Are all nodes here?
pub(super) fn nodes(seen: &Running) -> Diagnosis {
    let all = seen.nodes.len();
    let gone: Vec<&Node> = seen.nodes.iter().filter(|node| !node.online).collect();
    if all == 0 {
        return Diagnosis::ok("no node has joined yet").hint("moltis node pairing enable");
    }
    let cloned = seen.nodes.iter().filter(|node| node.is_cloned);
    let cloned: Vec<_> = cloned.map(|node| format!("`{}`", node.name)).collect();
    if !cloned.is_empty() {
        return Diagnosis::error(format!(
            "several machines take over from each other with the key of {}: it was copied; the newest connection stays",
            list(cloned.into_iter())
        ))
        .hint("on the machine that is not meant: moltis node remove, and delete its `node_key`; if nobody copied it: moltis node revoke <node>");
    }
    if gone.is_empty() {
        let names = list(seen.nodes.iter().map(|node| node.name.clone()));
        return Diagnosis::ok(format!("{all} of {all} connected: {names}"));
    }
    let told = gone.iter().map(|node| {
        let seen_at = node.last_seen.map_or_else(
            || "never heard of".to_owned(),
            |then| format!("last heard of {}", ago(then, seen.now)),
        );
        format!("`{}` ({seen_at})", node.name)
    });
    Diagnosis::warning(format!("{} of {all} offline: {}", gone.len(), list(told))).hint(
        "on that machine: moltis doctor; one that is gone for good: moltis node forget <node>",
    )
}

/// Do the clocks of the nodes that are here agree with ours?
pub(super) fn clock(nodes: &[Node]) -> Diagnosis {
    let here: Vec<_> = nodes.iter().filter(|node| node.online).collect();
    let known = here
        .iter()
        .filter_map(|node| Some((*node, node.clock_ahead?)));
    let wrong: Vec<_> = known
        .clone()
        .filter(|(_, ahead)| ahead.abs() > SKEW_MAX)
        .collect();
    if !wrong.is_empty() {
        let told = wrong.iter().map(|(node, ahead)| {
            let side = if ahead.is_positive() {
                "ahead of"
            } else {
                "behind"
            };
            format!("`{}` is {} {side} the gateway", node.name, span(*ahead))
        });
        return Diagnosis::warning(format!("clocks differ: {}", list(told))).hint(
            "compare `date -u` on both machines, and let both keep time: timedatectl set-ntp true",
        );
    }
    let known = known.count();
    match here.len() {
        0 => Diagnosis::ok("no node is connected whose clock could be compared"),
        all if known == all => Diagnosis::ok(format!(
            "the clocks of all {all} connected nodes agree with the gateway's to {} s",
            SKEW_MAX.as_secs()
        )),
        all => Diagnosis::ok(format!(
            "{known} of {all} connected nodes have told their clock, and it agrees with the gateway's to {} s",
            SKEW_MAX.as_secs()
        )),
    }
}

/// Is the database sound, and can it be written to?
pub(super) fn database(database: &Database) -> Diagnosis {
    if let Err(error) = &database.inspected {
        return broken(error);
    }
    if let Some(error) = &database.trouble {
        return broken(error);
    }
    match database.inspected {
        Ok(Inspected::TooLong(bytes)) => Diagnosis::warning(format!(
            "the database is too long to be read whole in a few seconds ({}): it was not checked",
            size(bytes)
        ))
        .hint(format!(
            "while the gateway is stopped: sqlite3 -readonly {} 'PRAGMA quick_check'",
            quoted(&database.path)
        )),
        Ok(Inspected::Missing) => Diagnosis::ok("there is none here: no gateway has run yet"),
        Ok(Inspected::Whole) | Err(_) => Diagnosis::ok("every page was read and is sound"),
    }
}

fn broken(error: &StoreError) -> Diagnosis {
    let restore = "stop the gateway, keep a copy of the file with its `-wal`, and restore a backup";
    match error {
        StoreError::Corrupt { path, detail } => Diagnosis::error(format!(
            "the database `{}` is damaged: {detail}",
            path.display()
        ))
        .hint(restore),
        StoreError::NotADatabase { path, .. } => Diagnosis::error(format!(
            "`{}` is not a database, or its beginning is damaged",
            path.display()
        ))
        .hint(restore),
        StoreError::DiskFull { path } => Diagnosis::error(format!(
            "the disk that holds `{}` is full: nothing new can be written down",
            path.display()
        ))
        .hint("make room on it"),
        StoreError::ReadOnly { reason } => Diagnosis::error(format!(
            "the database takes nothing new since the disk failed to keep what was written: {reason}"
        ))
        .hint("check the disk, then restart the gateway"),
        error => Diagnosis::error(chain(error)),
    }
}

/// Is there room?
pub(super) fn disk(seen: &AtRest) -> Diagnosis {
    let worst = seen
        .disks
        .iter()
        .map(of_disk)
        .max_by_key(|(level, _)| *level);
    let (level, full) = worst.unwrap_or((Level::Ok, None));
    let told = list(seen.disks.iter().map(room));
    if let Some(trouble) = &seen.output_trouble {
        return Diagnosis::error(format!("output cannot be written: {trouble}; {told}"))
            .hint("make room, or look at the disk; it goes on by itself");
    }
    if let Some(trouble) = &seen.sync_trouble {
        let hint = if trouble.is_final {
            "look at the disk, then restart the gateway"
        } else {
            "look at the disk and at the limit of open files; it goes on by itself"
        };
        return Diagnosis::error(format!("{trouble}; {told}")).hint(hint);
    }
    let diagnosis = Diagnosis::new(level, told);
    match full {
        None => diagnosis,
        Some(disk) => diagnosis.hint(format!(
            "make room; what takes it: du -xhd1 {}/",
            quoted(&disk.dir)
        )),
    }
}

fn of_disk(disk: &Disk) -> (Level, Option<&Disk>) {
    match &disk.room {
        Err(_) => (Level::Warning, None),
        // A file system that does not count.
        Ok(room) if room.total_bytes == 0 => (Level::Ok, None),
        // Output waits then: the rest is the store's.
        Ok(room)
            if room.free_bytes <= disk_reserve_bytes(room.total_bytes)
                || room.free_files == Some(0) =>
        {
            (Level::Error, Some(disk))
        }
        Ok(room)
            if room.free_bytes < FREE_BYTES_FEW.min(room.total_bytes / 4)
                || room.free_files.is_some_and(|files| files < FREE_FILES_FEW) =>
        {
            (Level::Warning, Some(disk))
        }
        Ok(_) => (Level::Ok, None),
    }
}

fn room(disk: &Disk) -> String {
    let dir = disk.dir.display();
    match &disk.room {
        Err(error) => format!("the room for `{dir}` is not known: {error}"),
        Ok(Room {
            free_bytes,
            total_bytes,
            free_files,
        }) => {
            let files = match free_files {
                Some(files) if *files < FREE_FILES_FEW => format!(" and {files} files"),
                _ => String::new(),
            };
            format!(
                "{} of {}{files} free for `{dir}`",
                size(*free_bytes),
                size(*total_bytes)
            )
        }
    }
}

/// Where does a command go that names no place?
pub(super) fn exec_route(route: &DefaultRoute) -> Diagnosis {
    let means = "a command that names no place";
    match route {
        DefaultRoute::Local => Diagnosis::ok(format!(
            "`local`: {means} runs on the gateway's own machine"
        )),
        DefaultRoute::LocalWithoutKeeper => Diagnosis::warning(format!(
            "`local`: {means} would run on the gateway's own machine, where nothing runs commands"
        ))
        .hint("name a node with each command"),
        DefaultRoute::Node { name, online: true } => {
            Diagnosis::ok(format!("{means} runs on the node `{name}`"))
        }
        DefaultRoute::Node {
            name,
            online: false,
        } => Diagnosis::error(format!(
            "{means} would run on the node `{name}`, which is offline; nothing runs elsewhere instead"
        ))
        .hint("on that machine: moltis doctor"),
        DefaultRoute::Nowhere { route, why } => {
            Diagnosis::error(format!("{means} goes to `{route}`: {why}"))
                .hint("what there is: moltis node list --all")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;

    use super::*;
    use crate::config::TlsConfig;
    use crate::http::tls::Tls;
    use crate::output::SyncTrouble;
    use crate::store::testing::at;

    fn running() -> Running {
        Running {
            now: at(0),
            settings: SettingsState::Embedded,
            listening: vec!["127.0.0.1:9090".parse().unwrap()],
            insecure_http: false,
            tls: None,
            pairing_closes_at: None,
            nodes: Vec::new(),
            default_route: DefaultRoute::Local,
        }
    }

    fn node(name: &str, online: bool) -> Node {
        Node {
            name: name.to_owned(),
            online,
            last_seen: Some(at(-200)),
            clock_ahead: None,
            is_cloned: false,
        }
    }

    #[track_caller]
    fn says(diagnosis: &Diagnosis, level: Level, message: &str, hint: &str) {
        assert_eq!(diagnosis.level, level, "{diagnosis:?}");
        assert!(diagnosis.message.contains(message), "{diagnosis:?}");
        let found = diagnosis.hint.as_deref().unwrap_or_default();
        assert!(found.contains(hint), "{diagnosis:?}");
        assert_eq!(found.is_empty(), hint.is_empty(), "{diagnosis:?}");
        let is_fragment = !diagnosis.message.ends_with('.');
        assert!(is_fragment, "{diagnosis:?}");
    }

    #[test]
    fn settings_that_changed_since_are_told() {
        let path = PathBuf::from("/m/moltis.toml");
        let read = SettingsState::AsRead(path.clone());
        says(&config(&read), Level::Ok, "as the gateway read it", "");
        says(&config(&SettingsState::Embedded), Level::Ok, "program", "");
        let missing = SettingsState::Missing(path.clone());
        says(&config(&missing), Level::Ok, "as by default", "");
        let changed = SettingsState::Changed(path);
        says(
            &config(&changed),
            Level::Warning,
            "`/m/moltis.toml` has changed",
            "restart the gateway",
        );
    }

    #[test]
    fn who_can_reach_the_gateway_is_told() {
        let mut seen = running();
        says(
            &listen(&seen),
            Level::Ok,
            "127.0.0.1:9090, which other machines cannot",
            "--listen 0.0.0.0:9090",
        );
        seen.listening.push("0.0.0.0:9091".parse().unwrap());
        says(
            &listen(&seen),
            Level::Ok,
            "127.0.0.1:9090, 0.0.0.0:9091; ",
            "",
        );
        seen.insecure_http = true;
        says(&listen(&seen), Level::Warning, "without TLS", "SSH tunnel");
        seen.listening.pop();
        says(&listen(&seen), Level::Ok, "cannot reach", "--listen");
        seen.listening.clear();
        says(&listen(&seen), Level::Warning, "no address", "--listen");
    }

    #[test]
    fn a_certificate_is_told_before_it_ends_and_when_it_is_of_no_use() {
        let mut seen = running();
        seen.listening = vec!["0.0.0.0:9090".parse().unwrap()];
        let dir = tempfile::tempdir().unwrap();
        let config = TlsConfig::Generated { names: Vec::new() };
        let tls = Tls::open(&config, dir.path(), [], at(0)).unwrap();
        let status = tls.status();
        seen.tls = Some(status.clone());
        says(&listen(&seen), Level::Ok, "serves https there", "");
        let ends = status.certificate.not_after;
        seen.now = ends - SignedDuration::from_hours(13 * 24);
        says(
            &listen(&seen),
            Level::Warning,
            "expires in 13 d 0 h",
            "renew",
        );
        seen.now = ends + SignedDuration::from_secs(1);
        says(
            &listen(&seen),
            Level::Error,
            "has expired on",
            "--tls-generate",
        );
        seen.now = at(0);
        let mut trouble = status.clone();
        trouble.trouble = Some("`x` holds no certificate".to_owned());
        seen.tls = Some(trouble);
        says(
            &listen(&seen),
            Level::Error,
            "`x` holds no certificate; the one",
            "mend",
        );
        let mut refused = status;
        refused.certificate.objection = Some("is that of an authority".to_owned());
        seen.tls = Some(refused);
        says(
            &listen(&seen),
            Level::Error,
            "is that of an authority",
            "new one",
        );
    }

    #[test]
    fn a_window_left_open_is_told_with_the_time_that_is_left() {
        let mut seen = running();
        says(&pairing_window(&seen), Level::Ok, "closed", "");
        seen.pairing_closes_at = Some(at(570));
        says(
            &pairing_window(&seen),
            Level::Warning,
            "for another 9 min 30 s",
            "moltis node pairing disable",
        );
    }

    #[test]
    fn nodes_that_are_gone_are_named() {
        let mut seen = running();
        says(&nodes(&seen), Level::Ok, "no node has joined", "pairing");
        seen.nodes = vec![node("box", true)];
        says(&nodes(&seen), Level::Ok, "1 of 1 connected: box", "");
        seen.nodes.push(node("attic", false));
        let mut never = node("cellar", false);
        never.last_seen = None;
        seen.nodes.push(never);
        says(
            &nodes(&seen),
            Level::Warning,
            "2 of 3 offline: `attic` (last heard of 3 min 20 s ago), `cellar` (never heard of)",
            "moltis node forget",
        );
    }

    #[test]
    fn a_key_in_two_places_comes_before_all_else_of_the_nodes() {
        let mut seen = running();
        let copied = Node {
            is_cloned: true,
            ..node("box", true)
        };
        seen.nodes = vec![node("gone", false), copied];
        says(&nodes(&seen), Level::Error, "the key of `box`", "node_key");
    }

    #[test]
    fn clocks_that_differ_are_told_with_their_sign() {
        says(&clock(&[]), Level::Ok, "no node is connected", "");
        let mut nodes = vec![node("box", true), node("attic", true), node("gone", false)];
        nodes[2].clock_ahead = Some(SignedDuration::from_hours(9));
        says(&clock(&nodes), Level::Ok, "0 of 2 connected", "");
        nodes[0].clock_ahead = Some(SignedDuration::from_secs(10));
        nodes[1].clock_ahead = Some(SignedDuration::from_secs(-10));
        says(&clock(&nodes), Level::Ok, "all 2 connected nodes agree", "");
        nodes[0].clock_ahead = Some(SignedDuration::from_secs(75));
        nodes[1].clock_ahead = Some(SignedDuration::from_secs(-11));
        says(
            &clock(&nodes),
            Level::Warning,
            "`box` is 1 min 15 s ahead of the gateway, `attic` is 11 s behind the gateway",
            "date -u",
        );
    }

    #[test]
    fn what_is_wrong_with_the_database_is_told() {
        let path = PathBuf::from("/m/gateway.db");
        let seen = |inspected, trouble| {
            let path = "/m/gateway.db".into();
            database(&Database {
                path,
                inspected,
                trouble,
            })
        };
        says(&seen(Ok(Inspected::Whole), None), Level::Ok, "sound", "");
        says(
            &seen(Ok(Inspected::Missing), None),
            Level::Ok,
            "none here",
            "",
        );
        says(
            &seen(Ok(Inspected::TooLong(3 << 30)), None),
            Level::Warning,
            "(3.0 GiB)",
            "sqlite3 -readonly /m/gateway.db 'PRAGMA quick_check'",
        );
        let corrupt = StoreError::Corrupt {
            path: path.clone(),
            detail: "page 7".to_owned(),
        };
        says(
            &seen(Err(corrupt), None),
            Level::Error,
            "is damaged: page 7",
            "restore a backup",
        );
        let other = StoreError::NotADatabase {
            path: path.clone(),
            found: "x".to_owned(),
        };
        says(
            &seen(Err(other), None),
            Level::Error,
            "not a database",
            "backup",
        );
        let full = StoreError::DiskFull { path: path.clone() };
        says(
            &seen(Ok(Inspected::Whole), Some(full)),
            Level::Error,
            "`/m/gateway.db` is full",
            "make room",
        );
        let read_only = StoreError::ReadOnly {
            reason: "fdatasync failed".to_owned(),
        };
        says(
            &seen(Ok(Inspected::Whole), Some(read_only)),
            Level::Error,
            "fdatasync failed",
            "restart the gateway",
        );
        let file = StoreError::File {
            verb: "look at",
            path,
            source: Arc::new(std::io::ErrorKind::PermissionDenied.into()),
        };
        says(
            &seen(Err(file), None),
            Level::Error,
            "cannot look at `/m/gateway.db`: permission denied",
            "",
        );
    }

    #[test]
    fn a_disk_without_room_is_told() {
        let seen = |free_bytes, free_files| AtRest {
            files: crate::doctor::files::tests::none(),
            database: Database {
                path: "/m/gateway.db".into(),
                inspected: Ok(Inspected::Missing),
                trouble: None,
            },
            disks: vec![Disk {
                dir: "/m".into(),
                room: Ok(Room {
                    free_bytes,
                    total_bytes: 100 << 30,
                    free_files,
                }),
            }],
            output_trouble: None,
            sync_trouble: None,
        };
        let plenty = 50 << 30;
        says(
            &disk(&seen(plenty, None)),
            Level::Ok,
            "50.0 GiB of 100.0 GiB free for `/m`",
            "",
        );
        let few = FREE_BYTES_FEW - 1;
        says(
            &disk(&seen(few, None)),
            Level::Warning,
            "MiB",
            "du -xhd1 /m",
        );
        let none = disk_reserve_bytes(u64::MAX);
        says(
            &disk(&seen(none, None)),
            Level::Error,
            "64.0 MiB",
            "du -xhd1",
        );
        // A small disk is measured by its own size, and one that does not count by nothing.
        let of = |free_bytes, total_bytes| {
            let mut seen = seen(free_bytes, None);
            seen.disks[0].room = Ok(Room {
                free_bytes,
                total_bytes,
                free_files: None,
            });
            disk(&seen)
        };
        says(&of(100 << 20, 256 << 20), Level::Ok, "100.0 MiB", "");
        says(&of(50 << 20, 256 << 20), Level::Warning, "50.0 MiB", "du");
        says(&of(32 << 20, 256 << 20), Level::Error, "32.0 MiB", "du");
        says(&of(0, 0), Level::Ok, "0 B", "");
        let files = "999 files";
        says(&disk(&seen(plenty, Some(999))), Level::Warning, files, "du");
        says(&disk(&seen(plenty, Some(0))), Level::Error, "0 files", "du");
        let mut two = seen(plenty, None);
        two.disks.push(Disk {
            dir: "/o".into(),
            room: Err("no such device".to_owned()),
        });
        let message = "50.0 GiB of 100.0 GiB free for `/m`, the room for `/o` is not known";
        says(&disk(&two), Level::Warning, message, "");
        two.disks.remove(1);
        two.output_trouble = Some("the disk is full".to_owned());
        says(
            &disk(&two),
            Level::Error,
            "cannot be written: the disk",
            "room",
        );
        two.output_trouble = None;
        for (is_final, message, hint) in [
            (false, "waits to be synced: EIO; 50.0 GiB", "by itself"),
            (true, "until the gateway is restarted: EIO;", "restart"),
        ] {
            let detail = "EIO".to_owned();
            two.sync_trouble = Some(SyncTrouble { is_final, detail });
            says(&disk(&two), Level::Error, message, hint);
        }
    }

    #[test]
    fn a_route_that_leads_nowhere_is_told() {
        let local = exec_route(&DefaultRoute::Local);
        says(&local, Level::Ok, "`local`", "");
        let without = exec_route(&DefaultRoute::LocalWithoutKeeper);
        says(&without, Level::Warning, "nothing runs commands", "node");
        let node = |online| DefaultRoute::Node {
            name: "box".to_owned(),
            online,
        };
        says(&exec_route(&node(true)), Level::Ok, "node `box`", "");
        says(&exec_route(&node(false)), Level::Error, "offline", "doctor");
        let nowhere = exec_route(&DefaultRoute::Nowhere {
            route: "node:x".to_owned(),
            why: "no node is called `x`".to_owned(),
        });
        says(&nowhere, Level::Error, "`node:x`: no node is", "node list");
    }
}
