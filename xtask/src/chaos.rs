//! `cargo xtask chaos [--kills n] [--seed s]`: the real programs, killed again and again.
//!
//! A gateway, a node's link and the keepers of both machines get SIGKILL at random moments, one at a
//! time or all at once, while callers keep a load of commands going over a bad network. Afterwards
//! every run is looked at: it was started at most once, printed what it is known to print, and is
//! `lost` only where its keeper was killed. The seed decides who is killed, what is asked for and
//! what becomes of each connection; the moments are the machine's own.

use std::collections::HashMap;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use self::caller::{Asked, Way};
use self::script::{Kind, STARTS};
use self::site::Site;
use self::verdict::{Came, Facts, Killed};
use crate::bench::report::Report;
use crate::dice::{self, Dice};
use crate::process;
use crate::say::{self, Ink};
use crate::stage::relay::Fate;
use crate::stage::{self, Machine, STEP, Stage};
use crate::stop;
use crate::test::Untested;

mod caller;
mod script;
pub(crate) mod site;
mod verdict;

/// How many ask at once.
const CALLERS: usize = 8;

/// An ending is told before it is written: a gateway that dies so soon afterwards may not have it.
const UNWRITTEN: Duration = Duration::from_secs(2);

/// For so long the next gateway may not have heard it again: a keeper that dies meanwhile takes output
/// with it.
const UNHEARD: Duration = Duration::from_secs(20);

/// For so long a gateway may not have heard that a keeper has died, on a bad network.
const UNNOTICED: Duration = Duration::from_secs(10);

/// How many complaints are shown.
const SHOWN: usize = 12;

/// How much is killed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Storm {
    kills: usize,
    /// `None` draws one.
    seed: Option<u64>,
}

impl Storm {
    /// What `cargo xtask test` does.
    pub(crate) const SHORT: Self = Self {
        kills: 200,
        seed: Some(1),
    };

    /// What `cargo xtask nightly` does.
    pub(crate) const LONG: Self = Self {
        kills: 2000,
        seed: None,
    };

    /// Raises the storm, and judges what it left.
    ///
    /// # Errors
    ///
    /// When anything was lost that nobody killed; the message names the seed.
    pub(crate) fn run(self) -> anyhow::Result<Vec<Untested>> {
        if !cfg!(target_os = "linux") {
            let why = "what is left of killed commands is looked for in /proc";
            return Ok(vec![Untested::new("chaos", why)]);
        }
        let seed = self.seed.unwrap_or_else(dice::drawn);
        say::line(&format!("seed {seed}, {} kills", self.kills));
        rage(self.kills, Dice::new(seed))
            .with_context(|| format!("`cargo xtask chaos --kills {} --seed {seed}`", self.kills))?;
        Ok(Vec::new())
    }
}

/// `cargo xtask chaos`.
pub(crate) fn run(words: &[String]) -> anyhow::Result<()> {
    let mut storm = Storm::SHORT;
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let value = words.next().and_then(|value| value.parse().ok());
        match (word.as_str(), value) {
            ("--kills", Some(kills)) => storm.kills = usize::try_from(kills)?,
            ("--seed", Some(seed)) => storm.seed = Some(seed),
            _ => bail!("`cargo xtask chaos` takes `--kills <number>` and `--seed <number>`"),
        }
    }
    let untested = storm.run()?;
    for one in &untested {
        say::line(&one.to_string());
    }
    Ok(())
}

fn rage(kills: usize, mut dice: Dice) -> anyhow::Result<()> {
    let binary = stage::build("debug")?;
    let mut stage = Stage::open(&binary)?;
    stage.join()?;
    let site = Site {
        binary,
        home: stage.gateway_home(),
        work: stage.folder().join("work"),
    };
    fs::create_dir(&site.work)?;
    stage.relay.begin_trouble(dice.others());
    let enough = AtomicBool::new(false);
    let lanes: Vec<_> = (0..CALLERS).map(|_| dice.others()).collect();
    let (struck, asked) = thread::scope(|scope| {
        let callers: Vec<_> = lanes
            .into_iter()
            .enumerate()
            .map(|(name, dice)| {
                let (site, enough) = (&site, &enough);
                scope.spawn(move || caller::ask_on(site, name, dice, enough))
            })
            .collect();
        let struck = strike(&mut stage, kills, &mut dice, || {
            callers.iter().any(thread::ScopedJoinHandle::is_finished)
        });
        enough.store(true, Ordering::SeqCst);
        let asked = callers.into_iter().map(|caller| {
            let told = caller.join();
            told.unwrap_or_else(|_| bail!("a caller has panicked"))
        });
        (struck, asked.collect::<Vec<_>>())
    });
    let mut complaints = Vec::new();
    let mut all = Vec::new();
    for one in asked {
        match one {
            Ok(asked) => all.extend(asked),
            Err(error) => complaints.push(format!("{error:#}")),
        }
    }
    let struck = struck?;
    if !complaints.is_empty() {
        // What has no end yet would be taken for lost.
        return conclude(&complaints);
    }
    stage.node_when(|_| true)?;
    let mut came = Vec::new();
    complaints.extend(judge(&site, &struck, &all, &mut came)?);
    show(&struck, &all, &came);
    // Keepers on both machines begin at the latest now, and end what others have left.
    complaints.extend(still_works(&stage, &site)?);
    complaints.extend(leftovers(&site));
    stage.close()?;
    conclude(&complaints)
}

