//! Stays with a run until it is over: output out, stdin in, Ctrl+C, cuts.
//!
//! One loop and four helpers: [`super::reader`] brings events, [`super::stdin`] takes our stdin
//! there, [`crate::output::streams`] writes, [`crate::terminal`] holds the terminal. The loop
//! itself never waits for anything but its next event, so Ctrl+C is always heard. What the end
//! means is said in [`super::ending`].

use std::rc::Rc;

use bytes::Bytes;
use hyper::Method;
use moltis_gateway::api::follow::Gap;
use moltis_gateway::api::runs::{Resize, Run, State, Stream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{JoinHandle, LocalSet};
use tokio::time::timeout;

use super::super::Context;
use super::cancel::{self, Refusal};
use super::collect::Collected;
use super::ending::{End, finish};
use super::reader::{self, index};
use super::stdin;
use super::stops::Stops;
use crate::api::{ApiError, Client, Cut, Pieces};
use crate::exit::Exit;
use crate::output::streams::{Escapes, Streams};
use crate::terminal::{self, RawMode};
use crate::units::short;

/// How a run is followed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mode {
    /// Print one object at the end instead of the output as it comes.
    pub(crate) json: bool,
    /// What goes to the command.
    pub(crate) input: Input,
}

/// What of ours goes to the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Input {
    /// Nothing: it has no stdin, or one that is none of our business.
    None,
    /// Its end, at once: it has a terminal, and we have none.
    Closed,
    /// Our stdin, to its end.
    Pipe,
    /// Our terminal.
    Terminal,
}

/// The run to follow.
#[derive(Debug)]
pub(crate) struct Followed {
    /// Its id.
    pub(crate) run_id: String,
    /// It has a terminal.
    pub(crate) tty: bool,
    /// Its frames from the beginning, where they come already.
    pub(crate) pieces: Option<Pieces>,
    /// A signal that came while the run was being started.
    pub(crate) stopped_by: Option<i32>,
}

/// Follows a run to its end and returns its exit code.
pub(crate) async fn to_its_end(
    context: &Context,
    client: Client,
    run: Followed,
    mode: Mode,
    stops: Stops,
) -> anyhow::Result<Exit> {
    let (run_id, stopped_by) = (run.run_id.clone(), run.stopped_by);
    let followed = async {
        let mut follower = Follower::new(context, client, run, mode, stops)?;
        if let Some(signal) = stopped_by {
            follower.cancel(signal);
        }
        let end = follower.run().await;
        let end = follower.close(end).await;
        anyhow::Ok((end, follower.collected, follower.ended_by))
        // The follower is dropped here, before anything more is said: the terminal is as it was.
    };
    let (end, collected, ended_by) = LocalSet::new().run_until(followed).await?;
    finish(context, &run_id, mode.json, end, collected, ended_by)
}

struct Follower {
    context: Context,
    client: Rc<Client>,
    run_id: String,
    json: bool,
    events: mpsc::Receiver<reader::Event>,
    /// None with `--json`.
    streams: Option<Streams>,
    /// A piece that waits for room at the writer.
    held: Option<(Stream, Bytes)>,
    collected: [Collected; 2],
    input: Option<mpsc::Receiver<stdin::Event>>,
    /// The gateway cannot be reached now.
    gateway_away: bool,
    /// The gateway cannot reach the run now.
    run_away: bool,
    /// One of the two: Ctrl+C on a raw terminal would reach nobody.
    away: watch::Sender<bool>,
    /// Rung when the gateway is reached again.
    back: Rc<Notify>,
    stops: Stops,
    resizes: Signal,
    raw: Option<RawMode>,
    /// The signal that made us cancel the run; SIGPIPE where nobody reads us any more.
    ended_by: Option<i32>,
    /// Ends when the gateway has heard the cancel.
    cancelling: Option<JoinHandle<()>>,
    /// The writer has failed; what comes is thrown away while the run ends.
    unwritable: bool,
    said_cut: bool,
    said_waits: bool,
    looks: mpsc::Receiver<Run>,
    look: mpsc::Sender<Run>,
    /// Why the gateway does not take our cancel.
    refusals: mpsc::Receiver<Refusal>,
    refusal: mpsc::Sender<Refusal>,
}

enum Step {
    Stop(i32),
    Resized,
    Unwritable,
    Input(stdin::Event),
    Look(Box<Run>),
    Refused(Refusal),
    Event(Option<reader::Event>),
}

