//! `cargo xtask crashes [--points n] [--seed s] [--only words] [--times n]`: the real programs, killed before each of their writes.
//!
//! A short life of a gateway and a node (pairing, a command with much output under a key, one that is
//! cancelled, a token, a revocation, a stop in good order) is watched once by strace, which shows
//! every call that changes a file, and every one that says something to somebody. Then it is lived
//! again for each of these, with the program killed right before it, started again, and whatever was
//! not answered repeated. `cargo xtask test` visits each once, `nightly` each three times.
//!
//! Two lives are not the same call by call, so a point may not be reached; it is tried again then.
//! That nobody is ever killed at some file is a failure, and so is more than one in fifty of all
//! points that were not reached at all.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::thread;

use anyhow::{Context as _, bail};

use self::points::{Point, Who};
use self::trial::{Ended, Under};
use crate::bench::report::Report;
use crate::dice::Dice;
use crate::say::{self, Ink};
use crate::test::Untested;
use crate::{needs, stage, stop};

mod points;
mod trial;

/// Trials at once: each waits most of the time.
const LANES: usize = 6;

/// How often a point is tried that was not reached.
const TRIES: usize = 3;

/// Of so many points one may be missed: a call that one life makes and no other.
const MISSED_OF: usize = 50;

/// How many complaints are shown.
const SHOWN: usize = 12;

/// How many points are visited.
#[derive(Clone, Debug)]
pub(crate) struct Crashes {
    /// `None` is all of them.
    points: Option<usize>,
    seed: u64,
    /// Only points in whose words these stand; all of them where it is empty.
    only: String,
    /// How often each is visited.
    times: usize,
}

impl Crashes {
    /// What `cargo xtask test` does.
    pub(crate) const ALL: Self = Self {
        points: None,
        seed: 1,
        only: String::new(),
        times: 1,
    };

    /// What `cargo xtask nightly` does.
    pub(crate) const THRICE: Self = Self {
        points: None,
        seed: 1,
        only: String::new(),
        times: 3,
    };

    /// Watches, and kills at each point.
    ///
    /// # Errors
    ///
    /// When anything is lost behind one; the message names the points.
    pub(crate) fn run(&self) -> anyhow::Result<Vec<Untested>> {
        if needs::find("strace").is_none() || !cfg!(target_os = "linux") {
            return Ok(vec![Untested::new("crash points", "there is no `strace`")]);
        }
        let binary = stage::build("debug")?;
        let mut all = Vec::new();
        for who in Who::ALL {
            let ended = trial::run(&binary, Under::Watch(who))?;
            if !ended.complaints.is_empty() {
                bail!("nobody was killed, and {}", ended.complaints.join("; "));
            }
            all.extend(points::of(who, &ended.home, &ended.log));
        }
        let chosen = self.choose(all.clone());
        let visits = visit(&binary, &chosen)?;
        conclude(&all, &visits)
    }

    fn choose(&self, mut all: Vec<Point>) -> Vec<Point> {
        all.retain(|point| point.shown().contains(&self.only));
        let mut dice = Dice::new(self.seed);
        for at in (1..all.len()).rev() {
            let other = usize::try_from(dice.below(at as u64 + 1)).unwrap_or_default();
            all.swap(at, other);
        }
        all.truncate(self.points.unwrap_or(usize::MAX));
        let again = std::iter::repeat_n(all, self.times);
        again.flatten().collect()
    }
}

/// `cargo xtask crashes`.
pub(crate) fn run(words: &[String]) -> anyhow::Result<()> {
    let mut crashes = Crashes::ALL;
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--only" => {
                let only = words.next().context("`--only` takes words of a point")?;
                crashes.only.clone_from(only);
            }
            "--points" | "--seed" | "--times" => {
                let number = words.next().and_then(|number| number.parse().ok());
                let number = number.with_context(|| format!("`{word}` takes a number"))?;
                match word.as_str() {
                    "--seed" => crashes.seed = number,
                    "--times" => crashes.times = usize::try_from(number)?,
                    _ => crashes.points = Some(usize::try_from(number)?),
                }
            }
            _ => bail!(
                "`cargo xtask crashes` takes `--points <n>`, `--seed <n>`, `--only <words>`, and `--times <n>`"
            ),
        }
    }
    let untested = crashes.run()?;
    for one in &untested {
        say::line(&one.to_string());
    }
    Ok(())
}

