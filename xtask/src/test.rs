//! `cargo xtask test`: what CI runs, in its order, and a summary with the time of each part.
//!
//! A part that fails does not stop the next one, so one run tells everything; its last lines are
//! printed once more at the end, for who has only the end of a log. What cannot be had on
//! this machine is listed at the end as NOT TESTED, by name; under `CI=1` that is a failure, except
//! for the few names in [`EXCUSED`]. A test that cannot do its work here appends a line
//! `<name>: <why>` to the file named by `MOLTIS_NOT_TESTED` and passes.

use std::env;
use std::fmt;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::api::Trial;
use crate::chaos::Storm;
use crate::crashes::Crashes;
use crate::fuzz::Fuzzing;
use crate::say::{self, Ink};
use crate::{conformance, deny, needs, process, simulate, stop, tidy, workspace};

/// What may stay untested under `CI=1`, and nothing else: no machine has all of it.
const EXCUSED: &[&str] = &[
    "cargo-deny's advisories",
    "launchd",
    "network namespaces",
    "an OOM kill by the kernel",
    "a power cut of a gateway",
    "a file system that never answers",
    "other architectures",
];

/// What no test of this repository tries, on whatever machine it runs. A line goes when its test
/// comes.
const NEVER_TESTED: &[(&str, &str)] = &[(
    "launchd",
    "it needs macOS; the file that it is given is read by another parser",
)];

/// Appends to the list of what was not tested; a test that cannot do its work here calls it.
#[cfg(test)]
pub(crate) fn not_tested(name: &str, why: &str) {
    use std::io::Write as _;
    let Some(list) = env::var_os("MOLTIS_NOT_TESTED") else {
        return;
    };
    let line = format!("{name}: {why}\n");
    let file = fs::File::options().append(true).open(list);
    file.and_then(|mut file| file.write_all(line.as_bytes()))
        .expect("the list of what was not tested takes a line");
}

/// A part's own words for "not here": which thing, and why.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Untested {
    name: String,
    why: String,
}

impl Untested {
    pub(crate) fn new(name: &str, why: &str) -> Self {
        Self {
            name: name.to_owned(),
            why: why.to_owned(),
        }
    }

    /// Reads `<name>: <why>`.
    fn from_line(line: &str) -> Self {
        let (name, why) = line.split_once(": ").unwrap_or((line, "no reason given"));
        Self::new(name, why)
    }

    /// Returns whether no machine can be blamed for it.
    pub(crate) fn is_excused(&self) -> bool {
        EXCUSED.contains(&&*self.name)
    }
}

impl fmt::Display for Untested {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NOT TESTED  {}: {}", self.name, self.why)
    }
}

/// A part: its name, what it proves, its limit, and what runs it.
struct Part {
    name: &'static str,
    about: &'static str,
    run: fn() -> anyhow::Result<Vec<Untested>>,
}

const PARTS: &[Part] = &[
    Part {
        name: "needs",
        about: "the programs that the tests start",
        run: || Ok(check_needs()),
    },
    Part {
        name: "fmt",
        about: "cargo fmt --check",
        run: fmt,
    },
    Part {
        name: "clippy",
        about: "cargo clippy, every warning an error",
        run: clippy,
    },
    Part {
        name: "features",
        about: "each end for who embeds it, with each feature alone and with none",
        run: features,
    },
    Part {
        name: "test",
        about: "every test of the workspace",
        run: tests,
    },
    Part {
        name: "doctest",
        about: "the examples in the documentation",
        run: doctests,
    },
    Part {
        name: "doc",
        about: "cargo doc, every warning an error",
        run: doc,
    },
    Part {
        name: "deny",
        about: "licences, bans, sources, advisories",
        run: deny::check,
    },
    Part {
        name: "fuzz",
        about: "bytes that nobody meant, a moment for each target",
        run: || Fuzzing::SHORT.run(),
    },
    Part {
        name: "api",
        about: "the HTTP API, as its own document describes it, and everything but that",
        run: || Trial::SHORT.run(),
    },
    Part {
        name: "tidy",
        about: "floors, front pages, links, migrations",
        run: tidies,
    },
    Part {
        name: "readme",
        about: "the README's commands, word for word as a person types them",
        run: readme,
    },
    Part {
        name: "conformance",
        about: "every node of this repository, by the table that anybody's node has to pass",
        run: conformance::check,
    },
    Part {
        name: "chaos",
        about: "gateway, link and keepers killed at random moments, and nothing lost",
        run: || Storm::SHORT.run(),
    },
    Part {
        name: "crashes",
        about: "gateway, link and keeper killed before their writes, a part of all of them",
        run: || Crashes::ALL.run(),
    },
    Part {
        name: "simulate",
        about: "worlds in which everything goes wrong that can",
        run: simulate::check,
    },
];

