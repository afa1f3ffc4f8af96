//! A node that was let in, as its gateway sees it: every message is checked on arrival, whatever
//! the row is about.

use std::collections::HashMap;
use std::time::Duration;

use moltis_identity::random;
use moltis_proto::code::CloseCode;
use moltis_proto::handshake::gateway::VerifiedNode;
use moltis_proto::key::Digest;
use moltis_proto::limits::{RUNS_PAGE_MAX, TELEMETRY_BYTES_MAX};
use moltis_proto::message::Windows;
use moltis_proto::run::inbox::Inbox;
use moltis_proto::run::{RunSpec, RunSummary, Stream};
use moltis_proto::telemetry::Sample;
use moltis_proto::{
    BootId, Codec, FromKeeper, JournalId, Payload, RunId, ToGateway, ToKeeper, ToNode,
};
use tokio::time::Instant;

use super::line::{Came, Line};
use super::run::Run;
use super::trouble::{Played, Story, Trouble, ensure, failed, seconds};

/// When the gateway acknowledges output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Acks {
    /// Each chunk at once.
    Prompt,
    /// Not before it is told to.
    Withheld,
}

/// What the node said that it holds.
#[derive(Debug, Default)]
pub(super) struct Listed {
    pub(super) boot_id: Option<BootId>,
    pub(super) journals: Vec<JournalId>,
    pub(super) runs: Vec<RunSummary>,
    pub(super) is_complete: bool,
}

/// An accepted connection.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) line: Line,
    pub(super) node: VerifiedNode,
    pub(super) windows: Windows,
    pub(super) acks: Acks,
    /// Runs by id; they outlive the connection.
    pub(super) runs: HashMap<RunId, Run>,
    pub(super) listed: Listed,
    pub(super) samples: Vec<(Instant, Sample)>,
    pub(super) clocks: Vec<(Instant, u64)>,
    pub(super) pings: Vec<Instant>,
    pub(super) pongs: Vec<u64>,
    /// WebSocket pongs.
    pub(super) socket_pongs: usize,
    /// What the node said last, if that was a farewell.
    pub(super) farewell: Option<ToGateway>,
    /// Whether the node's pings are answered.
    pub(super) is_silent: bool,
    /// The most bytes that were ever under way at once, of all runs.
    pub(super) under_way_max: u64,
    patience: Duration,
    story: Story,
}

/// What one step of a connection comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Something was said, and is in the books.
    Said,
    /// The connection is over.
    Closed,
    /// Nothing came in the time given.
    Nothing,
}

impl Peer {
    pub(super) fn new(
        line: Line,
        node: VerifiedNode,
        windows: Windows,
        patience: Duration,
        story: Story,
    ) -> Self {
        Self {
            line,
            node,
            windows,
            acks: Acks::Prompt,
            runs: HashMap::new(),
            listed: Listed::default(),
            samples: Vec::new(),
            clocks: Vec::new(),
            pings: Vec::new(),
            pongs: Vec::new(),
            socket_pongs: 0,
            farewell: None,
            is_silent: false,
            under_way_max: 0,
            patience,
            story,
        }
    }

    /// Takes up the runs of an earlier connection. None of them is followed before it is resumed.
    pub(super) fn knowing(mut self, runs: HashMap<RunId, Run>) -> Self {
        self.runs = runs;
        for run in self.runs.values_mut() {
            run.inbox = None;
        }
        self
    }

    /// Ends the connection without a word, and returns what was under way.
    pub(super) fn cut(self) -> HashMap<RunId, Run> {
        self.story.did("the connection is cut");
        self.runs
    }

    pub(super) async fn send(&mut self, message: &ToNode) -> Played {
        self.line.send(message).await
    }

    pub(super) async fn say(&mut self, message: ToKeeper) -> Played {
        self.send(&ToNode::Run(message)).await
    }

    /// Asks for a run under a new id.
    pub(super) async fn start(&mut self, spec: RunSpec) -> Played<RunId> {
        let run_id = RunId::from_bytes(random::bytes());
        let run = Run::new(Digest::from_bytes(random::bytes()), spec);
        self.runs.insert(run_id, run);
        self.start_again(run_id).await?;
        Ok(run_id)
    }

    /// Sends the `start` of a run that is in the books.
    pub(super) async fn start_again(&mut self, run_id: RunId) -> Played {
        let run = self.run(run_id)?;
        let (digest, spec) = (run.digest, Box::new(run.spec.clone()));
        let windows = self.windows;
        let run = self.runs.entry(run_id);
        run.and_modify(|run| {
            let offsets = (run.stdout.len() as u64, run.stderr.len() as u64);
            run.inbox
                .get_or_insert_with(|| Inbox::new(&windows, offsets.0, offsets.1));
        });
        self.say(ToKeeper::Start {
            run_id,
            digest,
            spec,
        })
        .await
    }

