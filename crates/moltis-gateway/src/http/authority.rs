//! How long somebody's word counts: an answer that lasts ends with the token that asked for it.
//!
//! A token is looked at when a request comes ([`super::auth`]) and again here, for as long as the
//! answer goes on: whenever a token is revoked, and when its own time is over. So no handler has to
//! think of it, and no future one can forget it. A handler that still waits is let go of, and a body
//! that still comes is cut, with its connection where nobody reads it. Runs go on. Whoever asks at
//! the Unix socket has a word that does not end.

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};

use super::error::ApiError;
use super::hangup::Hangup;
use crate::api::problem::Code;
use crate::clock::Clock;
use crate::store::{Store, TokenHash, TokenRecord};
use crate::tasks::Tasks;

/// How long a handler may go on when the word has ended, so that who revokes the token that it
/// shows is told that this is done.
const ANSWER_GRACE: Duration = Duration::from_millis(250);

/// The time of day is looked at again this often while a token is about to expire: it may be turned.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The word of one token.
#[derive(Debug)]
pub(super) struct Authority {
    store: Store,
    clock: Clock,
    hash: TokenHash,
    expires_at: Option<Timestamp>,
    revocations: watch::Receiver<u64>,
    over: bool,
}

impl Authority {
    /// Finds the token with this hash, if it works now, and the word that it gives.
    pub(super) async fn of(
        store: &Store,
        clock: &Clock,
        hash: TokenHash,
    ) -> Result<Option<(TokenRecord, Self)>, crate::store::StoreError> {
        // Before the look: a revocation behind it is not missed.
        let revocations = store.token_revocations();
        let token = store.token(hash).await?;
        let Some(token) = token.filter(|token| token.is_live(clock.now())) else {
            return Ok(None);
        };
        let authority = Self {
            store: store.clone(),
            clock: clock.clone(),
            hash,
            expires_at: token.expires_at,
            revocations,
            over: false,
        };
        Ok(Some((token, authority)))
    }

    /// Waits until the token has expired or was revoked. A store that cannot say so any more gives
    /// no word either.
    ///
    /// # Cancel safety
    /// Cancel safe.
    async fn ended(&mut self) {
        while !self.over {
            tokio::select! {
                biased;
                moved = self.revocations.changed() => {
                    self.over = moved.is_err() || !self.is_live().await;
                }
                () = expired(&self.clock, self.expires_at) => self.over = true,
            }
        }
    }

    async fn is_live(&self) -> bool {
        let token = self.store.token(self.hash).await;
        let now = self.clock.now();
        token.is_ok_and(|token| token.is_some_and(|token| token.is_live(now)))
    }

    /// Answers on this word: as `answer` does, and no longer than the word counts.
    pub(super) async fn hold(
        mut self,
        answer: impl Future<Output = Response>,
        hangup: Option<Hangup>,
        tasks: &Tasks,
    ) -> Response {
        let mut answer = pin!(answer);
        let response = tokio::select! {
            biased;
            response = &mut answer => response,
            () = self.ended() => match tokio::time::timeout(ANSWER_GRACE, answer).await {
                Ok(response) => response,
                Err(_elapsed) => return over().into_response(),
            },
        };
        if response.body().is_end_stream() || response.body().size_hint().exact().is_some() {
            return response; // all of it is here already
        }
        let done = CancellationToken::new();
        let watch = {
            let (done, stop) = (done.clone(), tasks.stop().clone());
            async move {
                tokio::select! {
                    biased;
                    () = done.cancelled() => return,
                    () = stop.cancelled() => return,
                    () = self.ended() => {}
                }
                done.cancel();
                if let Some(hangup) = hangup {
                    hangup.now();
                }
            }
        };
        drop(tasks.spawn(watch));
        response.map(|body| Body::new(Held::new(body, done)))
    }
}

async fn expired(clock: &Clock, expires_at: Option<Timestamp>) {
    let Some(end) = expires_at else {
        return std::future::pending().await;
    };
    loop {
        let now = clock.now();
        if now >= end {
            return;
        }
        let left = end.duration_since(now).unsigned_abs();
        tokio::time::sleep(left.min(LOOK_EVERY)).await;
    }
}

fn over() -> ApiError {
    ApiError::new(
        Code::Unauthenticated,
        "the token has expired or was revoked while this was being answered; a run that had begun \
         goes on",
    )
    .hint("ask again with another token: `moltis token create` makes one")
}

/// A body that ends with an error when it is told to, so that what is cut is never taken for whole.
struct Held {
    body: Body,
    over: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Ends the watch with the body.
    _done: DropGuard,
}

impl Held {
    fn new(body: Body, done: CancellationToken) -> Self {
        Self {
            body,
            over: Box::pin(done.clone().cancelled_owned()),
            _done: done.drop_guard(),
        }
    }
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.over.as_mut().poll(cx).is_ready() {
            let why = io::Error::other("the token that asked for this has expired or was revoked");
            return Poll::Ready(Some(Err(axum::Error::new(why))));
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
