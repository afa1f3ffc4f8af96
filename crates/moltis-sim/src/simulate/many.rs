//! Many worlds, each in a process of its own, and the sum of what they came to.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::{StreamExt as _, stream};
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::Instant;

use super::entropy::SEED_VARIABLE;
use super::one::{Telling, Told};
use super::plan::Fault;
use super::processor::Processors;

/// One world in so many is played twice.
const TWICE: u64 = 50;

/// Lines that are printed of a world that is wrong.
const LAST_LINES: usize = 60;

/// Worlds that are wrong and told with their last lines. Others are told by a line.
const TOLD_MAX: usize = 3;

/// How long a world may take. One that takes longer has no end.
const TIME_MAX: Duration = Duration::from_mins(3);

/// How a world asks the system for memory (`mallopt(3)`, "Memory Allocation Tunables" of glibc): in
/// large pieces, which it keeps, and which all of its threads share, for one alone is at work. Another
/// C library takes no notice.
const MEMORY: (&str, &str) = (
    "GLIBC_TUNABLES",
    "glibc.malloc.hugetlb=1:glibc.malloc.top_pad=16777216:glibc.malloc.arena_max=1:\
     glibc.malloc.trim_threshold=268435456:glibc.malloc.mmap_threshold=268435456",
);

/// Numbers that were wrong once, each with its reason.
const KNOWN: &str = include_str!("../../seeds.txt");

/// How worlds came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing was objected to.
    Right,
    /// Something was that must never be.
    Wrong,
}

/// Which worlds are wanted.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) seeds: u64,
    pub(super) from: u64,
    pub(super) jobs: Option<usize>,
    pub(super) within: Option<Duration>,
    pub(super) until_wrong: bool,
    /// It is wrong, too, where nobody has died at some boundary.
    pub(super) every_boundary: bool,
}

/// Plays worlds, and prints what came of them all.
///
/// # Errors
/// Where a world cannot be played here.
pub(super) fn play(wanted: &Wanted) -> anyhow::Result<Verdict> {
    runtime()?.block_on(async {
        let processors = std::thread::available_parallelism().map_or(2, Into::into);
        let jobs = wanted.jobs.unwrap_or(processors);
        let ground = ground()?;
        let place = Place {
            ground: ground.path(),
            processors: &Processors::new(),
        };
        let began = Instant::now();
        let is_late = || {
            wanted
                .within
                .is_some_and(|within| began.elapsed() >= within)
        };
        let numbers = known()?.into_iter();
        let numbers = numbers.chain(wanted.from..wanted.from.saturating_add(wanted.seeds));
        let mut playing = stream::iter(numbers)
            .take_while(|_| std::future::ready(!is_late()))
            .map(|seed| play_or_twice(seed, place))
            .buffer_unordered(jobs);
        let mut sum = Sum::default();
        while let Some(played) = playing.next().await {
            sum.add(played?)?;
            if wanted.until_wrong && !sum.wrong.is_empty() {
                break;
            }
        }
        let verdict = sum.print(began.elapsed())?;
        let is_missed = wanted.every_boundary && !sum.missed().is_empty();
        Ok(if is_missed { Verdict::Wrong } else { verdict })
    })
}

/// Plays one world, and prints all that happened in it.
///
/// # Errors
/// Where it cannot be played here.
pub(super) fn tell(seed: u64, log: Option<&str>) -> anyhow::Result<Verdict> {
    runtime()?.block_on(async {
        let ground = ground()?;
        let place = Place {
            ground: ground.path(),
            processors: &Processors::new(),
        };
        let played = play_one(seed, place, log, Telling::All).await?;
        let mut out = io::stdout().lock();
        for line in &played.told.trace {
            writeln!(out, "{line}")?;
        }
        let Told { digest, lines, .. } = played.told;
        match &played.told.violation {
            Some(violation) => writeln!(out, "seed {seed}: {violation}")?,
            None => writeln!(out, "seed {seed}: {lines} events, digest {digest:016x}")?,
        }
        Ok(played.verdict())
    })
}

