//! A small world in which the gateway, the link and the keeper of the product meet every trouble
//! there is, and a number that repeats it.
//!
//! One number is one world: which machines there are, what people ask for, what goes wrong and
//! when, all random numbers of the product, the order of its tasks. The world is played in a process
//! of its own on one thread ([`world`]); what must never be is objected to by a [`model`] that knows
//! nothing of the product. [`many`] plays many numbers.
//!
//! Reading order: [`plan`] (what is to happen), [`world`] (how it is done), [`kernel`], [`disk`] and
//! [`net`] (what the product stands on there), [`model`] (what must be true), [`trace`] (what is
//! told). [`entropy`] says how it becomes the same twice.

mod dice;
mod disk;
mod entropy;
mod fate;
mod freeze;
mod kernel;
mod many;
mod model;
mod net;
mod one;
mod plan;
mod processor;
mod trace;
mod witness;
mod world;

use std::path::PathBuf;
use std::time::Duration;

pub(crate) use self::many::Verdict;

/// What the help says below its first line; not Markdown, so not a comment.
const ABOUT: &str = "\
Play worlds in which gateway and nodes meet every trouble, each repeatable by its number

Numbers that have ever failed are played first. One in fifty is played twice, and has to come to the
same both times. With --seed one world is played, and all that happens in it is told. Exit: 0 nothing
is wrong, 1 some world is, 2 a world could not be played.";

/// `simulate`, as it is typed.
#[derive(Debug, clap::Args)]
#[command(about = "Play worlds in which gateway and nodes meet every trouble, each repeatable by its number", long_about = ABOUT)]
pub(crate) struct Simulate {
    /// Play so many worlds
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The number of the first one
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Play this one alone, and tell all that happens in it
    #[arg(long, value_name = "NUMBER", conflicts_with_all = ["seeds", "from"])]
    seed: Option<u64>,
    /// With --seed, tell also what the product logs: `debug`, `moltis_gateway=trace`, …
    #[arg(long, value_name = "FILTER", requires = "seed")]
    log: Option<String>,
    /// Worlds that are played at once; as many as there are processors when left out
    #[arg(long)]
    jobs: Option<usize>,
    /// Begin no world any more behind so many seconds
    #[arg(long, value_name = "SECONDS")]
    within: Option<u64>,
    /// Stop at the first world that is wrong
    #[arg(long)]
    until_wrong: bool,
    /// Fail, too, where nobody has died at some boundary of a durable step
    #[arg(long, conflicts_with = "seed")]
    every_boundary: bool,
    /// With --here, tell all that happened only where something is wrong
    #[arg(long, hide = true)]
    only_wrong: bool,
    /// Play a world in this process, below this directory
    #[arg(long, hide = true, requires = "seed")]
    here: Option<PathBuf>,
    /// With --here, use this processor alone
    #[arg(long, hide = true, requires = "here")]
    processor: Option<usize>,
}

/// Does it.
///
/// # Errors
/// Where a world cannot be played on this machine.
pub(crate) fn run(args: &Simulate) -> anyhow::Result<Verdict> {
    match (args.seed, &args.here) {
        (Some(seed), Some(dir)) => {
            if let Some(processor) = args.processor {
                processor::stay_on(processor);
            }
            let telling = if args.only_wrong {
                one::Telling::OnlyWrong
            } else {
                one::Telling::All
            };
            one::play(seed, dir, args.log.as_deref(), telling)
        }
        (Some(seed), None) => many::tell(seed, args.log.as_deref()),
        (None, _) => many::play(&many::Wanted {
            seeds: args.seeds,
            from: args.from,
            jobs: args.jobs,
            within: args.within.map(Duration::from_secs),
            until_wrong: args.until_wrong,
            every_boundary: args.every_boundary,
        }),
    }
}