/// What came of each point.
type Visits = Vec<(Point, anyhow::Result<Ended>)>;

fn visit(binary: &Path, chosen: &[Point]) -> anyhow::Result<Visits> {
    let (next, visits) = (Mutex::new(chosen.iter()), Mutex::new(Vec::new()));
    let lane = || {
        loop {
            let taken = next.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(point) = taken.filter(|_| !stop::asked()) else {
                return;
            };
            let mut ended = trial::run(binary, Under::Kill(point));
            for _ in 1..TRIES {
                let is_missed = |ended: &Ended| !ended.was_killed && ended.complaints.is_empty();
                if stop::asked() || !ended.as_ref().is_ok_and(is_missed) {
                    break;
                }
                ended = trial::run(binary, Under::Kill(point));
            }
            let mut visits = visits.lock().unwrap_or_else(PoisonError::into_inner);
            visits.push((point.clone(), ended));
            if visits.len() % 50 == 0 {
                let shown = format!("{} of {}", visits.len(), chosen.len());
                say::line(&say::inked(Ink::Dim, &shown));
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..LANES {
            scope.spawn(lane);
        }
    });
    if stop::asked() {
        bail!("stopped");
    }
    Ok(visits.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn conclude(all: &[Point], visits: &Visits) -> anyhow::Result<Vec<Untested>> {
    let mut rows: BTreeMap<(Who, String), [usize; 3]> = BTreeMap::new();
    let name = |point: &Point| {
        let file = point.path.as_deref().unwrap_or("other files, and sockets");
        let file = if file.is_empty() { "the home" } else { file };
        let file = if file.starts_with("outputs/") {
            "outputs"
        } else {
            file
        };
        (point.who, file.to_owned())
    };
    for point in all {
        rows.entry(name(point)).or_default()[0] += 1;
    }
    let mut complaints = Vec::new();
    for (point, ended) in visits {
        let row = rows.entry(name(point)).or_default();
        row[1] += 1;
        match ended {
            Ok(ended) => {
                row[2] += usize::from(ended.was_killed);
                let wrong = ended.complaints.iter();
                complaints.extend(wrong.map(|wrong| format!("{}: {wrong}", point.shown())));
            }
            Err(error) => complaints.push(format!("{}: {error:#}", point.shown())),
        }
    }
    let is_missed = |row: &[usize; 3]| row[1] > 0 && row[2] == 0;
    for ((who, file), _) in rows.iter().filter(|(_, row)| is_missed(row)) {
        let who = who.word();
        complaints.push(format!("the {who} was never killed at {file}"));
    }
    let missed = visits.iter().filter(|(_, ended)| {
        let ended = ended.as_ref();
        ended.is_ok_and(|ended| !ended.was_killed)
    });
    let missed: Vec<_> = missed.map(|(point, _)| point.shown()).collect();
    for point in &missed {
        say::line(&say::inked(Ink::Dim, &format!("not reached: {point}")));
    }
    if missed.len() * MISSED_OF > visits.len() {
        let (missed, of) = (missed.len(), visits.len());
        complaints.push(format!("{missed} of {of} points were not reached"));
    }
    let sum = rows
        .values()
        .fold([0; 3], |sum, row| [0, 1, 2].map(|at| sum[at] + row[at]));
    let mut shown: Vec<_> = rows
        .into_iter()
        .map(|((who, file), counts)| line(who.word(), &file, counts))
        .collect();
    shown.push(line("all", "", sum));
    let head = ["program", "file", "points", "visited", "killed there"];
    Report::default().table("killed before each write", &head, shown);
    for complaint in complaints.iter().take(SHOWN) {
        say::problem(complaint);
    }
    if !complaints.is_empty() {
        bail!("{} things are wrong", complaints.len());
    }
    let [points, visited, killed] = sum;
    say::line(&format!(
        "{visited} visits to {points} points, {killed} killed there, and nothing was lost"
    ));
    Ok(Vec::new())
}

fn line(who: &str, file: &str, counts: [usize; 3]) -> Vec<String> {
    let mut line = vec![who.to_owned(), file.to_owned()];
    line.extend(counts.map(|count| count.to_string()));
    line
}
