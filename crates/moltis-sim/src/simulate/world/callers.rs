//! People and programs that ask the gateway for something, each in a task of its own, and tell the
//! witness what they were told. One whose gateway dies meanwhile has heard nothing.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures_util::StreamExt as _;
use moltis_gateway::InProcess;
use moltis_gateway::api::follow::Frame;
use moltis_gateway::api::nodes::PatchNode;
use moltis_gateway::api::problem::{Code, Problem};
use moltis_gateway::api::runs::{
    Cancel, FollowQuery, ListRuns, Run, SendSignal, StartRun, StdinQuery, Stream as ApiStream,
};
use moltis_gateway::in_process::Streamed;
use moltis_proto::DeviceId;

use super::gateway::Served;
use crate::simulate::kernel::script::{self, Script, Stream, Tag};
use crate::simulate::model::{Happened, Model, Violation, tag_of, violation};
use crate::simulate::net::Place;
use crate::simulate::plan::{GATEWAY, How};
use crate::simulate::trace::note;
use crate::simulate::witness::Witness;

/// The time of a run on `local` that names none (`[runs] local_timeout_seconds`).
const LOCAL_TIMEOUT: Duration = Duration::from_mins(5);

/// A request for a run, as it can be repeated.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) place: Place,
    /// What its node is called in a request.
    pub(super) node: String,
    pub(super) script: Script,
    pub(super) key: Option<String>,
    pub(super) how: How,
    pub(super) timeout_seconds: Option<u64>,
}

impl Request {
    fn body(&self) -> StartRun {
        let Script { tag, is_fed, .. } = self.script;
        let reads = self.script.reads();
        let stdin = is_fed.then(|| script::bytes(tag, Stream::In, 0, reads));
        StartRun {
            node: Some(self.node.clone()),
            command: Some(self.script.to_string()),
            timeout_seconds: self.timeout_seconds,
            stdin_base64: stdin.map(|bytes| BASE64_STANDARD.encode(bytes)),
            stdin_open: reads > 0 && !is_fed,
            ..StartRun::default()
        }
    }
}

/// Whoever asks.
#[derive(Clone)]
pub(super) struct Caller {
    pub(super) served: Served,
    pub(super) witness: Witness,
}

/// Why a caller has no answer.
enum NoAnswer {
    /// There is no gateway, or it died meanwhile.
    Cut,
    /// It says no.
    Problem(Box<Problem>),
}

type Answer<T> = Result<T, NoAnswer>;

impl Caller {
    /// Asks for a run.
    pub(super) async fn start(self, request: Request) {
        let tag = request.script.tag;
        let (body, key) = (request.body(), request.key.as_deref());
        if self.served.life().is_none() {
            return;
        }
        self.asked(&request, &body);
        let answer = match request.how {
            How::Detached => {
                let run = self.ask(async |api| api.start_run(&body, key).await).await;
                run.map(|run| self.settled(tag, run))
            }
            How::Waiting => {
                let result = self.ask(async |api| api.run_to_end(&body, key).await).await;
                match result {
                    Ok(result) => {
                        let (id, result) = (result.run_id.clone(), Box::new(result));
                        self.witness.see(Happened::Returned { tag, result });
                        self.look(&id).await
                    }
                    Err(no) => Err(no),
                }
            }
            How::Following => {
                let started = self.ask(async |api| api.start_and_follow(&body, key).await);
                match started.await {
                    Ok(started) => {
                        let run_id = started.run_id;
                        self.witness.see(Happened::Answered { tag, run_id });
                        self.read(tag, started.frames).await;
                        Ok(())
                    }
                    Err(no) => Err(no),
                }
            }
        };
        if let Err(NoAnswer::Problem(problem)) = answer {
            self.refused("start", tag, &problem);
            // A gateway that stops has let go of who waits, not of the run.
            let is_none = problem.code != Code::ShuttingDown;
            if is_none && !self.is_of_the_disk(&problem) {
                self.witness.see(Happened::Refused { tag });
            }
        }
    }

    /// Asks for something else by the same key.
    pub(super) async fn contradict(self, request: Request) {
        let mut body = request.body();
        body.timeout_seconds = Some(12_345);
        let key = request.key.as_deref();
        let tag = request.script.tag;
        self.asked(&request, &body);
        match self.ask(async |api| api.start_run(&body, key).await).await {
            // The first one never came to be: this one did.
            Ok(run) => self.settled(tag, run),
            Err(NoAnswer::Problem(problem)) => self.refused("contradict", tag, &problem),
            Err(NoAnswer::Cut) => {}
        }
    }

