//! Bytes that nobody meant, fed to whatever reads bytes: the targets in `fuzz/`, by cargo-fuzz.
//!
//! `cargo xtask test` gives each target a moment from its corpus with a fixed seed; `cargo xtask
//! nightly` and `cargo xtask fuzz` give it ten million executions, with another seed each time.
//! Two targets run at a time. What once made a target fail is tried first, each time. A target fails
//! that finds something, takes longer than a second for an input or more than 256 MiB for all, or does
//! not reach its number.
//!
//! Without a sanitizer: there is no `unsafe` in this repository for it to look at, and what it keeps
//! would hide how much memory an input takes. Arithmetic that overflows and assertions stop a target.

mod corpus;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::test::Untested;
use crate::tools::Tool;
use crate::workspace::{self, ROOT};
use crate::{process, say};

const CARGO_FUZZ: Tool = Tool {
    name: "cargo-fuzz",
    version: "0.13.2",
};

/// How long the build of all targets may take: they are built with instrumentation, apart from all
/// else.
const BUILD: Duration = Duration::from_mins(30);

/// How much longer than asked for a target may take until it has ended.
const SLACK: Duration = Duration::from_mins(2);

/// How long a target may take for its number of executions.
const LONGEST: Duration = Duration::from_hours(6);

/// Targets that run at once.
const AT_ONCE: usize = 2;

/// Seconds that one input may take.
const INPUT_SECONDS_MAX: u32 = 1;

/// Mebibytes that a target may take.
const MEMORY_MIB_MAX: u32 = 256;

/// Bytes of an input, at the most.
const INPUT_BYTES_MAX: u32 = 4096;

/// How each target is fuzzed: until it has run so often, or the time is over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fuzzing {
    executions: u64,
    /// `None` waits for the executions.
    time: Option<Duration>,
    /// `None` draws one.
    seed: Option<u32>,
}

/// What a target did.
#[derive(Debug, PartialEq, Eq)]
struct Ran {
    executions: u64,
    /// Edges of the code that were reached.
    coverage: u64,
    memory_mib: u64,
}

/// `cargo xtask fuzz [--executions n | --keep] [target…]`.
pub(crate) fn run(words: &[String]) -> anyhow::Result<()> {
    let mut fuzzing = Fuzzing::LONG;
    let mut keeps = false;
    let mut wanted = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--executions" => {
                let number = words.next().context("`--executions` needs a number")?;
                fuzzing.executions = number
                    .parse()
                    .with_context(|| format!("`{number}` is no number of executions"))?;
            }
            "--keep" => keeps = true,
            target => wanted.push(target.to_owned()),
        }
    }
    let targets = Targets::built()?;
    if let Some(unknown) = wanted.iter().find(|word| !targets.names.contains(word)) {
        let known = targets.names.join(", ");
        bail!("there is no target `{unknown}`; there are: {known}");
    }
    let chosen = if wanted.is_empty() {
        targets.names.clone()
    } else {
        wanted
    };
    if keeps {
        return chosen
            .iter()
            .try_for_each(|name| corpus::keep(&targets, name));
    }
    fuzzing.all(&targets, &chosen)
}

impl Fuzzing {
    /// What `cargo xtask test` does: all targets take two minutes together.
    pub(crate) const SHORT: Self = Self {
        executions: 1_000_000,
        time: Some(Duration::from_secs(12)),
        seed: Some(1),
    };

    /// What `cargo xtask nightly` does.
    pub(crate) const LONG: Self = Self {
        executions: 10_000_000,
        time: None,
        seed: None,
    };

    /// Builds all targets once and fuzzes each.
    ///
    /// # Errors
    ///
    /// When a target fails; the message names it, and the bytes that did it.
    pub(crate) fn run(self) -> anyhow::Result<Vec<Untested>> {
        if let Err(error) = CARGO_FUZZ.installed() {
            return Ok(vec![Untested::new("fuzzing", &format!("{error:#}"))]);
        }
        let targets = Targets::built()?;
        self.all(&targets, &targets.names)?;
        Ok(Vec::new())
    }

    /// Fuzzes these, some at a time. One that fails stops no other.
    fn all(self, targets: &Targets, names: &[String]) -> anyhow::Result<()> {
        let waiting = Mutex::new(names.iter());
        let failures = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for _ in 0..AT_ONCE {
                scope.spawn(|| {
                    while let Some(name) = waiting.lock().ok().and_then(|mut names| names.next()) {
                        if let Err(error) = self.one(targets, name)
                            && let Ok(mut failures) = failures.lock()
                        {
                            say::failure(&error);
                            failures.push(name.as_str());
                        }
                    }
                });
            }
        });
        let failures = failures.into_inner().unwrap_or_default();
        if !failures.is_empty() {
            bail!("fuzzing failed: {}", failures.join(", "));
        }
        Ok(())
    }

    fn one(self, targets: &Targets, name: &str) -> anyhow::Result<()> {
        targets.try_regressions(name)?;
        let grown = corpus::grown(name);
        if self.seed.is_some() {
            // A corpus that grew on this machine would make a fixed seed mean something else.
            fs::remove_dir_all(&grown).ok(); // it may not be there
        }
        fs::create_dir_all(&grown).with_context(|| format!("making {}", grown.display()))?;
        let mut run = targets.command(name);
        run.arg(&grown);
        run.args(corpus::committed(name));
        run.arg(format!("-runs={}", self.executions));
        run.arg(format!("-max_len={INPUT_BYTES_MAX}"));
        run.arg("-print_final_stats=1");
        if let Some(time) = self.time {
            run.arg(format!("-max_total_time={}", time.as_secs()));
        }
        run.args(self.seed.map(|seed| format!("-seed={seed}")));
        let since = Instant::now();
        let output = process::output(&mut run, self.time.unwrap_or(LONGEST) + SLACK)?;
        if !output.status.success() {
            return Err(found(name, &output.stderr));
        }
        let ran = Ran::read(&output.stderr)
            .with_context(|| format!("`{name}` does not say what it did:\n{}", output.stderr))?;
        if ran.executions < self.executions && self.time.is_none() {
            let (reached, wanted) = (ran.executions, self.executions);
            bail!("`{name}` ran {reached} times: expected {wanted}");
        }
        let seconds = since.elapsed().as_secs_f64();
        say::line(&format!(
            "  {name:<12}{:>10} executions in {seconds:>6.0} s, {:>5} edges, {:>3} MiB",
            ran.executions, ran.coverage, ran.memory_mib
        ));
        Ok(())
    }
}

