//! A stream whose reader does not read: it is closed after a while, and costs nobody anything until
//! then.
//!
//! A body is asked for its next piece as soon as there is room for it. So one that has given a piece
//! and is not asked again waits for its reader, and when that goes on for too long, the reader is
//! given up: its place is free at once, and its connection is closed. What it has not read it can
//! have again, with the id of its last event. Bodies of which a reader may take a part and think
//! (output, the frames of a run) are not watched: one piece of them may take a slow reader minutes,
//! so of those [`write_timeout`](super::write_timeout) asks the socket.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use hyper::body::Frame;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::hangup::Hangup;
use super::streams::Place;
use crate::tasks::Tasks;

/// How long a reader may leave the next piece waiting.
pub(super) const UNREAD_TIME_MAX: Duration = Duration::from_secs(30);

/// What a body and its watch both see.
#[derive(Debug)]
struct Seen {
    /// When the last piece was given, and nobody has come for more since.
    waits_since: Option<Instant>,
    /// Where the stream is counted; `None` when its reader was given up.
    place: Option<Place>,
}

/// Returns the same body, watched from now on.
pub(super) fn watched(body: Body, place: Place, hangup: Option<Hangup>, tasks: &Tasks) -> Body {
    let seen = Arc::new(Mutex::new(Seen {
        waits_since: None,
        place: Some(place),
    }));
    let done = CancellationToken::new();
    drop(tasks.spawn(watch(Arc::clone(&seen), done.clone(), hangup)));
    Body::new(Watched {
        body,
        seen,
        _done: done.drop_guard(),
    })
}

async fn watch(seen: Arc<Mutex<Seen>>, done: CancellationToken, hangup: Option<Hangup>) {
    let mut look_at = Instant::now() + UNREAD_TIME_MAX;
    loop {
        tokio::select! {
            biased;
            () = done.cancelled() => return,
            () = tokio::time::sleep_until(look_at) => {}
        }
        let now = Instant::now();
        let deadline = lock(&seen).waits_since.unwrap_or(now) + UNREAD_TIME_MAX;
        if deadline <= now {
            break;
        }
        look_at = deadline;
    }
    drop(lock(&seen).place.take());
    tracing::debug!(
        seconds = UNREAD_TIME_MAX.as_secs(),
        "a reader of events does not read, and is given up"
    );
    if let Some(hangup) = hangup {
        hangup.now();
    }
}

struct Watched {
    body: Body,
    seen: Arc<Mutex<Seen>>,
    /// Ends the watch with the body.
    _done: DropGuard,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        {
            let mut seen = lock(&self.seen);
            seen.waits_since = None;
            if seen.place.is_none() {
                return Poll::Ready(None);
            }
        }
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if matches!(polled, Poll::Ready(Some(_))) {
            lock(&self.seen).waits_since = Some(Instant::now());
        }
        polled
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::stream;
    use http_body_util::BodyExt as _;

    use super::*;
    use crate::http::streams::Streams;
    use crate::principal::Principal;

    fn body(streams: &Streams, tasks: &Tasks, hangup: &Hangup) -> Body {
        let pieces = stream::repeat_with(|| Ok::<_, Infallible>("piece"));
        let place = streams.admit(&Principal::Operator).unwrap();
        watched(
            Body::from_stream(pieces),
            place,
            Some(hangup.clone()),
            tasks,
        )
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_stops_reading_is_given_up_and_one_that_is_slow_is_not() {
        let (streams, tasks) = (Streams::default(), Tasks::new());
        let (slow_end, stuck_end) = (Hangup::default(), Hangup::default());
        let mut slow = body(&streams, &tasks, &slow_end);
        let mut stuck = body(&streams, &tasks, &stuck_end);
        stuck.frame().await.unwrap().unwrap();
        let given_up = async {
            stuck_end.asked().await;
            Instant::now()
        };
        let started = Instant::now();
        let reading = async {
            for _ in 0..10 {
                slow.frame().await.unwrap().unwrap();
                tokio::time::sleep(UNREAD_TIME_MAX / 2).await;
            }
        };
        let (given_up, ()) = tokio::join!(given_up, reading);
        assert_eq!(given_up - started, UNREAD_TIME_MAX);
        assert_eq!(streams.count(), 1, "its place is free");
        assert!(stuck.frame().await.is_none(), "and its body is over");
        drop(slow);
        assert_eq!(tasks.shut_down(Duration::from_secs(1)).await, 0);
        assert_eq!(streams.count(), 0);
        assert!(
            tokio::time::timeout(Duration::from_secs(1), slow_end.asked())
                .await
                .is_err()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_has_nothing_to_give_may_take_its_time() {
        let (streams, tasks) = (Streams::default(), Tasks::new());
        let pieces = stream::pending::<Result<Bytes, Infallible>>();
        let place = streams.admit(&Principal::Operator).unwrap();
        let hangup = Hangup::default();
        let mut body = watched(
            Body::from_stream(pieces),
            place,
            Some(hangup.clone()),
            &tasks,
        );
        let waited = tokio::time::timeout(UNREAD_TIME_MAX * 10, body.frame()).await;
        assert!(waited.is_err(), "nothing comes");
        assert_eq!(streams.count(), 1);
    }
}
