//! Writes anew what tests compare with: golden vectors, the page of every command, and snapshots.
//! Whoever runs it looks at the difference: a message that has been on the wire never changes.

use std::time::Duration;

use anyhow::bail;

use crate::{needs, process, say, workspace};

/// How long the tests may take that write.
const LIMIT: Duration = Duration::from_mins(45);

/// The tests that write a file where `MOLTIS_BLESS` is set. Others read these files meanwhile.
const WRITERS: &[&str] = &[
    "messages_are_byte_for_byte_those_of_the_vectors",
    "what_is_no_message_is_refused",
    "handshakes_are_byte_for_byte_those_of_the_vectors",
    "the_reference_says_what_the_commands_say",
];

/// `cargo xtask bless`: the vectors and `docs/cli.md`; `cargo xtask bless --all`: every snapshot too.
pub(crate) fn run(words: &[String]) -> anyhow::Result<()> {
    let filter: &[&str] = match words {
        [] => WRITERS,
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::workspace::ROOT;

    #[test]
    fn every_writer_is_a_test_of_a_file_that_can_be_blessed() {
        let sources = [
            "crates/moltis-proto/tests/vectors.rs",
            "crates/moltis-identity/src/golden.rs",
            "crates/moltis-cli/src/args.rs",
        ];
        let sources = sources.map(|source| fs::read_to_string(ROOT.join(source)).unwrap());
        for name in WRITERS {
            let source = sources
                .iter()
                .find(|source| source.contains(&format!("fn {name}()")));
            let source = source.unwrap_or_else(|| panic!("no test is called `{name}`"));
            assert!(source.contains("MOLTIS_BLESS"), "`{name}` writes nothing");
        }
    }
}