impl Ran {
    /// Reads the last words of libFuzzer.
    fn read(words: &str) -> Option<Self> {
        let stat = |name: &str| -> Option<u64> {
            let line = words.lines().rfind(|line| line.starts_with(name))?;
            line.rsplit(' ').next()?.parse().ok()
        };
        let done = words.lines().rfind(|line| line.contains("DONE"))?;
        let mut after_cov = done.split_whitespace().skip_while(|word| *word != "cov:");
        Some(Self {
            executions: stat("stat::number_of_executed_units:")?,
            coverage: after_cov.nth(1)?.parse().ok()?,
            memory_mib: stat("stat::peak_rss_mb:")?,
        })
    }
}

fn found(name: &str, words: &str) -> anyhow::Error {
    let tail: Vec<_> = words.lines().rev().take(30).collect();
    let tail: Vec<_> = tail.into_iter().rev().collect();
    anyhow::anyhow!(
        "fuzzing `{name}` found something (once it is mended, its input belongs into fuzz/regressions/{name}):\n{}",
        tail.join("\n")
    )
}

/// The targets, built.
#[derive(Debug)]
struct Targets {
    names: Vec<String>,
    /// Where their programs are.
    programs: PathBuf,
}

impl Targets {
    fn built() -> anyhow::Result<Self> {
        let program = CARGO_FUZZ.installed()?;
        let listed = process::stdout_of(cargo_fuzz(&program).arg("list"), SLACK)?;
        let names: Vec<_> = listed.lines().map(|line| line.trim().to_owned()).collect();
        if names.is_empty() {
            bail!("`fuzz/` has no targets");
        }
        let mut build = cargo_fuzz(&program);
        build.args(["build", "--sanitizer", "none"]);
        process::run(&mut build, BUILD)?;
        let asked =
            process::stdout_of(Command::new("rustc").args(["--print", "host-tuple"]), SLACK)?;
        let target = ROOT.join("fuzz/target").join(asked.trim());
        Ok(Self {
            names,
            programs: target.join("release"),
        })
    }

    /// Returns a target's program with the bounds of every input.
    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(self.programs.join(name));
        command.current_dir(&*ROOT);
        let artifacts = ROOT.join("fuzz/artifacts").join(name);
        fs::create_dir_all(&artifacts).ok(); // an input that cannot be kept is still told
        command.arg(format!("-artifact_prefix={}/", artifacts.display()));
        command.arg(format!("-timeout={INPUT_SECONDS_MAX}"));
        command.arg(format!("-rss_limit_mb={MEMORY_MIB_MAX}"));
        command
    }

    /// Tries the inputs that once made this target fail.
    fn try_regressions(&self, name: &str) -> anyhow::Result<()> {
        let inputs = corpus::files(&ROOT.join("fuzz/regressions").join(name))?;
        if inputs.is_empty() {
            return Ok(());
        }
        let output = process::output(self.command(name).args(inputs), SLACK)?;
        if output.status.success() {
            return Ok(());
        }
        Err(found(name, &output.stderr).context("an old fault is back"))
    }
}

/// Returns cargo-fuzz for the targets of this repository, with the compiler that everything else is
/// built with: the flags of the instrumentation are hidden in a stable one, not missing.
fn cargo_fuzz(program: &Path) -> Command {
    let mut cargo = workspace::cargo();
    let mut command = Command::new(program);
    command.current_dir(&*ROOT);
    for (name, value) in cargo.env("RUSTC_BOOTSTRAP", "1").get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_of_a_target_are_read() {
        let words = "#2\tINITED cov: 3 ft: 4 corp: 1/1b exec/s: 0 rss: 28Mb\n\
            #2464403\tDONE   cov: 107 ft: 536 corp: 334/71Kb lim: 4096 exec/s: 154025 rss: 28Mb\n\
            Done 2464403 runs in 16 second(s)\n\
            stat::number_of_executed_units: 2464403\n\
            stat::average_exec_per_sec:     154025\n\
            stat::peak_rss_mb:              28\n";
        let expected = Ran {
            executions: 2_464_403,
            coverage: 107,
            memory_mib: 28,
        };
        assert_eq!(Ran::read(words), Some(expected));
        assert_eq!(Ran::read("Done 5 runs"), None);
    }
}
