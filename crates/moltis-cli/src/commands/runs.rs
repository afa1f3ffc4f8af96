//! Commands that run or ran: list, show, attach, cancel, output, claim.

use hyper::Method;
use jiff::Timestamp;
use moltis_gateway::api::Empty;
use moltis_gateway::api::problem::Code;
use moltis_gateway::api::runs::{Cancel as CancelBody, Outcome, Run, State};
use tokio::time::Instant;

use super::Context;
use super::exec::{away::Away, follow, reader::passes, stops::Stops};
use super::patience::ask;
use crate::api::address::escape;
use crate::api::{ApiError, Client};
use crate::args::runs::{Attach, Cancel, Claim, List, Output, Runs, Show};
use crate::args::runs::{State as StateArg, Stream as StreamArg};
use crate::exit::Exit;
use crate::output::streams::{Escapes, Streams, WriteError};
use crate::units::{ago, short, size, span};
use crate::visible::quoted;

/// `moltis runs …`.
pub(super) async fn run(context: &Context, args: Runs) -> anyhow::Result<Exit> {
    match args {
        Runs::List(args) => list(context, args).await,
        Runs::Show(args) => show(context, args).await,
        Runs::Attach(args) => attach(context, args).await,
        Runs::Cancel(args) => cancel(context, args).await,
        Runs::Output(args) => output(context, args).await,
        Runs::Claim(args) => claim(context, args).await,
    }
}

async fn list(context: &Context, args: List) -> anyhow::Result<Exit> {
    let client = context.client(&args.remote)?;
    let mut path = format!("runs?limit={}", args.limit.min(500));
    if let Some(node) = &args.node {
        path = format!("{path}&node={}", escape(node));
    }
    if let Some(state) = args.state {
        path = format!("{path}&state={}", state_word(state));
    }
    let limit = usize::try_from(args.limit).unwrap_or(usize::MAX);
    let runs: Vec<Run> = client
        .list(&path, limit)
        .await
        .map_err(ApiError::into_failure)?;
    if args.format.json {
        context.output.json(&runs)?;
    } else if runs.is_empty() {
        context.output.note("there are no runs");
    } else {
        let now = Timestamp::now();
        let rows = runs.iter().map(|run| row(run, now)).collect();
        context
            .output
            .table(&["ID", "NODE", "STATE", "STARTED", "BY", "COMMAND"], rows)?;
    }
    Ok(Exit::SUCCESS)
}

fn state_word(state: StateArg) -> &'static str {
    match state {
        StateArg::WaitingApproval => "waiting_approval",
        StateArg::Starting => "starting",
        StateArg::Running => "running",
        StateArg::Ended => "ended",
    }
}

fn row(run: &Run, now: Timestamp) -> Vec<String> {
    vec![
        short(&run.id).to_owned(),
        run.node_name.clone(),
        state_of(run),
        ago(run.started_at.unwrap_or(run.created_at), now),
        run.requested_by.clone(),
        command_of(run),
    ]
}

/// Returns how a run stands, in a few words.
pub(super) fn state_of(run: &Run) -> String {
    let unclaimed = if run.unclaimed { ", unclaimed" } else { "" };
    match (run.state, run.outcome) {
        (State::WaitingApproval, _) => "waits for approval".to_owned(),
        (State::Starting, _) => "starting".to_owned(),
        (State::Running, _) if !run.reachable => format!("running, not reachable{unclaimed}"),
        (State::Running, _) => format!("running{unclaimed}"),
        (State::Ended, None) => format!("ended{unclaimed}"),
        (State::Ended, Some(outcome)) => format!("{}{unclaimed}", outcome_of(run, outcome)),
    }
}

fn outcome_of(run: &Run, outcome: Outcome) -> String {
    let number = |number: Option<i32>| number.map(|n| format!(" {n}")).unwrap_or_default();
    match outcome {
        Outcome::Exited => format!("exited{}", number(run.exit_code)),
        Outcome::Signaled => format!("signal{}", number(run.signal)),
        Outcome::TimedOut => "timed out".to_owned(),
        Outcome::Cancelled => "cancelled".to_owned(),
        Outcome::FailedToStart => "failed to start".to_owned(),
        Outcome::Refused => "refused".to_owned(),
        Outcome::Lost => "lost".to_owned(),
    }
}

