//! One direction of a connection: bytes that are under way, and what becomes of them.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

/// Bytes that may be under way: what the buffers of both kernels hold.
const UNDER_WAY_MAX: usize = 256 * 1024;

/// Bytes on their way from one end to the other. Cloning shares them.
#[derive(Debug, Clone)]
pub(super) struct Pipe(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    delay: Duration,
    bytes_per_second: u64,
    /// What is under way, and when it arrives.
    under_way: VecDeque<(Instant, Bytes)>,
    bytes: usize,
    /// When the road is free for the next byte.
    free_at: Instant,
    fate: Fate,
    /// One of its ends is gone, whoever knows.
    is_left: bool,
    /// Bytes until it is reset, with the other direction.
    reset_after: Option<(u64, Pipe)>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Open,
    /// The writer is gone; what is under way arrives.
    Closed,
    /// The reader is gone, and hears nothing more.
    Abandoned,
    /// Nothing arrives any more, and nobody knows.
    Silent,
    /// Reset behind what is under way.
    ResetBehind,
    /// Reset: what was under way is gone.
    Reset,
}

/// What a reader gets.
#[derive(Debug)]
pub(super) enum Taken {
    /// Some bytes.
    Bytes(Bytes),
    /// Nothing more, ever.
    End,
    /// Nothing before something happens.
    Nothing,
    /// Something at this time.
    Later(Instant),
}

impl Pipe {
    pub(super) fn new(delay: Duration, bytes_per_second: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            delay,
            bytes_per_second,
            under_way: VecDeque::new(),
            bytes: 0,
            free_at: Instant::now(),
            fate: Fate::Open,
            is_left: false,
            reset_after: None,
            reader: None,
            writer: None,
        })))
    }

    /// Takes up to `max` bytes that have arrived by now.
    pub(super) fn take(&self, max: usize, now: Instant, cx: &mut Context<'_>) -> io::Result<Taken> {
        let mut state = self.state();
        if state.fate == Fate::Reset {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        state.reader = Some(cx.waker().clone());
        if state.fate == Fate::Silent {
            return Ok(Taken::Nothing);
        }
        let Some((at, bytes)) = state.under_way.front_mut() else {
            return match state.fate {
                Fate::Closed => Ok(Taken::End),
                Fate::ResetBehind => Err(io::ErrorKind::ConnectionReset.into()),
                _ => Ok(Taken::Nothing),
            };
        };
        if *at > now {
            return Ok(Taken::Later(*at));
        }
        let taken = bytes.split_to(max.min(bytes.len()));
        if bytes.is_empty() {
            state.under_way.pop_front();
        }
        state.bytes -= taken.len();
        wake(&mut state.writer);
        Ok(Taken::Bytes(taken))
    }

    /// Sends some of these bytes on their way.
    pub(super) fn put(
        &self,
        bytes: &[u8],
        now: Instant,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let mut state = self.state();
        match state.fate {
            Fate::Open | Fate::Silent => {}
            Fate::Closed | Fate::Abandoned => {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            // Behind its reset nothing arrives; the writer learns of it by the other direction.
            Fate::ResetBehind => return Poll::Ready(Ok(bytes.len())),
            Fate::Reset => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
        }
        let room = UNDER_WAY_MAX.saturating_sub(state.bytes);
        if room == 0 {
            state.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let taken = room.min(bytes.len());
        let arriving = state.until_reset(taken);
        state.bytes += arriving;
        let takes = Duration::from_nanos(1_000_000_000 * arriving as u64 / state.bytes_per_second);
        state.free_at = state.free_at.max(now) + takes;
        let at = state.free_at + state.delay;
        state
            .under_way
            .push_back((at, Bytes::copy_from_slice(&bytes[..arriving])));
        wake(&mut state.reader);
        let reset = state.reset_after.take_if(|(left, _)| *left == 0);
        if let Some((_, back)) = reset {
            state.fate = Fate::ResetBehind;
            drop(state);
            back.reset();
        }
        Poll::Ready(Ok(taken))
    }

    /// The writer sends nothing more.
    pub(super) fn close(&self) {
        self.end(Fate::Closed);
    }

    /// The reader takes nothing more: whoever writes hears of it.
    pub(super) fn abandon(&self) {
        self.end(Fate::Abandoned);
    }

    /// Ends it at once, for both ends.
    pub(super) fn reset(&self) {
        let mut state = self.state();
        state.under_way.clear();
        state.become_so(Fate::Reset);
    }

    /// Ends it, and the other direction, when so many more bytes have gone in.
    pub(super) fn reset_after(&self, bytes: u64, back: &Self) {
        self.state().reset_after = Some((bytes, back.clone()));
    }

    /// Has nothing arrive any more.
    pub(super) fn silence(&self) {
        let mut state = self.state();
        if state.fate == Fate::Open {
            state.fate = Fate::Silent;
        }
    }

    /// Returns whether one of its ends is gone, or knows that it carries nothing any more.
    pub(super) fn is_over(&self) -> bool {
        let state = self.state();
        state.is_left || !matches!(state.fate, Fate::Open | Fate::Silent)
    }

    /// A silent pipe stays silent for the other end.
    fn end(&self, fate: Fate) {
        let mut state = self.state();
        state.is_left = true;
        if state.fate == Fate::Open {
            state.become_so(fate);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Returns how many of these bytes pass before the reset, and counts them.
    fn until_reset(&mut self, bytes: usize) -> usize {
        let Some((left, _)) = &mut self.reset_after else {
            return bytes;
        };
        let passing = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes);
        *left -= passing as u64;
        passing
    }

    fn become_so(&mut self, fate: Fate) {
        self.fate = fate;
        wake(&mut self.reader);
        wake(&mut self.writer);
    }
}

fn wake(waiting: &mut Option<Waker>) {
    if let Some(waker) = waiting.take() {
        waker.wake();
    }
}
