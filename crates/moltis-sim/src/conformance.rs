//! Does a node speak the protocol? This program plays a gateway to it and says, row by row.
//!
//! Each row has a world of its own: an address at which a gateway listens, a state directory, and
//! the node, started by its author's command. What a node does is seen on the wire and by the
//! effects of the commands that it runs; nothing is asked of its inside. For most rows the gateway
//! is scripted on the machines of `moltis-proto`, so that it can also do what no gateway should;
//! the stories run on a real `moltis-gateway`, behind a cable that is cut at chosen bytes.
//!
//! Reading order: [`rows`] (the table), [`stage`] (a row's world), [`mod@line`] and [`peer`] (the
//! gateway's end of a connection), [`real`] (a whole gateway), [`report`] (the table in words).

mod line;
mod peer;
mod process;
mod real;
mod relay;
mod report;
mod rows;
mod run;
mod secret;
mod stage;
mod trouble;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use futures_util::{StreamExt as _, stream};
use moltis_gateway::config::STANDARD_WINDOWS;
use tokio::time::Instant;

use self::process::NodeCommand;
use self::report::{Report, Result};
use self::rows::Row;
use self::stage::{OnEnd, Plan, Stage};

/// What the help says below its first line; not Markdown, so not a comment.
const ABOUT: &str = "\
Play a gateway to a node, and say row by row whether it speaks the protocol

The command is started once for each row, and again where the row kills the node. In its words {url}
is replaced by the gateway's address, {state_dir} by a directory that is the node's alone and stays
while the row lasts, and {key} by a file in it. The environment says the same as MOLTIS_GATEWAY_URL
and MOLTIS_HOME. A node asks to pair, and works without a question; what it prints is shown when it
fails. Exit: 0 it conforms, 1 it does not, 2 a row could not be played.";

/// `conformance`, as it is typed.
#[derive(Debug, Args)]
#[command(about = "Play a gateway to a node, and say row by row whether it speaks the protocol", long_about = ABOUT, after_help = "\
Example:
  cargo xtask conformance -- my-node --gateway {url} --state {state_dir}
  cargo xtask conformance --only cut-running --only output-live -- my-node {url} {key}
  cargo xtask conformance -- moltis node add --foreground")]
pub(crate) struct Conformance {
    /// Play these rows only; may be repeated
    #[arg(long, value_name = "ROW")]
    only: Vec<String>,
    /// Print the rows and play none
    #[arg(long)]
    list: bool,
    /// Print one JSON document instead of the table
    #[arg(long)]
    json: bool,
    /// Start a node anew that ends with its connection, as a supervisor would
    #[arg(long)]
    restart: bool,
    /// Rows that are played at once
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=64))]
    jobs: u8,
    /// Seconds that a node may take for anything that the protocol sets no time for
    #[arg(long, value_name = "SECONDS", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=600))]
    patience: u16,
    /// The command that starts a node
    #[arg(last = true, value_name = "COMMAND", required_unless_present = "list")]
    command: Vec<String>,
}

/// How a node did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Every row that a node has to pass is passed.
    Conforms,
    /// One of them is not.
    Fails,
}

/// Plays the rows that are asked for, and prints what came of them.
///
/// # Errors
/// When a row's name is wrong, or this machine does not let a row be played.
pub(crate) fn run(args: &Conformance) -> anyhow::Result<Verdict> {
    let rows = chosen(&args.only)?;
    if args.list {
        report::list(&rows)?;
        return Ok(Verdict::Conforms);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let report = runtime.block_on(play_all(args, rows))?;
    report.print(args.json)?;
    if let Some(row) = report.unplayed() {
        bail!("the row `{row}` could not be played on this machine");
    }
    Ok(report.verdict())
}

fn chosen(only: &[String]) -> anyhow::Result<Vec<&'static Row>> {
    let is_there = |name: &&String| rows::all().any(|row| row.name == **name);
    if let Some(name) = only.iter().find(|name| !is_there(name)) {
        bail!("there is no row `{name}`; --list shows them");
    }
    let is_wanted = |row: &&Row| only.is_empty() || only.iter().any(|name| name == row.name);
    Ok(rows::all().filter(is_wanted).collect())
}

async fn play_all(args: &Conformance, rows: Vec<&'static Row>) -> anyhow::Result<Report> {
    let plan = Plan {
        command: NodeCommand::new(args.command.clone()),
        on_end: if args.restart {
            OnEnd::Restart
        } else {
            OnEnd::Fail
        },
        patience: Duration::from_secs(args.patience.into()),
    };
    // A short path: a node may put a Unix socket under it, whose name is at most 100 bytes.
    let dir = tempfile::Builder::new()
        .prefix("mc")
        .tempdir_in("/tmp")
        .context("making a directory in /tmp")?;
    let mut rows: Vec<_> = rows.into_iter().enumerate().collect();
    rows.sort_by_key(|(_, row)| !row.is_slow());
    let mut played: Vec<_> = stream::iter(rows)
        .map(async |(number, row)| {
            let dir = dir.path().join(number.to_string());
            (number, play(row, &plan, dir).await)
        })
        .buffer_unordered(usize::from(args.jobs))
        .collect()
        .await;
    played.sort_by_key(|(number, _)| *number);
    let results = played.into_iter().map(|(_, result)| result).collect();
    Ok(Report::new(args.command.clone(), results))
}

async fn play(row: &'static Row, plan: &Plan, dir: std::path::PathBuf) -> Result {
    let since = Instant::now();
    let outcome = play_in(row, plan, &dir).await;
    let took = since.elapsed();
    Result::new(row, took, outcome)
}

async fn play_in(row: &'static Row, plan: &Plan, dir: &Path) -> report::Outcome {
    let stage = Stage::new(plan.clone(), dir.to_owned(), STANDARD_WINDOWS).await;
    let mut stage = match stage {
        Ok(stage) => stage,
        Err(error) => return report::Outcome::Unplayed(format!("{error:#}")),
    };
    let played = (row.play)(&mut stage).await;
    let outcome = report::Outcome::of(played, &stage);
    stage.kill_node().await;
    process::end_all_that_name(dir);
    outcome
}