/// Returns the command of a run, cut to a line.
pub(super) fn command_of(run: &Run) -> String {
    let Some(whole) = whole_command(run) else {
        return "(not known here)".to_owned();
    };
    match whole.char_indices().nth(80) {
        Some((at, _)) => format!("{}…", &whole[..at]),
        None => whole,
    }
}

async fn show(context: &Context, args: Show) -> anyhow::Result<Exit> {
    let client = context.client(&args.remote)?;
    let run = get(context, &client, &args.run).await?;
    print(context, &run, args.format.json)?;
    Ok(Exit::SUCCESS)
}

fn print(context: &Context, run: &Run, json: bool) -> anyhow::Result<()> {
    if json {
        return context.output.json(run);
    }
    let now = Timestamp::now();
    let mut fields = vec![
        ("Run", run.id.clone()),
        ("Node", format!("{} ({})", run.node_name, run.node)),
        ("State", state_of(run)),
    ];
    if let Some(detail) = &run.detail {
        fields.push(("Detail", detail.clone()));
    }
    if let Some(command) = whole_command(run) {
        let dir = run.cwd.clone();
        let dir = dir.unwrap_or_else(|| "the node's own directory".to_owned());
        let asked = format!("{} by {}", ago(run.created_at, now), run.requested_by);
        fields.extend([
            ("Command", command),
            ("Started in", dir),
            ("Asked for", asked),
        ]);
    } else {
        let command = "not known here: its node has the run, and this gateway no request for it";
        fields.extend([
            ("Command", command.to_owned()),
            ("Found", ago(run.created_at, now)),
        ]);
    }
    if let Some(seconds) = run.timeout_seconds {
        fields.push(("Timeout", format!("{seconds} s")));
    }
    if let Some(duration) = run.duration_ms {
        fields.push(("Took", span(std::time::Duration::from_millis(duration))));
    }
    if let (true, Some(then)) = (run.state != State::Ended, run.last_heard_at) {
        fields.push(("Last heard of", ago(then, now)));
    }
    if let Some(words) = &run.output_waits {
        fields.push(("Output waits", words.clone()));
    }
    if let Some(then) = run.cancel_requested_at {
        fields.push(("Cancel asked", ago(then, now)));
    }
    fields.extend([
        ("Standard output", size(run.stdout_bytes)),
        ("Standard error", size(run.stderr_bytes)),
    ]);
    context.output.fields(&fields)
}

/// Returns the command of a run; `None` where its node brought it and nobody here has asked for it.
fn whole_command(run: &Run) -> Option<String> {
    match (&run.command, &run.argv) {
        (Some(line), _) => Some(line.clone()),
        (None, Some(argv)) => {
            let words: Vec<_> = argv.iter().map(|word| quoted(word)).collect();
            Some(words.join(" "))
        }
        (None, None) => None,
    }
}

async fn get(context: &Context, client: &Client, run: &str) -> anyhow::Result<Run> {
    let run = ask_for(context, client, run).await;
    Ok(run.map_err(ApiError::into_failure)?)
}

/// The first question of a command: it waits for a gateway that is being restarted.
async fn ask_for(context: &Context, client: &Client, run: &str) -> Result<Run, ApiError> {
    let path = format!("runs/{}", escape(run));
    ask(context, client, async || client.get(&path).await).await
}

/// Returns the id of the run that is to be changed: the gateway takes no short beginning of one then.
async fn whole(context: &Context, client: &Client, run: &str) -> anyhow::Result<String> {
    const DIGITS: usize = 32;
    if run.len() == DIGITS {
        return Ok(escape(run));
    }
    Ok(get(context, client, run).await?.id)
}

async fn attach(context: &Context, args: Attach) -> anyhow::Result<Exit> {
    let client = context.client(&args.remote)?;
    let run = ask_for(context, &client, &args.run).await;
    let run = run.map_err(ApiError::not_heard_of)?;
    let mode = follow::Mode {
        json: false,
        input: follow::Input::None,
    };
    let followed = follow::Followed {
        run_id: run.id,
        tty: run.tty,
        pieces: None,
        stopped_by: None,
    };
    follow::to_its_end(context, client, followed, mode, Stops::new()?).await
}