    /// Asks for what is missing of a run, and follows it from there.
    pub(super) async fn resume(&mut self, run_id: RunId) -> Played {
        let run = self.run(run_id)?;
        let (stdout, stderr) = (run.stdout.len() as u64, run.stderr.len() as u64);
        self.resume_at(run_id, stdout, stderr).await
    }

    /// The same from other offsets; what was collected above them is dropped.
    pub(super) async fn resume_at(&mut self, run_id: RunId, stdout: u64, stderr: u64) -> Played {
        let windows = self.windows;
        if let Some(run) = self.runs.get_mut(&run_id) {
            run.stdout
                .truncate(usize::try_from(stdout).unwrap_or(usize::MAX));
            run.stderr
                .truncate(usize::try_from(stderr).unwrap_or(usize::MAX));
            run.ended = None;
            run.is_resumed = true;
            run.inbox = Some(Inbox::new(&windows, stdout, stderr));
        }
        self.say(ToKeeper::Resume {
            run_id,
            stdout,
            stderr,
        })
        .await
    }

    /// Sends bytes for a run's stdin.
    pub(super) async fn stdin(
        &mut self,
        run_id: RunId,
        offset: u64,
        bytes: &[u8],
        eof: bool,
    ) -> Played {
        let bytes = Payload(bytes.to_vec().into());
        self.say(ToKeeper::Stdin {
            run_id,
            offset,
            bytes,
            eof,
        })
        .await
    }

    /// Returns what is known of a run.
    pub(super) fn run(&self, run_id: RunId) -> Played<&Run> {
        let run = self.runs.get(&run_id);
        run.ok_or_else(|| Trouble::Stage(anyhow::anyhow!("the run {run_id} is not in the books")))
    }

    /// Waits for the node's list.
    pub(super) async fn listed(&mut self) -> Played {
        let expected = "the list of what it holds: `runs`, the last page marked";
        self.until(expected, |peer| peer.listed.is_complete.then_some(()))
            .await
    }

    /// Waits until the books show something.
    pub(super) async fn until<T>(
        &mut self,
        expected: &str,
        look: impl Fn(&Self) -> Option<T>,
    ) -> Played<T> {
        let until = Instant::now() + self.patience;
        loop {
            if let Some(found) = look(self) {
                return Ok(found);
            }
            match self.step(until).await? {
                Step::Said => {}
                Step::Closed => {
                    let word = self.farewell.as_ref();
                    let word = word.map_or_else(String::new, |word| format!(", saying {word:?}"));
                    return Err(failed(expected, format!("the node closed{word}")));
                }
                Step::Nothing => {
                    let came = format!("not in {}", seconds(self.patience));
                    return Err(failed(expected, came));
                }
            }
        }
    }

    /// Listens for a while; the connection has to stay.
    pub(super) async fn listen(&mut self, time: Duration) -> Played {
        let until = Instant::now() + time;
        loop {
            match self.step(until).await? {
                Step::Said => {}
                Step::Nothing => return Ok(()),
                Step::Closed => {
                    let came = format!("it closed, saying {:?}", self.farewell);
                    return Err(failed("the connection stays", came));
                }
            }
        }
    }

    /// Waits for the node to close: `why` it has to. Returns what it said last.
    pub(super) async fn closes(&mut self, why: &str) -> Played<Option<CloseCode>> {
        let until = Instant::now() + self.patience;
        loop {
            match self.step(until).await? {
                Step::Said => {}
                Step::Closed => break,
                Step::Nothing => {
                    return Err(failed(
                        format!("the node closes: {why}"),
                        format!("it is still connected after {}", seconds(self.patience)),
                    ));
                }
            }
        }
        Ok(match self.farewell {
            Some(ToGateway::Close { code }) => Some(code),
            _ => None,
        })
    }

    /// Takes the next message into the books.
    pub(super) async fn step(&mut self, until: Instant) -> Played<Step> {
        match self.line.read(until).await? {
            Came::Closed(_) => Ok(Step::Closed),
            Came::Nothing => Ok(Step::Nothing),
            Came::Pong => {
                self.socket_pongs += 1;
                Ok(Step::Said)
            }
            Came::Frame(frame) => {
                let message: ToGateway = self.line.open(&frame, "a message of section 5")?;
                self.take(message, frame.len()).await?;
                Ok(Step::Said)
            }
        }
    }

