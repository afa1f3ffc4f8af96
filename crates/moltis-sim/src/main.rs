//! Programs that drive Moltis from outside. `xtask` builds and starts them; nobody imports them.
//!
//! Each command is a room of its own: [`load`] is many nodes at once.

mod load;

use std::process::ExitCode;

use clap::Parser;

/// Drives Moltis from outside.
#[derive(Debug, Parser)]
#[command(name = "moltis-sim")]
enum Sim {
    /// Many nodes at once, and those who mean no good.
    #[command(subcommand)]
    Load(load::Load),
}

fn main() -> ExitCode {
    let done = match Sim::parse() {
        Sim::Load(load) => load::run(load),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "a program says why it failed")]
fn report(error: &anyhow::Error) {
    eprintln!("moltis-sim: {error:#}");
}
