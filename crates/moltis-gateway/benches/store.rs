//! What a run's row and a byte of output cost: `cargo bench --workspace --bench store`, or with
//! `-- rows` the rows alone.
//!
//! Prints medians and 99th percentiles of one caller at a time, rows a second of many at once, and
//! bytes a second through `Outputs`. A machine that does something else at the same time shows it.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::time::Duration;

use bytes::Bytes;
use moltis_gateway::audit::Actor;
use moltis_gateway::clock::Clock;
use moltis_gateway::output::{OutputLimits, Outputs};
use moltis_gateway::store::{Ended, Heads, NewRun, RunCreation, RunKey, RunStage, Store, Target};
use moltis_proto::key::Digest;
use moltis_proto::run::{Command, Ending, ExitStatus, Outcome, RunSpec, StdinMode, Stream, Totals};
use moltis_proto::{BootId, JournalId, RunId};
use tokio::time::Instant;

const RUNS: u32 = 5000;
const AT_ONCE: usize = 32;
const OUTPUT_BYTES: u64 = 1 << 30;
const CHUNK: usize = 60 * 1024;
const WINDOW: u64 = 1 << 20;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The callers are tasks, as a gateway's are.
#[tokio::main]
#[expect(
    clippy::disallowed_methods,
    reason = "there is nothing here that could own the task; it is awaited at once"
)]
async fn main() -> Result<(), Failure> {
    tokio::spawn(measure()).await?
}

async fn measure() -> Result<(), Failure> {
    let dir = tempfile::tempdir()?;
    let store = Store::open(&dir.path().join("home")).await?;
    rows(&store).await?;
    if std::env::args().any(|word| word == "rows") {
        return Ok(());
    }
    many_rows(&store).await?;
    syncs(&store).await?;
    output(&dir.path().join("home")).await
}

/// One caller: create, then end.
async fn rows(store: &Store) -> Result<(), Failure> {
    let by = Actor::operator();
    let (mut creates, mut ends) = (Vec::new(), Vec::new());
    for number in 0..RUNS {
        let run = new_run("one", number);
        let id = run.id;
        let since = Instant::now();
        let created = store.create_run(run, &by).await?;
        creates.push(since.elapsed());
        assert!(matches!(created, RunCreation::Created(_)));
        let since = Instant::now();
        store.end_run(id, ended()).await?;
        ends.push(since.elapsed());
    }
    say("run, key and audit line", &mut creates);
    say("ending, head and audit line", &mut ends);
    Ok(())
}

/// Many callers at once.
async fn many_rows(store: &Store) -> Result<(), Failure> {
    let by = Actor::operator();
    let since = Instant::now();
    for round in 0..RUNS / 32 {
        let runs = (0..AT_ONCE).map(|at| {
            let number = round * 32 + u32::try_from(at).unwrap_or_default();
            store.create_run(new_run("many", number), &by)
        });
        for created in futures_util::future::join_all(runs).await {
            created?;
        }
    }
    let rate = f64::from(RUNS / 32 * 32) / since.elapsed().as_secs_f64();
    tell(&format!("rows a second, {AT_ONCE} at once: {rate:.0}"));
    Ok(())
}

async fn syncs(store: &Store) -> Result<(), Failure> {
    let by = Actor::operator();
    let mut times = Vec::new();
    for number in 0..200 {
        let created = store.create_run(new_run("sync", number), &by).await?;
        let RunCreation::Created(written) = created else {
            continue;
        };
        let since = Instant::now();
        store.synced(written).await?;
        times.push(since.elapsed());
    }
    say("from written to synced", &mut times);
    Ok(())
}

/// One run's output through a window of 1 MiB, as a session brings it.
async fn output(dir: &std::path::Path) -> Result<(), Failure> {
    let boot = BootId::from_bytes([1; 16]);
    let outputs = Outputs::open(dir, Some(boot), OutputLimits::default())?;
    let chunk = Bytes::from(vec![b'x'; CHUNK]);
    for round in 0..5 {
        let id = RunId::from_bytes([round; 16]);
        let run = outputs.run(id)?;
        let mut progress = run.subscribe();
        let mut offset = 0;
        let since = Instant::now();
        while offset < OUTPUT_BYTES {
            while offset - progress.borrow_and_update().stored[0] > WINDOW {
                progress.changed().await?;
            }
            run.append(Stream::Stdout, offset, chunk.clone())?;
            offset += CHUNK as u64;
        }
        run.written().await;
        let written = since.elapsed();
        run.synced().await?;
        let synced = since.elapsed();
        let rate = |time: Duration| 1.073_741_824 / time.as_secs_f64();
        tell(&format!(
            "1 GiB of output: written at {:.2} GB/s, synced at {:.2} GB/s",
            rate(written),
            rate(synced)
        ));
        drop(run);
        outputs.remove(id)?;
    }
    Ok(())
}

fn new_run(kind: &str, number: u32) -> NewRun {
    let key = RunKey {
        principal: "operator".to_owned(),
        key: format!("{kind}-{number}"),
    };
    NewRun {
        id: key.run_id(),
        key: Some(key),
        requested_by: "operator".to_owned(),
        digest: Digest::from_bytes([7; 32]),
        target: Target::Local,
        shown: "local".to_owned(),
        spec: RunSpec {
            command: Command::Argv(["sh", "-c", "true"].map(str::to_owned).to_vec()),
            cwd: None,
            env: BTreeMap::from([("TERM".to_owned(), "xterm".to_owned())]),
            timeout_ms: Some(300_000),
            grace_ms: 5000,
            stdin: StdinMode::Empty,
            tty: None,
        },
        stage: RunStage::Starting,
        incarnation: 7,
        boot_id: Some(BootId::from_bytes([2; 16])),
        journal_id: Some(JournalId::from_bytes([3; 16])),
        created_at: Clock::system().now(),
        asked: None,
    }
}

fn ended() -> Ended {
    Ended {
        ending: Ending {
            outcome: Outcome::Exited,
            reason: None,
            status: Some(ExitStatus::Code(0)),
            detail: String::new(),
            duration_ms: 1,
            descendants_may_survive: false,
        },
        totals: Totals {
            stdout: 5,
            stderr: 0,
        },
        heads: Heads {
            stdout: Bytes::from_static(b"hello"),
            stderr: Bytes::new(),
        },
        started: None,
        at: Clock::system().now(),
    }
}

fn say(what: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let (p50, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
    tell(&format!("{what}: p50 {p50:.1?}, p99 {p99:.1?}"));
    let ms = p50.as_secs_f64() * 1e3;
    tell(&format!("figure: in the store, {what}, p50 = {ms:.4}"));
}

fn tell(line: &str) {
    // Nobody reads it any more: then nobody misses it.
    writeln!(std::io::stdout(), "{line}").ok();
}
