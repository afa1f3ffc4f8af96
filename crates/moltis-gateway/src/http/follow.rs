//! The body of a followed run: events as frames, as they come.
//!
//! Output goes out as the bytes lie in memory; only a frame that is shorter than its cost is copied
//! behind its header. The body ends with the run, with the caller, or with the gateway.

use std::convert::Infallible;

use axum::body::Body;
use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use bytes::{Bytes, BytesMut};
use futures_util::stream;

use super::ApiState;
use super::convert::runs::gap;
use crate::api::follow::{Frame, MEDIA_TYPE};
use crate::exec::{Follow, RunEvent};

/// Bytes of output up to which a frame is one piece of the body.
const COPIED_BYTES_MAX: usize = 2048;

/// Answers with what happens to a run. The body ends behind its ending, or when the gateway stops.
pub(super) fn answer(desk: &ApiState, events: Follow) -> Response {
    let follower = Follower {
        desk: desk.clone(),
        events,
        rest: None,
    };
    let pieces = stream::unfold(follower, async |mut follower| {
        let piece = follower.next().await?;
        Some((Ok::<_, Infallible>(piece), follower))
    });
    let mut response = Body::from_stream(pieces).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    // A proxy that gathers before it passes on would make live output look dead.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

struct Follower {
    desk: ApiState,
    events: Follow,
    /// Bytes of a frame whose header went out.
    rest: Option<Bytes>,
}

impl Follower {
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(rest) = self.rest.take() {
            return Some(rest);
        }
        let event = tokio::select! {
            biased;
            event = self.events.next() => event?,
            () = self.desk.stop().cancelled() => return None,
        };
        let (piece, rest) = pieces(self.frame(event));
        self.rest = rest;
        Some(piece)
    }

    fn frame(&self, event: RunEvent) -> Frame {
        match event {
            RunEvent::Output {
                stream,
                offset,
                bytes,
            } => Frame::Output {
                stream: stream.into(),
                offset,
                bytes,
            },
            RunEvent::Gap {
                stream,
                from,
                to,
                reason,
            } => Frame::Gap(gap(stream, from, to, reason)),
            RunEvent::Ended(record) => {
                let status = self.desk.runs().status_of(record);
                Frame::Ended(Box::new(self.desk.run(status)))
            }
            RunEvent::KeepAlive => Frame::KeepAlive,
        }
    }
}

/// Returns a frame as one piece of a body, or as two where copying would cost more.
fn pieces(frame: Frame) -> (Bytes, Option<Bytes>) {
    let (header, bytes) = frame.encode();
    if bytes.len() > COPIED_BYTES_MAX {
        return (header, Some(bytes));
    }
    let mut piece = BytesMut::from(header);
    piece.extend_from_slice(&bytes);
    (piece.freeze(), None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::runs::Stream;

    fn output(bytes: &Bytes) -> Frame {
        Frame::Output {
            stream: Stream::Stdout,
            offset: 7,
            bytes: bytes.clone(),
        }
    }

    #[test]
    fn long_output_is_not_copied() {
        let bytes = Bytes::from(vec![b'x'; 60 * 1024]);
        let (header, rest) = pieces(output(&bytes));
        assert_eq!(header.len(), crate::api::follow::HEADER_BYTES);
        assert_eq!(rest.unwrap().as_ptr(), bytes.as_ptr());
    }

    #[test]
    fn short_output_is_one_piece() {
        let (piece, rest) = pieces(output(&Bytes::from_static(b"hello")));
        assert_eq!((&piece[13..], rest), (&b"hello"[..], None));
    }
}
