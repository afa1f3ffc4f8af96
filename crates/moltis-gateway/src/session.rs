//! The gateway's side of one accepted connection: a task that owns the socket and what is on it.
//!
//! It is one short loop over stop, socket, mailbox and timers. What has to be right is thought out
//! in machines: [`pump`](crate::exec::pump) for the runs, `Liveness` for the heartbeat. A node that
//! breaks a rule is told so, logged once, and closed; its runs go on, and what it said of others'
//! runs was never looked at.
//!
//! Started by `socket` with a connection that has proved itself.

pub(crate) mod bucket;
mod comeback;
pub(crate) mod moment;
pub(crate) mod seat;
pub(crate) mod wire;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use moltis_proto::code::{CloseCode, GoodbyeReason};
use moltis_proto::handshake::SessionLimits;
use moltis_proto::limits::TELEMETRY_BYTES_MAX;
use moltis_proto::liveness::{Lifeless, Liveness};
use moltis_proto::message::Windows;
use moltis_proto::{DeviceId, ToGateway, ToNode};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use crate::audit::{Action, Actor, Entry};
use crate::events::Event;
use crate::exec::Shared;
use crate::exec::pump::{Pump, Violation};
use crate::records;
use crate::roster::Takeover;
use bucket::Bucket;
use moment::now;
use seat::{Command, Seat};
use wire::{Arrival, Wire, WireError};

/// How long the last frame of a connection may take.
const LAST_WORD_TIME: Duration = Duration::from_millis(500);

/// Frames that are read before the mailbox is looked at again.
const FRAMES_IN_A_ROW: usize = 32;

