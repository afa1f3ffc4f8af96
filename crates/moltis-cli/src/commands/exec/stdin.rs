//! Our stdin on its way to the command: a thread reads, a task sends, each byte once.
//!
//! What was sent is counted by the gateway; after a cut the task goes on at the byte that the
//! gateway has not taken. A gateway that begins anew asks for what the one before had taken and not
//! delivered, so the last window is kept. A command that does not read stops only this task.

use std::collections::VecDeque;
use std::io::Read;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use moltis_gateway::api::problem::Code;
use moltis_gateway::api::runs::StdinAccepted;
use moltis_proto::limits::STDIN_WINDOW_BYTES;
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::sleep;

use super::reader;
use crate::api::{ApiError, Client};

/// Bytes that one read takes at the most.
const CHUNK: usize = 256 * 1024;

/// Chunks of a file or a pipe that wait to be sent.
const QUEUE: usize = 4;

/// Chunks of a terminal, where each key is one, and at most 4 KiB long: more than anybody types while
/// a gateway is away. What comes behind them is not taken then.
const TYPED: usize = 1024;

/// Pause before something is sent again.
const PAUSE: Duration = Duration::from_millis(200);
/// Pause when the gateway took nothing because the command does not read.
const FULL_PAUSE: Duration = Duration::from_millis(10);

/// What Ctrl+C is on a raw terminal.
const INTERRUPT: u8 = 0x03;

/// Where our stdin comes from.
#[derive(Debug, Clone)]
pub(super) enum Source {
    /// A file or a pipe: every byte is the command's.
    Pipe,
    /// A raw terminal: Ctrl+C is ours while the command is out of reach, as this tells.
    Terminal(watch::Receiver<bool>),
}

/// What the follow loop is told.
#[derive(Debug)]
pub(super) enum Event {
    /// Ctrl+C was typed while the command is out of reach: nobody else can hear it.
    Interrupt,
    /// The gateway refuses what we send, and it is not that the command has closed its stdin.
    Failed(ApiError),
}

/// Begins to send our stdin to a run; `back` is rung when the gateway is reached again after a cut.
/// Called inside a `LocalSet`.
pub(super) fn start(
    client: Rc<Client>,
    run_id: String,
    source: Source,
    back: Rc<Notify>,
) -> std::io::Result<mpsc::Receiver<Event>> {
    let (chunks, queue) = mpsc::channel(match source {
        Source::Pipe => QUEUE,
        Source::Terminal(_) => TYPED,
    });
    let (events, told) = mpsc::channel(4);
    let (interrupts, runtime) = (events.clone(), Handle::current());
    std::thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(move || {
            let stdin = std::io::stdin().lock();
            read(stdin, &chunks, &interrupts, source, &runtime);
        })?;
    send_all(client, run_id, queue, back, events);
    Ok(told)
}

/// Tells a run that nothing comes. Called inside a `LocalSet`.
pub(super) fn close(client: Rc<Client>, run_id: String, back: Rc<Notify>) -> mpsc::Receiver<Event> {
    let (_, queue) = mpsc::channel(1);
    let (events, told) = mpsc::channel(1);
    send_all(client, run_id, queue, back, events);
    told
}

fn send_all(
    client: Rc<Client>,
    run_id: String,
    queue: mpsc::Receiver<Bytes>,
    back: Rc<Notify>,
    events: mpsc::Sender<Event>,
) {
    tokio::task::spawn_local(async move {
        if let Err(error) = send(&client, &run_id, queue, &back).await {
            events.send(Event::Failed(error)).await.ok(); // the follow loop has ended
        }
    });
}

fn read(
    mut stdin: impl Read,
    chunks: &mpsc::Sender<Bytes>,
    interrupts: &mpsc::Sender<Event>,
    mut source: Source,
    runtime: &Handle,
) {
    let mut buffer = vec![0; CHUNK];
    loop {
        let length = match stdin.read(&mut buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => 0, // an error of our stdin is its end: there is nobody else to tell
        };
        let bytes = buffer.get(..length).unwrap_or_default();
        if bytes.is_empty() {
            return;
        }
        let is_ours = match &source {
            Source::Pipe => false,
            Source::Terminal(away) => *away.borrow() && bytes.contains(&INTERRUPT),
        };
        if is_ours {
            interrupts.blocking_send(Event::Interrupt).ok(); // the follow loop has ended
            continue;
        }
        let room = match &mut source {
            Source::Pipe => runtime.block_on(chunks.reserve()),
            Source::Terminal(away) => match runtime.block_on(room_or_away(chunks, away)) {
                Some(room) => room,
                // Who waited for room here would not hear Ctrl+C.
                None => continue,
            },
        };
        let Ok(room) = room else { return };
        room.send(Bytes::copy_from_slice(bytes));
    }
}