async fn cancel(context: &Context, args: Cancel) -> anyhow::Result<Exit> {
    let client = context.client(&args.remote)?;
    let path = format!("runs/{}/cancel", whole(context, &client, &args.run).await?);
    let cancelled = client
        .send(Method::POST, &path, &CancelBody::default())
        .await;
    let run: Run = cancelled.map_err(ApiError::into_failure)?;
    if args.format.json {
        context.output.json(&run)?;
    } else if run.state == State::Ended {
        context.output.note(&format!(
            "{} has ended already: {}",
            short(&run.id),
            state_of(&run)
        ));
    } else {
        context.output.note(&format!(
            "asked {} to end: {}",
            short(&run.id),
            state_of(&run)
        ));
    }
    Ok(Exit::SUCCESS)
}

/// `moltis runs output`: bytes as they are, up to the end that the stream has now; followed, up to
/// its last. A gap is said on stderr and stepped over.
async fn output(context: &Context, args: Output) -> anyhow::Result<Exit> {
    let client = context.client(&args.remote)?;
    let stream = match args.stream {
        StreamArg::Stdout => "stdout",
        StreamArg::Stderr => "stderr",
    };
    let run = get(context, &client, &args.run).await?;
    // A run that goes on printing would be read for ever; what comes later is for `--follow`.
    let end = match args.stream {
        _ if args.follow => u64::MAX,
        StreamArg::Stdout => run.stdout_bytes,
        StreamArg::Stderr => run.stderr_bytes,
    };
    let run = escape(&run.id);
    let streams = Streams::start(context.output, Escapes::Shown)?;
    let mut offset = args.offset;
    let mut away = Away::new();
    let copied = loop {
        let path = format!(
            "runs/{run}/output?stream={stream}&offset={offset}&follow={}",
            args.follow
        );
        let (before, asked) = (offset, Instant::now());
        match copy(&client, &path, &streams, &mut offset).await {
            // A gateway closes on who reads nothing for long, as below `less`.
            Err(ApiError::Cut(_)) if offset > before => {
                away.is_over();
                away.gave();
            }
            // Who follows waits for it, as `exec` and `attach` do.
            Err(error) if args.follow && passes(&error) && !away.is_too_long_behind(asked) => {
                if away.begins() {
                    context.output.warn(&format!(
                        "{error}; the output is taken up again where it stopped"
                    ));
                }
                away.pause().await;
            }
            Err(ApiError::Problem(problem)) if problem.code == Code::OutputGap => {
                let Some(gap) = problem.gap.filter(|gap| gap.to > offset) else {
                    break Err(ApiError::Problem(problem));
                };
                let why = gap.reason.map(|reason| format!(": {reason}"));
                context.output.warn(&format!(
                    "bytes {} to {} are gone{}",
                    gap.from,
                    gap.to,
                    why.unwrap_or_default()
                ));
                offset = gap.to;
            }
            // A read ends at the end, or before a gap: the next one tells.
            Ok(length) if length == 0 || offset >= end => break Ok(()),
            Ok(_) => {}
            Err(error) => break Err(error),
        }
    };
    match streams.finish().await {
        Err(WriteError::Closed) => return Ok(Exit::CLOSED_PIPE),
        Err(error) => return Err(error.into()),
        Ok(()) => copied.map_err(ApiError::into_failure)?,
    }
    Ok(Exit::SUCCESS)
}

/// Copies one answer and returns how many bytes it had.
async fn copy(
    client: &Client,
    path: &str,
    streams: &Streams,
    offset: &mut u64,
) -> Result<u64, ApiError> {
    let begin = *offset;
    let mut pieces = client.open(path).await?;
    while let Some(bytes) = pieces.next().await? {
        let length = bytes.len() as u64;
        match streams.reserve().await {
            Ok(permit) => permit.send((moltis_gateway::api::runs::Stream::Stdout, bytes)),
            Err(_) => return Ok(0), // finishing the streams says why
        }
        *offset += length;
    }
    Ok(*offset - begin)
}

async fn claim(context: &Context, args: Claim) -> anyhow::Result<Exit> {
    let client = context.client(&args.remote)?;
    let path = format!("runs/{}/claim", whole(context, &client, &args.run).await?);
    let claimed = client.send(Method::POST, &path, &Empty {}).await;
    let run: Run = claimed.map_err(ApiError::into_failure)?;
    print(context, &run, args.format.json)?;
    Ok(Exit::SUCCESS)
}
