//! A deadline for writing: a connection whose peer takes nothing of what waits for it is closed.
//!
//! What counts is bytes that wait while the system takes none of them, because the peer has left no
//! room for more. A reader who is slow makes room now and then, and a connection with nothing to say
//! has nothing that waits: both may go on for ever. Whoever is closed frees the place of its answer,
//! a descriptor and some buffers. Called by [`super::serve`], below HTTP and above TLS.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// How long a peer may take nothing. Its system makes room in steps, the largest some 400 KiB (a
/// sixteenth of a receive buffer of 6 MiB, `tcp_rmem`), so whoever reads 1 KiB a second is in time.
pub(super) const WRITE_TIME_MAX: Duration = Duration::from_mins(10);

/// A stream that fails when a write makes no progress in time.
#[derive(Debug)]
pub(super) struct WriteTimeout<S> {
    stream: S,
    /// `None` waits for ever.
    time_max: Option<Duration>,
    write: Deadline,
    /// A flush that is done tells nothing of a write that waits.
    flush: Deadline,
}

/// Runs while something waits.
#[derive(Debug, Default)]
struct Deadline(Option<Pin<Box<Sleep>>>);

impl<S> WriteTimeout<S> {
    pub(super) fn new(stream: S, time_max: Option<Duration>) -> Self {
        Self {
            stream,
            time_max,
            write: Deadline::default(),
            flush: Deadline::default(),
        }
    }
}

impl Deadline {
    /// Passes on what came of a step, or fails when it has waited for too long.
    fn hold<T>(
        &mut self,
        time_max: Option<Duration>,
        step: Poll<io::Result<T>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        let Some(time_max) = time_max else {
            return step;
        };
        if step.is_ready() {
            self.0 = None;
            return step;
        }
        let begin = || Box::pin(tokio::time::sleep(time_max));
        let end = self.0.get_or_insert_with(begin);
        ready!(end.as_mut().poll(cx));
        let seconds = time_max.as_secs();
        let why = format!("the peer has taken nothing for {seconds} s");
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, why)))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WriteTimeout<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, out)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WriteTimeout<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(cx, bytes);
        this.write.hold(this.time_max, written, cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(cx, pieces);
        this.write.hold(this.time_max, written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.stream).poll_flush(cx);
        this.flush.hold(this.time_max, flushed, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let shut = Pin::new(&mut this.stream).poll_shutdown(cx);
        this.flush.hold(this.time_max, shut, cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
    use tokio::time::{Instant, sleep, timeout};

    use super::*;

    const ROOM: usize = 64;

    fn pair() -> (WriteTimeout<DuplexStream>, DuplexStream) {
        let (ours, theirs) = tokio::io::duplex(ROOM);
        (WriteTimeout::new(ours, Some(WRITE_TIME_MAX)), theirs)
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_is_given_up_at_the_deadline() {
        let (mut ours, _theirs) = pair();
        let began = Instant::now();
        let error = ours.write_all(&[0; 3 * ROOM]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(error.to_string(), "the peer has taken nothing for 600 s");
        let took = began.elapsed();
        let in_time = WRITE_TIME_MAX..WRITE_TIME_MAX + Duration::from_secs(1);
        assert!(in_time.contains(&took), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_a_byte_now_and_then_is_never_given_up() {
        let (mut ours, mut theirs) = pair();
        let slow = async {
            let mut taken = [0];
            for _ in 0..3 * ROOM {
                sleep(WRITE_TIME_MAX / 10 * 9).await;
                theirs.read_exact(&mut taken).await.unwrap();
            }
        };
        let (written, ()) = tokio::join!(ours.write_all(&[0; 3 * ROOM]), slow);
        written.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn time_without_a_word_does_not_count() {
        let (mut ours, mut theirs) = pair();
        for _ in 0..3 {
            ours.write_all(&[0; ROOM]).await.unwrap(); // takes all the room
            sleep(10 * WRITE_TIME_MAX).await;
            let mut taken = [0; ROOM + 1];
            let taking = theirs.read_exact(&mut taken);
            let (written, taken) = tokio::join!(ours.write_all(&[0]), taking);
            written.unwrap();
            taken.unwrap();
        }
        let reading = timeout(10 * WRITE_TIME_MAX, ours.read_u8()).await;
        assert!(reading.is_err(), "who only listens may do so for ever");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_deadline_there_is_none() {
        let (ours, _theirs) = tokio::io::duplex(ROOM);
        let mut ours = WriteTimeout::new(ours, None);
        let written = timeout(10 * WRITE_TIME_MAX, ours.write_all(&[0; 3 * ROOM])).await;
        assert!(written.is_err(), "it waits");
    }
}
