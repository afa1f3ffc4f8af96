//! `moltis node exec --select`: one command on every node that matches.
//!
//! The gateway says who matches; here each node gets a run of its own, started and read as that of
//! a single `node exec` is, by a task of its own ([`one`]). One loop ([`watch`]) takes what they tell
//! in turn and prints it, so that a slow terminal slows them all and nothing is kept that has not
//! been printed. Lines are made in [`lines`]; what became of everybody is said in [`summary`].

mod lines;
mod one;
mod summary;
mod watch;

use std::collections::HashMap;
use std::io::Read as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::Method;
use moltis_gateway::api::List;
use moltis_gateway::api::fleet::FleetRuns;
use moltis_gateway::api::nodes::Node;
use moltis_gateway::api::problem::Code;
use moltis_gateway::api::runs::StartRun;
use moltis_gateway::exec::Selector;
use tokio::sync::mpsc;
use tokio::task::LocalSet;

use self::lines::{Lines, Look, Paint, prefix};
use self::one::{OnFailure, Shared};
use self::summary::{Outputs, Told};
use self::watch::{End, Watch};
use super::super::patience::{Patience, ask};
use super::super::{Context, nodes};
use super::collect::Collected;
use super::once::{Key, NotDone, note_another_attempt, once};
use super::stops::Stops;
use crate::api::Client;
use crate::api::address::escape;
use crate::args::node::Many;
use crate::exit::Exit;
use crate::failure::{Failure, OrFail as _, failure, usage};
use crate::open_files;
use crate::output::Output;
use crate::output::streams::WriteError;
use crate::units::short;
use crate::visible::inline;

/// Bytes of our stdin that are sent to each node, at the most: one request holds them.
const STDIN_BYTES_MAX: usize = 512 * 1024;

/// Bytes that each connection reads ahead of that.
const READ_AHEAD_BYTES: usize = 16 * 1024;

/// What the tasks have told and is not printed.
const NEWS_MAX: usize = 16;

/// Descriptors that are not connections: our own three, the runtime's, and some to spare.
const OTHER_FILES: u64 = 64;

/// Nodes at a time of a gateway on another machine, which takes at most 512 connections from one
/// source: room is left for other commands.
const REMOTE_AT_ONCE_MAX: usize = 384;

/// Bytes of all outputs that `--json` keeps, at the most.
const COLLECTED_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Characters of the names in front of lines that are made equally long.
const NAME_CHARS_ALIGNED: usize = 24;

/// `--dry-run`: lists who would be asked.
pub(super) async fn dry_run(
    context: &Context,
    client: &Client,
    many: Many,
    json: bool,
) -> anyhow::Result<Exit> {
    let Some(select) = many.select else {
        return Err(usage("--dry-run needs --select").into());
    };
    let nodes = meant_by(context, client, &select).await?;
    if json {
        context.output.json(&nodes)?;
    } else {
        nodes::table(context.output, &nodes)?;
    }
    Ok(Exit::SUCCESS)
}

/// `--detach`: starts all of them at once and prints their ids.
pub(super) async fn detach(
    context: &Context,
    client: &Client,
    mut request: StartRun,
    select: &Selector,
    json: bool,
) -> anyhow::Result<Exit> {
    request.select = Some(select.to_string());
    let patience = Some(Patience::new(context, client));
    let again = async |error: &_| note_another_attempt(context, error);
    let send = async |key: &str| client.send_once("runs", &request, key).await;
    let started: FleetRuns = once(&Key::new(), patience, again, send)
        .await
        .map_err(refused)?;
    summary::detached(context, &started, json)
}

/// Reads our stdin, where it is to go to each node.
pub(super) fn take_stdin(request: &mut StartRun) -> Result<(), Failure> {
    if !std::mem::take(&mut request.stdin_open) {
        return Ok(());
    }
    let mut bytes = Vec::new();
    std::io::stdin()
        .take(STDIN_BYTES_MAX as u64 + 1)
        .read_to_end(&mut bytes)
        .or_fail(|| "cannot read stdin".to_owned())?;
    if bytes.len() > STDIN_BYTES_MAX {
        return Err(usage(format!(
            "stdin has more than {STDIN_BYTES_MAX} bytes: with --select all of it goes into each request"
        ))
        .hint("one node at a time takes any length: moltis node exec <node> --stdin -- …"));
    }
    request.stdin_base64 = Some(STANDARD.encode(bytes));
    Ok(())
}