    async fn take(&mut self, message: ToGateway, frame_bytes: usize) -> Played {
        let now = Instant::now();
        match message {
            ToGateway::Run(message) => self.take_run(message, now).await?,
            ToGateway::Telemetry(sample) => {
                let expected = "a sample of at most 16 KiB (section 7)";
                let is_short = frame_bytes <= TELEMETRY_BYTES_MAX + 64;
                ensure(is_short, expected, format!("one of {frame_bytes} bytes"))?;
                self.samples.push((now, *sample));
            }
            ToGateway::Clock { unix_ms } => self.clocks.push((now, unix_ms)),
            ToGateway::Ping { number } => {
                self.pings.push(now);
                if !self.is_silent {
                    self.send(&ToNode::Pong { number }).await?;
                }
            }
            ToGateway::Pong { number } => self.pongs.push(number),
            word @ (ToGateway::Goodbye { .. } | ToGateway::Close { .. }) => {
                self.farewell = Some(word);
            }
        }
        Ok(())
    }

    async fn take_run(&mut self, message: FromKeeper, now: Instant) -> Played {
        if let FromKeeper::Runs {
            boot_id,
            journals,
            runs,
            last,
        } = message
        {
            return self.take_page(boot_id, journals, runs, last);
        }
        ensure(
            self.listed.is_complete,
            "no other run message before the last page of `runs` (section 6)",
            format!("{message:?}"),
        )?;
        let Some(run_id) = message.run_id() else {
            return Ok(());
        };
        let windows = self.windows;
        let Some(run) = self.runs.get_mut(&run_id) else {
            let came = format!("{message:?}");
            return Err(failed("messages of runs that were asked for", came));
        };
        run.take(message, &windows, now)?;
        if self.acks == Acks::Prompt {
            self.acknowledge(run_id).await?;
        }
        let under_way = self.runs.values().map(Run::under_way).sum();
        self.under_way_max = self.under_way_max.max(under_way);
        ensure(
            under_way <= u64::from(self.windows.connection_bytes),
            format!(
                "at most {} unacknowledged bytes of all runs (`connection_bytes`, section 6)",
                self.windows.connection_bytes
            ),
            format!("{under_way} bytes are under way"),
        )
    }

    fn take_page(
        &mut self,
        boot_id: BootId,
        journals: Vec<JournalId>,
        runs: Vec<RunSummary>,
        last: bool,
    ) -> Played {
        let listed = &mut self.listed;
        let wrong =
            |expected: &str, came: String| Err(failed(format!("{expected} (section 6)"), came));
        if listed.is_complete {
            return wrong(
                "one list on a connection",
                "another page behind the last".to_owned(),
            );
        }
        if runs.len() > RUNS_PAGE_MAX || (runs.is_empty() && !last) {
            let came = format!("{} runs, last: {last}", runs.len());
            return wrong("pages of 1 to 256 runs, the last one maybe empty", came);
        }
        if boot_id != self.node.boot_id() {
            return wrong("the boot id of its proof", format!("{boot_id}"));
        }
        if journals.is_empty() {
            return wrong("the journal for new runs first", "no journal".to_owned());
        }
        let strange = runs.iter().find(|run| !journals.contains(&run.journal_id));
        if let Some(run) = strange {
            let came = format!("a run of the journal {}", run.journal_id);
            return wrong("runs of the journals that it names", came);
        }
        listed.boot_id = Some(boot_id);
        listed.journals = journals;
        listed.runs.extend(runs);
        listed.is_complete = last;
        Ok(())
    }

    /// Acknowledges everything of a run that has come.
    pub(super) async fn acknowledge(&mut self, run_id: RunId) -> Played {
        let Some(run) = self.runs.get_mut(&run_id) else {
            return Ok(());
        };
        let Some(inbox) = &mut run.inbox else {
            return Ok(());
        };
        for stream in Stream::BOTH {
            inbox.handle_stored(stream, inbox.received(stream));
        }
        let Some(offsets) = inbox.take_ack(Instant::now().into_std()) else {
            return Ok(());
        };
        self.say(ToKeeper::Ack {
            run_id,
            stdout: offsets.stdout,
            stderr: offsets.stderr,
        })
        .await
    }

    /// Waits for the end of a run, and returns what there is of it.
    pub(super) async fn finish(&mut self, run_id: RunId) -> Played<&Run> {
        self.until("the run's `ended`", |peer| {
            let run = peer.runs.get(&run_id)?;
            (run.ended.is_some() || run.refused.is_some()).then_some(())
        })
        .await?;
        let run = self.run(run_id)?;
        match run.refused {
            Some(code) => Err(failed("the run's `ended`", format!("refused: {code:?}"))),
            None => Ok(run),
        }
    }

    /// Starts a run and waits for its end.
    pub(super) async fn play(&mut self, spec: RunSpec) -> Played<&Run> {
        let run_id = self.start(spec).await?;
        self.finish(run_id).await
    }

    /// Returns how the node's messages are written.
    pub(super) fn codec(&self) -> Codec {
        self.line.subprotocol().codec()
    }
}
