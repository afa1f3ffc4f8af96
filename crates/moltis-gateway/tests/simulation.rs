//! A gateway in a simulation: it lives on one thread and a paused clock, takes the same steps each
//! time, and says the truth whichever of them fails.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests own the tasks of the programs that they play, and end where they fail"
)]

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use moltis_gateway::api::runs::{OutputQuery, StartRun};
use moltis_gateway::clock::Clock;
use moltis_gateway::http::peer::Peer;
use moltis_gateway::local::{Connecting, KeeperStream};
use moltis_gateway::simulation::{Disk, Edge, Incarnation, STEPS, Step};
use moltis_gateway::{Gateway, GatewayConfig, Principal};
use moltis_proto::key::Digest;
use moltis_proto::run::{
    Ending, ExitStatus, GapReason, Outcome, RunState, RunSummary, Stream, Totals,
};
use moltis_proto::{BootId, Codec, FromKeeper, JournalId, Payload, RunId, ToKeeper};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::time::Instant;

const BOOT: BootId = BootId::from_bytes([1; 16]);
const JOURNAL: JournalId = JournalId::from_bytes([2; 16]);

/// Bytes that the long run prints, before and behind a gap.
const LONG: u64 = 200_000;

/// Runs a test as a simulation does: on one thread, with a clock that jumps.
fn simulate<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    runtime.unwrap().block_on(test)
}

/// A disk that writes down each step, and fails at some.
#[derive(Default)]
struct Witness {
    home: PathBuf,
    fails: Option<Failure>,
    seen: Mutex<Vec<Seen>>,
}

/// A step that was seen, with the file's name below the home.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    what: &'static str,
    edge: Edge,
    path: PathBuf,
    failed: bool,
}

/// Which steps fail, with what.
#[derive(Debug, Clone, Copy)]
struct Failure {
    what: &'static str,
    edge: Edge,
    kind: io::ErrorKind,
    /// How often, from the first on.
    times: usize,
}

impl Witness {
    fn of(home: &Path, fails: Option<Failure>) -> Arc<Self> {
        Arc::new(Self {
            home: home.to_owned(),
            fails,
            ..Self::default()
        })
    }

    fn note(&self, at: Step<'_>, failed: bool) {
        self.seen.lock().unwrap().push(Seen {
            what: at.what,
            edge: at.edge,
            path: at.path.strip_prefix(&self.home).unwrap().to_owned(),
            failed,
        });
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// Returns how often the disk has failed.
    fn failures(&self) -> usize {
        self.seen().iter().filter(|seen| seen.failed).count()
    }
}

impl Disk for Witness {
    fn step(&self, at: Step<'_>) -> io::Result<()> {
        assert!(STEPS.contains(&at.what), "`{}` is not in the list", at.what);
        let failures = self.failures();
        let fails = self.fails.filter(|fails| {
            (fails.what, fails.edge) == (at.what, at.edge) && failures < fails.times
        });
        self.note(at, fails.is_some());
        fails.map_or(Ok(()), |fails| Err(fails.kind.into()))
    }
}

/// What a played keeper holds: it outlives the gateway.
#[derive(Default)]
struct Held {
    runs: Mutex<BTreeMap<RunId, Digest>>,
    forgotten: Mutex<Vec<RunId>>,
}

impl Held {
    /// The keeper of one connection.
    async fn serve(self: Arc<Self>, mut stream: DuplexStream) -> io::Result<()> {
        loop {
            let length = stream.read_u32().await?;
            let mut frame = vec![0; length as usize];
            stream.read_exact(&mut frame).await?;
            match Codec::Postcard.decode(&frame).unwrap() {
                ToKeeper::Attach { .. } => say(&mut stream, self.list()).await?,
                ToKeeper::Start { run_id, digest, .. } => {
                    self.runs.lock().unwrap().insert(run_id, digest);
                    say(&mut stream, FromKeeper::Started { run_id, pid: 7 }).await?;
                    tell(&mut stream, run_id, 0).await?;
                }
                ToKeeper::Resume { run_id, stdout, .. } => {
                    tell(&mut stream, run_id, stdout).await?;
                }
                ToKeeper::Forget { run_id } => self.forget(run_id),
                _ => {}
            }
        }
    }

    fn forget(&self, run_id: RunId) {
        let mut forgotten = self.forgotten.lock().unwrap();
        if !forgotten.contains(&run_id) {
            forgotten.push(run_id);
            forgotten.sort_unstable();
        }
    }

    /// Returns every run that was started.
    fn ever(&self) -> Vec<RunId> {
        self.runs.lock().unwrap().keys().copied().collect()
    }

    /// Returns those that need not be kept any more.
    fn forgotten(&self) -> Vec<RunId> {
        self.forgotten.lock().unwrap().clone()
    }