/// Where worlds are played.
#[derive(Clone, Copy)]
struct Place<'a> {
    ground: &'a Path,
    processors: &'a Processors,
}

/// A world that was played.
struct Played {
    seed: u64,
    told: Told,
}

impl Played {
    fn verdict(&self) -> Verdict {
        match self.told.violation {
            Some(_) => Verdict::Wrong,
            None => Verdict::Right,
        }
    }
}

/// Plays a world; one in some a second time, which has to come to the same.
async fn play_or_twice(seed: u64, place: Place<'_>) -> anyhow::Result<Played> {
    let is_played_twice = seed.is_multiple_of(TWICE);
    let telling = if is_played_twice {
        Telling::All
    } else {
        Telling::OnlyWrong
    };
    let mut played = play_one(seed, place, None, telling).await?;
    if is_played_twice {
        let again = play_one(seed, place, None, telling).await?;
        let violation = played.told.violation.take();
        // What is wrong in either is wrong.
        let violation = violation.or_else(|| again.told.violation.clone());
        played.told.violation = violation.or_else(|| difference(&played.told, &again.told));
    }
    Ok(played)
}

/// Returns what two plays of one number do not share, if there is anything.
fn difference(one: &Told, other: &Told) -> Option<String> {
    if one.digest == other.digest {
        return None;
    }
    let pairs = one.trace.iter().zip(&other.trace);
    let differs = pairs.enumerate().find(|(_, (one, other))| one != other);
    let words = differs.map(|(at, (one, other))| format!("from line {at} on:\n{one}\n{other}"));
    let words = words.unwrap_or_else(|| "as one of them goes on".to_owned());
    Some(format!("repeatable: it is not the same twice, {words}"))
}

async fn play_one(
    seed: u64,
    place: Place<'_>,
    log: Option<&str>,
    telling: Telling,
) -> anyhow::Result<Played> {
    let dir = place.ground.join(seed.to_string());
    std::fs::create_dir(&dir).with_context(|| format!("making `{}`", dir.display()))?;
    let mut process = Command::new(std::env::current_exe()?);
    process.args(["simulate", "--seed", &seed.to_string(), "--here"]);
    process.arg(&dir).env(SEED_VARIABLE, seed.to_string());
    process.env(MEMORY.0, MEMORY.1);
    let processor = place.processors.lend();
    let number = processor.number();
    process.args(number.map(|number| format!("--processor={number}")));
    process.args(log.map(|filter| format!("--log={filter}")));
    process.args((telling == Telling::OnlyWrong).then_some("--only-wrong"));
    process.stderr(Stdio::piped()).kill_on_drop(true);
    let output = tokio::time::timeout(TIME_MAX, process.output()).await;
    std::fs::remove_dir_all(&dir).with_context(|| format!("deleting `{}`", dir.display()))?;
    let Ok(output) = output else {
        let words = format!("liveness: it has no end within {} s", TIME_MAX.as_secs());
        return Ok(Played::wrong(seed, words));
    };
    let output = output.context("starting a world")?;
    let printed = String::from_utf8_lossy(&output.stderr);
    let Ok(mut told) = serde_json::from_slice::<Told>(&output.stdout) else {
        let status = output.status;
        return Ok(Played::wrong(seed, format!("{status}: {printed}")));
    };
    told.trace.extend(printed.lines().map(str::to_owned));
    Ok(Played { seed, told })
}

impl Played {
    fn wrong(seed: u64, words: String) -> Self {
        Self {
            seed,
            told: Told::wrong(words),
        }
    }
}

/// All worlds together.
#[derive(Default)]
struct Sum {
    worlds: u64,
    lines: u64,
    starts: u64,
    faults: BTreeMap<String, u64>,
    boundaries: BTreeMap<String, (u64, u64)>,
    wrong: Vec<(u64, String)>,
}

