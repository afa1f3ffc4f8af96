//! One of many nodes: a task that waits for its turn, starts the run, and tells what happens to it.
//!
//! Bounds that all of them share stand here: how many start at once, and how much is held of outputs
//! that are not printed.

use std::cell::Cell;
use std::rc::Rc;

use moltis_gateway::api::runs::{Run, StartRun};
use tokio::sync::{Semaphore, mpsc};

use super::super::cancel::{self, Refusal};
use super::super::once::{Key, NotDone, once};
use super::super::reader;
use super::summary::Became;
use crate::api::{ApiError, Client};
use crate::exit::Exit;

/// Runs that are being started at the same time.
const STARTING_MAX: usize = 64;

/// Connections that hold a part of an output which is not printed: each at most 256 KiB, twice.
const HOLDING_MAX: usize = 32;

/// Small requests beside the runs: cancels, and looks at runs that say nothing.
const ASKING_MAX: usize = 16;

/// What the tasks of all nodes share.
pub(super) struct Shared {
    client: Rc<Client>,
    /// What to run; each fills in its node.
    request: StartRun,
    on_failure: OnFailure,
    /// Nodes that run now.
    turns: Semaphore,
    starting: Semaphore,
    holding: Rc<Semaphore>,
    asking: Semaphore,
    /// No more are started.
    holds_back: Cell<bool>,
    news: mpsc::Sender<(usize, News)>,
}

/// What becomes of the nodes behind one that did not exit 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnFailure {
    /// They are asked all the same.
    GoOn,
    /// They are held back.
    StartNoMore,
}

/// What a task tells of its node.
pub(super) enum News {
    /// Its run has this id.
    Started(String),
    /// Whether it was started is not known yet: it is asked for again because of this.
    AskedAgain(String),
    /// Nothing more comes of it.
    Over(Became),
    /// Something happened to its run.
    Event(reader::Event),
    /// How its run stands.
    Look(Box<Run>),
}

impl Shared {
    /// Returns what tasks need to run `request` on at most so many nodes at once, and to tell of it.
    pub(super) fn new(
        client: Client,
        request: StartRun,
        at_once: usize,
        on_failure: OnFailure,
        news: mpsc::Sender<(usize, News)>,
    ) -> Rc<Self> {
        Rc::new(Self {
            client: Rc::new(client),
            request,
            on_failure,
            turns: Semaphore::new(at_once),
            starting: Semaphore::new(STARTING_MAX),
            holding: Rc::new(Semaphore::new(HOLDING_MAX)),
            asking: Semaphore::new(ASKING_MAX),
            holds_back: Cell::new(false),
            news,
        })
    }

    /// Starts no more.
    pub(super) fn hold_back(&self) {
        self.holds_back.set(true);
    }

    /// Runs the command on one node and tells what comes of it.
    pub(super) async fn follow_one(self: Rc<Self>, at: usize, node_id: String) {
        let tell = async |news| self.news.send((at, news)).await.is_ok();
        let turn = self.turns.acquire().await;
        let starting = self.starting.acquire().await;
        // Behind both waits: what is held back meanwhile is not started.
        if self.holds_back.get() {
            drop(starting);
            tell(News::Over(Became::HeldBack)).await;
            return;
        }
        let request = StartRun {
            // By its id, which is nobody else's.
            node: Some(format!("node:{node_id}")),
            ..self.request.clone()
        };
        let start = async |key: &str| self.client.start_and_follow(&request, key).await;
        let again = async |error: &ApiError| {
            tell(News::AskedAgain(error.to_string())).await; // if nobody watches, nobody is told
        };
        let started = once(&Key::new(), None, again, start).await; // the first question was another one
        drop(starting);
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
                && self.on_failure == OnFailure::StartNoMore
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
    pub(super) async fn look(self: Rc<Self>, at: usize, run_id: String) {
        let _asking = self.asking.acquire().await;
        if let Ok(run) = self.client.get::<Run>(&format!("runs/{run_id}")).await {
            self.news.send((at, News::Look(Box::new(run)))).await.ok(); // nobody watches any more
        }
    }

    /// Asks for a run's end until the gateway has heard it.
    pub(super) async fn cancel(self: Rc<Self>, run_id: String, refused: mpsc::Sender<Refusal>) {
        let _asking = self.asking.acquire().await;
        cancel::until_heard(&self.client, &run_id, refused).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::{LocalSet, spawn_local, yield_now};

    use super::*;
    use crate::args::Remote;
    use crate::output::Output;
    use crate::settings::Settings;

    #[tokio::test]
    async fn who_waits_to_start_is_held_back_too() {
        let remote = Remote {
            gateway: Some("http://127.0.0.1:1".to_owned()),
            tls_ca: None,
        };
        let client = Client::new(&Settings::default(), &remote, Output::of_process()).unwrap();
        let (news, mut told) = mpsc::channel(1);
        let shared = Shared::new(client, StartRun::default(), 8, OnFailure::GoOn, news);
        let all_start = shared
            .starting
            .try_acquire_many(u32::try_from(STARTING_MAX).unwrap())
            .unwrap();
        let first = async {
            spawn_local(Rc::clone(&shared).follow_one(0, "box".to_owned()));
            while shared.turns.available_permits() == 8 {
                yield_now().await;
            }
            shared.hold_back();
            drop(all_start);
            told.recv().await
        };
        let first = LocalSet::new().run_until(first).await;
        assert!(matches!(first, Some((0, News::Over(Became::HeldBack)))));
    }
}
