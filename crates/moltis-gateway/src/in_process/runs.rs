//! Runs: start one, see them, follow one, and what can be said to one that goes on. A `key` makes a
//! start safe to repeat: 1 to 128 visible ASCII characters, this asker's own.

use std::fmt;

use bytes::Bytes;

use super::InProcess;
use super::call::Call;
use super::streams::{Streamed, bytes_of, frames_of};
use crate::api::fleet::{FleetResults, FleetRuns};
use crate::api::follow::Frame;
use crate::api::nodes::Node;
use crate::api::problem::Problem;
use crate::api::runs::{
    Cancel, FollowQuery, ListRuns, OutputQuery, Resize, Run, RunResult, SendSignal, StartQuery,
    StartRun, StdinAccepted, StdinQuery,
};
use crate::api::{Empty, IDEMPOTENCY_KEY_HEADER, List, NEXT_OFFSET_HEADER, RUN_ID_HEADER};

/// Answer when it is over.
const WAIT: StartQuery = StartQuery {
    wait: true,
    follow: false,
};

/// Answer with what happens.
const FOLLOW: StartQuery = StartQuery {
    wait: false,
    follow: true,
};

/// A run that has begun, and all that happens to it from the beginning.
pub struct Started {
    /// Its id.
    pub run_id: String,
    /// What happens. It ends behind [`Frame::Ended`], or when the gateway stops.
    pub frames: Streamed<Frame>,
}

/// What a read of an output gives.
pub struct Output {
    /// The offset behind the last byte; `None` where more may come.
    pub next_offset: Option<u64>,
    /// The bytes, in pieces.
    pub bytes: Streamed<Bytes>,
}

impl fmt::Debug for Started {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Started")
            .field("run_id", &self.run_id)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output")
            .field("next_offset", &self.next_offset)
            .finish_non_exhaustive()
    }
}

impl InProcess {
    /// Starts a run, and returns when it is on its way.
    ///
    /// # Errors
    /// The [`Problem`] that the route answers with: nothing was started then.
    ///
    /// # Cancel safety
    /// Dropping it does not take a run back that is on its way.
    pub async fn start_run(&self, run: &StartRun, key: Option<&str>) -> Result<Run, Problem> {
        let call = self.start(run, StartQuery::default(), key);
        call.about_one(run).answer().await
    }

    /// Starts a run, and returns when it is over, with what it printed.
    ///
    /// # Errors
    /// The [`Problem`] that the route answers with: nothing was started then, or the gateway stops
    /// and the run goes on.
    ///
    /// # Cancel safety
    /// Dropping it lets go of the waiting, not of the run.
    pub async fn run_to_end(
        &self,
        run: &StartRun,
        key: Option<&str>,
    ) -> Result<RunResult, Problem> {
        self.start(run, WAIT, key).about_one(run).answer().await
    }

    /// Starts a run, and follows it from the beginning.
    ///
    /// # Errors
    /// The [`Problem`] that the route answers with: nothing was started then.
    ///
    /// # Cancel safety
    /// Dropping it, or the frames, does not end the run.
    pub async fn start_and_follow(
        &self,
        run: &StartRun,
        key: Option<&str>,
    ) -> Result<Started, Problem> {
        let call = self.start(run, FOLLOW, key);
        let response = call.about_one(run).send().await?;
        let id = response.headers().get(RUN_ID_HEADER);
        let run_id = id.and_then(|id| id.to_str().ok()).unwrap_or_default();
        Ok(Started {
            run_id: run_id.to_owned(),
            frames: frames_of(response),
        })
    }

    /// Starts a command on every node that a selector means, and returns when all are on their way.
    ///
    /// # Errors
    /// The [`Problem`] that the route answers with: nothing was started then.
    pub async fn start_fleet(
        &self,
        run: &StartRun,
        key: Option<&str>,
    ) -> Result<FleetRuns, Problem> {
        let call = self.start(run, StartQuery::default(), key);
        call.about_many(run).answer().await
    }

    /// Starts a command on every node that a selector means, and returns when all are over, with
    /// what they printed.
    ///
    /// # Errors
    /// The [`Problem`] that the route answers with: nothing was started then, or the gateway stops
    /// and the runs go on.
    pub async fn run_fleet_to_end(
        &self,
        run: &StartRun,
        key: Option<&str>,
    ) -> Result<FleetResults, Problem> {
        let call = self.start(run, WAIT, key);
        call.about_many(run).answer().await
    }

