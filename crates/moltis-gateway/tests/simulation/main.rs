//! A gateway in a simulation: it lives on one thread and a paused clock, takes the same steps each
//! time, and says the truth whichever of them fails or is the last one.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests own the tasks of the programs that they play, and end where they fail"
)]

mod disk;
mod keeper;
mod power;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use moltis_gateway::api::problem::Problem;
use moltis_gateway::api::runs::{OutputQuery, StartRun};
use moltis_gateway::clock::Clock;
use moltis_gateway::http::peer::Peer;
use moltis_gateway::local::{Connecting, KeeperStream};
use moltis_gateway::simulation::{Edge, Incarnation};
use moltis_gateway::{BuildError, Gateway, GatewayConfig, Principal};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, sleep, timeout};

use disk::{Failure, Seen, Trouble, Witness};
use keeper::{BOOT, Held, PRINTED, byte};

/// Longer than anything may take.
const LONG: Duration = Duration::from_mins(10);

/// Long enough for all that nobody waits for.
const QUIET: Duration = Duration::from_mins(1);

/// Syncs of what a run leaves: behind one that has failed no run is forgotten any more.
const SYNCS: [&str; 4] = [
    "store.sync",
    "output.sync",
    "output.sync_synced",
    "output.sync_dir",
];

/// Without these no gateway is built.
const OF_BUILDING: [&str; 4] = [
    "store.migrate",
    "store.open",
    "store.sync_dir",
    "output.make_dir",
];

/// Runs a test as a simulation does: on one thread, with a clock that jumps.
fn simulate<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    runtime.unwrap().block_on(test)
}

/// Builds a gateway whose keeper is played.
async fn build(
    home: &Path,
    keeper: &Arc<Held>,
    incarnation: &Incarnation,
) -> Result<Gateway, BuildError> {
    let keeper = Arc::clone(keeper);
    let connector = move || -> Connecting {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        drop(tokio::spawn(Arc::clone(&keeper).serve(theirs)));
        Box::pin(async { Ok(vec![Box::new(ours) as Box<dyn KeeperStream>]) })
    };
    let clock = Clock::manual(jiff::Timestamp::from_second(1_000_000_000).unwrap());
    let gateway = Gateway::builder(GatewayConfig::new(home))
        .keeper(connector)
        .clock(clock)
        .boot_id(BOOT)
        .simulated(incarnation);
    // Who dies in between never comes to its end.
    let built = timeout(LONG, gateway.build()).await;
    built.expect("a gateway is built or refused")
}

fn run() -> StartRun {
    StartRun {
        node: Some("local".to_owned()),
        command: Some("print".to_owned()),
        ..StartRun::default()
    }
}

/// What two askers were told; `None` where they are told nothing.
#[derive(Debug, Default)]
struct Told {
    /// The id of the run that was waited for.
    ended: Option<Result<String, Problem>>,
    /// The id of the one that was not.
    started: Option<Result<String, Problem>>,
}

/// Two runs, and some time behind them. Of a gateway that is dead nobody hears.
async fn live(gateway: &Gateway, incarnation: &Incarnation) -> Told {
    let api = gateway.on_behalf_of(Principal::Operator);
    let (mut told, run) = (Told::default(), run());
    let ended = timeout(LONG, api.run_to_end(&run, Some("ended"))).await;
    if let (Ok(ended), false) = (ended, incarnation.is_killed()) {
        told.ended = Some(ended.map(|ended| {
            assert_eq!(ended.exit_code, Some(5), "{ended:?}");
            ended.run_id
        }));
    }
    let started = timeout(LONG, api.start_run(&run, Some("started"))).await;
    if let (Ok(started), false) = (started, incarnation.is_killed()) {
        told.started = Some(started.map(|started| started.id));
    }
    sleep(QUIET).await;
    told
}

