//! The one loop that takes what the tasks of all nodes tell, and prints it.
//!
//! It takes the next news when all lines of the one before are handed to the writer, so that nothing
//! gathers, and Ctrl+C is always heard.

use std::collections::VecDeque;
use std::rc::Rc;

use bytes::Bytes;
use moltis_gateway::api::follow::Gap;
use moltis_gateway::api::runs::{Run, State, Stream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::super::cancel::{self, Refusal};
use super::super::follow::{room, writer_failed};
use super::super::reader::{self, index};
use super::super::stops::Stops;
use super::one::{News, Shared};
use super::summary::{Became, Outputs, Told};
use crate::output::Output;
use crate::output::streams::{Escapes, Streams, WriteError};
use crate::units::short;

/// Bytes of output that are made into lines at a time.
const PIECE_BYTES: usize = 16 * 1024;

/// How the watching ended.
#[derive(Debug)]
pub(super) enum End {
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
    Refused(Refusal),
    News(Option<(usize, News)>),
}

/// Prints what comes, until everybody's end is known.
pub(super) struct Watch {
    output: Output,
    shared: Rc<Shared>,
    pub(super) nodes: Vec<Told>,
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
    pub(super) ended_by: Option<i32>,
    cancelling: JoinSet<()>,
    refusals: mpsc::Receiver<Refusal>,
    refusal: mpsc::Sender<Refusal>,
    said_cut: bool,
}

impl Watch {
    /// Starts a task for each node. Called inside a `LocalSet`.
    pub(super) fn start(
        output: Output,
        shared: Rc<Shared>,
        nodes: Vec<Told>,
        news: mpsc::Receiver<(usize, News)>,
        stops: Stops,
    ) -> anyhow::Result<Self> {
        let shows = |node: &Told| matches!(node.outputs, Outputs::Lines(_));
        let streams = if nodes.iter().any(shows) {
            // Lines are made for a terminal before they are written.
            Some(Streams::start(output, Escapes::Passed)?)
        } else {
            None
        };
        for (at, node) in nodes.iter().enumerate() {
            let following = Rc::clone(&shared).follow_one(at, node.node_id.clone());
            tokio::task::spawn_local(following);
        }
        let (refusal, refusals) = mpsc::channel(1);
        Ok(Self {
            output,
            shared,
            left: nodes.len(),
            nodes,
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

    /// Prints what comes until everybody's end is known, or somebody leaves.
    pub(super) async fn run(&mut self) -> End {
        while self.left > 0 || !self.lines.is_empty() {
            let step = tokio::select! {
                biased;
                number = self.stops.next() => Step::Stop(number),
                () = writer_failed(self.streams.as_ref()), if !self.unwritable => Step::Unwritable,
                Some(refusal) = self.refusals.recv() => Step::Refused(refusal),
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
                Step::Refused(refusal) => self.output.note(&refusal.to_string()),
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
            News::AskedAgain(error) => {
                // Every node that waits for it tells it.
                if !std::mem::replace(&mut self.said_cut, true) {
                    let text = format!("{error}; trying again, and nothing starts twice");
                    self.output.note(&text);
                }
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
                let Gap {
                    from, to, reason, ..
                } = gap;
                let label = &node.label;
                self.output.note(&format!(
                    "{label}: bytes {from} to {to} of {which} are gone: {reason}"
                ));
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
        self.shared.hold_back();
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
    pub(super) async fn close(&mut self, end: End) -> End {
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