/// Waits for room for what was typed; `None` where there is none and the command is out of reach.
async fn room_or_away<'a>(
    chunks: &'a mpsc::Sender<Bytes>,
    away: &mut watch::Receiver<bool>,
) -> Option<Result<mpsc::Permit<'a, Bytes>, mpsc::error::SendError<()>>> {
    tokio::select! {
        biased;
        room = chunks.reserve() => Some(room),
        Ok(_) = away.wait_for(|away| *away) => None,
    }
}

/// Sends until the run takes no more, and stays to send again what a gateway has lost.
async fn send(
    client: &Client,
    run_id: &str,
    mut queue: mpsc::Receiver<Bytes>,
    back: &Notify,
) -> Result<(), ApiError> {
    let mut outgoing = Outgoing::default();
    loop {
        if outgoing.is_sent() {
            tokio::select! {
                biased;
                // Nothing is new, but an empty piece finds out what a new gateway lacks.
                () = back.notified() => {}
                chunk = queue.recv(), if !outgoing.ended => outgoing.push(chunk),
            }
        }
        let (bytes, eof) = outgoing.next();
        let path = format!("runs/{run_id}/stdin?offset={}&eof={eof}", outgoing.at);
        match client.upload::<StdinAccepted>(&path, bytes).await {
            Ok(taken) => {
                if !outgoing.handle_accepted(taken.accepted, eof) {
                    sleep(FULL_PAUSE).await;
                }
            }
            Err(error) if error.code() == Some(Code::RunEnded) => return Ok(()),
            Err(error)
                if error
                    .next_offset()
                    .is_some_and(|next| outgoing.go_back(next)) => {}
            Err(error) if passes(&error) => sleep(PAUSE).await,
            Err(error) => return Err(error),
        }
    }
}

/// A gateway that begins anew cannot take stdin before the run's node is back.
fn passes(error: &ApiError) -> bool {
    reader::passes(error) || error.code() == Some(Code::NodeOffline)
}

/// What was read of our stdin and is not sent, and of what was sent the last window. Pure.
#[derive(Debug, Default)]
struct Outgoing {
    kept: VecDeque<Bytes>,
    /// Offset of the first byte that is kept.
    start: u64,
    /// Offset of the next byte to send.
    at: u64,
    /// Offset behind the last byte that was read.
    end: u64,
    /// Nothing comes behind it.
    ended: bool,
    /// The gateway has taken the end too.
    eof_taken: bool,
}

impl Outgoing {
    /// Takes what was read next; `None` at the end.
    fn push(&mut self, chunk: Option<Bytes>) {
        match chunk {
            Some(bytes) => {
                self.end += bytes.len() as u64;
                self.kept.push_back(bytes);
            }
            None => self.ended = true,
        }
    }

    fn is_sent(&self) -> bool {
        self.at == self.end && self.eof_taken == self.ended
    }

    /// Returns the bytes to send at `at`, and whether nothing comes behind them.
    fn next(&self) -> (Bytes, bool) {
        let mut start = self.start;
        for piece in &self.kept {
            let end = start + piece.len() as u64;
            if self.at < end {
                let skip = usize::try_from(self.at - start).unwrap_or(usize::MAX);
                return (piece.slice(skip..), self.ended && end == self.end);
            }
            start = end;
        }
        (Bytes::new(), self.ended)
    }

    /// The gateway has taken everything below `accepted`. Returns whether it took anything of what
    /// it was given.
    fn handle_accepted(&mut self, accepted: u64, eof: bool) -> bool {
        let (before, given) = (self.at, self.next().0.len() as u64);
        self.at = accepted.clamp(before, before + given);
        self.eof_taken = eof && self.at == self.end;
        while let Some(first) = self.kept.front()
            && self.start + first.len() as u64 + u64::from(STDIN_WINDOW_BYTES) <= self.at
        {
            self.start += first.len() as u64;
            self.kept.pop_front();
        }
        self.at > before || given == 0
    }