/// What became of a part.
struct Ended {
    name: &'static str,
    took: Duration,
    /// How it failed: the last lines of what was printed meanwhile.
    failed: Option<Vec<String>>,
}

/// `cargo xtask test [part…]`.
pub(crate) fn run(words: &[String]) -> anyhow::Result<()> {
    if let Some(word) = words
        .iter()
        .find(|word| PARTS.iter().all(|part| part.name != **word))
    {
        let known: Vec<_> = PARTS.iter().map(|part| part.name).collect();
        bail!("there is no part `{word}`; there are: {}", known.join(", "));
    }
    let wanted = |part: &&Part| words.is_empty() || words.iter().any(|word| word == part.name);
    let mut ended = Vec::new();
    let mut untested = Vec::new();
    for part in PARTS.iter().filter(wanted) {
        say::heading(&format!(
            "{}  {}",
            part.name,
            say::inked(Ink::Dim, part.about)
        ));
        say::last_lines(); // those are not this part's
        let since = Instant::now();
        let failed = match (part.run)() {
            Ok(more) => {
                untested.extend(more);
                None
            }
            Err(error) => {
                say::failure(&error);
                Some(say::last_lines())
            }
        };
        let took = since.elapsed();
        ended.push(Ended {
            name: part.name,
            took,
            failed,
        });
        if stop::asked() {
            break;
        }
    }
    if words.is_empty() {
        let never = |(name, why): &(&str, &str)| Untested::new(name, why);
        untested.extend(NEVER_TESTED.iter().map(never));
        let here = format!("this is {} on {}", env::consts::ARCH, env::consts::OS);
        untested.push(Untested::new("other architectures", &here));
    }
    summarise(&ended, &untested)
}

fn summarise(ended: &[Ended], untested: &[Untested]) -> anyhow::Result<()> {
    say::heading("summary");
    for part in ended {
        let (ink, word) = match part.failed {
            None => (Ink::Good, "passed"),
            Some(_) => (Ink::Bad, "FAILED"),
        };
        let took = format!("{:>8.1} s", part.took.as_secs_f64());
        say::line(&format!(
            "  {:<12}{}{took}",
            part.name,
            say::inked(ink, word)
        ));
    }
    for untested in untested {
        let excused = if untested.is_excused() {
            ""
        } else {
            "  (a failure under CI=1)"
        };
        say::line(&format!(
            "  {}{excused}",
            say::inked(Ink::Warn, &untested.to_string())
        ));
    }
    let total: Duration = ended.iter().map(|part| part.took).sum();
    say::line(&format!("  {:<18}{:>8.1} s", "in all", total.as_secs_f64()));
    let mut names = Vec::new();
    for part in ended {
        let Some(lines) = &part.failed else { continue };
        names.push(part.name);
        // Who sits at the terminal has seen them come.
        if !say::is_watched() {
            say::heading(&format!("the last lines of {}", part.name));
            for line in lines {
                say::line(&format!("  {line}"));
            }
        }
    }
    if !names.is_empty() {
        bail!("failed: {}", names.join(", "));
    }
    let missed: Vec<_> = untested.iter().filter(|one| !one.is_excused()).collect();
    if workspace::is_ci() && !missed.is_empty() {
        let names: Vec<_> = missed.iter().map(|one| one.name.as_str()).collect();
        bail!(
            "not tested, and CI=1 excuses none of it: {}",
            names.join(", ")
        );
    }
    if stop::asked() {
        bail!("stopped before the end");
    }
    Ok(())
}

/// Runs cargo with a limit in minutes.
fn cargo(words: &[&str], minutes: u64) -> anyhow::Result<()> {
    let mut command = workspace::cargo();
    process::run(command.args(words), Duration::from_mins(minutes))
}

fn check_needs() -> Vec<Untested> {
    needs::meet()
        .iter()
        .map(|line| Untested::from_line(line))
        .collect()
}

fn fmt() -> anyhow::Result<Vec<Untested>> {
    cargo(&["fmt", "--all", "--check"], 2)?;
    Ok(Vec::new())
}

fn clippy() -> anyhow::Result<Vec<Untested>> {
    let words = [
        "clippy",
        "--locked",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ];
    cargo(&words, 30)?;
    Ok(Vec::new())
}

