//! Runs on the gateway's own machine, by one keeper or several.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use moltis_gateway::exec::{RunEvent, RunHandle, StartError, StdinSource};
use moltis_gateway::local::{Connecting, KeeperStream};
use moltis_gateway::principal::Principal;
use moltis_gateway::store::RunFilter;
use moltis_gateway::{Gateway, GatewayBuilder, GatewayConfig};
use moltis_node::keeper::Keeper;
use moltis_proto::code::RunRefusal;
use moltis_proto::{Codec, FromKeeper, ToKeeper};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

use crate::gateway::{PATIENCE, shell, told, until, until_asked};
use crate::node::keeper_in;
use crate::raw::{BOOT, JOURNAL};

/// Who is there for the gateway, the one for new runs first.
type Present = Arc<Mutex<Vec<Arc<Keeper>>>>;

fn present(keepers: &[&Arc<Keeper>]) -> Present {
    Arc::new(Mutex::new(keepers.iter().copied().cloned().collect()))
}

async fn streams(keepers: Vec<Arc<Keeper>>) -> io::Result<Vec<Box<dyn KeeperStream>>> {
    let mut streams: Vec<Box<dyn KeeperStream>> = Vec::new();
    for keeper in keepers {
        streams.push(Box::new(keeper.connect().await?));
    }
    Ok(streams)
}

async fn gateway(dir: &Path, keepers: &Present) -> Gateway {
    let builder = builder(GatewayConfig::new(dir), keepers);
    builder.build().await.unwrap()
}

fn builder(config: GatewayConfig, keepers: &Present) -> GatewayBuilder {
    let keepers = Arc::clone(keepers);
    let connector = move || -> Connecting {
        let keepers = keepers.lock().unwrap().clone();
        Box::pin(streams(keepers))
    };
    Gateway::builder(config).keeper(connector)
}

