//! `moltis node exec --select`: one command on every node that matches.
//!
//! The gateway says who matches; here each node gets a run of its own, started and read as that of
//! a single `node exec` is, by a task of its own ([`follow_one`]). One loop, [`Watch`], takes what they tell
//! in turn and prints it, so that a slow terminal slows them all and nothing is kept that has not
//! been printed. Lines are made in [`lines`]; what became of everybody is said in [`summary`].

mod lines;
mod summary;

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::io::Read as _;
use std::rc::Rc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper::Method;
use moltis_gateway::api::List;
use moltis_gateway::api::fleet::FleetRuns;
use moltis_gateway::api::nodes::Node;
use moltis_gateway::api::problem::Code;
use moltis_gateway::api::runs::{Run, StartRun, State, Stream};
use moltis_gateway::exec::Selector;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::timeout;

use self::lines::{Lines, Look, Paint, prefix};
use self::summary::{Became, Outputs, Told};
use super::super::{Context, nodes};
use super::cancel;
use super::collect::Collected;
use super::follow::{room, writer_failed};
use super::reader::{self, index};
use super::stops::Stops;
use super::{NotDone, once};
use crate::api::{ApiError, Client};
use crate::args::node::Many;
use crate::exit::Exit;
use crate::failure::{Failure, OrFail as _, failure, usage};
use crate::open_files;
use crate::output::Output;
use crate::output::streams::{Escapes, Streams, WriteError};
use crate::units::short;
use crate::visible::inline;

/// Bytes of our stdin that are sent to each node, at the most: one request holds them.
const STDIN_BYTES_MAX: usize = 512 * 1024;

/// Runs that are being started at the same time.
const STARTING_MAX: usize = 64;

/// Connections that hold a part of an output which is not printed: each at most 256 KiB, twice.
const HOLDING_MAX: usize = 32;

/// Bytes that each connection reads ahead of that.
const READ_AHEAD_BYTES: usize = 16 * 1024;

/// Small requests beside the runs: cancels, and looks at runs that say nothing.
const ASKING_MAX: usize = 16;

/// What the tasks have told and is not printed.
const NEWS_MAX: usize = 16;

