//! `cargo xtask nightly`: what takes too long for every change.
//!
//! Long fuzzing of bytes and of the HTTP API, more stories of the simulated link, a gibibyte through
//! the binary, the speeds that the ignored tests print, ten thousand nodes, and a million simulated
//! worlds. All in release builds, one test at a time.

use std::time::Duration;

use anyhow::bail;

use crate::api::Trial;
use crate::chaos::Storm;
use crate::crashes::Crashes;
use crate::fuzz::Fuzzing;
use crate::{load, process, say, simulate, workspace};

/// How long the ignored tests may take, their build included.
const TESTS: Duration = Duration::from_hours(3);

/// `cargo xtask nightly`.
pub(crate) fn run(words: &[String]) -> anyhow::Result<()> {
    if !words.is_empty() {
        bail!("`cargo xtask nightly` takes nothing");
    }
    say::heading("the tests that are left out of `cargo xtask test`");
    let mut tests = workspace::cargo();
    tests.args(["test", "--locked", "--workspace", "--release"]);
    tests.args(["--no-fail-fast", "--lib", "--bins", "--tests"]);
    tests.args(["--", "--ignored", "--nocapture", "--test-threads", "1"]);
    let tested = process::run(&mut tests, TESTS);
    if let Err(error) = &tested {
        say::failure(error);
    }
    say::heading("ten thousand nodes on one gateway");
    let loaded = load::run(&[]);
    if let Err(error) = &loaded {
        say::failure(error);
    }
    say::heading("two thousand kills");
    let stormed = Storm::LONG.run();
    if let Err(error) = &stormed {
        say::failure(error);
    }
    say::heading("every write, killed before");
    let crashed = Crashes::THRICE.run();
    if let Err(error) = &crashed {
        say::failure(error);
    }
    say::heading("the HTTP API, half an hour of Schemathesis");
    let tried = Trial::LONG.run();
    if let Err(error) = &tried {
        say::failure(error);
    }
    say::heading("a million worlds, and every defect that they have to find");
    let simulated = simulate::check_long();
    if let Err(error) = &simulated {
        say::failure(error);
    }
    say::heading("fuzzing, ten million executions a target");
    let mut untested = Fuzzing::LONG.run()?;
    tested?;
    untested.extend(tried?);
    untested.extend(simulated?);
    for one in &untested {
        say::line(&one.to_string());
    }
    loaded?;
    untested.extend(stormed?);
    untested.extend(crashed?);
    if !untested.is_empty() {
        bail!("not everything was tried");
    }
    Ok(())
}
