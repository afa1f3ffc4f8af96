//! One world, in this process, and a line that says what came of it.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, anyhow, bail};
use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

use super::disk::Edge;
use super::entropy::SEED_VARIABLE;
use super::many::Verdict;
use super::trace::{Trace, note};
use super::world::{self, Outcome};

/// What is told of a world, in one line of JSON.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Told {
    /// What two runs of the same number share.
    pub(super) digest: u64,
    /// How much happened.
    pub(super) lines: u64,
    /// Runs that were asked for.
    pub(super) starts: u64,
    /// How often each fault was done.
    pub(super) faults: BTreeMap<String, u64>,
    /// How often each boundary of a durable step was passed, and how often somebody died at it.
    pub(super) boundaries: BTreeMap<String, (u64, u64)>,
    /// What must never be, and was.
    pub(super) violation: Option<String>,
    /// All that happened, as far as it is kept; empty where nothing is wrong and nobody asked.
    pub(super) trace: Vec<String>,
}

impl Told {
    /// What is told of a world that told nothing itself.
    pub(super) fn wrong(violation: String) -> Self {
        Self {
            digest: 0,
            lines: 0,
            starts: 0,
            faults: BTreeMap::new(),
            boundaries: BTreeMap::new(),
            violation: Some(violation),
            trace: Vec::new(),
        }
    }
}

/// Which worlds tell all that happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Telling {
    /// Each.
    All,
    /// Those in which something is wrong: a world has a hundred kilobytes to tell.
    OnlyWrong,
}

/// Somewhere in this process something has panicked.
static PANICKED: AtomicBool = AtomicBool::new(false);

/// Plays the world of this number, and prints what came of it.
///
/// # Errors
/// Where this process is not one whose randomness follows from the number.
pub(super) fn play(
    seed: u64,
    dir: &Path,
    log: Option<&str>,
    telling: Telling,
) -> anyhow::Result<Verdict> {
    if std::env::var_os(SEED_VARIABLE).is_none_or(|set| set != *seed.to_string()) {
        bail!("a world is played in a process of which {SEED_VARIABLE} is its number");
    }
    note_panics();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .context("starting the runtime")?;
    let outcome = runtime.block_on(async {
        let trace = Trace::new(dir);
        if let Some(filter) = log {
            listen(filter, &trace)?;
        }
        anyhow::Ok(world::play(seed, dir, trace).await)
    })?;
    let told = tell(outcome, telling);
    let verdict = match told.violation {
        None => Verdict::Right,
        Some(_) => Verdict::Wrong,
    };
    let mut line = serde_json::to_vec(&told)?;
    line.push(b'\n');
    io::stdout().write_all(&line)?;
    Ok(verdict)
}

/// Puts the product's own log into the trace.
fn listen(filter: &str, trace: &Trace) -> anyhow::Result<()> {
    let (filter, trace) = (filter.to_owned(), trace.clone());
    // Another thread's random numbers: with a log the world is the same as without.
    let set = std::thread::spawn(move || {
        let filter = EnvFilter::try_new(filter).context("the filter of the log")?;
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .without_time()
            .with_ansi(false)
            .with_writer(move || Log(trace.clone()))
            .init();
        anyhow::Ok(())
    });
    set.join()
        .map_err(|_panic| anyhow!("setting up the log has panicked"))?
}

/// Writes lines of a log into a trace.
struct Log(Trace);

impl io::Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        note!(
            self.0,
            "log",
            "{}",
            String::from_utf8_lossy(line).trim_end()
        );
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn note_panics() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANICKED.store(true, Ordering::SeqCst);
        tell(panic);
    }));
}

fn tell(outcome: Outcome, telling: Telling) -> Told {
    let trace = outcome.trace.clone();
    let violation = outcome.violation.map(|violation| violation.to_string());
    let panicked = PANICKED.load(Ordering::SeqCst);
    let violation =
        violation.or_else(|| panicked.then(|| "panic: somebody has panicked".to_owned()));
    let edge = |edge| match edge {
        Edge::Before => "before",
        Edge::After => "after",
    };
    let boundaries = outcome.boundaries.into_iter();
    let faults = outcome.faults.into_iter();
    Told {
        digest: outcome.trace.digest(),
        lines: outcome.trace.count(),
        starts: outcome.starts,
        faults: faults
            .map(|(name, times)| (name.to_owned(), times))
            .collect(),
        boundaries: boundaries
            .map(|((what, side), met)| (format!("{what} {}", edge(side)), (met.passed, met.died)))
            .collect(),
        trace: match &violation {
            None if telling == Telling::OnlyWrong => Vec::new(),
            _ => trace.last(usize::MAX),
        },
        violation,
    }
}