/// A life without trouble: the steps up to its end in good order, and those of that end.
fn life() -> [Vec<Seen>; 2] {
    simulate(async {
        let dir = TempDir::new().unwrap();
        let (witness, incarnation) = Witness::begin(dir.path(), Trouble::None);
        let gateway = build(dir.path(), &Arc::default(), &incarnation).await;
        let gateway = gateway.unwrap();
        let began = Instant::now();
        let told = live(&gateway, &incarnation).await;
        assert!(matches!(told.ended, Some(Ok(_))));
        assert!(matches!(told.started, Some(Ok(_))));
        assert_eq!(began.elapsed(), QUIET, "nobody else makes time pass");
        let seen = witness.seen();
        gateway.shutdown().await;
        let of_the_end = witness.seen().split_off(seen.len());
        [seen, of_the_end]
    })
}

#[test]
fn two_lives_take_the_same_steps() {
    let first = life();
    assert_eq!(first, life());
    let both = |seen: &&[Seen]| {
        let [before, after] = seen else { return false };
        (before.what, &before.path) == (after.what, &after.path)
            && (before.edge, after.edge) == (Edge::Before, Edge::After)
    };
    for part in first {
        assert_eq!(part.chunks(2).find(|seen| !both(seen)), None);
    }
}

/// A life in the home that another one has left, on a disk that is well: whatever somebody was told
/// is true, and whatever was begun comes to its end.
async fn go_on(home: &Path, keeper: &Arc<Held>, told: &Told, why: Trouble) {
    let (_, incarnation) = Witness::begin(home, Trouble::None);
    let gateway = build(home, keeper, &incarnation).await.unwrap();
    let api = gateway.on_behalf_of(Principal::Operator);
    // It has the keeper asked what it holds.
    api.run_to_end(&run(), Some("next")).await.unwrap();
    sleep(QUIET).await;
    for id in [&told.ended, &told.started] {
        if let Some(Ok(id)) = id {
            let found = api.show_run(id).await.unwrap();
            assert_eq!(found.exit_code, Some(5), "{why:?}: {found:?}");
        }
    }
    for id in keeper.ever() {
        let id = id.to_string();
        let found = api.show_run(&id).await.unwrap();
        assert_eq!(found.exit_code, Some(5), "{why:?}: {found:?}");
        let output = api.read_output(&id, &OutputQuery::default()).await.unwrap();
        assert_eq!(output.next_offset, Some(PRINTED), "{why:?}");
        let pieces: Vec<_> = output.bytes.collect().await;
        let bytes: Vec<u8> = pieces.into_iter().flat_map(Result::unwrap).collect();
        assert!(bytes.into_iter().eq((0..PRINTED).map(byte)), "{why:?}");
    }
    assert_eq!(
        keeper.forgotten(),
        keeper.ever(),
        "{why:?}: nobody needs it"
    );
    gateway.shutdown().await;
}

/// A life on a disk that fails, its end by `kill -9`, and the next one.
async fn survive(failure: Failure) {
    let dir = TempDir::new().unwrap();
    let keeper = Arc::new(Held::default());
    let why = Trouble::Fails(failure);
    let (witness, incarnation) = Witness::begin(dir.path(), why);
    let told = match build(dir.path(), &keeper, &incarnation).await {
        Ok(gateway) => {
            let told = live(&gateway, &incarnation).await;
            if failure.what == "store.sync" && failure.nth == 0 {
                assert!(gateway.store().failure().is_some(), "{why:?}");
                assert!(matches!(told.started, Some(Err(_))), "{why:?}");
            }
            told
        }
        Err(error) => {
            assert!(OF_BUILDING.contains(&failure.what), "{why:?}: {error:?}");
            Told::default()
        }
    };
    assert!(witness.failures() > 0, "{why:?}: it went another way");
    if SYNCS.contains(&failure.what) && failure.nth == 0 {
        assert_eq!(keeper.forgotten(), [], "{why:?}: what no disk holds");
    }
    let left = witness.kill();
    go_on(left.path(), &keeper, &told, why).await;
}