/// Runs a command on every node that matches, and prints what comes of it.
pub(super) async fn run(
    context: &Context,
    client: Client,
    request: StartRun,
    many: Many,
    json: bool,
) -> anyhow::Result<Exit> {
    let Some(select) = &many.select else {
        return Err(usage("there is no --select").into());
    };
    let client = client.reading_ahead(READ_AHEAD_BYTES);
    let nodes = meant_by(context, &client, select).await?;
    client.waits_in_silence(); // what is not there is told node by node
    // Until here a signal ends us, and nothing has begun.
    let stops = Stops::new()?;
    let at_once = at_once(context.output, &client, &many, nodes.len());
    let on_failure = if many.fail_fast {
        OnFailure::StartNoMore
    } else {
        OnFailure::GoOn
    };
    let (news, told) = mpsc::channel(NEWS_MAX);
    let shared = Shared::new(client, request, at_once, on_failure, news);
    let nodes = watched(context.output, &nodes, json);
    let watched = async {
        let mut watch = Watch::start(context.output, shared, nodes, told, stops)?;
        let end = watch.run().await;
        anyhow::Ok((watch.close(end).await, watch.nodes, watch.ended_by))
    };
    let (end, nodes, ended_by) = LocalSet::new().run_until(watched).await?;
    match end {
        End::All => summary::tell(context, nodes, ended_by, json),
        End::Left => Err(summary::left(&nodes).into()),
        End::Unwritable(WriteError::Closed) => Ok(Exit::CLOSED_PIPE),
        End::Unwritable(error) => Err(failure(error.to_string())
            .hint("the runs were cancelled; what they printed until then: moltis runs list")
            .into()),
    }
}

/// Asks the gateway who is meant. Nobody is an error.
async fn meant_by(
    context: &Context,
    client: &Client,
    select: &Selector,
) -> Result<Vec<Node>, Failure> {
    let request = StartRun {
        select: Some(select.to_string()),
        dry_run: true,
        ..StartRun::default()
    };
    let not_told = |error| refused(NotDone::Refused(error));
    let who = async || {
        client
            .send::<List<Node>>(Method::POST, "runs", &request)
            .await
    };
    let first = ask(context, client, who).await.map_err(not_told)?;
    let path = format!("nodes?select={}", escape(&select.to_string()));
    let nodes = client.list_on(&path, first, usize::MAX).await;
    nodes.map_err(not_told)
}

/// A selector that the gateway does not read is a wrong command line.
fn refused(error: NotDone) -> Failure {
    let is_usage = matches!(&error, NotDone::Refused(error) if error.code() == Some(Code::Invalid));
    match error {
        NotDone::Refused(error) if is_usage => error.into_failure().exit(Exit::USAGE),
        // Its key stands for many runs.
        error => error.into_failure(None),
    }
}

/// Returns how many nodes are asked at a time.
fn at_once(output: Output, client: &Client, many: &Many, nodes: usize) -> usize {
    let wanted = match many.parallel {
        Some(parallel) => parallel.get(),
        // To start no more after a failure, some must be left.
        None if many.fail_fast => 1,
        None => nodes,
    };
    let wanted = wanted.min(nodes).max(1);
    let files = open_files::raise().now.unwrap_or(u64::MAX);
    let room = files.saturating_sub(OTHER_FILES);
    let room = usize::try_from(room).unwrap_or(usize::MAX).max(1);
    let wanted = if client.is_remote() && wanted.min(room) > REMOTE_AT_ONCE_MAX {
        output.note(&format!(
            "at most {REMOTE_AT_ONCE_MAX} nodes at a time, as the gateway takes few more connections from one machine"
        ));
        REMOTE_AT_ONCE_MAX
    } else {
        wanted
    };
    if wanted > room {
        output.note(&format!(
            "at most {room} nodes at a time, as this process may hold {files} files open (ulimit -n)"
        ));
    }
    wanted.min(room)
}

/// Returns what is to be known of each node, with what goes in front of its lines.
fn watched(output: Output, nodes: &[Node], json: bool) -> Vec<Told> {
    let mut named: HashMap<&str, usize> = HashMap::new();
    for node in nodes {
        *named.entry(&node.name).or_default() += 1;
    }
    let labels: Vec<String> = nodes
        .iter()
        .map(|node| match named.get(node.name.as_str()) {
            // Names may be shared; ids are not.
            Some(2..) => format!("{} ({})", inline(&node.name), short(&node.id)),
            _ => inline(&node.name).into_owned(),
        })
        .collect();
    let widths = labels.iter().map(|label| label.chars().count());
    let width = widths.max().unwrap_or(0).min(NAME_CHARS_ALIGNED);
    let part = COLLECTED_BYTES_MAX / nodes.len().max(1) / 4;
    let outputs = |node: &Node, label: &str| {
        if json {
            return Outputs::Collected([
                Collected::in_parts_of(part),
                Collected::in_parts_of(part),
            ]);
        }
        let lines = |is_terminal, takes_colours| {
            let look = if is_terminal {
                Look::Visible
            } else {
                Look::Plain
            };
            let paint = if takes_colours {
                Paint::ByNode
            } else {
                Paint::None
            };
            Lines::new(prefix(&node.id, label, width, paint), look)
        };
        Outputs::Lines([
            lines(output.stdout_is_terminal(), output.stdout_takes_colours()),
            lines(output.stderr_is_terminal(), output.stderr_takes_colours()),
        ])
    };
    nodes
        .iter()
        .zip(labels)
        .map(|(node, label)| Told {
            node_id: node.id.clone(),
            node_name: node.name.clone(),
            outputs: outputs(node, &label),
            label,
            run_id: None,
            became: None,
            said_away: false,
            said_waits: false,
        })
        .collect()
}