impl Follower {
    fn new(
        context: &Context,
        client: Client,
        run: Followed,
        mode: Mode,
        stops: Stops,
    ) -> anyhow::Result<Self> {
        // A terminal may be raw from here on; what is away is told as an event.
        client.waits_in_silence();
        let client = Rc::new(client);
        let (away, back) = (watch::Sender::new(false), Rc::new(Notify::new()));
        let output = context.output;
        let resizes = signal(SignalKind::window_change())?;
        let raw = match mode.input {
            Input::Terminal => Some(RawMode::enter()?),
            Input::Pipe | Input::Closed | Input::None => None,
        };
        let (sender, run_id) = (Rc::clone(&client), run.run_id.clone());
        let source = match mode.input {
            Input::Terminal => stdin::Source::Terminal(away.subscribe()),
            Input::Pipe | Input::Closed | Input::None => stdin::Source::Pipe,
        };
        let input = match mode.input {
            Input::None => None,
            Input::Closed => Some(stdin::close(sender, run_id, Rc::clone(&back))),
            Input::Pipe | Input::Terminal => {
                Some(stdin::start(sender, run_id, source, Rc::clone(&back))?)
            }
        };
        let escapes = if run.tty {
            Escapes::Passed
        } else {
            Escapes::Shown
        };
        let streams = if mode.json {
            None
        } else {
            Some(Streams::start(output, escapes)?)
        };
        let (look, looks) = mpsc::channel(1);
        let (refusal, refusals) = mpsc::channel(1);
        Ok(Self {
            context: context.clone(),
            events: reader::start(Rc::clone(&client), run.run_id.clone(), run.pieces),
            client,
            run_id: run.run_id,
            json: mode.json,
            streams,
            held: None,
            collected: <[Collected; 2]>::default(),
            input,
            gateway_away: false,
            run_away: false,
            away,
            back,
            stops,
            resizes,
            raw,
            ended_by: None,
            cancelling: None,
            unwritable: false,
            said_cut: false,
            said_waits: false,
            looks,
            look,
            refusals,
            refusal,
        })
    }

    async fn run(&mut self) -> End {
        loop {
            let step = tokio::select! {
                biased;
                number = self.stops.next() => Step::Stop(number),
                _ = self.resizes.recv(), if self.raw.is_some() => Step::Resized,
                () = writer_failed(self.streams.as_ref()), if !self.unwritable => Step::Unwritable,
                Some(event) = next_input(self.input.as_mut()) => Step::Input(event),
                Some(run) = self.looks.recv() => Step::Look(Box::new(run)),
                Some(refusal) = self.refusals.recv() => Step::Refused(refusal),
                Some(permit) = room(self.streams.as_ref()), if self.held.is_some() => {
                    if let Some(piece) = self.held.take() {
                        permit.send(piece);
                    }
                    continue;
                }
                event = self.events.recv(), if self.held.is_none() => Step::Event(event),
            };
            if let Some(end) = self.take(step) {
                return end;
            }
        }
    }

    fn take(&mut self, step: Step) -> Option<End> {
        match step {
            Step::Stop(_) if self.ended_by.is_some() => return Some(End::Left),
            Step::Stop(number) => {
                self.cancel(number);
                let run = short(&self.run_id);
                self.say(&format!(
                    "cancelling {run}; once more leaves without waiting for its end"
                ));
            }
            Step::Resized => self.resize(),
            Step::Unwritable => {
                self.unwritable = true;
                self.held = None;
                if self.ended_by.is_none() {
                    self.cancel(rustix::process::Signal::PIPE.as_raw());
                }
            }
            Step::Input(stdin::Event::Interrupt) => return Some(End::Left),
            // Nothing that is typed would be heard, Ctrl+C least of all.
            Step::Input(stdin::Event::Failed(error)) if self.raw.is_some() => {
                return Some(End::Deaf(error));
            }
            Step::Input(stdin::Event::Failed(error)) => {
                self.say(&format!("stdin is not passed on any more: {error}"));
                self.input = None;
            }
            Step::Look(run) => self.looked(&run),
            Step::Refused(refusal) => self.say(&refusal.to_string()),
            Step::Event(None) => {
                return Some(End::Failed(ApiError::Cut(Cut::torn())));
            }
            Step::Event(Some(event)) => return self.handle(event),
        }
        None
    }

    fn handle(&mut self, event: reader::Event) -> Option<End> {
        match event {
            reader::Event::Output(stream, bytes) => {
                self.run_away = false;
                self.note_away();
                self.output(stream, bytes);
            }
            reader::Event::Gap(gap) => {
                self.collected[index(gap.stream)].gap(gap.to.saturating_sub(gap.from));
                if !self.json {
                    let which = ["standard output", "standard error"][index(gap.stream)];
                    let Gap {
                        from, to, reason, ..
                    } = gap;
                    self.say(&format!(
                        "bytes {from} to {to} of {which} are gone: {reason}"
                    ));
                }
            }
            reader::Event::Ended(run) => return Some(End::Ended(run)),
            reader::Event::Quiet => self.look(),
            reader::Event::Cut(error) => {
                self.gateway_away = true;
                self.note_away();
                if !std::mem::replace(&mut self.said_cut, true) {
                    let run = short(&self.run_id);
                    self.say_away(&format!(
                        "{error}; the run {run} goes on, and its output is taken up again"
                    ));
                }
            }
            reader::Event::Back => {
                self.gateway_away = false;
                self.note_away();
                self.back.notify_one();
            }
            reader::Event::Failed(error) => return Some(End::Failed(error)),
        }
        None
    }