#[test]
fn whichever_step_fails_the_truth_is_told() {
    let mut steps: BTreeMap<&str, usize> = BTreeMap::new();
    let [seen, _] = life();
    for seen in seen.iter().filter(|seen| seen.edge == Edge::Before) {
        *steps.entry(seen.what).or_default() += 1;
    }
    for (what, times) in steps {
        let fails = |edge, kind, nth, lasts| {
            simulate(survive(Failure {
                what,
                edge,
                kind,
                nth,
                lasts,
            }));
        };
        fails(Edge::Before, io::ErrorKind::StorageFull, 0, true);
        for nth in 0..times {
            fails(Edge::Before, io::ErrorKind::Other, nth, false);
            // Only a sync may have done its work and say that it has failed.
            if SYNCS.contains(&what) {
                fails(Edge::After, io::ErrorKind::Other, nth, false);
            }
        }
    }
}

#[test]
fn at_whichever_boundary_it_dies_the_next_one_goes_on() {
    for boundary in 0..life().concat().len() {
        simulate(async {
            let dir = TempDir::new().unwrap();
            let keeper = Arc::new(Held::default());
            let why = Trouble::DiesAt(boundary);
            let (witness, incarnation) = Witness::begin(dir.path(), why);
            let told = match build(dir.path(), &keeper, &incarnation).await {
                Ok(gateway) => {
                    let told = live(&gateway, &incarnation).await;
                    gateway.shutdown().await;
                    told
                }
                Err(_) => Told::default(),
            };
            assert!(incarnation.is_killed(), "{why:?}: it went another way");
            let left = witness.kill();
            go_on(left.path(), &keeper, &told, why).await;
        });
    }
}

#[test]
fn a_slow_sync_keeps_those_waiting_whom_it_may_not_cover() {
    simulate(async {
        let dir = TempDir::new().unwrap();
        let time = Duration::from_secs(3);
        let slow = Trouble::IsSlow("store.sync", time);
        let (_, incarnation) = Witness::begin(dir.path(), slow);
        let gateway = build(dir.path(), &Arc::default(), &incarnation).await;
        let api = gateway.unwrap().on_behalf_of(Principal::Operator);
        let began = Instant::now();
        let run = run();
        let first = async {
            api.start_run(&run, None).await.unwrap();
            began.elapsed()
        };
        let second = async {
            sleep(Duration::from_secs(1)).await;
            api.start_run(&run, None).await.unwrap();
            began.elapsed()
        };
        let (first, second) = tokio::join!(first, second);
        assert_eq!((first, second), (time, 2 * time));
    });
}

/// Asks on a stream, and returns the head of the answer.
async fn ask(gateway: &Gateway, head: &str) -> String {
    let (mut ours, theirs) = tokio::io::duplex(64 * 1024);
    let remote = "192.0.2.1:40000".parse().unwrap();
    let local = "192.0.2.2:7077".parse().unwrap();
    gateway.serve_stream(theirs, Peer::Tcp { remote, local });
    ours.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![0; 64 * 1024];
    let length = ours.read(&mut answer).await.unwrap();
    answer.truncate(length);
    String::from_utf8(answer).unwrap()
}

#[test]
fn a_stream_is_a_connection_and_dies_with_its_gateway() {
    simulate(async {
        let dir = TempDir::new().unwrap();
        let (_, incarnation) = Witness::begin(dir.path(), Trouble::None);
        let gateway = build(dir.path(), &Arc::default(), &incarnation).await;
        let gateway = gateway.unwrap();
        let answer = ask(&gateway, "GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        let upgrade = "GET /ws HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\n\
                       upgrade: websocket\r\nsec-websocket-version: 13\r\n\
                       sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                       sec-websocket-protocol: moltis.node.v1\r\n\r\n";
        let answer = ask(&gateway, upgrade).await;
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        let (mut ours, theirs) = tokio::io::duplex(64);
        gateway.serve_stream(theirs, Peer::Unknown);
        tokio::task::yield_now().await;
        incarnation.kill();
        let read = ours.read(&mut [0; 64]).await.unwrap();
        assert_eq!(read, 0, "it is still open");
        let api = gateway.on_behalf_of(Principal::Operator);
        let refused = api.start_run(&run(), None).await;
        assert!(refused.is_err(), "a dead gateway writes: {refused:?}");
    });
}