    /// The gateway wants bytes again; false where they are not kept any more.
    fn go_back(&mut self, offset: u64) -> bool {
        let kept = (self.start..self.at).contains(&offset);
        if kept {
            self.at = offset;
            self.eof_taken = false;
        }
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(outgoing: &mut Outgoing) -> (u64, usize, bool) {
        let (at, (bytes, eof)) = (outgoing.at, outgoing.next());
        let length = bytes.len();
        outgoing.handle_accepted(at + length as u64, eof);
        (at, length, eof)
    }

    /// A terminal on which each of these is typed alone.
    struct Typed(std::sync::mpsc::Receiver<u8>);

    impl Read for Typed {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let Ok(key) = self.0.recv() else { return Ok(0) };
            buffer[0] = key;
            Ok(1)
        }
    }

    #[tokio::test]
    async fn ctrl_c_is_heard_however_much_was_typed_before() {
        for is_away_at_first in [true, false] {
            let (keys, typed) = std::sync::mpsc::channel();
            let (away, is_away) = watch::channel(is_away_at_first);
            let (chunks, mut queue) = mpsc::channel(TYPED);
            let (interrupts, mut events) = mpsc::channel(1);
            let runtime = Handle::current();
            let source = Source::Terminal(is_away);
            let reading = std::thread::spawn(move || {
                read(Typed(typed), &chunks, &interrupts, source, &runtime);
            });
            for _ in 0..=TYPED {
                keys.send(b'x').unwrap();
            }
            if !is_away_at_first {
                while queue.len() < TYPED {
                    tokio::task::yield_now().await;
                }
                away.send_replace(true);
            }
            keys.send(INTERRUPT).unwrap();
            assert!(matches!(events.recv().await, Some(Event::Interrupt)));
            // Whoever is there again gets all that had room.
            away.send_replace(false);
            for _ in 0..TYPED {
                assert_eq!(queue.recv().await.as_deref(), Some(b"x".as_slice()));
            }
            keys.send(INTERRUPT).unwrap();
            assert_eq!(queue.recv().await.as_deref(), Some([INTERRUPT].as_slice()));
            drop(keys);
            assert_eq!(queue.recv().await, None);
            reading.join().unwrap();
        }
    }

    #[test]
    fn everything_is_sent_once_and_then_the_end() {
        let mut outgoing = Outgoing::default();
        assert!(outgoing.is_sent());
        outgoing.push(Some(Bytes::from_static(b"abc")));
        assert_eq!(sent(&mut outgoing), (0, 3, false));
        assert!(outgoing.is_sent());
        outgoing.push(None);
        assert!(!outgoing.is_sent());
        assert_eq!(sent(&mut outgoing), (3, 0, true));
        assert!(outgoing.is_sent());
    }

    #[test]
    fn what_was_not_taken_is_sent_again() {
        let mut outgoing = Outgoing::default();
        outgoing.push(Some(Bytes::from_static(b"abcdef")));
        outgoing.push(None);
        assert!(outgoing.handle_accepted(4, true));
        assert!(!outgoing.is_sent());
        assert!(!outgoing.handle_accepted(4, true), "nothing was taken");
        assert_eq!(sent(&mut outgoing), (4, 2, true));
        assert!(outgoing.is_sent());
    }

    #[test]
    fn a_window_is_kept_for_a_gateway_that_has_lost_it() {
        let window = u64::from(STDIN_WINDOW_BYTES);
        let mut outgoing = Outgoing::default();
        for _ in 0..10 {
            outgoing.push(Some(Bytes::from(vec![b'x'; 100_000])));
            sent(&mut outgoing);
        }
        outgoing.push(None);
        sent(&mut outgoing);
        assert!(outgoing.is_sent());
        assert!(!outgoing.go_back(1_000_000 - window - 100_000), "long gone");
        assert!(outgoing.go_back(1_000_000 - window));
        assert!(!outgoing.is_sent());
        let mut from = 1_000_000 - window;
        loop {
            let (at, length, eof) = sent(&mut outgoing);
            assert_eq!(at, from);
            from += length as u64;
            if eof {
                break;
            }
        }
        assert_eq!(from, 1_000_000);
        assert!(outgoing.is_sent());
    }
}