    pub(super) async fn cancel(self, tag: Tag, id: String, grace_seconds: u64) {
        let cancel = Cancel {
            grace_seconds: Some(grace_seconds),
        };
        // Whatever comes of it, it may have been asked for.
        self.witness.see(Happened::Cancelled { tag });
        let answer = self.ask(async |api| api.cancel_run(&id, &cancel).await);
        match answer.await {
            Ok(run) => {
                if let Ok(run_id) = run.id.parse() {
                    self.served.seats().cancelled(run_id);
                }
                self.saw(run);
                self.witness.see(Happened::CancelTaken { tag });
            }
            Err(NoAnswer::Problem(problem)) => self.refused("cancel", tag, &problem),
            Err(NoAnswer::Cut) => {}
        }
    }

    pub(super) async fn signal(self, tag: Tag, id: String, signal: &'static str) {
        let signal = SendSignal {
            signal: signal.to_owned(),
        };
        let answer = self.ask(async |api| api.send_signal(&id, &signal).await);
        if let Err(NoAnswer::Problem(problem)) = answer.await {
            self.refused("signal", tag, &problem);
        }
    }

    /// Gives a run more stdin, from wherever the gateway says that it has come to.
    pub(super) async fn feed(self, tag: Tag, id: String, bytes: u64, eof: bool) {
        let mut at = 0;
        for _ in 0..3 {
            let query = StdinQuery { offset: at, eof };
            let part = Bytes::from(script::bytes(tag, Stream::In, at, at + bytes));
            let answer = self.ask(async |api| api.write_stdin(&id, &query, part.clone()).await);
            match answer.await {
                Ok(taken) => {
                    note!(
                        self.witness.trace,
                        "caller",
                        "stdin of {tag} is at {}",
                        taken.accepted
                    );
                    return;
                }
                Err(NoAnswer::Problem(problem)) => {
                    self.refused("stdin", tag, &problem);
                    match problem.next_offset {
                        Some(next) => at = next,
                        None => return,
                    }
                }
                Err(NoAnswer::Cut) => return,
            }
        }
    }

    /// Reads a run's output from the beginning, as long as there is any.
    pub(super) async fn follow(self, tag: Tag, id: String) {
        let from = FollowQuery {
            stdout: 0,
            stderr: 0,
        };
        match self.ask(async |api| api.follow_run(&id, &from).await).await {
            Ok(frames) => self.read(tag, frames).await,
            Err(NoAnswer::Problem(problem)) => self.refused("follow", tag, &problem),
            Err(NoAnswer::Cut) => {}
        }
    }

    /// Looks at one run.
    pub(super) async fn look_at(self, tag: Tag, id: String) {
        if let Err(NoAnswer::Problem(problem)) = self.look(&id).await {
            self.refused("look", tag, &problem);
        }
    }

    /// Looks at all runs, and returns them.
    pub(super) async fn list(self) -> Vec<Run> {
        let mut query = ListRuns {
            limit: Some(100),
            ..ListRuns::default()
        };
        let mut all = Vec::new();
        loop {
            let page = self.ask(async |api| api.list_runs(&query).await).await;
            let Ok(page) = page else {
                return all;
            };
            for run in page.items {
                self.saw(run.clone());
                all.push(run);
            }
            query.cursor = page.next;
            if query.cursor.is_none() {
                return all;
            }
        }
    }

    /// Takes all runs that nobody has asked for.
    pub(super) async fn claim(self) {
        for run in self.clone().list().await {
            if !run.unclaimed {
                continue;
            }
            match self.ask(async |api| api.claim_run(&run.id).await).await {
                Ok(run) => self.saw(run),
                Err(NoAnswer::Problem(problem)) => self.refused("claim", 0, &problem),
                Err(NoAnswer::Cut) => return,
            }
        }
    }

    pub(super) async fn rename(self, node: String, name: String) {
        let patch = PatchNode {
            name: Some(name),
            labels: None,
        };
        let answer = self.ask(async |api| api.change_node(&node, &patch).await);
        if let Err(NoAnswer::Problem(problem)) = answer.await {
            self.refused("rename", 0, &problem);
        }
    }

    /// Refuses a node's key. Returns whether the operator was told that it is so.
    pub(super) async fn revoke(self, place: Place, device: DeviceId, node: String) -> bool {
        let answer = self.ask(async |api| api.revoke_node(&node).await).await;
        if answer.is_ok() {
            self.served.seats().revoked(device);
            self.witness.see(Happened::Revoked { place });
        }
        answer.is_ok()
    }

    fn asked(&self, request: &Request, body: &StartRun) {
        let own = (request.place == GATEWAY).then_some(LOCAL_TIMEOUT);
        self.witness.see(Happened::Asked {
            place: request.place,
            script: request.script.clone(),
            key: request.key.clone(),
            timeout: body.timeout_seconds.map(Duration::from_secs).or(own),
        });
    }

    /// Whoever does not wait is answered when the row is on the disk.
    fn settled(&self, tag: Tag, run: Run) {
        self.saw(run);
        self.witness.see(Happened::Settled { tag });
    }