/// Who was killed, and when.
#[derive(Debug, Default)]
struct Struck {
    gateway: Vec<Instant>,
    link: Vec<Instant>,
    keepers: [Vec<Instant>; 2],
    all_at_once: usize,
    fates: Vec<(Fate, usize)>,
}

impl Struck {
    fn during(&self, asked: &Asked) -> Killed {
        let keepers = &self.keepers[asked.machine as usize];
        let hit = |moments: &[Instant], from: Instant, to: Instant| {
            moments.iter().any(|one| (from..to).contains(one))
        };
        let before = asked.from.checked_sub(UNNOTICED).unwrap_or(asked.from);
        let written = asked.to + UNWRITTEN;
        let deaths = self.gateway.iter();
        let deaths = deaths.filter(|at| (asked.from..written).contains(at));
        let heard = deaths.map(|at| *at + UNHEARD).max();
        let kept = heard.unwrap_or(written).max(written);
        Killed {
            keeper: hit(keepers, asked.from, kept),
            gateway: heard.is_some(),
            keeper_before: hit(keepers, before, asked.from),
        }
    }
}

/// Who is killed next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Gateway,
    Link,
    Keeper(Machine),
    /// Everybody: what a power cut does to processes.
    All,
}

impl Victim {
    fn draw(dice: &mut Dice) -> Self {
        match dice.below(20) {
            0..8 => Self::Gateway,
            8..15 => Self::Link,
            15..17 => Self::Keeper(Machine::Node),
            17..18 => Self::Keeper(Machine::Local),
            _ => Self::All,
        }
    }
}

/// Kills so often, and lets everything come back; a caller that gives up ends it.
fn strike(
    stage: &mut Stage,
    kills: usize,
    dice: &mut Dice,
    is_in_vain: impl Fn() -> bool,
) -> anyhow::Result<Struck> {
    let mut struck = Struck::default();
    let since = Instant::now();
    for number in 0..kills {
        // Mostly a moment in which much happens; now and then long enough for runs to end.
        let calm = match dice.below(4) {
            0 => dice.below(2500),
            1 => dice.below(60),
            _ => dice.below(1000),
        };
        thread::sleep(Duration::from_millis(calm));
        if stop::asked() {
            bail!("stopped");
        }
        if is_in_vain() {
            break;
        }
        stage.check_alive()?;
        let victim = Victim::draw(dice);
        kill(stage, victim, &mut struck)?;
        thread::sleep(Duration::from_millis(dice.below(300)));
        if matches!(victim, Victim::Gateway | Victim::All) {
            stage.start_gateway()?;
        }
        if matches!(victim, Victim::Link | Victim::All) {
            stage.start_node()?;
        }
        if (number + 1) % 50 == 0 {
            let seconds = since.elapsed().as_secs();
            say::line(&say::inked(
                Ink::Dim,
                &format!("{} kills, {seconds} s", number + 1),
            ));
        }
    }
    struck.fates = stage.relay.end_trouble();
    Ok(struck)
}

fn kill(stage: &mut Stage, victim: Victim, struck: &mut Struck) -> anyhow::Result<()> {
    // Noted before and not after: what it does to a run may be told at once.
    let now = Instant::now();
    match victim {
        Victim::Gateway => {
            struck.gateway.push(now);
            stage.kill_gateway()?;
        }
        Victim::Link => {
            struck.link.push(now);
            stage.kill_node()?;
        }
        Victim::Keeper(machine) => {
            for pid in stage.keepers_of(machine) {
                struck.keepers[machine as usize].push(now);
                kill_keeper(pid);
            }
        }
        Victim::All => {
            struck.all_at_once += 1;
            kill(stage, Victim::Gateway, struck)?;
            kill(stage, Victim::Link, struck)?;
            kill(stage, Victim::Keeper(Machine::Node), struck)?;
            kill(stage, Victim::Keeper(Machine::Local), struck)?;
        }
    }
    Ok(())
}

fn kill_keeper(pid: u32) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    if let Some(pid) = pid {
        kill_process(pid, Signal::KILL).ok(); // it may just have left
    }
}