/// Features that an embedder chooses, and those that only a simulation does. Built for the
/// workspace, cargo turns on the first; only a crate that is built alone shows what is missing.
const FEATURES: [(&str, &[&str]); 2] = [
    ("moltis-gateway", &["metrics", "tls", "simulation"]),
    ("moltis-node", &["simulation"]),
];

/// The workspace with both ends in a simulation and with the program that plays it, which nothing
/// else is built with.
const SIMULATED: [&str; 4] = [
    "--locked",
    "--workspace",
    "--features",
    "moltis-gateway/simulation,moltis-node/simulation,moltis-sim/simulate",
];

fn features() -> anyhow::Result<Vec<Untested>> {
    for (package, features) in FEATURES {
        let alone = ["--locked", "-p", package, "--no-default-features"];
        let none = [&["clippy"], &alone[..], &["--", "-D", "warnings"]].concat();
        cargo(&none, 15)?;
        for feature in features {
            let with = [&["check"], &alone[..], &["--features", feature]].concat();
            cargo(&with, 15)?;
        }
    }
    let lint = ["--all-targets", "--", "-D", "warnings"];
    cargo(&[&["clippy"], &SIMULATED[..], &lint].concat(), 15)?;
    let test = ["--test", "simulation", "--bin", "moltis-sim", "--quiet"];
    cargo(&[&["test"], &SIMULATED[..], &test].concat(), 20)?;
    Ok(Vec::new())
}

/// What the names of the tests hold that are a part of their own: they build, so they run alone.
const README_TESTS: &str = "word_for_word";

fn tests() -> anyhow::Result<Vec<Untested>> {
    let list = workspace::target().join("not-tested.txt");
    fs::write(&list, "").with_context(|| format!("writing {}", list.display()))?;
    let mut command = workspace::cargo();
    command.env("MOLTIS_NOT_TESTED", &list);
    if needs::find("cargo-nextest").is_some() {
        command.args([
            "nextest",
            "run",
            "--locked",
            "--workspace",
            "--no-fail-fast",
            // Once more at the end, where the last lines are.
            "--failure-output=immediate-final",
        ]);
    } else {
        command.args(["test", "--locked", "--workspace", "--no-fail-fast"]);
        command.args(["--lib", "--bins", "--tests"]);
    }
    command.args(["--", "--skip", README_TESTS]);
    process::run(&mut command, Duration::from_mins(45))?;
    let mut lines: Vec<_> = fs::read_to_string(&list)?
        .lines()
        .map(str::to_owned)
        .collect();
    lines.sort_unstable();
    lines.dedup();
    Ok(lines.iter().map(|line| Untested::from_line(line)).collect())
}

fn doctests() -> anyhow::Result<Vec<Untested>> {
    cargo(&["test", "--locked", "--workspace", "--doc", "--quiet"], 20)?;
    Ok(Vec::new())
}

fn doc() -> anyhow::Result<Vec<Untested>> {
    let mut command = workspace::cargo();
    command.args(["doc", "--locked", "--workspace", "--no-deps"]);
    command.env("RUSTDOCFLAGS", "-D warnings");
    process::run(&mut command, Duration::from_mins(20))?;
    Ok(Vec::new())
}

fn tidies() -> anyhow::Result<Vec<Untested>> {
    tidy::check()?;
    Ok(Vec::new())
}

fn readme() -> anyhow::Result<Vec<Untested>> {
    let mut command = workspace::cargo();
    command.args([
        "test",
        "--locked",
        "--workspace",
        "--test",
        "readme",
        "--quiet",
    ]);
    command.args(["--", "--nocapture", "--test-threads", "1", README_TESTS]);
    process::run(&mut command, Duration::from_mins(30))?;
    Ok(Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_a_test_names_what_was_not_tested() {
        let line = "network namespaces: `ip netns add` is not allowed here";
        let untested = Untested::from_line(line);
        assert_eq!(untested.name, "network namespaces");
        assert!(untested.is_excused());
        assert_eq!(untested.to_string(), format!("NOT TESTED  {line}"));
    }

    #[test]
    fn what_is_never_tested_is_excused() {
        for (name, why) in NEVER_TESTED {
            assert!(Untested::new(name, why).is_excused(), "{name}");
        }
    }

    #[test]
    fn nothing_else_is_excused() {
        assert!(!Untested::new("sshd", "not installed").is_excused());
        assert!(!Untested::new("launchd jobs", "a name like an excused one").is_excused());
    }
}