    /// Returns the nodes that a selector means for a run, at most 1000, and starts nothing. Where
    /// there are more, `next` is a cursor of [`list_nodes`](Self::list_nodes) with the same selector.
    ///
    /// # Errors
    /// The [`Problem`] that the route answers with.
    pub async fn list_fleet(&self, run: &StartRun) -> Result<List<Node>, Problem> {
        let dry = StartRun {
            dry_run: true,
            ..run.clone()
        };
        let call = self.start(&dry, StartQuery::default(), None);
        call.about_many(run).answer().await
    }

    /// Returns runs, the newest first, a page at a time.
    ///
    /// # Errors
    /// The [`Problem`] that the route answers with.
    pub async fn list_runs(&self, query: &ListRuns) -> Result<List<Run>, Problem> {
        self.call("list_runs").ask(query).answer().await
    }

    /// Returns one run, by its id or a unique beginning of it.
    ///
    /// # Errors
    /// The [`Problem`] that the route answers with.
    pub async fn show_run(&self, id: &str) -> Result<Run, Problem> {
        self.call("show_run").of(id).answer().await
    }

    /// Returns the exact bytes of one output, from an offset on. It ends before a gap.
    ///
    /// # Errors
    /// The [`Problem`] that the route answers with; `output_gap` names the bytes that are gone.
    pub async fn read_output(&self, id: &str, query: &OutputQuery) -> Result<Output, Problem> {
        let response = self.call("read_output").of(id).ask(query).send().await?;
        let next = response.headers().get(NEXT_OFFSET_HEADER);
        Ok(Output {
            next_offset: next.and_then(|next| next.to_str().ok()?.parse().ok()),
            bytes: bytes_of(response),
        })
    }

    /// Returns all that happens to a run, as it happens, until it is over or the gateway stops.
    ///
    /// # Errors
    /// The [`Problem`] that the route answers with.
    pub async fn follow_run(
        &self,
        id: &str,
        from: &FollowQuery,
    ) -> Result<Streamed<Frame>, Problem> {
        let response = self.call("follow_run").of(id).ask(from).send().await?;
        Ok(frames_of(response))
    }

    /// Sends bytes to a command's stdin, 1 MiB at most; they are placed by their offset.
    ///
    /// # Errors
    /// The [`Problem`] that the route answers with.
    pub async fn write_stdin(
        &self,
        id: &str,
        at: &StdinQuery,
        bytes: Bytes,
    ) -> Result<StdinAccepted, Problem> {
        let call = self.call("write_stdin").of(id);
        call.ask(at).bytes(bytes).answer().await
    }

    /// Tells a command that its terminal has another size.
    ///
    /// # Errors
    /// The [`Problem`] that the route answers with.
    pub async fn resize_terminal(&self, id: &str, size: &Resize) -> Result<(), Problem> {
        self.call("resize_terminal").of(id).json(size).done().await
    }

    /// Sends a signal to a command's process group.
    ///
    /// # Errors
    /// The [`Problem`] that the route answers with.
    pub async fn send_signal(&self, id: &str, signal: &SendSignal) -> Result<(), Problem> {
        self.call("send_signal").of(id).json(signal).done().await
    }

    /// Ends a run: SIGTERM to its process group, and SIGKILL after a grace.
    ///
    /// # Errors
    /// The [`Problem`] that the route answers with.
    pub async fn cancel_run(&self, id: &str, cancel: &Cancel) -> Result<Run, Problem> {
        self.call("cancel_run").of(id).json(cancel).answer().await
    }

    /// Takes a run that a node brought and nobody asked for.
    ///
    /// # Errors
    /// The [`Problem`] that the route answers with.
    pub async fn claim_run(&self, id: &str) -> Result<Run, Problem> {
        self.call("claim_run").of(id).json(&Empty {}).answer().await
    }

    fn start(&self, run: &StartRun, query: StartQuery, key: Option<&str>) -> Call<'_> {
        self.call("start_run")
            .ask(&query)
            .header(IDEMPOTENCY_KEY_HEADER, key)
            .json(run)
    }
}

impl Call<'_> {
    /// Refuses a selector, which has another answer.
    fn about_one(self, run: &StartRun) -> Self {
        match run.select {
            None => self,
            Some(_) => self.refused("`select` is for many nodes: start a fleet"),
        }
    }

    /// Refuses a request without a selector, which has another answer.
    fn about_many(self, run: &StartRun) -> Self {
        match run.select {
            Some(_) => self,
            None => self.refused("`select` is missing: a fleet is named by a selector"),
        }
    }
}