impl Sum {
    fn add(&mut self, played: Played) -> io::Result<()> {
        let Played { seed, told } = played;
        self.worlds += 1;
        self.lines += told.lines;
        self.starts += told.starts;
        for (name, times) in told.faults {
            *self.faults.entry(name).or_default() += times;
        }
        for (name, (passed, died)) in told.boundaries {
            let sum = self.boundaries.entry(name).or_default();
            sum.0 += passed;
            sum.1 += died;
        }
        let Some(violation) = told.violation else {
            return Ok(());
        };
        let mut out = io::stdout().lock();
        if self.wrong.len() < TOLD_MAX {
            let skipped = told.trace.len().saturating_sub(LAST_LINES);
            for line in &told.trace[skipped..] {
                writeln!(out, "{line}")?;
            }
        }
        writeln!(out, "seed {seed}: {violation}")?;
        writeln!(out, "  again: cargo xtask simulate --seed {seed}")?;
        self.wrong.push((seed, violation));
        Ok(())
    }

    fn print(&self, took: Duration) -> anyhow::Result<Verdict> {
        let mut out = io::stdout().lock();
        let deaths: u64 = self.boundaries.values().map(|(_, died)| died).sum();
        writeln!(
            out,
            "{} worlds in {:.1} s: {} runs, {} events, {deaths} deaths at {} boundaries",
            self.worlds,
            took.as_secs_f64(),
            self.starts,
            self.lines,
            self.boundaries.len(),
        )?;
        for name in Fault::NAMES {
            let times = self.faults.get(name).copied().unwrap_or(0);
            writeln!(out, "  {times:>9}  {name}")?;
        }
        writeln!(out, "     passed       died  at")?;
        for (name, (passed, died)) in &self.boundaries {
            writeln!(out, "  {passed:>9}  {died:>9}  {name}")?;
        }
        let missed = self.missed();
        if !missed.is_empty() {
            writeln!(out, "nobody has died at: {}", missed.join(", "))?;
        }
        if self.wrong.is_empty() {
            return Ok(Verdict::Right);
        }
        writeln!(out, "{} worlds are wrong:", self.wrong.len())?;
        for (seed, violation) in &self.wrong {
            let first = violation.lines().next().unwrap_or_default();
            writeln!(out, "  {seed:>9}  {first}")?;
        }
        Ok(Verdict::Wrong)
    }
}

impl Sum {
    /// Returns the boundaries of the product's steps at which nobody has died, but for those that no
    /// world comes to.
    fn missed(&self) -> Vec<String> {
        let steps = moltis_gateway::simulation::STEPS.iter();
        let steps = steps.chain(&moltis_node::simulation::STEPS);
        let both = steps.flat_map(|what| ["before", "after"].map(|edge| format!("{what} {edge}")));
        let died = |name: &String| self.boundaries.get(name).is_some_and(|(_, died)| *died > 0);
        both.filter(|name| !died(name)).collect()
    }
}

/// Reads the numbers that were wrong once: one a line, its reason behind it.
fn known() -> anyhow::Result<Vec<u64>> {
    let lines = KNOWN.lines().map(str::trim);
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    let numbers = lines.map(|line| {
        let number = line.split_whitespace().next().unwrap_or_default();
        let wrong = || format!("seeds.txt: `{line}` begins with no number");
        number.parse().with_context(wrong)
    });
    numbers.collect()
}

/// Returns a directory for worlds: in memory, where there is a file system for it.
fn ground() -> anyhow::Result<TempDir> {
    if !cfg!(target_os = "linux") {
        bail!("worlds are played on Linux, whose way to random numbers they know");
    }
    let memory = PathBuf::from("/dev/shm");
    let parent = if memory.is_dir() {
        memory
    } else {
        std::env::temp_dir()
    };
    let made = tempfile::Builder::new()
        .prefix("moltis")
        .tempdir_in(&parent);
    made.with_context(|| format!("making a directory in `{}`", parent.display()))
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("starting the runtime")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_known_numbers_are_numbers() {
        known().unwrap();
    }
}
