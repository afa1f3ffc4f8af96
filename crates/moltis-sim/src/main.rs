//! Programs that drive Moltis from outside. `xtask` builds and starts them; nobody imports them.
//!
//! Each command is a room of its own: [`load`] is many nodes at once, [`conformance`] a gateway that
//! judges a node, `simulate` (with the feature of this name) worlds in which both ends are played
//! through every trouble.

mod conformance;
mod load;
#[cfg(feature = "simulate")]
mod simulate;

use std::process::ExitCode;

use clap::Parser;

/// Drives Moltis from outside.
#[derive(Debug, Parser)]
#[command(name = "moltis-sim")]
enum Sim {
    /// Many nodes at once, and those who mean no good.
    #[command(subcommand)]
    Load(load::Load),
    Conformance(conformance::Conformance),
    #[cfg(feature = "simulate")]
    Simulate(simulate::Simulate),
}

fn main() -> ExitCode {
    let done = match Sim::parse() {
        Sim::Load(load) => load::run(load).map(|()| ExitCode::SUCCESS),
        Sim::Conformance(args) => conformance::run(&args).map(|verdict| match verdict {
            conformance::Verdict::Conforms => ExitCode::SUCCESS,
            conformance::Verdict::Fails => ExitCode::FAILURE,
        }),
        #[cfg(feature = "simulate")]
        Sim::Simulate(args) => simulate::run(&args).map(|verdict| match verdict {
            simulate::Verdict::Right => ExitCode::SUCCESS,
            simulate::Verdict::Wrong => ExitCode::FAILURE,
        }),
    };
    done.unwrap_or_else(|error| {
        report(&error);
        ExitCode::from(2)
    })
}

#[expect(clippy::print_stderr, reason = "a program says why it failed")]
fn report(error: &anyhow::Error) {
    eprintln!("moltis-sim: {error:#}");
}