/// Looks at every run, and returns what is wrong; `came` gets how each came out.
fn judge(
    site: &Site,
    struck: &Struck,
    all: &[Asked],
    came: &mut Vec<Option<Came>>,
) -> anyhow::Result<Vec<String>> {
    let mut complaints = Vec::new();
    let mut runs: HashMap<String, Value> = HashMap::new();
    for run in site.runs()? {
        let cwd = run["cwd"].as_str().unwrap_or_default();
        let key = cwd.rsplit('/').next().unwrap_or_default().to_owned();
        if let Some(other) = runs.insert(key, run.clone()) {
            complaints.push(format!("two runs of one request: {other} and {run}"));
        }
    }
    for asked in all {
        let told = asked
            .ids
            .first()
            .map(|id| site.run(id, Instant::now() + STEP));
        let run = told.transpose()?.or_else(|| runs.remove(&asked.key));
        let outputs = match &run {
            Some(run) => [site.kept(run, "stdout")?, site.kept(run, "stderr")?],
            None => Default::default(),
        };
        let facts = Facts {
            run,
            starts: site.starts(&asked.key, STARTS),
            outputs,
            killed: struck.during(asked),
        };
        match verdict::judge(asked, &facts) {
            Ok(one) => came.push(Some(one)),
            Err(wrong) => {
                came.push(None);
                let (way, kind) = (asked.way.word(), asked.script.kind.word());
                let machine = asked.machine.name();
                let killed = facts.killed;
                complaints.push(format!(
                    "{} on {machine} ({way}, {kind}; {killed:?}): {wrong}",
                    asked.key
                ));
            }
        }
    }
    Ok(complaints)
}

/// Nobody has left anything: what a killed keeper left is ended by the next one.
fn leftovers(site: &Site) -> Vec<String> {
    let since = Instant::now();
    let mut left = site::working_below(&site.work);
    while !left.is_empty() && since.elapsed() < STEP {
        thread::sleep(process::TICK);
        left = site::working_below(&site.work);
    }
    let complaints = left.iter().map(|(pid, dir)| {
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = line.replace('\0', " ");
        format!("process {pid} of {} is still there: {line}", dir.display())
    });
    let complaints = complaints.collect();
    let left: Vec<_> = left.into_iter().map(|(pid, _)| pid).collect();
    process::end_strangers(&left);
    complaints
}

/// Asks both machines for one more command, and the doctor for what is wrong.
fn still_works(stage: &Stage, site: &Site) -> anyhow::Result<Vec<String>> {
    for machine in [Machine::Node, Machine::Local] {
        let said = stage.text(&["node", "exec", machine.name(), "--", "echo", "here"])?;
        if said != "here\n" {
            bail!("{} said `{said}`", machine.name());
        }
    }
    site.errors_of_the_doctor()
}

fn show(struck: &Struck, all: &[Asked], came: &[Option<Came>]) {
    let mut report = Report::default();
    let keepers: usize = struck.keepers.iter().map(Vec::len).sum();
    let mut rows = vec![
        vec!["gateway".to_owned(), struck.gateway.len().to_string()],
        vec!["link".to_owned(), struck.link.len().to_string()],
        vec!["keepers".to_owned(), keepers.to_string()],
        vec!["all at once".to_owned(), struck.all_at_once.to_string()],
    ];
    rows.extend(
        struck
            .fates
            .iter()
            .map(|(fate, times)| vec![format!("connections {}", fate.word()), times.to_string()]),
    );
    report.table("killed, and cut", &["what", "times"], rows);
    let head = [
        "runs",
        "asked",
        "as known",
        "lost",
        "not started",
        "unknown",
        "wrong",
    ];
    let row = |word: &str, is_one: &dyn Fn(&Asked) -> bool| {
        let those = all.iter().zip(came).filter(|(asked, _)| is_one(asked));
        let those: Vec<_> = those.map(|(_, came)| *came).collect();
        let count = |came| those.iter().filter(|one| **one == came).count().to_string();
        let mut row = vec![word.to_owned(), those.len().to_string()];
        row.extend(Came::ALL.map(|one| count(Some(one))));
        row.push(count(None));
        row
    };
    let kinds = Kind::ALL.map(|kind| row(kind.word(), &|one| one.script.kind == kind));
    let ways = Way::ALL.map(|way| row(way.word(), &|one| one.way == way));
    let sum = row("all", &|_| true);
    let rows = kinds.into_iter().chain(ways).chain([sum]).collect();
    report.table("what came of the runs", &head, rows);
}

fn conclude(complaints: &[String]) -> anyhow::Result<()> {
    if complaints.is_empty() {
        say::line("Nothing was lost, and nothing ran twice.");
        return Ok(());
    }
    for complaint in complaints.iter().take(SHOWN) {
        say::problem(complaint);
    }
    bail!("{} things are wrong", complaints.len())
}