/// Bytes of output that are made into lines at a time.
const PIECE_BYTES: usize = 16 * 1024;

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
    let nodes = meant_by(client, &select).await?;
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
    let started: FleetRuns = once(async |key| client.send_once("runs", &request, key).await)
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
    let stops = Stops::new()?;
    let nodes = meant_by(&client, select).await?;
    let at_once = at_once(context.output, &client, &many, nodes.len());
    let (news, told) = mpsc::channel(NEWS_MAX);
    let shared = Rc::new(Shared {
        client: Rc::new(client),
        request,
        fails_fast: many.fail_fast,
        turns: Semaphore::new(at_once),
        starting: Semaphore::new(STARTING_MAX),
        holding: Rc::new(Semaphore::new(HOLDING_MAX)),
        asking: Semaphore::new(ASKING_MAX),
        holds_back: Cell::new(false),
        news,
    });
    let watched = async {
        let mut watch = Watch::new(context, shared, &nodes, told, stops, json)?;
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
async fn meant_by(client: &Client, select: &Selector) -> Result<Vec<Node>, Failure> {
    let request = StartRun {
        select: Some(select.to_string()),
        dry_run: true,
        ..StartRun::default()
    };
    let nodes = client.send::<List<Node>>(Method::POST, "runs", &request);
    let nodes = nodes
        .await
        .map_err(|error| refused(NotDone::Refused(error)))?;
    Ok(nodes.items)
}

/// A selector that the gateway does not read is a wrong command line.
fn refused(error: NotDone) -> Failure {
    let is_usage = matches!(&error, NotDone::Refused(error) if error.code() == Some(Code::Invalid));
    match error {
        NotDone::Refused(error) if is_usage => error.into_failure().exit(Exit::USAGE),
        error => error.into_failure(),
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
    if client.is_remote() && wanted > REMOTE_AT_ONCE_MAX.min(room) {
        let at_once = REMOTE_AT_ONCE_MAX.min(room);
        output.note(&format!(
            "at most {at_once} nodes at a time, as the gateway takes few more connections from one machine"
        ));
        return at_once;
    }
    if wanted > room {
        output.note(&format!(
            "at most {room} nodes at a time, as this process may hold {files} files open (ulimit -n)"
        ));
    }
    wanted.min(room)
}

/// What the tasks of all nodes share.
struct Shared {
    client: Rc<Client>,
    /// What to run; each fills in its node.
    request: StartRun,
    fails_fast: bool,
    /// Nodes that run now.
    turns: Semaphore,
    starting: Semaphore,
    holding: Rc<Semaphore>,
    asking: Semaphore,
    /// No more are started.
    holds_back: Cell<bool>,
    news: mpsc::Sender<(usize, News)>,
}

/// What a task tells of its node.
enum News {
    Started(String),
    Over(Became),
    Event(reader::Event),
    Look(Box<Run>),
}

impl Shared {
    /// Runs the command on one node and tells what comes of it.
    async fn follow_one(self: Rc<Self>, at: usize, node_id: String) {
        let tell = async |news| self.news.send((at, news)).await.is_ok();
        let turn = self.turns.acquire().await;
        if self.holds_back.get() {
            tell(News::Over(Became::HeldBack)).await;
            return;
        }
        let started = {
            let _starting = self.starting.acquire().await;
            let request = StartRun {
                // By its id, which is nobody else's.
                node: Some(format!("node:{node_id}")),
                ..self.request.clone()
            };
            once(async |key| self.client.start_and_follow(&request, key).await).await
        };
        let (run_id, pieces) = match started {
            Ok(started) => started,
            Err(error) => {
                if !matches!(error, NotDone::Refused(ApiError::Problem(_))) {
                    // The gateway is gone: the others would wait for it in vain.
                    self.holds_back.set(true);
                }
                tell(News::Over(Became::NotStarted(error))).await;
                return;
            }
        };
        tell(News::Started(run_id.clone())).await;
        let tell_event = async |event| {
            if let reader::Event::Ended(run) = &event
                && self.fails_fast
                && Exit::of_run(run) != Exit::SUCCESS
            {
                // Before the next one takes our turn.
                self.holds_back.set(true);
            }
            tell(News::Event(event)).await
        };
        let (client, holding) = (Rc::clone(&self.client), Rc::clone(&self.holding));
        reader::read(client, run_id, Some(pieces), holding, tell_event).await;
        drop(turn);
    }

    /// Looks at a run that says nothing: is its node still there?
    async fn look(self: Rc<Self>, at: usize, run_id: String) {
        let _asking = self.asking.acquire().await;
        if let Ok(run) = self.client.get::<Run>(&format!("runs/{run_id}")).await {
            self.news.send((at, News::Look(Box::new(run)))).await.ok(); // nobody watches any more
        }
    }

    async fn cancel(self: Rc<Self>, run_id: String, refused: mpsc::Sender<ApiError>) {
        let _asking = self.asking.acquire().await;
        cancel::until_heard(&self.client, &run_id, refused).await;
    }
}

/// How the watching ended.
enum End {
    /// Everybody's end is known, and all is printed.
    All,
    /// A second Ctrl+C.
    Left,
    /// What came cannot be written. The runs are over.
    Unwritable(WriteError),
}

enum Step {
    Stop(i32),
    Unwritable,
    Refused(ApiError),
    News(Option<(usize, News)>),
}

/// Prints what comes, until everybody's end is known.
struct Watch {
    output: Output,
    shared: Rc<Shared>,
    nodes: Vec<Told>,
    /// Nodes whose end is not known.
    left: usize,
    news: mpsc::Receiver<(usize, News)>,
    stops: Stops,
    /// None with `--json`.
    streams: Option<Streams>,
    /// Lines that wait for room at the writer.
    lines: VecDeque<(Stream, Bytes)>,
    unwritable: bool,
    /// The signal that made us cancel everything; SIGPIPE where nobody reads us any more.
    ended_by: Option<i32>,
    cancelling: JoinSet<()>,
    refusals: mpsc::Receiver<ApiError>,
    refusal: mpsc::Sender<ApiError>,
    said_cut: bool,
}

impl Watch {
    fn new(
        context: &Context,
        shared: Rc<Shared>,
        nodes: &[Node],
        news: mpsc::Receiver<(usize, News)>,
        stops: Stops,
        json: bool,
    ) -> anyhow::Result<Self> {
        let output = context.output;
        let streams = if json {
            None
        } else {
            // Lines are made for a terminal before they are written.
            Some(Streams::start(output, Escapes::Passed)?)
        };
        for (at, node) in nodes.iter().enumerate() {
            let following = Rc::clone(&shared).follow_one(at, node.id.clone());
            tokio::task::spawn_local(following);
        }
        let (refusal, refusals) = mpsc::channel(1);
        Ok(Self {
            output,
            shared,
            left: nodes.len(),
            nodes: watched(output, nodes, json),
            news,
            stops,
            streams,
            lines: VecDeque::new(),
            unwritable: false,
            ended_by: None,
            cancelling: JoinSet::new(),
            refusals,
            refusal,
            said_cut: false,
        })
    }

    async fn run(&mut self) -> End {
        while self.left > 0 || !self.lines.is_empty() {
            let step = tokio::select! {
                biased;
                number = self.stops.next() => Step::Stop(number),
                () = writer_failed(self.streams.as_ref()), if !self.unwritable => Step::Unwritable,
                Some(error) = self.refusals.recv() => Step::Refused(error),
                Some(permit) = room(self.streams.as_ref()), if !self.lines.is_empty() => {
                    if let Some(lines) = self.lines.pop_front() {
                        permit.send(lines);
                    }
                    continue;
                }
                news = self.news.recv(), if self.lines.is_empty() => Step::News(news),
            };
            match step {
                Step::Stop(_) if self.ended_by.is_some() => return End::Left,
                Step::Stop(number) => {
                    let running = self.cancel(number);
                    self.output.note(&format!(
                        "cancelling {running} runs; once more leaves without waiting for their ends"
                    ));
                }
                Step::Unwritable => {
                    self.unwritable = true;
                    self.lines.clear();
                    if self.ended_by.is_none() {
                        self.cancel(rustix::process::Signal::PIPE.as_raw());
                    }
                }
                Step::Refused(error) => self.output.note(&format!(
                    "a cancel cannot be taken: {error}; it is asked for again until it is taken"
                )),
                Step::News(Some((at, news))) => self.take(at, news),
                Step::News(None) => return End::All,
            }
        }
        End::All
    }

    fn take(&mut self, at: usize, news: News) {
        match news {
            News::Started(run_id) => {
                if self.ended_by.is_some() {
                    self.cancel_one(&run_id);
                }
                self.nodes[at].run_id = Some(run_id);
            }
            News::Over(became) => self.over(at, became),
            News::Look(run) => self.looked(at, &run),
            News::Event(event) => self.happened(at, event),
        }
    }

    fn happened(&mut self, at: usize, event: reader::Event) {
        match event {
            reader::Event::Output(stream, bytes) => self.wrote(at, stream, &bytes),
            reader::Event::Gap(gap) => {
                let node = &mut self.nodes[at];
                if let Outputs::Collected(collected) = &mut node.outputs {
                    collected[index(gap.stream)].gap(gap.to.saturating_sub(gap.from));
                    return;
                }
                let which = ["standard output", "standard error"][index(gap.stream)];
                let (from, to) = (gap.from, gap.to);
                let text = format!("{}: bytes {from} to {to} of {which} are gone", node.label);
                self.output.note(&text);
            }
            reader::Event::Ended(run) => self.over(at, Became::Ended(run)),
            reader::Event::Quiet => {
                if let Some(run_id) = self.nodes[at].run_id.clone() {
                    tokio::task::spawn_local(Rc::clone(&self.shared).look(at, run_id));
                }
            }
            reader::Event::Cut(error) => {
                // Every connection tells it.
                if !std::mem::replace(&mut self.said_cut, true) {
                    self.output.note(&format!(
                        "{error}; the runs go on, and their output is taken up again"
                    ));
                }
            }
            reader::Event::Back => {}
            reader::Event::Failed(error) => self.over(at, Became::Lost(error)),
        }
    }

    fn wrote(&mut self, at: usize, stream: Stream, bytes: &[u8]) {
        match &mut self.nodes[at].outputs {
            Outputs::Collected(collected) => collected[index(stream)].push(bytes),
            Outputs::Lines(_) if self.unwritable => {}
            Outputs::Lines(lines) => {
                for piece in bytes.chunks(PIECE_BYTES) {
                    let mut shown = Vec::new();
                    lines[index(stream)].feed(piece, &mut shown);
                    if !shown.is_empty() {
                        self.lines.push_back((stream, shown.into()));
                    }
                }
            }
        }
    }

    fn over(&mut self, at: usize, became: Became) {
        let node = &mut self.nodes[at];
        if node.became.replace(became).is_some() {
            return;
        }
        self.left -= 1;
        if let (Outputs::Lines(lines), false) = (&mut node.outputs, self.unwritable) {
            for (stream, lines) in [Stream::Stdout, Stream::Stderr].into_iter().zip(lines) {
                let mut shown = Vec::new();
                lines.finish(&mut shown);
                if !shown.is_empty() {
                    self.lines.push_back((stream, shown.into()));
                }
            }
        }
    }

    fn looked(&mut self, at: usize, run: &Run) {
        let node = &mut self.nodes[at];
        if let Some(words) = &run.output_waits
            && !std::mem::replace(&mut node.said_waits, true)
        {
            let text = format!("{}: {words}; the command waits with it", node.label);
            self.output.note(&text);
        }
        let is_away = run.state != State::Ended && !run.reachable;
        if is_away && !std::mem::replace(&mut node.said_away, true) {
            let text = format!(
                "{} is not connected; its run {} goes on there, and its output comes when it is back",
                node.label,
                short(&run.id)
            );
            self.output.note(&text);
        }
        node.said_away = is_away;
    }

    /// Asks for the end of every run because of this signal, and starts no more. Returns how many
    /// there are.
    fn cancel(&mut self, because: i32) -> usize {
        self.ended_by = Some(because);
        self.shared.holds_back.set(true);
        let running = self.nodes.iter().filter(|node| node.became.is_none());
        let running: Vec<_> = running.filter_map(|node| node.run_id.clone()).collect();
        for run_id in &running {
            self.cancel_one(run_id);
        }
        running.len()
    }

    fn cancel_one(&mut self, run_id: &str) {
        let cancelling = Rc::clone(&self.shared).cancel(run_id.to_owned(), self.refusal.clone());
        self.cancelling.spawn_local(cancelling);
    }

    /// Writes what is left, and listens to Ctrl+C meanwhile. Whoever leaves has cancelled before: a
    /// gateway that is there hears that first.
    async fn close(&mut self, end: End) -> End {
        if matches!(end, End::Left) {
            let heard = async { while self.cancelling.join_next().await.is_some() {} };
            timeout(cancel::LEAVE_TIME, heard).await.ok(); // the gateway is away
            return end;
        }
        let Some(streams) = self.streams.take() else {
            return end;
        };
        tokio::select! {
            biased;
            _ = self.stops.next() => End::Left,
            written = streams.finish() => match written {
                Ok(()) => end,
                Err(error) => End::Unwritable(error),
            },
        }
    }
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
