//! Runs on the gateway's own machine: the same run messages, to the keeper of this machine.
//!
//! The gateway starts no process. Whoever builds it gives a [`KeeperConnector`], which finds the
//! keeper of this machine or has one started; without one there is no `local`. The connection is
//! made when the first run needs it and kept while it lasts; a keeper that leaves is met again by
//! the next run.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use moltis_proto::limits::PLAINTEXT_BYTES_MAX;
use moltis_proto::message::Windows;
use moltis_proto::{Codec, FromKeeper, InstanceId, ToKeeper};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Mutex, Notify, mpsc};
use tokio::time::Instant;

use crate::exec::Shared;
use crate::exec::pump::Pump;
use crate::session::chain;
use crate::session::seat::{Command, Ready, Seat, Sitter};
use crate::store::Target;

/// How long a keeper may take until it has said what it holds.
const READY_TIME_MAX: Duration = Duration::from_secs(15);

/// Bytes that are read at once, and written before more is asked for.
const READ_BYTES: usize = 256 * 1024;
const WRITE_BYTES: usize = 64 * 1024;

/// The wait before open runs are looked for again.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

/// A connection to a keeper: frames of u32 big-endian length and one message in postcard.
pub trait KeeperStream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> KeeperStream for T {}

/// What a connector's work comes to.
pub type Connecting =
    Pin<Box<dyn Future<Output = io::Result<Box<dyn KeeperStream>>> + Send + 'static>>;

/// Finds the keeper of this machine, or has one started.
pub trait KeeperConnector: Send + Sync + 'static {
    /// Connects to it.
    fn connect(&self) -> Connecting;
}

impl<F: Fn() -> Connecting + Send + Sync + 'static> KeeperConnector for F {
    fn connect(&self) -> Connecting {
        self()
    }
}

/// The way to the keeper of this machine. Cloning shares it.
#[derive(Clone)]
pub(crate) struct Local(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    connector: Box<dyn KeeperConnector>,
    windows: Windows,
    /// Held while a connection is made, so that there is one.
    connecting: Mutex<()>,
}

impl fmt::Debug for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Local").finish_non_exhaustive()
    }
}

impl Local {
    pub(crate) fn new(
        shared: Arc<Shared>,
        connector: Box<dyn KeeperConnector>,
        windows: Windows,
    ) -> Self {
        Self(Arc::new(Inner {
            shared,
            connector,
            windows,
            connecting: Mutex::new(()),
        }))
    }

    /// Returns a connection that takes runs, made now where there is none.
    pub(crate) async fn ready(&self) -> Result<(Arc<Seat>, Ready), Arc<io::Error>> {
        self.seat().await.map_err(Arc::new)
    }

    async fn seat(&self) -> io::Result<(Arc<Seat>, Ready)> {
        if let Some(found) = self.connected() {
            return Ok(found);
        }
        let _one = self.0.connecting.lock().await;
        if let Some(found) = self.connected() {
            return Ok(found);
        }
        let connect = async {
            let stream = self.0.connector.connect().await?;
            let seat = self.sit_down(stream);
            let ready = seat.wait_ready().await.map_err(|_| {
                io::Error::new(
                    io::ErrorKind::ConnectionReset,
                    "the keeper went away before it said what it holds",
                )
            })?;
            Ok((seat, ready))
        };
        tokio::time::timeout(READY_TIME_MAX, connect)
            .await
            .map_err(|_elapsed| {
                io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!(
                        "the keeper did not say what it holds within {} s",
                        READY_TIME_MAX.as_secs()
                    ),
                )
            })?
    }

    fn connected(&self) -> Option<(Arc<Seat>, Ready)> {
        let seat = self.0.shared.seat_of(&Target::Local)?;
        let ready = seat.ready().filter(|_| !seat.is_closing())?;
        Some((seat, ready))
    }

    fn sit_down(&self, stream: Box<dyn KeeperStream>) -> Arc<Seat> {
        let shared = &self.0.shared;
        let (seat, mailbox) = Seat::new(Sitter {
            target: Target::Local,
            epoch: shared.roster.next_epoch(),
            instance_id: InstanceId::from_bytes([0; 16]),
            codec: Codec::Postcard,
            introduction: None,
            remote: None,
            since: shared.clock.now(),
        });
        shared.set_local_seat(Some(Arc::clone(&seat)));
        let stored = Arc::new(Notify::new());
        let session = LocalSession {
            pump: Pump::new(
                Arc::clone(shared),
                Arc::clone(&seat),
                self.0.windows,
                Arc::clone(&stored),
            ),
            seat: Arc::clone(&seat),
            stored,
            mailbox,
            local: self.clone(),
        };
        shared.tasks.spawn(session.run(stream));
        seat
    }

    /// Takes up the runs that were left open, and again whenever the connection is lost while
    /// there are any.
    pub(crate) async fn keep_up(self) {
        let stop = self.0.shared.tasks.stop().clone();
        while !stop.is_cancelled() {
            let waiting = !self.0.shared.live_at(&Target::Local).is_empty();
            if waiting
                && self.connected().is_none()
                && let Err(error) = self.ready().await
            {
                tracing::warn!(%error, "runs on this machine are open, and its keeper cannot be reached");
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(AGAIN_AFTER) => {}
            }
        }
    }
}