    async fn look(&self, id: &str) -> Answer<()> {
        let run = self.ask(async |api| api.show_run(id).await).await?;
        self.saw(run);
        Ok(())
    }

    fn saw(&self, run: Run) {
        // Of one that was claimed nobody here has the words.
        if run.command.is_none() && !run.unclaimed {
            return;
        }
        self.witness.see(Happened::Seen(Box::new(run)));
    }

    /// Asks, as long as this gateway lives.
    async fn ask<T>(&self, ask: impl AsyncFnOnce(InProcess) -> Result<T, Problem>) -> Answer<T> {
        let life = self.served.life().ok_or(NoAnswer::Cut)?;
        let api = life.api().ok_or(NoAnswer::Cut)?;
        let answer = tokio::select! {
            biased;
            () = life.fate.over() => return Err(NoAnswer::Cut),
            answer = ask(api) => answer,
        };
        // It may have died before this answer was on its way.
        if life.fate.is_over() {
            return Err(NoAnswer::Cut);
        }
        answer.map_err(|problem| NoAnswer::Problem(Box::new(problem)))
    }

    fn refused(&self, what: &str, tag: Tag, problem: &Problem) {
        let code = problem.code.as_str();
        note!(
            self.witness.trace,
            "caller",
            "{what} of {tag} is refused: {code}"
        );
        let is_excused = self.is_of_the_disk(problem) || self.is_of_the_keeper(problem);
        if problem.code == Code::Internal && !is_excused {
            let words = &problem.detail;
            self.witness.violated(violation!(
                "errors",
                "{what} of {tag} fails in the gateway: {words}"
            ));
        }
    }

    /// Returns whether a problem may be the disk's, whose outcome is then open.
    fn is_of_the_disk(&self, problem: &Problem) -> bool {
        problem.status >= 500 && self.served.disk().troubled() > 0
    }

    /// Returns whether a problem may be a dying keeper's of the gateway's machine.
    fn is_of_the_keeper(&self, problem: &Problem) -> bool {
        problem.detail.contains("the keeper of this machine")
            && self.witness.ask(Model::had_trouble_here)
    }

    /// Reads frames up to the end of a run, or as long as this gateway lives.
    async fn read(&self, tag: Tag, mut frames: Streamed<Frame>) {
        let Some(life) = self.served.life() else {
            return;
        };
        let mut offsets = [0; 2];
        loop {
            let frame = tokio::select! {
                biased;
                () = life.fate.over() => return,
                frame = frames.next() => frame,
            };
            let Some(Ok(frame)) = frame else {
                return;
            };
            if life.fate.is_over() {
                return;
            }
            match self.handle_frame(tag, frame, &mut offsets) {
                Ok(Going::On) => {}
                Ok(Going::Over) => return,
                Err(violation) => return self.witness.violated(violation),
            }
        }
    }

    /// Looks at whether a frame goes on where the one before it ended.
    fn handle_frame(
        &self,
        tag: Tag,
        frame: Frame,
        offsets: &mut [u64; 2],
    ) -> Result<Going, Violation> {
        let mut reach = |stream, from: u64, to| {
            let at = &mut offsets[index(stream)];
            if *at != from {
                let words = format!("{tag} {stream:?} goes on at {from} behind {at}");
                return Err(violation!("I4", "{words}"));
            }
            *at = to;
            Ok(())
        };
        match frame {
            Frame::Output {
                stream,
                offset,
                bytes,
            } => {
                reach(stream, offset, offset + bytes.len() as u64)?;
                self.witness.see(Happened::Read {
                    tag,
                    stream: [Stream::Out, Stream::Err][index(stream)],
                    offset,
                    bytes,
                });
            }
            Frame::Gap(gap) => {
                reach(gap.stream, gap.from, gap.to)?;
                self.witness.see(Happened::Missed { tag, gap });
            }
            Frame::Ended(run) => {
                let totals = [run.stdout_bytes, run.stderr_bytes];
                if *offsets != totals {
                    return Err(violation!(
                        "I4",
                        "{tag} is over behind {offsets:?}, and has {totals:?} bytes"
                    ));
                }
                if tag_of(&run) == Some(tag) {
                    self.saw(*run);
                }
                return Ok(Going::Over);
            }
            Frame::KeepAlive => {}
        }
        Ok(Going::On)
    }
}

/// Whether a reader goes on.
enum Going {
    On,
    Over,
}

fn index(stream: ApiStream) -> usize {
    usize::from(stream == ApiStream::Stderr)
}

/// Waits for some work, but not longer than this.
pub(super) async fn for_a_while(time: Duration, work: impl Future<Output = ()>) {
    tokio::time::timeout(time, work).await.ok(); // whoever asked has gone
}
