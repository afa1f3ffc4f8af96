//! Ways to run a command, measured in turn: a round of one, a round of the next, and again.
//!
//! Taking turns is what makes the ratios hold on a shared machine: whatever disturbs one lane disturbs
//! the next as well.

use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::bail;

use crate::stop;

/// Something that runs one command each time it is called, and waits for its end.
pub(crate) type Runner = Box<dyn FnMut() -> anyhow::Result<()> + Send>;

/// A way to run a command.
pub(crate) struct Lane<'a> {
    pub(crate) name: &'static str,
    /// How many runs make a turn: more where a run is short.
    pub(crate) turn: usize,
    /// Makes a runner, with a connection of its own where the lane has one.
    pub(crate) make: Box<dyn Fn() -> anyhow::Result<Runner> + 'a>,
}

/// How long runs of a lane took, shortest first.
#[derive(Debug)]
pub(crate) struct Times(Vec<Duration>);

impl Times {
    pub(crate) fn new(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self(times)
    }

    /// Returns what so many percent of the runs stayed within, in milliseconds.
    pub(crate) fn percentile(&self, percent: usize) -> f64 {
        let last = self.0.len().saturating_sub(1);
        let index = (self.0.len() * percent / 100).min(last);
        self.0
            .get(index)
            .map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }
}

/// Lets every lane run one command at a time, turn by turn, and returns the times of each.
///
/// # Errors
///
/// When a command fails.
pub(crate) fn one_at_a_time(lanes: &[Lane<'_>], rounds: usize) -> anyhow::Result<Vec<Times>> {
    let mut runners = lanes
        .iter()
        .map(|lane| (lane.make)())
        .collect::<Result<Vec<_>, _>>()?;
    for runner in &mut runners {
        runner()?; // a first run pays for what later ones find
    }
    let mut times = vec![Vec::new(); lanes.len()];
    for round in 0..rounds {
        for index in (0..lanes.len()).map(|index| (index + round) % lanes.len()) {
            for _ in 0..lanes[index].turn {
                let since = Instant::now();
                runners[index]()?;
                times[index].push(since.elapsed());
            }
            if stop::asked() {
                bail!("stopped");
            }
        }
    }
    Ok(times.into_iter().map(Times::new).collect())
}

/// Returns how many runs a second a lane does with so many at a time.
///
/// # Errors
///
/// When a command fails.
pub(crate) fn rate(lane: &Lane<'_>, at_a_time: usize, window: Duration) -> anyhow::Result<f64> {
    let mut runners = Vec::new();
    for _ in 0..at_a_time {
        let mut runner = (lane.make)()?;
        runner()?; // connected before the clock starts
        runners.push(runner);
    }
    let start = Barrier::new(at_a_time);
    let done = AtomicU64::new(0);
    let took = thread::scope(|scope| {
        let work = |mut runner: Runner| {
            let (start, done) = (&start, &done);
            move || -> anyhow::Result<Duration> {
                start.wait();
                let since = Instant::now();
                while since.elapsed() < window && !stop::asked() {
                    runner()?;
                    done.fetch_add(1, Ordering::Relaxed);
                }
                Ok(since.elapsed())
            }
        };
        let threads: Vec<_> = runners
            .into_iter()
            .map(|runner| scope.spawn(work(runner)))
            .collect();
        let mut longest = Duration::ZERO;
        for thread in threads {
            let took = thread.join().expect("a runner does not panic")?;
            longest = longest.max(took);
        }
        anyhow::Ok(longest)
    })?;
    if stop::asked() {
        bail!("stopped");
    }
    #[expect(
        clippy::cast_precision_loss,
        reason = "a count of runs stays far below 2^52"
    )]
    Ok(done.into_inner() as f64 / took.as_secs_f64())
}

/// Returns the middle of some figures.
pub(crate) fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_a_hundred() {
        let times = Times::new((1..=100).rev().map(Duration::from_millis).collect());
        assert!((times.percentile(50) - 51.0).abs() < 1e-9);
        assert!((times.percentile(99) - 100.0).abs() < 1e-9);
        assert!(Times::new(Vec::new()).percentile(50).is_nan());
    }

    #[test]
    fn lanes_take_turns() {
        let lane = |name, turn| Lane {
            name,
            turn,
            make: Box::new(|| Ok(Box::new(|| Ok(())))),
        };
        let times = one_at_a_time(&[lane("a", 3), lane("b", 1)], 4).unwrap();
        assert_eq!((times[0].count(), times[1].count()), (12, 4));
        assert!(rate(&lane("a", 1), 8, Duration::from_millis(5)).unwrap() > 0.0);
    }

    #[test]
    fn a_failing_run_fails_the_bench() {
        let make = || -> anyhow::Result<Runner> { Ok(Box::new(|| bail!("no"))) };
        let lane = Lane {
            name: "a",
            turn: 1,
            make: Box::new(make),
        };
        assert!(one_at_a_time(&[lane], 1).is_err());
    }
}