struct LocalSession {
    local: Local,
    seat: Arc<Seat>,
    mailbox: mpsc::Receiver<Command>,
    stored: Arc<Notify>,
    pump: Pump,
}

impl LocalSession {
    async fn run(mut self, stream: Box<dyn KeeperStream>) {
        let end = self.serve(stream).await;
        match end {
            Ok(()) => tracing::debug!("the keeper of this machine is gone"),
            Err(error) => {
                tracing::warn!(error = %chain(&*error), "the connection to the keeper of this machine failed");
            }
        }
        let shared = &self.local.0.shared;
        let current = shared.seat_of(&Target::Local);
        if current.is_some_and(|current| Arc::ptr_eq(&current, &self.seat)) {
            shared.set_local_seat(None);
        }
        self.seat.leave();
    }

    async fn serve(&mut self, stream: Box<dyn KeeperStream>) -> Result<(), Failure> {
        let stop = self.local.0.shared.tasks.stop().clone();
        let (mut reader, mut writer) = tokio::io::split(stream);
        let mut incoming = BytesMut::new();
        let mut outgoing = BytesMut::new();
        put(
            &ToKeeper::Attach {
                windows: self.local.0.windows,
            },
            &mut outgoing,
        )?;
        loop {
            let now = Instant::now();
            self.pump.handle_timeout(now.into_std());
            while outgoing.len() < WRITE_BYTES
                && let Some(message) = self.pump.poll_transmit()
            {
                put(&message, &mut outgoing)?;
            }
            let deadline = self.pump.poll_timeout().map(Instant::from_std);
            if incoming.capacity() - incoming.len() < READ_BYTES / 4 {
                incoming.reserve(READ_BYTES);
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                _code = self.seat.closing() => return Ok(()),
                command = self.mailbox.recv(), if self.pump.takes_commands() => {
                    if let Some(command) = command {
                        self.pump.handle_command(command, now.into_std());
                    }
                }
                wrote = writer.write_buf(&mut outgoing), if !outgoing.is_empty() => {
                    if wrote? == 0 {
                        return Ok(());
                    }
                }
                read = reader.read_buf(&mut incoming) => {
                    if read? == 0 {
                        return Ok(());
                    }
                    self.seat.heard(self.local.0.shared.clock.now());
                    self.take_frames(&mut incoming, now)?;
                }
                () = self.stored.notified() => self.pump.handle_stored(now.into_std()),
                () = sleep_until(deadline) => {}
            }
        }
    }

    fn take_frames(&mut self, incoming: &mut BytesMut, now: Instant) -> Result<(), Failure> {
        while let Some(frame) = take_frame(incoming)? {
            let message: FromKeeper = Codec::Postcard.decode(&frame)?;
            self.pump.handle_message(message, now.into_std())?;
        }
        Ok(())
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn take_frame(incoming: &mut BytesMut) -> io::Result<Option<Bytes>> {
    let Some(prefix) = incoming.first_chunk::<4>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes(*prefix) as usize;
    if length == 0 || length > PLAINTEXT_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a frame of {length} bytes: expected 1 to {PLAINTEXT_BYTES_MAX}"),
        ));
    }
    if incoming.len() < 4 + length {
        return Ok(None);
    }
    incoming.advance(4);
    Ok(Some(incoming.split_to(length).freeze()))
}

fn put(message: &ToKeeper, out: &mut BytesMut) -> Result<(), Failure> {
    let bytes = Codec::Postcard.encode(message)?;
    // A message fits a frame, which is shorter than 64 KiB.
    out.put_u32(u32::try_from(bytes.len())?);
    out.put_slice(&bytes);
    Ok(())
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
