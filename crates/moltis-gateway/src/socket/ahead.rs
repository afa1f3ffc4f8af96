//! Reads ahead where much comes, and keeps nothing where little does.
//!
//! tungstenite reads through one buffer of a fixed size for each socket. For ten thousand nodes that
//! are quiet it has to be small, and a frame full of output then takes a read of the system for
//! every piece of it. This stands between the two: small reads pass straight through; when they
//! begin to fill, a buffer is read into that grows as long as it is filled, and is given back when
//! little comes again, or nothing for long ([`Ahead::shrink`]).

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that are read at once when it begins: what is a little longer than most needs no more.
const AHEAD_BYTES_FIRST: usize = 4 * 1024;

/// Bytes that are read at once where much comes: some frames full of output.
const AHEAD_BYTES_MAX: usize = 256 * 1024;

/// A buffer that was filled becomes so much larger.
const GROWTH: usize = 8;

/// A stream that is read through.
#[derive(Debug)]
pub(crate) struct Ahead<S> {
    stream: S,
    /// Room for large reads, while much comes.
    room: Vec<u8>,
    /// What was read into it and not asked for yet.
    unread: std::ops::Range<usize>,
    /// The last read took all that whoever asks had room for.
    much: bool,
    /// The last read ahead filled the room.
    was_filled: bool,
    /// Bytes that were written in all.
    written: u64,
}

impl<S> Ahead<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self {
            stream,
            room: Vec::new(),
            unread: 0..0,
            much: false,
            was_filled: false,
            written: 0,
        }
    }

    /// Returns how many bytes the stream has taken.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// Gives the room for large reads back, unless something in it was not asked for yet.
    pub(crate) fn shrink(&mut self) {
        if self.unread.is_empty() {
            self.much = false;
            self.was_filled = false;
            self.room = Vec::new();
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Ahead<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.unread.is_empty() && !this.much {
            let before = out.filled().len();
            ready!(Pin::new(&mut this.stream).poll_read(cx, out))?;
            this.much = out.filled().len() > before && out.remaining() == 0;
            return Poll::Ready(Ok(()));
        }
        if this.unread.is_empty() {
            if this.room.is_empty() {
                this.room = vec![0; AHEAD_BYTES_FIRST];
            } else if this.was_filled && this.room.len() < AHEAD_BYTES_MAX {
                this.room = vec![0; (this.room.len() * GROWTH).min(AHEAD_BYTES_MAX)];
            }
            let mut room = ReadBuf::new(&mut this.room);
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut room))?;
            this.was_filled = room.remaining() == 0;
            this.unread = 0..room.filled().len();
            this.much = this.was_filled || this.unread.len() > out.remaining();
        }
        let take = this.unread.len().min(out.remaining());
        let from = this.unread.start;
        out.put_slice(&this.room[from..from + take]);
        this.unread.start += take;
        if !this.much {
            this.shrink();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Ahead<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let wrote = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        self.written += wrote as u64;
        Poll::Ready(Ok(wrote))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wrote = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, slices))?;
        self.written += wrote as u64;
        Poll::Ready(Ok(wrote))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn every_byte_comes_once_and_in_order() {
        let sent: Vec<u8> = (0..3_000_000u32).map(|n| n.to_le_bytes()[1]).collect();
        let (mut near, far) = tokio::io::duplex(1024 * 1024);
        let mut far = Ahead::new(far);
        let bytes = sent.clone();
        let writing = async move {
            near.write_all(&bytes).await.unwrap();
            near.write_all(b"the end").await.unwrap();
            near // kept open
        };
        let reading = async {
            let mut got = Vec::new();
            let mut most = 0;
            let mut piece = vec![0; 4096];
            while got.len() < sent.len() + 7 {
                let read = far.read(&mut piece).await.unwrap();
                got.extend_from_slice(&piece[..read]);
                most = most.max(far.room.len());
            }
            (got, most)
        };
        let (_near, (got, most)) = tokio::join!(writing, reading);
        assert_eq!(got[..sent.len()], sent);
        assert_eq!(&got[sent.len()..], b"the end");
        assert_eq!(most, AHEAD_BYTES_MAX, "it never read far ahead");
        far.shrink();
        assert_eq!(far.room.capacity(), 0);
    }

    #[tokio::test]
    async fn where_little_comes_no_room_is_kept() {
        let (mut near, far) = tokio::io::duplex(1024);
        let mut far = Ahead::new(far);
        let mut piece = [0; 100];
        for sent in [100, 150, 50] {
            near.write_all(&[7; 200][..sent]).await.unwrap();
            let mut left = sent;
            while left > 0 {
                left -= far.read(&mut piece).await.unwrap();
            }
        }
        assert_eq!((far.room.capacity(), far.much), (0, false));
    }

    #[tokio::test]
    async fn a_little_more_than_most_takes_little_room() {
        let (mut near, far) = tokio::io::duplex(4096);
        let mut far = Ahead::new(far);
        near.write_all(&[7; 1500]).await.unwrap();
        let (mut left, mut most) = (1500, 0);
        while left > 0 {
            left -= far.read(&mut [0; 1000]).await.unwrap();
            most = most.max(far.room.len());
        }
        assert!(most <= AHEAD_BYTES_FIRST, "{most}");
        assert_eq!((far.room.capacity(), far.much), (0, false));
    }

    #[tokio::test]
    async fn an_end_is_an_end() {
        let (near, far) = tokio::io::duplex(64);
        drop(near);
        let mut far = Ahead::new(far);
        assert_eq!(far.read(&mut [0; 8]).await.unwrap(), 0);
        far.much = true;
        assert_eq!(far.read(&mut [0; 8]).await.unwrap(), 0);
    }
}
