//! Writes anew what tests compare with: golden vectors and snapshots. Whoever runs it looks at the
//! difference: a message that has been on the wire never changes.

use std::time::Duration;

use anyhow::bail;

use crate::{needs, process, say, workspace};

/// How long the tests may take that write.
const LIMIT: Duration = Duration::from_mins(45);

/// `cargo xtask bless`: the vectors; `cargo xtask bless --all`: every snapshot too.
pub(crate) fn run(words: &[String]) -> anyhow::Result<()> {
    let filter: &[&str] = match words {
        [] => &["vectors"],
        [word] if word == "--all" => &[],
        _ => bail!("usage: cargo xtask bless [--all]"),
    };
    let mut cargo = workspace::cargo();
    cargo.env("MOLTIS_BLESS", "1").env("INSTA_UPDATE", "always");
    if needs::find("cargo-nextest").is_some() {
        cargo.args(["nextest", "run", "--locked", "--workspace"]);
    } else {
        cargo.args(["test", "--locked", "--workspace", "--quiet"]);
        cargo.args(["--lib", "--bins", "--tests", "--"]);
    }
    process::run(cargo.args(filter), LIMIT)?;
    say::line("written; `git diff` shows what has changed");
    Ok(())
}
