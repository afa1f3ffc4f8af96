//! The one client of a keeper: what it is to be sent, in which order, and what it has sent.
//!
//! Control first, then runs in turn. Frames are made only when the socket has taken most of what
//! was made before, so control waits behind little.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use bytes::{Bytes, BytesMut};
use moltis_proto::limits;
use moltis_proto::message::Windows;
use moltis_proto::run::outbox::Transmit;
use moltis_proto::run::turn::Turn;
use moltis_proto::{FromKeeper, RunId, ToKeeper};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};

use super::connect::KeeperStream;
use super::ops::Attached;
use super::wire::{self, WireError};

/// Bytes that wait in front of the socket before more frames are made.
const OUTGOING_BYTES: usize = 192 * 1024;
/// Pieces handed to the system at once.
const PIECES: usize = 16;
/// Control messages that wait: above this the client is not read from.
const CONTROL_MAX: usize = 1024;
/// Bytes of the client that wait to be heard: above this it is not read from. More than a frame.
const INCOMING_BYTES: usize = 128 * 1024;
/// Bytes read from the client at once.
const READ_BYTES: usize = 64 * 1024;

/// What a client's socket did.
#[derive(Debug)]
pub(super) enum Io {
    /// Bytes came, or with 0 the end.
    Read(io::Result<usize>),
    /// Bytes went.
    Written(io::Result<usize>),
}

/// The client that said `Attach` last.
#[derive(Debug)]
pub(super) struct Client {
    reader: ReadHalf<KeeperStream>,
    writer: WriteHalf<KeeperStream>,
    incoming: BytesMut,
    outgoing: VecDeque<Bytes>,
    outgoing_bytes: usize,
    control: VecDeque<FromKeeper>,
    /// What it said next, and what is not taken yet.
    held: Option<ToKeeper>,
    pub(super) turn: Turn<RunId>,
    pub(super) windows: Windows,
}

impl Client {
    pub(super) fn new(attached: Attached) -> Self {
        let (reader, writer) = tokio::io::split(attached.stream);
        Self {
            reader,
            writer,
            incoming: attached.behind,
            outgoing: VecDeque::new(),
            outgoing_bytes: 0,
            control: VecDeque::new(),
            held: None,
            turn: Turn::new(attached.windows.connection_bytes),
            windows: attached.windows,
        }
    }

    /// Puts a message in front of all output.
    pub(super) fn tell(&mut self, message: FromKeeper) {
        self.control.push_back(message);
    }

    /// Returns the next message of the client that is there as a whole.
    pub(super) fn poll_message(&mut self) -> Result<Option<ToKeeper>, WireError> {
        if !self.takes_messages() {
            return Ok(None);
        }
        if let Some(held) = self.held.take() {
            return Ok(Some(held));
        }
        let frame = wire::take_frame(&mut self.incoming)?;
        frame.map(|frame| wire::decode(&frame)).transpose()
    }

    /// Puts back a message that has to wait.
    pub(super) fn hold(&mut self, message: ToKeeper) {
        self.held = Some(message);
    }

    /// Returns whether a start was put back that could be taken.
    pub(super) fn holds_start(&self) -> bool {
        matches!(self.held, Some(ToKeeper::Start { .. })) && self.takes_messages()
    }

    /// Returns whether more frames should be made.
    pub(super) fn wants_frames(&self) -> bool {
        self.outgoing_bytes < OUTGOING_BYTES
    }

    /// Makes frames of the control messages that wait.
    pub(super) fn stage_control(&mut self) -> Result<(), WireError> {
        if self.control.is_empty() || !self.wants_frames() {
            return Ok(());
        }
        let mut frames = Vec::with_capacity(256);
        while frames.len() < OUTGOING_BYTES
            && let Some(message) = self.control.pop_front()
        {
            wire::encode_into(&message, &mut frames)?;
        }
        self.push(frames.into());
        Ok(())
    }

    /// Puts a run's message into frames; the bytes of its output are shared, not copied.
    pub(super) fn push_frame(&mut self, run_id: RunId, frame: Transmit) -> Result<(), WireError> {
        let mut head = Vec::with_capacity(64);
        match frame {
            Transmit::Output {
                stream,
                offset,
                bytes,
            } => {
                wire::output_header_into(run_id, stream, offset, bytes.len(), &mut head)?;
                self.push(head.into());
                self.push(bytes);
                return Ok(());
            }
            Transmit::Gap { .. } | Transmit::Ended { .. } => {
                wire::encode_into(&frame.into_message(run_id), &mut head)?;
            }
        }
        self.push(head.into());
        Ok(())
    }

    /// Puts a piece of a frame behind what waits for the socket.
    pub(super) fn push(&mut self, piece: Bytes) {
        self.outgoing_bytes += piece.len();
        self.outgoing.push_back(piece);
    }

    /// Returns whether nothing waits for the socket.
    pub(super) fn is_drained(&self) -> bool {
        self.outgoing.is_empty() && self.control.is_empty() && self.turn.is_empty()
    }

    /// Waits for the socket to bring or to take something.
    ///
    /// # Cancel safety
    /// Cancel safe: nothing was read or written then.
    pub(super) async fn io(&mut self) -> Io {
        let reads = self.takes_messages() && self.incoming.len() < INCOMING_BYTES;
        let mut pieces = [IoSlice::new(&[]); PIECES];
        for (slot, piece) in pieces.iter_mut().zip(&self.outgoing) {
            *slot = IoSlice::new(piece);
        }
        let count = self.outgoing.len().min(PIECES);
        if self.incoming.capacity() - self.incoming.len() < READ_BYTES / 4 {
            self.incoming.reserve(READ_BYTES);
        }
        tokio::select! {
            written = self.writer.write_vectored(&pieces[..count]), if count > 0 => {
                Io::Written(written)
            }
            read = self.reader.read_buf(&mut self.incoming), if reads => Io::Read(read),
            else => std::future::pending().await,
        }
    }

    /// Writes what waits, and a last word.
    pub(super) async fn part(mut self) -> io::Result<()> {
        self.push(Bytes::from_static(&wire::RULE_BROKEN));
        while let Some(mut piece) = self.outgoing.pop_front() {
            self.writer.write_all_buf(&mut piece).await?;
        }
        self.writer.shutdown().await
    }

    /// The socket took so many bytes.
    pub(super) fn handle_written(&mut self, mut bytes: usize) {
        self.outgoing_bytes -= bytes;
        while let Some(piece) = self.outgoing.front_mut() {
            if piece.len() > bytes {
                bytes::Buf::advance(piece, bytes);
                break;
            }
            bytes -= piece.len();
            self.outgoing.pop_front();
        }
    }

    fn takes_messages(&self) -> bool {
        self.control.len() < CONTROL_MAX
    }
}

/// A window below four chunks, or a chunk that does not fit a frame, cannot work.
pub(super) fn are_sound(windows: &Windows) -> bool {
    let chunk = windows.chunk_bytes_max;
    (1..=limits::CHUNK_BYTES_MAX).contains(&(chunk as usize))
        && windows.run_bytes / 4 >= chunk
        && windows.connection_bytes >= windows.run_bytes
        && windows.stdin_bytes > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keeper_takes_its_share_of_a_window_however_many_share_it() {
        let whole = Windows {
            run_bytes: 64 * 1024,
            connection_bytes: 160 * 1024,
            stdin_bytes: 16 * 1024,
            chunk_bytes_max: 16 * 1024,
        };
        for count in 1..1000 {
            let part = whole.shared_by(count);
            assert!(are_sound(&part), "{count}: {part:?}");
        }
    }
}
