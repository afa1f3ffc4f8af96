//! What tests of rows share: a store in a temporary folder, and rows to put into it.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use moltis_proto::handshake::{Introduction, PolicyMode};
use moltis_proto::key::Digest;
use moltis_proto::run::{Command, Ending, ExitStatus, Outcome, RunSpec, StdinMode};
use moltis_proto::telemetry::Platform;
use moltis_proto::{BootId, DeviceId, JournalId, Labels, NodeId, NodeName, PublicKey, RunId};

use super::{Claims, Lived, NewRun, NodeRecord, RunStage, Store, Target};
use crate::audit::{Action, Actor, Entry};
use crate::clock::from_millis;

/// A store whose files vanish with it.
pub(crate) struct TestStore {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) store: Store,
}

impl std::ops::Deref for TestStore {
    type Target = Store;

    fn deref(&self) -> &Store {
        &self.store
    }
}

pub(crate) async fn store() -> TestStore {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    TestStore { dir, store }
}

/// Has the machine have lived for so many seconds.
pub(crate) async fn live(store: &Store, seconds: u64) {
    let lived = Lived {
        total: Duration::from_secs(seconds),
        boot_id: None,
        boottime: Duration::ZERO,
    };
    store.set_lived(lived).await.unwrap();
}

/// Fills the disk, as far as the store can tell: the next page is one too many.
pub(crate) async fn fill(store: &Store) {
    execute(store, "PRAGMA max_page_count = 1").await;
}

/// Makes room again.
pub(crate) async fn unfill(store: &Store) {
    execute(store, "PRAGMA max_page_count = 100000").await;
}

/// Has the database fail at every change of a run that is there.
pub(crate) async fn refuse_changes(store: &Store) {
    let trigger = "CREATE TRIGGER refused BEFORE UPDATE ON runs \
                   BEGIN SELECT RAISE(ABORT, 'a test refuses it'); END";
    execute(store, trigger).await;
}

/// Has it take them again.
pub(crate) async fn take_changes(store: &Store) {
    execute(store, "DROP TRIGGER refused").await;
}

/// Makes the database 4 MiB long.
pub(crate) async fn grow(store: &Store) {
    let row = "INSERT INTO settings (name, value) VALUES ('long', hex(zeroblob(2097152)))";
    execute(store, row).await;
}

async fn execute(store: &Store, sql: &'static str) {
    let executed = store.transact(move |tx| {
        Box::pin(async move {
            let done = sqlx::query(sql).execute(&mut *tx.connection).await;
            done.unwrap();
            Ok(())
        })
    });
    executed.await.unwrap();
}

pub(crate) fn at(seconds: i64) -> Timestamp {
    from_millis((1_700_000_000 + seconds) * 1000)
}

pub(crate) fn introduction(name: &str) -> Introduction {
    Introduction {
        node_id: NodeId::new(name).unwrap(),
        name: NodeName::new(name).unwrap(),
        labels: Labels::new(BTreeMap::from([("gpu".to_owned(), "true".to_owned())])).unwrap(),
        platform: Platform {
            os: "linux".to_owned(),
            ..Platform::default()
        },
        version: "0.1.0".to_owned(),
        user: "ada".to_owned(),
        working_dir: "/home/ada".to_owned(),
        timeout_ms: 300_000,
        policy: PolicyMode::Full,
        env_allow: vec!["CI".to_owned()],
        capabilities: Vec::new(),
    }
}

pub(crate) fn node(number: u8) -> NodeRecord {
    let said = introduction(&format!("box-{number}"));
    NodeRecord {
        device_id: DeviceId::from_bytes([number; 16]),
        node_key: PublicKey::from_bytes([number; 32]),
        claims: Claims::from(&said),
        node_id: said.node_id,
        name: said.name,
        labels: said.labels,
        platform: said.platform,
        paired_at: at(0),
        paired_by: "operator".to_owned(),
        last_seen_at: None,
        last_address: None,
        revoked_at: None,
    }
}

pub(crate) fn run(number: u8) -> NewRun {
    NewRun {
        id: RunId::from_bytes([number; 16]),
        key: None,
        requested_by: "operator".to_owned(),
        digest: Digest::from_bytes([number; 32]),
        target: Target::Local,
        shown: "local".to_owned(),
        spec: RunSpec {
            command: Command::Argv(vec!["uname".to_owned(), "-a".to_owned()]),
            cwd: None,
            env: BTreeMap::new(),
            timeout_ms: Some(300_000),
            grace_ms: 5000,
            stdin: StdinMode::Empty,
            tty: None,
        },
        stage: RunStage::Starting,
        incarnation: 7,
        boot_id: Some(BootId::from_bytes([2; 16])),
        journal_id: Some(JournalId::from_bytes([3; 16])),
        created_at: at(i64::from(number)),
        asked: None,
    }
}

pub(crate) fn ending() -> Ending {
    Ending {
        outcome: Outcome::Exited,
        reason: None,
        status: Some(ExitStatus::Code(3)),
        detail: String::new(),
        duration_ms: 12,
        descendants_may_survive: false,
    }
}

pub(crate) fn operator() -> Actor {
    Actor::operator()
}

pub(crate) fn entry(action: Action) -> Entry {
    Entry::new(at(0), &operator(), action, &"test", serde_json::json!({}))
}
