//! Link and keeper together: real commands, through real sockets, to a scripted gateway.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use moltis_node::keeper::{self, Keeper, KeeperConfig, Policy, Rules};
use moltis_node::{KeeperDir, LinkError};
use moltis_proto::code::CloseCode;
use moltis_proto::run::{Command, Outcome, RunSpec, RunState, StdinMode};
use moltis_proto::{BootId, FromKeeper, ToGateway, ToKeeper, ToNode, key};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::gateway::{Peer, TestGateway};
use crate::node::{TestNode, config};
use crate::session::run;

fn keeper_config(dir: &Path, version: &str) -> KeeperConfig {
    let rules = Rules {
        policy: Policy::Full,
        env_allow: Vec::new(),
        timeout_max: None,
        timeout_default: None,
        working_dir: PathBuf::from("/"),
        base_env: BTreeMap::from([("PATH".to_owned(), "/usr/bin:/bin".to_owned())]),
    };
    let boot_id = BootId::from_bytes([1; 16]);
    KeeperConfig::new(dir, Arc::new(rules), boot_id, version)
}

fn start(number: u8, line: &str) -> ToNode {
    ToNode::Run(ToKeeper::Start {
        run_id: run(number),
        digest: key::Digest::from_bytes([number; 32]),
        spec: Box::new(RunSpec {
            command: Command::Shell(line.to_owned()),
            cwd: None,
            env: BTreeMap::new(),
            timeout_ms: None,
            grace_ms: 1000,
            stdin: StdinMode::Open,
            tty: None,
        }),
    })
}

fn stdin(number: u8, bytes: &'static [u8]) -> ToNode {
    ToNode::Run(ToKeeper::Stdin {
        run_id: run(number),
        offset: 0,
        bytes: bytes.into(),
        eof: true,
    })
}

/// Hears a run to its end; returns its output.
async fn to_the_end(peer: &mut Peer) -> Vec<u8> {
    let mut stdout = Vec::new();
    loop {
        match peer.hear().await {
            ToGateway::Run(FromKeeper::Output { offset, bytes, .. }) => {
                assert_eq!(offset, stdout.len() as u64);
                stdout.extend_from_slice(&bytes.0);
            }
            ToGateway::Run(FromKeeper::Ended { ending, totals, .. }) => {
                assert_eq!(ending.outcome, Outcome::Exited);
                assert_eq!(totals.stdout, stdout.len() as u64);
                return stdout;
            }
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_command_outlives_a_cut_connection() {
    let dir = tempfile::tempdir().unwrap();
    let keeper = Keeper::spawn_in_process(keeper_config(dir.path(), "1")).unwrap();
    let keeper = Arc::new(keeper);
    let gateway = TestGateway::bind().await;
    let node = TestNode::with_real(config(gateway.url()), Arc::clone(&keeper));
    let mut peer = gateway.admit().await;
    peer.hear().await;
    peer.say(start(1, "read word; echo got $word")).await;
    assert!(matches!(
        peer.hear().await,
        ToGateway::Run(FromKeeper::Started { .. })
    ));
    drop(peer);

    let mut peer = gateway.admit().await;
    let ToGateway::Run(FromKeeper::Runs { runs, .. }) = peer.hear().await else {
        panic!("no list");
    };
    assert_eq!(runs.len(), 1);
    assert_eq!(runs[0].run_id, run(1));
    assert!(matches!(runs[0].state, RunState::Running { .. }));
    peer.say(ToNode::Run(ToKeeper::Resume {
        run_id: run(1),
        stdout: 0,
        stderr: 0,
    }))
    .await;
    peer.say(stdin(1, b"it\n")).await;
    assert_eq!(to_the_end(&mut peer).await, b"got it\n");
    node.stop().await;
    keeper.shut_down().await;
}

#[tokio::test]
async fn after_an_upgrade_new_runs_go_to_the_new_keeper_and_old_ones_end_with_the_old() {
    let dir = tempfile::tempdir().unwrap();
    let stop = CancellationToken::new();
    let mut keepers = JoinSet::new();
    let mut serve = |version: &str| {
        let served = keeper::serve(keeper_config(dir.path(), version), stop.clone());
        keepers.spawn(async move {
            served.await.unwrap();
        });
    };
    let gateway = TestGateway::bind().await;
    let at = |version| KeeperDir::new(dir.path(), |_: &Path| Ok(())).version(version);

    serve("1");
    let old = TestNode::with_real(config(gateway.url()), at("1"));
    let mut peer = gateway.admit().await;
    peer.hear().await;
    peer.say(start(1, "read word; echo old $word")).await;
    peer.hear().await;
    old.stop().await;

    serve("2");
    let new = TestNode::with_real(config(gateway.url()), at("2"));
    let mut peer = gateway.admit().await;
    let ToGateway::Run(FromKeeper::Runs { journals, runs, .. }) = peer.hear().await else {
        panic!("no list");
    };
    assert_eq!(journals.len(), 2, "both keepers live");
    assert_eq!(runs.len(), 1);
    assert_eq!(
        runs[0].journal_id, journals[1],
        "the old run is the old keeper's"
    );
    peer.say(start(2, "echo new")).await;
    assert_eq!(to_the_end(&mut peer).await, b"new\n");
    peer.say(ToNode::Run(ToKeeper::Resume {
        run_id: run(1),
        stdout: 0,
        stderr: 0,
    }))
    .await;
    peer.say(stdin(1, b"one\n")).await;
    assert_eq!(to_the_end(&mut peer).await, b"old one\n");
    new.stop().await;
    stop.cancel();
    while keepers.join_next().await.is_some() {}
}

#[tokio::test]
async fn a_run_message_that_breaks_a_rule_ends_the_connection_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let keeper = Keeper::spawn_in_process(keeper_config(dir.path(), "1")).unwrap();
    let keeper = Arc::new(keeper);
    let gateway = TestGateway::bind().await;
    let mut node = TestNode::with_real(config(gateway.url()), Arc::clone(&keeper));
    let mut peer = gateway.admit().await;
    peer.hear().await;
    peer.say(start(1, "read word; echo got $word")).await;
    peer.hear().await;
    peer.say(ToNode::Run(ToKeeper::Ack {
        run_id: run(1),
        stdout: 1_000,
        stderr: 0,
    }))
    .await;
    let code = CloseCode::Protocol;
    assert_eq!(peer.hear().await, ToGateway::Close { code });
    let (error, _) = node.disconnected().await;
    assert!(matches!(&*error, LinkError::Protocol(_)), "{error:?}");
    // The run is not touched.
    let mut peer = gateway.admit().await;
    peer.hear().await;
    peer.say(ToNode::Run(ToKeeper::Resume {
        run_id: run(1),
        stdout: 0,
        stderr: 0,
    }))
    .await;
    peer.say(stdin(1, b"it\n")).await;
    assert_eq!(to_the_end(&mut peer).await, b"got it\n");
    node.stop().await;
    keeper.shut_down().await;
}