async fn start(gateway: &Gateway, line: &str) -> RunHandle {
    let request = shell(line).on("local");
    let started = gateway.runs().start(request, &Principal::Operator).await;
    started.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn after_an_upgrade_each_run_stays_with_its_keeper_and_new_ones_go_to_the_newest() {
    let dir = TempDir::new().unwrap();
    let old = Arc::new(keeper_in(&dir.path().join("old")));
    let new = Arc::new(keeper_in(&dir.path().join("new")));
    let home = dir.path().join("gateway");
    let first = gateway(&home, &present(&[&old])).await;
    let mut request = shell("read line; echo $line; exit 4").on("local");
    request.stdin = StdinSource::Open;
    let waiting = first.runs().start(request, &Principal::Operator).await;
    let waiting = waiting.unwrap();
    until("the start", || waiting.record().started_at).await;
    let waiting = waiting.id();
    first.shutdown().await;
    drop(first);

    let second = gateway(&home, &present(&[&new, &old])).await;
    let fresh = start(&second, "echo new").await;
    assert_eq!(told(&fresh).await.out(), "new\n");
    let waits = second.runs().handle(waiting).await.unwrap();
    assert!(waits.record().ending.is_none(), "{:?}", waits.record());
    assert_ne!(waits.record().journal_id, fresh.record().journal_id);
    let line = bytes::Bytes::from_static(b"still here\n");
    second.runs().stdin(waiting, 0, line, true).await.unwrap();
    let told_by_old = told(&waits).await;
    assert_eq!(told_by_old.out(), "still here\n");
    // The older keeper was told to forget it, and new runs go on.
    assert_eq!(told(&start(&second, "echo on").await).await.out(), "on\n");
    second.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_the_keeper_of_this_machine_holds_and_no_row_knows_can_be_claimed() {
    let dir = TempDir::new().unwrap();
    let keeper = Arc::new(keeper_in(&dir.path().join("runs")));
    let before = gateway(&dir.path().join("before"), &present(&[&keeper])).await;
    let handle = start(&before, "echo mine; sleep 60").await;
    let id = handle.id();
    let mut follow = handle.follow(0, 0);
    follow.next().await.unwrap();
    drop((follow, handle));
    before.shutdown().await;
    let restored = GatewayConfig::new(dir.path().join("restored"));
    let builder = builder(restored, &present(&[&keeper]));
    let restored = builder.keeper_may_hold_runs(true).build().await.unwrap();
    let runs = restored.runs();
    let found = until_asked("the run", async || runs.status(id).await.ok()).await;
    assert!(found.record.unclaimed && found.record.shown == "local");
    runs.claim(id, &Principal::Operator).await.unwrap();
    let mut follow = runs.follow(id, 0, 0).await.unwrap();
    loop {
        match follow.next().await.unwrap() {
            RunEvent::Output { bytes, .. } => break assert_eq!(&bytes[..], b"mine\n"),
            RunEvent::KeepAlive => {}
            other => panic!("{other:?}"),
        }
    }
    runs.cancel(id, None, &Principal::Operator).await.unwrap();
    runs.wait(id).await.unwrap();
    let (all, _) = runs.list(&RunFilter::default(), 10).await.unwrap();
    assert_eq!(all.len(), 1);
    restored.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_nobody_waits_for_any_more_is_closed() {
    let dir = TempDir::new().unwrap();
    let (ours, mut theirs) = tokio::io::duplex(64 * 1024);
    let silent = Arc::new(Mutex::new(Some(ours)));
    let keeper = Arc::new(keeper_in(&dir.path().join("runs")));
    let connector = move || -> Connecting {
        let silent = silent.lock().unwrap().take();
        let keeper = Arc::clone(&keeper);
        Box::pin(async move {
            match silent {
                Some(silent) => Ok(vec![Box::new(silent) as Box<dyn KeeperStream>]),
                None => streams(vec![keeper]).await,
            }
        })
    };
    let config = GatewayConfig::new(dir.path().join("gateway"));
    let gateway = Gateway::builder(config).keeper(connector).build();
    let gateway = gateway.await.unwrap();
    // The first keeper takes the connection and says nothing; whoever asked goes away.
    let request = shell("true").on("local");
    let runs = gateway.runs();
    let start = runs.start(request.clone(), &Principal::Operator);
    let given_up = tokio::time::timeout(Duration::from_millis(300), start).await;
    assert!(given_up.is_err(), "{given_up:?}");
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(PATIENCE, theirs.read_to_end(&mut rest)).await;
    closed.expect("the connection stays open").unwrap();
    // The next one meets a keeper that speaks.
    assert_eq!(
        told(&self::start(&gateway, "echo on").await).await.out(),
        "on\n"
    );
    gateway.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_keeper_is_found_the_asker_is_told() {
    let dir = TempDir::new().unwrap();
    let gateway = gateway(dir.path(), &present(&[])).await;
    let request = shell("true").on("local");
    let error = gateway.runs().start(request, &Principal::Operator).await;
    assert!(
        matches!(error, Err(StartError::LocalFailed(_))),
        "{error:?}"
    );
    gateway.shutdown().await;
}

/// A keeper that lists nothing and refuses every start, for it leaves.
async fn leaving(mut stream: DuplexStream) {
    let list = FromKeeper::Runs {
        boot_id: BOOT,
        journals: vec![JOURNAL],
        runs: Vec::new(),
        last: true,
    };
    while let Some(message) = hear(&mut stream).await {
        let answer = match message {
            ToKeeper::Attach { .. } => list.clone(),
            ToKeeper::Start { run_id, .. } => FromKeeper::Refused {
                run_id,
                code: RunRefusal::Leaving,
            },
            _ => continue,
        };
        let bytes = Codec::Postcard.encode(&answer).unwrap();
        let length = u32::try_from(bytes.len()).unwrap();
        stream.write_all(&length.to_be_bytes()).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
    }
}

async fn hear(stream: &mut DuplexStream) -> Option<ToKeeper> {
    let length = stream.read_u32().await.ok()?;
    let mut bytes = vec![0; length as usize];
    stream.read_exact(&mut bytes).await.ok()?;
    Some(Codec::Postcard.decode(&bytes).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_met_a_leaving_keeper_goes_to_the_next_one_here_too() {
    let dir = TempDir::new().unwrap();
    let keeper = Arc::new(keeper_in(&dir.path().join("runs")));
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    tokio::spawn(leaving(theirs));
    let first = Arc::new(Mutex::new(Some(ours)));
    let connector = move || -> Connecting {
        let first = first.lock().unwrap().take();
        let keeper = Arc::clone(&keeper);
        Box::pin(async move {
            match first {
                Some(first) => Ok(vec![Box::new(first) as Box<dyn KeeperStream>]),
                None => streams(vec![keeper]).await,
            }
        })
    };
    let config = GatewayConfig::new(dir.path().join("gateway"));
    let gateway = Gateway::builder(config).keeper(connector).build();
    let gateway = gateway.await.unwrap();
    let handle = start(&gateway, "echo here").await;
    assert_eq!(told(&handle).await.out(), "here\n");
    gateway.shutdown().await;
}