    fn list(&self) -> FromKeeper {
        let (runs, forgotten) = (self.runs.lock().unwrap(), self.forgotten());
        let held = runs
            .iter()
            .filter(|(run_id, _)| !forgotten.contains(run_id));
        let runs = held.map(|(run_id, digest)| RunSummary {
            run_id: *run_id,
            digest: *digest,
            journal_id: JOURNAL,
            state: RunState::Ended,
            totals: totals(),
            stdin: 0,
        });
        FromKeeper::Runs {
            boot_id: BOOT,
            journals: vec![JOURNAL],
            runs: runs.collect(),
            last: true,
        }
    }
}

fn totals() -> Totals {
    Totals {
        stdout: 2 * LONG,
        stderr: 0,
    }
}

/// Every run prints the same: half of it is gone already.
async fn tell(stream: &mut DuplexStream, run_id: RunId, from: u64) -> io::Result<()> {
    let mut offset = from;
    while offset < LONG {
        let to = LONG.min(offset + 16 * 1024);
        let message = FromKeeper::Output {
            run_id,
            stream: Stream::Stdout,
            offset,
            bytes: Payload((offset..to).map(byte).collect::<Bytes>()),
        };
        say(stream, message).await?;
        offset = to;
    }
    if offset < 2 * LONG {
        let gap = FromKeeper::Gap {
            run_id,
            stream: Stream::Stdout,
            from: offset,
            to: 2 * LONG,
            reason: GapReason::Limit,
        };
        say(stream, gap).await?;
    }
    let ending = Ending {
        outcome: Outcome::Exited,
        reason: None,
        status: Some(ExitStatus::Code(5)),
        detail: String::new(),
        duration_ms: 3,
        descendants_may_survive: false,
    };
    let ended = FromKeeper::Ended {
        run_id,
        ending: Box::new(ending),
        totals: totals(),
    };
    say(stream, ended).await
}

fn byte(offset: u64) -> u8 {
    b'a' + (offset % 23) as u8
}

async fn say(stream: &mut DuplexStream, message: FromKeeper) -> io::Result<()> {
    let bytes = Codec::Postcard.encode(&message).unwrap();
    stream
        .write_u32(u32::try_from(bytes.len()).unwrap())
        .await?;
    stream.write_all(&bytes).await
}

/// Builds a gateway whose keeper is played.
async fn build(
    home: &Path,
    keeper: &Arc<Held>,
    incarnation: &Incarnation,
) -> Result<Gateway, moltis_gateway::BuildError> {
    let keeper = Arc::clone(keeper);
    let connector = move || -> Connecting {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        drop(tokio::spawn(Arc::clone(&keeper).serve(theirs)));
        Box::pin(async { Ok(vec![Box::new(ours) as Box<dyn KeeperStream>]) })
    };
    let clock = Clock::manual(jiff::Timestamp::from_second(1_000_000_000).unwrap());
    Gateway::builder(GatewayConfig::new(home))
        .keeper(connector)
        .clock(clock)
        .boot_id(BOOT)
        .simulated(incarnation)
        .build()
        .await
}

fn run() -> StartRun {
    StartRun {
        node: Some("local".to_owned()),
        command: Some("print".to_owned()),
        ..StartRun::default()
    }
}

/// A life without trouble; returns its steps.
fn life() -> Vec<Seen> {
    simulate(async {
        let dir = TempDir::new().unwrap();
        let witness = Witness::of(dir.path(), None);
        let incarnation = Incarnation::new(Arc::<Witness>::clone(&witness));
        let gateway = build(dir.path(), &Arc::default(), &incarnation)
            .await
            .unwrap();
        let api = gateway.on_behalf_of(Principal::Operator);
        let began = Instant::now();
        for key in ["a", "b"] {
            let result = api.run_to_end(&run(), Some(key)).await.unwrap();
            assert_eq!(result.exit_code, Some(5));
        }
        api.start_run(&run(), Some("c")).await.unwrap();
        tokio::time::sleep(Duration::from_mins(1)).await;
        assert_eq!(began.elapsed().as_secs(), 60, "nobody else makes time pass");
        gateway.shutdown().await;
        witness.seen()
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
    assert_eq!(first.chunks(2).find(|seen| !both(seen)), None);
}

/// What one asker was told.
type Told<T> =
    Result<Result<T, moltis_gateway::api::problem::Problem>, tokio::time::error::Elapsed>;

/// Syncs of what a run leaves: behind one that has failed no run is forgotten any more.
const SYNCS: [&str; 4] = [
    "store.sync",
    "output.sync",
    "output.sync_synced",
    "output.sync_dir",
];

/// Longer than anything may take.
const LONG_TIME: Duration = Duration::from_mins(10);

/// A life on a disk that fails, its end by SIGKILL, and the next one on a disk that is well again.
async fn survive(failure: Failure) {
    let (dir, again) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let keeper = Arc::new(Held::default());
    let witness = Witness::of(dir.path(), Some(failure));
    let incarnation = Incarnation::new(Arc::<Witness>::clone(&witness));
    let built = tokio::time::timeout(LONG_TIME, build(dir.path(), &keeper, &incarnation));
    let mut told: Vec<(&str, String)> = Vec::new();
    match built.await.expect("a gateway is built or refused") {
        Err(error) => assert!(is_of_building(failure.what), "{failure:?}: {error:?}"),
        Ok(gateway) => {
            let api = gateway.on_behalf_of(Principal::Operator);
            let run = run();
            let ended = api.run_to_end(&run, Some("a"));
            let ended: Told<_> = tokio::time::timeout(LONG_TIME, ended).await;
            if let Ok(Ok(ended)) = &ended {
                assert_eq!(ended.exit_code, Some(5), "{ended:?}");
                told.push(("a", ended.run_id.clone()));
            }
            let started = api.start_run(&run, Some("b"));
            let started: Told<_> = tokio::time::timeout(LONG_TIME, started).await;
            if let Ok(Ok(started)) = &started {
                told.push(("b", started.id.clone()));
            }
            tokio::time::sleep(Duration::from_mins(1)).await;
            if failure.what == "store.sync" {
                assert!(
                    gateway.store().failure().is_some(),
                    "it takes writes on a broken disk"
                );
                assert!(matches!(started, Ok(Err(_))), "{failure:?}: {started:?}");
            }
            if SYNCS.contains(&failure.what) {
                assert_eq!(keeper.forgotten(), [], "{failure:?}: what no disk holds");
            }
        }
    }
    let is_at_the_end = failure.what == "store.close"; // a killed one never comes there
    assert_eq!(witness.failures() == 0, is_at_the_end, "{failure:?}");
    incarnation.kill();
    copy(dir.path(), again.path());
    // From here on the disk is well.
    let incarnation = Incarnation::new(Witness::of(again.path(), None));
    let gateway = build(again.path(), &keeper, &incarnation).await.unwrap();
    let api = gateway.on_behalf_of(Principal::Operator);
    // It has the keeper asked what it holds.
    api.run_to_end(&run(), Some("c")).await.unwrap();
    tokio::time::sleep(Duration::from_mins(1)).await;
    for (key, id) in told {
        let found = api.show_run(&id).await.unwrap();
        assert_eq!(found.exit_code, Some(5), "{failure:?}: {key}: {found:?}");
    }
    for id in keeper.ever() {
        let id = id.to_string();
        let found = api.show_run(&id).await.unwrap();
        assert_eq!(found.exit_code, Some(5), "{failure:?}: {found:?}");
        let output = api.read_output(&id, &OutputQuery::default()).await.unwrap();
        assert_eq!(output.next_offset, Some(LONG));
        let pieces: Vec<_> = output.bytes.collect().await;
        let bytes = pieces.into_iter().map(Result::unwrap);
        let bytes: Vec<u8> = bytes.flatten().collect();
        assert!(
            bytes.into_iter().eq((0..LONG).map(byte)),
            "{failure:?}: other bytes"
        );
    }
    assert_eq!(
        keeper.forgotten(),
        keeper.ever(),
        "the keeper holds what nobody needs"
    );
    gateway.shutdown().await;
}

/// Returns whether a gateway may refuse to be built where this step fails.
fn is_of_building(what: &str) -> bool {
    [
        "store.migrate",
        "store.open",
        "store.sync_dir",
        "output.make_dir",
    ]
    .contains(&what)
}

/// Copies a home as a killed process leaves it.
fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir(&to).unwrap();
            copy(&entry.path(), &to);
        } else if entry.file_name() != "gateway.db-shm" {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[test]
fn whichever_step_fails_the_truth_is_told() {
    let mut steps: Vec<&str> = life().iter().map(|seen| seen.what).collect();
    steps.sort_unstable();
    steps.dedup();
    for what in steps {
        let before = [
            (Edge::Before, io::ErrorKind::StorageFull, usize::MAX),
            (Edge::Before, io::ErrorKind::Other, 1),
        ];
        // Only a sync may have done its work and say that it has failed.
        let after = SYNCS
            .contains(&what)
            .then_some((Edge::After, io::ErrorKind::Other, 1));
        for (edge, kind, times) in before.into_iter().chain(after) {
            simulate(survive(Failure {
                what,
                edge,
                kind,
                times,
            }));
        }
    }
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
        let incarnation = Incarnation::new(Witness::of(dir.path(), None));
        let gateway = build(dir.path(), &Arc::default(), &incarnation)
            .await
            .unwrap();
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
        assert_eq!(
            ours.read(&mut [0; 64]).await.unwrap(),
            0,
            "it is still open"
        );
        let api = gateway.on_behalf_of(Principal::Operator);
        let refused = api.start_run(&run(), None).await;
        assert!(refused.is_err(), "a dead gateway writes: {refused:?}");
    });
}
