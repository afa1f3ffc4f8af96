//! What a keeper waits for: one future for each thing under way, and the event that it ends with.
//!
//! They run inside the keeper's own task, so nothing here is shared or locked. Each hands back what
//! it had borrowed (a pipe, a spool). A read can be called back, and a write called off.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::future::{AbortHandle, Abortable};
use futures_util::stream::FuturesUnordered;
use moltis_proto::RunId;
use moltis_proto::message::{ToKeeper, Windows};
use moltis_proto::run::outbox::{SpoolDone, SpoolOp};
use moltis_proto::run::{GapReason, Stream};
use tokio::io::AsyncReadExt as _;
use tokio::sync::Notify;

use super::client::Client;
use super::connect::KeeperStream;
use super::disk::Disk;
use super::kernel::Exit;
use super::pipes::{Sink, Source};
use super::spawn::{NoPlan, Plan};
use super::spool::Spool;
use super::wire;

/// How long a client may take until it has said `Attach`.
const ATTACH_TIME: Duration = Duration::from_secs(10);

/// How long a client that broke a rule may take to hear so.
const PART_TIME: Duration = Duration::from_secs(2);

/// What has happened.
#[derive(Debug)]
pub(super) enum Event {
    /// The files of a start were looked at, or did not let themselves be looked at in time.
    Planned {
        run_id: RunId,
        planned: Result<Plan, NoPlan>,
    },
    /// The child has ended and waits to be reaped.
    Exited { run_id: RunId },
    /// The child wrote something, or no more; `None` where the source was called back.
    Read {
        run_id: RunId,
        stream: Stream,
        source: Source,
        read: Option<io::Result<Bytes>>,
    },
    /// The child's stdin took something.
    Wrote {
        run_id: RunId,
        sink: Sink,
        written: io::Result<usize>,
    },
    /// The child's stdin is closed.
    Closed { run_id: RunId },
    /// The disk did what the outbox asked, or not.
    Spooled {
        run_id: RunId,
        stream: Stream,
        spool: Spool,
        done: Result<SpoolDone, GapReason>,
    },
    /// A client that broke a rule has heard so, or does not listen.
    Parted,
    /// The spools of a forgotten run are gone.
    Deleted,
    /// Somebody on the socket said `Attach`.
    Attached(Box<Attached>),
    /// Somebody on the socket said something else, or nothing in time.
    Gone,
}

/// A client that has said `Attach`, and what it sent behind that.
#[derive(Debug)]
pub(super) struct Attached {
    pub(super) stream: KeeperStream,
    pub(super) behind: BytesMut,
    pub(super) windows: Windows,
}

type Op = Pin<Box<dyn Future<Output = Event> + Send>>;

/// Everything under way.
#[derive(Debug)]
pub(super) struct Ops {
    under_way: FuturesUnordered<Abortable<Op>>,
    disk: Disk,
}

impl Ops {
    pub(super) fn new(disk: Disk) -> Self {
        Self {
            under_way: FuturesUnordered::new(),
            disk,
        }
    }

    fn push(&mut self, op: impl Future<Output = Event> + Send + 'static) -> AbortHandle {
        let (handle, registration) = AbortHandle::new_pair();
        let op: Op = Box::pin(op);
        self.under_way.push(Abortable::new(op, registration));
        handle
    }

    /// Returns the next event; waits for ever when nothing is under way.
    ///
    /// # Cancel safety
    /// Cancel safe: an event is returned or stays.
    pub(super) async fn next(&mut self) -> Event {
        loop {
            match self.under_way.next().await {
                Some(Ok(event)) => return event,
                Some(Err(_called_off)) => {}
                None => std::future::pending().await,
            }
        }
    }

    /// Waits for what comes of a look at the files of a start.
    pub(super) fn plan(
        &mut self,
        run_id: RunId,
        planning: impl Future<Output = Result<Plan, NoPlan>> + Send + 'static,
    ) -> AbortHandle {
        self.push(async move {
            Event::Planned {
                run_id,
                planned: planning.await,
            }
        })
    }

    pub(super) fn wait_for_exit(&mut self, run_id: RunId, exit: Exit) {
        self.push(async move {
            exit.ended().await;
            Event::Exited { run_id }
        });
    }

    /// Reads some of an output, until `called_back` says that it is wanted back.
    pub(super) fn read(
        &mut self,
        run_id: RunId,
        stream: Stream,
        mut source: Source,
        max: usize,
        called_back: Arc<Notify>,
    ) {
        self.push(async move {
            let read = tokio::select! {
                biased;
                () = called_back.notified() => None,
                read = source.read(max) => Some(read),
            };
            Event::Read {
                run_id,
                stream,
                source,
                read,
            }
        });
    }

    pub(super) fn write(&mut self, run_id: RunId, mut sink: Sink, bytes: Bytes) -> AbortHandle {
        self.push(async move {
            let written = sink.write(&bytes).await;
            Event::Wrote {
                run_id,
                sink,
                written,
            }
        })
    }

    pub(super) fn close(&mut self, run_id: RunId, sink: Sink) -> AbortHandle {
        self.push(async move {
            sink.close().await;
            Event::Closed { run_id }
        })
    }

    /// Disks may take their time: this runs on a thread of its own.
    pub(super) fn spool(&mut self, run_id: RunId, stream: Stream, mut spool: Spool, op: SpoolOp) {
        let spare = spool.other_handle();
        let doing = self.disk.aside(move || {
            let done = spool.perform(op);
            (spool, done)
        });
        self.push(async move {
            let (spool, done) = doing.await.unwrap_or((spare, Err(GapReason::DiskFailed)));
            Event::Spooled {
                run_id,
                stream,
                spool,
                done,
            }
        });
    }

    pub(super) fn delete(&mut self, mut spools: Vec<Spool>) {
        let doing = self.disk.aside(move || {
            for spool in &mut spools {
                spool.delete();
            }
        });
        self.push(async move {
            doing.await; // what is left is deleted by the next keeper
            Event::Deleted
        });
    }

    /// Says a last word to a client that broke a rule.
    pub(super) fn part(&mut self, client: Client) {
        self.push(async move {
            tokio::time::timeout(PART_TIME, client.part()).await.ok(); // it need not listen
            Event::Parted
        });
    }

    pub(super) fn receive(&mut self, stream: KeeperStream) {
        self.push(async move {
            match tokio::time::timeout(ATTACH_TIME, attach(stream)).await {
                Ok(Some(attached)) => Event::Attached(Box::new(attached)),
                Ok(None) | Err(_) => Event::Gone,
            }
        });
    }
}

/// Reads the first message of a client.
async fn attach(mut stream: KeeperStream) -> Option<Attached> {
    let mut buffer = BytesMut::new();
    loop {
        if let Some(frame) = wire::take_frame(&mut buffer).ok()? {
            let ToKeeper::Attach { windows } = wire::decode(&frame).ok()? else {
                return None;
            };
            return Some(Attached {
                stream,
                behind: buffer,
                windows,
            });
        }
        if stream.read_buf(&mut buffer).await.ok()? == 0 {
            return None;
        }
    }
}