    fn output(&mut self, stream: Stream, bytes: Bytes) {
        if self.json {
            self.collected[index(stream)].push(&bytes);
        } else if !self.unwritable {
            self.held = Some((stream, bytes));
        }
    }

    fn note_away(&self) {
        let away = self.gateway_away || self.run_away;
        self.away.send_replace(away);
    }

    /// Asks for the run's end because of this signal, until the gateway has heard it.
    fn cancel(&mut self, because: i32) {
        self.ended_by = Some(because);
        let (client, run_id) = (Rc::clone(&self.client), self.run_id.clone());
        let refused = self.refusal.clone();
        self.cancelling = Some(tokio::task::spawn_local(async move {
            cancel::until_heard(&client, &run_id, refused).await;
        }));
    }

    fn resize(&self) {
        let Some((cols, rows)) = terminal::size() else {
            return;
        };
        let client = Rc::clone(&self.client);
        let path = format!("runs/{}/resize", self.run_id);
        tokio::task::spawn_local(async move {
            let size = Resize { cols, rows };
            let told = client.tell(Method::POST, &path, &size).await;
            told.ok(); // the next resize tells again
        });
    }

    /// Nothing came for a while: is the node still there?
    fn look(&self) {
        let (client, look) = (Rc::clone(&self.client), self.look.clone());
        let path = format!("runs/{}", self.run_id);
        tokio::task::spawn_local(async move {
            if let Ok(run) = client.get::<Run>(&path).await {
                look.try_send(run).ok(); // one look is waiting already
            }
        });
    }

    fn looked(&mut self, run: &Run) {
        let said = self.run_away;
        self.run_away = run.state != State::Ended && !run.reachable;
        self.note_away();
        if let Some(words) = &run.output_waits
            && !std::mem::replace(&mut self.said_waits, true)
        {
            self.say(&format!("{words}; the command waits with it"));
        }
        if self.run_away && !said {
            let (node, run) = (&run.node_name, short(&self.run_id));
            self.say_away(&format!(
                "{node} is not connected; the run {run} goes on there, and its output comes when it is back"
            ));
        }
    }

    /// Says that the run is out of reach, and how to leave where Ctrl+C would be its own.
    fn say_away(&self, text: &str) {
        if self.raw.is_some() {
            self.say(&format!("{text}; until then Ctrl+C leaves it"));
        } else {
            self.say(text);
        }
    }

    /// Says something, also while the terminal is raw.
    fn say(&self, text: &str) {
        if self.raw.is_some() {
            self.context.output.note_raw(text);
        } else {
            self.context.output.note(text);
        }
    }

    /// Writes what is left, and listens to Ctrl+C meanwhile. Whoever leaves a run has cancelled it
    /// before: a gateway that is there hears that first.
    async fn close(&mut self, end: End) -> End {
        if let (End::Left, Some(cancelling)) = (&end, self.cancelling.take()) {
            timeout(cancel::LEAVE_TIME, cancelling).await.ok(); // the gateway is away
        }
        let streams = match (&end, self.streams.take()) {
            (End::Left, _) | (_, None) => return end,
            (_, Some(streams)) => streams,
        };
        let (end, pieces) = self.drain(end);
        let written = async {
            for piece in pieces {
                if let Ok(room) = streams.reserve().await {
                    room.send(piece);
                }
            }
            streams.finish().await
        };
        tokio::select! {
            biased;
            _ = self.stops.next() => match end {
                End::Ended(_) => End::Unread,
                end => end,
            },
            written = written => match (end, written) {
                (End::Ended(run), Err(error)) => End::Unwritable(run, error),
                (end, _) => end,
            },
        }
    }

    /// Takes what has come and was not looked at, as the loop ended for another reason than the run.
    fn drain(&mut self, mut end: End) -> (End, Vec<(Stream, Bytes)>) {
        let mut pieces = Vec::from_iter(self.held.take());
        while let Ok(event) = self.events.try_recv() {
            match event {
                reader::Event::Output(..) | reader::Event::Gap(_) => {
                    self.handle(event);
                    pieces.extend(self.held.take());
                }
                reader::Event::Ended(run) => end = End::Ended(run),
                reader::Event::Quiet
                | reader::Event::Cut(_)
                | reader::Event::Back
                | reader::Event::Failed(_) => {}
            }
        }
        (end, pieces)
    }
}

/// Waits until the writer fails; for ever where nothing is written.
pub(super) async fn writer_failed(streams: Option<&Streams>) {
    match streams {
        Some(streams) => streams.failed().await,
        None => std::future::pending().await,
    }
}

async fn next_input(input: Option<&mut mpsc::Receiver<stdin::Event>>) -> Option<stdin::Event> {
    input?.recv().await
}

/// Waits for room at the writer; `None` where there is none.
pub(super) async fn room(streams: Option<&Streams>) -> Option<mpsc::Permit<'_, (Stream, Bytes)>> {
    streams?.reserve().await.ok()
}
