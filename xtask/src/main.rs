//! Project automation: `cargo xtask <command>`.
//!
//! This program builds, starts and measures other programs. It imports none of the `moltis-*` crates:
//! whatever it learns about Moltis it learns as a stranger would, from the binary, its output, its
//! socket and its files.
//!
//! Reading order: `test` (what CI runs), `tidy` (rules no compiler checks), `quickstart` (the whole
//! product in one minute), `nightly` (what takes long), `chaos` and `crashes` (everything is killed, nothing is lost), `bench` and `load` (the figures),
//! `conformance` (any node), `simulate` (every trouble at once). `say` is the only module that prints, `process` the only one that starts things.

use std::env;
use std::process::ExitCode;

mod api;
mod bench;
mod bless;
mod chaos;
mod conformance;
mod crashes;
mod deny;
mod dice;
mod floors;
mod fuzz;
mod http;
mod load;
mod needs;
mod nightly;
mod process;
mod quickstart;
mod say;
mod simulate;
mod stage;
mod stop;
mod tail;
mod test;
mod tidy;
mod tools;
mod workspace;

/// One command of this program: its name, what it does, and what runs it.
type Command = (
    &'static str,
    &'static str,
    fn(&[String]) -> anyhow::Result<()>,
);

const COMMANDS: &[Command] = &[
    (
        "quickstart",
        "build, start a gateway and a node, pair them, run a command; `--once` ends there",
        quickstart::run,
    ),
    (
        "test",
        "everything CI runs, in its order; `test <part>…` runs only those",
        test::run,
    ),
    (
        "api",
        "everything that Schemathesis makes of the API's document; `api <seconds> <seed>` for longer and again",
        api::run,
    ),
    (
        "fuzz",
        "ten million executions a target; `--executions n`, `--keep` the corpora, names of targets",
        fuzz::run,
    ),
    (
        "nightly",
        "what takes too long for every change: long fuzzing, ignored tests, more stories",
        nightly::run,
    ),
    (
        "bench",
        "ours, the floor and OpenSSH in turn, beside the targets; `--short`, `--write`",
        bench::run,
    ),
    (
        "load",
        "ten thousand nodes on one gateway, beside the targets; `--nodes`, `--short`, `--write`",
        load::run,
    ),
    (
        "chaos",
        "kill gateway, link and keepers at random moments, lose nothing; `--kills`, `--seed`",
        chaos::run,
    ),
    (
        "crashes",
        "kill gateway, link and keeper before their writes; `--points`, `--all`, `--seed`",
        crashes::run,
    ),
    (
        "conformance",
        "play a gateway to any node and print a table; `-- <command that starts it>`",
        conformance::run,
    ),
    (
        "simulate",
        "worlds in which everything goes wrong; `--seeds N`, `--seed N`, `--break NAME`",
        simulate::run,
    ),
    (
        "bless",
        "write the golden vectors and docs/cli.md anew, with `--all` the snapshots too",
        bless::run,
    ),
    (
        "tidy",
        "the rules that no compiler checks: floors, front pages, links, …",
        tidy::run,
    ),
    (
        "seal",
        "seal the migrations of a release: from then on they never change",
        tidy::seal,
    ),
    (
        "deny",
        "licences, bans, sources and advisories, by cargo-deny",
        deny::run,
    ),
];

fn main() -> ExitCode {
    let mut words = env::args().skip(1);
    let name = words.next().unwrap_or_default();
    let rest: Vec<String> = words.collect();
    let Some((_, _, run)) = COMMANDS.iter().find(|(known, ..)| *known == name) else {
        return usage(&name);
    };
    match stop::listen().and_then(|()| run(&rest)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say::failure(&error);
            ExitCode::FAILURE
        }
    }
}

/// Prints the list of commands; asking for it is a success, guessing a name is not.
fn usage(name: &str) -> ExitCode {
    let asked = matches!(name, "" | "help" | "--help" | "-h");
    if !asked {
        say::problem(&format!("there is no command `{name}`"));
    }
    say::line("cargo xtask <command>\n");
    for (name, about, _) in COMMANDS {
        say::line(&format!("  {name:<12} {about}"));
    }
    if asked {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(2)
    }
}