/// How long the end of the connection before is awaited. Epochs fence it off in any case.
const PREDECESSOR_TIME: Duration = Duration::from_secs(2);

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum End {
    #[error("the gateway is shutting down")]
    Shutdown,
    #[error("the connection was closed here: {0:?}")]
    Closed(CloseCode),
    #[error("the node closed the connection: {0:?}")]
    ClosedByNode(CloseCode),
    #[error("the node broke the protocol")]
    Violation(#[from] Violation),
    #[error("the node sends too much that costs it nothing")]
    Flood,
    #[error("a telemetry sample of {0} bytes is too long")]
    Sample(usize),
    #[error(transparent)]
    Lifeless(#[from] Lifeless),
    #[error(transparent)]
    Wire(#[from] WireError),
}

impl End {
    /// Returns what the node is told.
    fn code(&self) -> Option<CloseCode> {
        match self {
            Self::Closed(code) => Some(*code),
            Self::Violation(_)
            | Self::Flood
            | Self::Sample(_)
            | Self::Wire(WireError::Message(_) | WireError::TooLong(_)) => {
                Some(CloseCode::Protocol)
            }
            Self::Lifeless(lifeless) => Some(lifeless.close_code()),
            Self::Shutdown | Self::ClosedByNode(_) | Self::Wire(_) => None,
        }
    }

    /// Returns whether the node, not the network, is at fault.
    fn is_fault(&self) -> bool {
        matches!(
            self,
            Self::Violation(_)
                | Self::Flood
                | Self::Sample(_)
                | Self::Wire(
                    WireError::Message(_)
                        | WireError::TooLong(_)
                        | WireError::Text
                        | WireError::Noise(_)
                )
        )
    }
}

/// An accepted connection, as `socket` hands it over.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) device: DeviceId,
    pub(crate) wire: Wire,
    pub(crate) seat: Arc<Seat>,
    pub(crate) mailbox: mpsc::Receiver<Command>,
    pub(crate) windows: Windows,
    pub(crate) limits: SessionLimits,
}

/// Serves an accepted connection to its end.
///
/// A future keeps room for its largest moment for as long as it lives, and this one lives as long
/// as its connection: what only begins and ends has room of its own, which is given back.
pub(crate) async fn run(shared: Arc<Shared>, accepted: Box<Accepted>) {
    let mut session = Box::pin(begin(shared, accepted)).await;
    let end = session.serve().await;
    Box::pin(session.finish(end)).await;
}

/// Takes the seat, and makes ready.
async fn begin(shared: Arc<Shared>, accepted: Box<Accepted>) -> Box<Session> {
    let Accepted {
        device,
        wire,
        seat,
        mailbox,
        windows,
        limits,
    } = *accepted;
    let before = shared.roster.take_seat(device, &seat, now().monotonic);
    if !seat.is_closing() {
        let (system, sitter) = (shared.outputs.system(), &seat.sitter);
        system.seated(device, sitter.epoch, sitter.instance_id);
    }
    if let Some((before, takeover)) = before {
        if takeover == Takeover::Cloned {
            note_cloned(&shared, device, &seat).await;
        }
        // The newest wins at once; the older one's last words are awaited so that they come first.
        tokio::time::timeout(PREDECESSOR_TIME, before.left())
            .await
            .ok();
    }
    if shared.is_revoked(device) {
        // It was revoked between its verdict and here.
        seat.close(CloseCode::Revoked);
    }
    tracing::info!(device.id = %device, conn.id = seat.sitter.epoch.counter, peer.addr = ?seat.sitter.remote, "a node is connected");
    let stored = Arc::new(Notify::new());
    Box::new(Session {
        control: VecDeque::new(),
        pump: Pump::new(
            Arc::clone(&shared),
            Arc::clone(&seat),
            windows,
            Arc::clone(&stored),
            now().monotonic,
        ),
        liveness: Liveness::new(&limits, now()),
        bucket: Bucket::new(now().monotonic),
        wire,
        mailbox,
        stored,
        device,
        shared,
        seat,
        heard: None,
    })
}

/// Writes down that a node's key was found in two places.
async fn note_cloned(shared: &Shared, device: DeviceId, seat: &Seat) {
    let record = seat.sitter.record.as_ref();
    let name = record.map_or_else(String::new, |record| record.node_id.to_string());
    let by = Actor {
        name: format!("node:{name}"),
        source: seat.sitter.remote.map(|address| address.to_string()),
    };
    let entry = Entry::new(
        shared.clock.now(),
        &by,
        Action::NodeCloned,
        &device,
        serde_json::json!({}),
    );
    if let Err(error) = shared.store.note(entry).await {
        tracing::warn!(device.id = %device, %error, "a key in two places cannot be written down");
    }
}

struct Session {
    shared: Arc<Shared>,
    seat: Arc<Seat>,
    device: DeviceId,
    wire: Wire,
    mailbox: mpsc::Receiver<Command>,
    /// Rung when some run's bytes have been stored.
    stored: Arc<Notify>,
    pump: Pump,
    liveness: Liveness,
    bucket: Bucket,
    /// What goes out before any run message.
    control: VecDeque<ToNode>,
    heard: Option<Instant>,
}

impl Session {
    async fn serve(&mut self) -> End {
        loop {
            match self.turn().await {
                Ok(()) => {}
                Err(end) => return end,
            }
        }
    }

    /// One turn of the loop: what is due, what can be sent, then whatever comes first.
    async fn turn(&mut self) -> Result<(), End> {
        let moment = now();
        if let Some(number) = self.liveness.handle_timeout(moment)? {
            self.control.push_back(ToNode::Ping { number });
            self.rest();
        }
        self.pump.handle_timeout(moment.monotonic)?;
        if self
            .wire
            .write_deadline()
            .is_some_and(|deadline| deadline <= Instant::now())
        {
            return Err(WireError::Stuck.into());
        }
        self.fill(moment.monotonic)?;
        let deadline = self.deadline();
        let takes_commands = self.pump.takes_commands();
        tokio::select! {
            biased;
            () = self.shared.tasks.stop().cancelled() => return Err(End::Shutdown),
            code = self.seat.closing() => return Err(End::Closed(code)),
            command = self.mailbox.recv(), if takes_commands => {
                if let Some(command) = command {
                    self.handle_command(command);
                }
            }
            arrival = self.wire.next() => {
                let arrival = arrival?;
                self.handle_arrivals(arrival)?;
            }
            () = self.stored.notified() => self.pump.handle_stored(moment.monotonic),
            () = tokio::time::sleep_until(deadline) => {}
        }
        Ok(())
    }

    /// Queues messages while the socket takes them: control first.
    fn fill(&mut self, now: std::time::Instant) -> Result<(), WireError> {
        while self.wire.takes_more() {
            if let Some(message) = self.control.pop_front() {
                self.wire.queue(&message)?;
            } else if let Some(message) = self.pump.poll_transmit(now) {
                self.wire.queue(&ToNode::Run(message))?;
            } else if let Some(number) = self.pump.poll_probe(now) {
                self.wire.queue(&ToNode::Ping { number })?;
            } else {
                break;
            }
        }
        Ok(())
    }

    fn deadline(&self) -> Instant {
        let mut deadline = Instant::from_std(self.liveness.poll_timeout());
        if let Some(due) = self.pump.poll_timeout() {
            deadline = deadline.min(Instant::from_std(due));
        }
        if let Some(due) = self.wire.write_deadline() {
            deadline = deadline.min(due);
        }
        deadline
    }

    fn handle_command(&mut self, command: Command) {
        let now = now().monotonic;
        self.pump.handle_command(command, now);
        // Several that wait are one batch on the wire.
        while self.pump.takes_commands()
            && let Ok(command) = self.mailbox.try_recv()
        {
            self.pump.handle_command(command, now);
        }
    }

    /// Handles what has come, and what is there behind it already, up to a point.
    fn handle_arrivals(&mut self, first: Arrival) -> Result<(), End> {
        self.handle_arrival(first)?;
        for _ in 1..FRAMES_IN_A_ROW {
            match self.wire.next().now_or_never() {
                // Only what is handled is taken.
                Some(arrival) => self.handle_arrival(arrival?)?,
                None => break,
            }
        }
        Ok(())
    }

    fn handle_arrival(&mut self, arrival: Arrival) -> Result<(), End> {
        match arrival {
            Arrival::Frame(frame) => self.handle_frame(&frame),
            Arrival::Noise => self.charge(),
            Arrival::Flushed => Ok(()),
        }
    }

    fn handle_frame(&mut self, frame: &[u8]) -> Result<(), End> {
        let length = self.wire.open(frame)?;
        let moment = now();
        self.liveness.handle_frame(moment)?;
        self.note_heard(Instant::from_std(moment.monotonic));
        match self.wire.decode()? {
            ToGateway::Run(message) => {
                let system = self.shared.outputs.system();
                system.heard(self.device, self.seat.sitter.epoch);
                self.pump.handle_message(message, moment.monotonic)?;
            }
            ToGateway::Telemetry(sample) => {
                self.charge()?;
                if length > TELEMETRY_BYTES_MAX {
                    return Err(End::Sample(length));
                }
                self.shared.keep_sample(self.device, *sample);
            }
            ToGateway::Ping { number } => {
                self.charge()?;
                self.control.push_back(ToNode::Pong { number });
            }
            ToGateway::Pong { number } => {
                self.charge()?;
                self.pump.handle_pong(number, moment.monotonic);
            }
            ToGateway::Goodbye { reason, back_in_ms } => {
                self.charge()?;
                tracing::info!(device.id = %self.device, ?reason, back_in_ms, "a node goes away for a while");
            }
            ToGateway::Close { code } => return Err(End::ClosedByNode(code)),
            ToGateway::Clock { unix_ms } => {
                self.charge()?;
                let now = self.shared.clock.now().as_millisecond();
                let told = i64::try_from(unix_ms).unwrap_or(i64::MAX);
                self.seat.note_clock(told.saturating_sub(now));
            }
        }
        Ok(())
    }

    fn charge(&mut self) -> Result<(), End> {
        if self.bucket.take(now().monotonic) {
            Ok(())
        } else {
            Err(End::Flood)
        }
    }

    /// Notes, once a second at most, that the node was heard.
    fn note_heard(&mut self, at: Instant) {
        let fresh = self
            .heard
            .is_none_or(|before| at.duration_since(before) >= Duration::from_secs(1));
        if fresh {
            self.heard = Some(at);
            self.seat.heard(self.shared.clock.now());
        }
    }

    /// A quiet time: what a busy one has grown is given back.
    fn rest(&mut self) {
        if self.pump.is_idle() {
            self.pump.shrink();
            self.wire.shrink();
            self.control.shrink_to_fit();
        }
    }

    /// Says a last word, gives the seat back, and lets everybody know.
    async fn finish(mut self: Box<Self>, end: End) {
        let (device, end) = (self.device, &end);
        let back_in = self.back_in(end);
        let own = self.shared.roster.leave_seat(device, &self.seat);
        self.seat.leave();
        let system = self.shared.outputs.system();
        system.left(device, self.seat.sitter.epoch);
        self.shared.let_be(&self.seat);
        let conn = self.seat.sitter.epoch.counter;
        if end.is_fault() {
            self.shared.count_fault();
            tracing::warn!(device.id = %device, conn.id = conn, peer.addr = ?self.seat.sitter.remote, error = %chain(end), "a node broke the rules and was closed");
        } else {
            tracing::info!(device.id = %device, conn.id = conn, reason = %chain(end), "a node is gone");
        }
        if own {
            self.shared.events.send(Event::NodeOffline(device));
            records::saw(&self.shared, &self.seat);
        }
        let goodbye = back_in.map(|back_in| ToNode::Goodbye {
            reason: GoodbyeReason::Shutdown,
            back_in_ms: crate::exec::request::millis(back_in),
        });
        let close = || end.code().map(|code| ToNode::Close { code });
        if let Some(message) = goodbye.or_else(close) {
            self.wire.queue(&message).ok(); // a channel that failed says nothing more
        }
        self.wire.close(Instant::now() + LAST_WORD_TIME).await;
    }

    /// Returns when this node shall come back to a gateway that ends in good order.
    fn back_in(&self, end: &End) -> Option<Duration> {
        match end {
            End::Shutdown => {
                let nodes = self.shared.roster.here_at_the_end();
                Some(comeback::back_in(nodes, moltis_identity::random::bytes()))
            }
            _ => None,
        }
    }
}

/// Returns an error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}
