//! What the checks look at, gathered: the one room of the doctor that touches files and asks others.

use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use super::files::{Files, OUTPUTS};
use super::{
    AtRest, Database, DefaultRoute, Disk, Finding, Node, OF_GATEWAY, OF_HOME, Room, Running,
    SettingsState, examine,
};
use crate::clock::Clock;
use crate::config::SettingsFile;
use crate::exec::Route;
use crate::http::tls::Tls;
use crate::output::Outputs;
use crate::pairing::PairingDesk;
use crate::roster::{NodeView, Roster};
use crate::store::{self, Store};
use crate::system::System;

/// How long the database may be read: 2 GiB from a disk that gives 500 MB/s.
const CHECK_TIME: Duration = Duration::from_secs(4);

/// Looks at a gateway that runs.
#[derive(Debug)]
pub(crate) struct Doctor {
    pub(crate) dir: PathBuf,
    pub(crate) settings: Option<SettingsFile>,
    pub(crate) insecure_http: bool,
    pub(crate) tls: Option<Tls>,
    pub(crate) default_route: String,
    /// There is a way to a keeper of this machine.
    pub(crate) has_local: bool,
    pub(crate) store: Store,
    pub(crate) outputs: Outputs,
    pub(crate) roster: Roster,
    pub(crate) pairing: PairingDesk,
    pub(crate) clock: Clock,
    pub(crate) last: Mutex<Option<Looked>>,
}

/// A look at the home, which reads much: who waits for one that is under way shares the next.
#[derive(Debug, Clone)]
pub(crate) struct Looked {
    began: Instant,
    findings: Vec<Finding>,
}

impl Doctor {
    /// Returns a finding for every check. `listening` is what the gateway listens on.
    pub(crate) async fn findings(&self, listening: Vec<SocketAddr>) -> Vec<Finding> {
        let mut findings = examine(&self.running(listening), OF_GATEWAY);
        findings.extend(self.of_home().await);
        findings
    }

    /// However many ask at once, one look is under way, and one more is enough for all of them.
    async fn of_home(&self) -> Vec<Finding> {
        let asked = Instant::now();
        let mut last = self.last.lock().await;
        if let Some(looked) = last.as_ref().filter(|looked| looked.began >= asked) {
            return looked.findings.clone();
        }
        let began = Instant::now();
        let mut seen = at_rest(self.outputs.system(), &self.dir).await;
        seen.database.trouble = self.store.ready().await.err();
        let trouble = self.outputs.trouble().borrow().clone();
        seen.output_trouble = trouble.map(|trouble| trouble.to_string());
        let trouble = self.outputs.sync_trouble();
        seen.sync_trouble.clone_from(&trouble.borrow());
        let findings = examine(&seen, OF_HOME);
        *last = Some(Looked {
            began,
            findings: findings.clone(),
        });
        findings
    }

    fn running(&self, listening: Vec<SocketAddr>) -> Running {
        let all = self.roster.list();
        let known = all.iter().filter(|view| view.record.revoked_at.is_none());
        Running {
            now: self.clock.now(),
            settings: settings(self.settings.as_ref()),
            listening,
            insecure_http: self.insecure_http,
            tls: self.tls.as_ref().map(Tls::status),
            pairing_closes_at: self.pairing.window(),
            nodes: known.map(|view| self.node(view)).collect(),
            default_route: self.default_route(),
        }
    }

    fn node(&self, view: &NodeView) -> Node {
        let now = Instant::now().into_std();
        Node {
            name: view.record.name.to_string(),
            online: view.presence.is_some(),
            last_seen: view.last_seen(),
            clock_ahead: view.presence.as_ref().and_then(|here| here.clock_ahead),
            is_cloned: self.roster.is_cloned(view.record.device_id, now),
        }
    }

    fn default_route(&self) -> DefaultRoute {
        if self.default_route == "node:" {
            return DefaultRoute::Nowhere {
                route: self.default_route.clone(),
                why: "it names no node".to_owned(),
            };
        }
        match self.roster.route(&self.default_route) {
            Ok(Route::Local) if self.has_local => DefaultRoute::Local,
            Ok(Route::Local) => DefaultRoute::LocalWithoutKeeper,
            Ok(Route::Node(record)) => DefaultRoute::Node {
                name: record.name.to_string(),
                online: self
                    .roster
                    .get(record.device_id)
                    .is_some_and(|view| view.presence.is_some()),
            },
            Ok(Route::Ssh(label)) => DefaultRoute::Nowhere {
                route: self.default_route.clone(),
                why: format!("no SSH target is called `{label}`"),
            },
            Err(error) => DefaultRoute::Nowhere {
                route: self.default_route.clone(),
                why: error.to_string(),
            },
        }
    }
}

/// Looks at a home: its files, its database, its disks.
pub(super) async fn at_rest(system: &System, dir: &Path) -> AtRest {
    let home = dir.to_owned();
    let look = move || (Files::scan(&home), disks(&home));
    let inspect = system.sqlite(store::inspect(dir, CHECK_TIME));
    let (looked, inspected) = tokio::join!(system.blocking(look), inspect);
    let (files, disks) =
        looked.expect("looking at files does not panic, and a runtime that ends awaits nothing");
    AtRest {
        files,
        database: Database {
            path: dir.join(store::FILE),
            inspected,
            trouble: None,
        },
        disks,
        output_trouble: None,
        sync_trouble: None,
    }
}

fn settings(read: Option<&SettingsFile>) -> SettingsState {
    let Some(read) = read else {
        return SettingsState::Embedded;
    };
    let path = read.path.clone();
    if SettingsFile::stamp(&path) != *read {
        return SettingsState::Changed(path);
    }
    match read.modified {
        Some(_) => SettingsState::AsRead(path),
        None => SettingsState::Missing(path),
    }
}

/// The disk of the home, and that of the outputs where it is another. A home that is not there yet
/// would be made in the nearest directory above that is.
pub(crate) fn disks(home: &Path) -> Vec<Disk> {
    let there = home.ancestors().find(|dir| dir.exists()).unwrap_or(home);
    let outputs = home.join(OUTPUTS);
    let device = |dir: &Path| std::fs::metadata(dir).map(|found| found.dev()).ok();
    let mut dirs = vec![there.to_owned()];
    if device(&outputs).is_some_and(|other| Some(other) != device(there)) {
        dirs.push(outputs);
    }
    let disk = |dir: PathBuf| Disk {
        room: room(&dir).map_err(|error| error.to_string()),
        dir,
    };
    dirs.into_iter().map(disk).collect()
}

fn room(dir: &Path) -> std::io::Result<Room> {
    let found = rustix::fs::statvfs(dir)?;
    Ok(Room {
        free_bytes: found.f_bavail.saturating_mul(found.f_frsize),
        total_bytes: found.f_blocks.saturating_mul(found.f_frsize),
        // A file system that makes them as needed counts none.
        free_files: (found.f_files > 0).then_some(found.f_favail),
    })
}
