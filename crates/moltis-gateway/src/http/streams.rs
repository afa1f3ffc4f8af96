//! How many answers last, in all and for one asker: each holds a connection, and what its reader has
//! not taken yet, for as long as that reader takes something now and then
//! ([`write_timeout`](super::write_timeout)). Streams of events and answers with output are counted
//! apart.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::Body;
use axum::response::Response;
use http_body_util::BodyExt as _;

use super::error::{ApiError, ApiResult};
use crate::api::problem::Code;
use crate::principal::Principal;

/// Streams in all: a quarter of all connections.
const STREAMS_MAX: usize = 1024;

/// Streams of one asker: a token, or the operator. A reader whose network goes away each quarter of
/// a minute leaves 62 half-open streams behind before the kernel gives the first one up
/// (`tcp_retries2`, 924 s), and still has room to come back.
const STREAMS_PER_ASKER_MAX: usize = 64;

/// Answers with output in all. One that nobody reads holds some 300 KiB: a piece and its copy on the
/// way.
const OUTPUTS_MAX: usize = 1024;

/// Answers with output of one asker: as many as connections of one source.
const OUTPUTS_PER_ASKER_MAX: usize = 512;

/// Seconds after which somebody may have closed one.
const RETRY_AFTER_SECONDS: u64 = 5;

/// The streams of one gateway. Cloning shares them.
#[derive(Debug, Clone)]
pub(super) struct Streams {
    counted: Arc<Mutex<Counted>>,
    /// What is counted, in words.
    what: &'static str,
    /// What an asker with too many of them can do.
    instead: &'static str,
    max: usize,
    per_asker_max: usize,
}

#[derive(Debug, Default)]
struct Counted {
    all: usize,
    by_asker: HashMap<String, usize>,
}

/// A stream that is counted until this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    streams: Streams,
    asker: String,
}

impl Default for Streams {
    fn default() -> Self {
        let instead = "close one of them; `GET /api/v1/events` tells of everything in one stream";
        Self::new(
            ("streams of events", instead),
            STREAMS_MAX,
            STREAMS_PER_ASKER_MAX,
        )
    }
}

impl Streams {
    /// Returns the count of answers with output.
    pub(super) fn of_output() -> Self {
        let instead =
            "read one of them to its end or close it; each can be taken up again at its offset";
        Self::new(
            ("answers with output", instead),
            OUTPUTS_MAX,
            OUTPUTS_PER_ASKER_MAX,
        )
    }

    fn new(
        (what, instead): (&'static str, &'static str),
        max: usize,
        per_asker_max: usize,
    ) -> Self {
        Self {
            counted: Arc::default(),
            what,
            instead,
            max,
            per_asker_max,
        }
    }

    /// Counts an answer, or says that there are too many. The operator's are not counted: a command
    /// on all nodes follows each of them.
    pub(super) fn admit_but_the_operator(&self, who: &Principal) -> ApiResult<Option<Place>> {
        match who {
            Principal::Operator => Ok(None),
            Principal::Token { .. } | Principal::User(_) => self.admit(who).map(Some),
        }
    }

    /// Counts one more, or says that there are too many.
    pub(super) fn admit(&self, who: &Principal) -> ApiResult<Place> {
        let asker = match who {
            Principal::Operator => String::new(),
            Principal::Token { id, .. } => id.clone(),
            Principal::User(user) => format!("user:{}", user.name()),
        };
        let mut counted = self.counted();
        let theirs = counted.by_asker.get(&asker).copied().unwrap_or(0);
        if theirs >= self.per_asker_max {
            return Err(too_many(format!(
                "`{who}` reads {theirs} {} already, and that is the most for one asker",
                self.what
            ))
            .hint(self.instead));
        }
        if counted.all >= self.max {
            let all = counted.all;
            return Err(too_many(format!(
                "{all} {} are read already, and that is the most for one gateway",
                self.what
            ))
            .hint("try again when others have closed theirs"));
        }
        counted.all += 1;
        *counted.by_asker.entry(asker.clone()).or_default() += 1;
        Ok(Place {
            streams: self.clone(),
            asker,
        })
    }

    /// Returns how many there are.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.counted().all
    }

    fn counted(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counted = self.streams.counted();
        counted.all -= 1;
        if let Some(theirs) = counted.by_asker.get_mut(&self.asker) {
            *theirs -= 1;
            if *theirs == 0 {
                counted.by_asker.remove(&self.asker);
            }
        }
    }
}

/// Returns the same answer, which keeps its place for as long as its body lives.
pub(super) fn held(answer: Response, place: Option<Place>) -> Response {
    let Some(place) = place else { return answer };
    answer.map(|body| {
        Body::new(body.map_frame(move |frame| {
            let _held = &place;
            frame
        }))
    })
}

fn too_many(detail: String) -> ApiError {
    ApiError::new(Code::TooMany, detail).retry_after(RETRY_AFTER_SECONDS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(id: &str) -> Principal {
        Principal::Token {
            id: id.to_owned(),
            name: "ci".to_owned(),
            scopes: Vec::new(),
        }
    }

    #[test]
    fn one_asker_takes_no_place_of_another_and_all_have_a_bound() {
        let streams = Streams::new(("streams of events", "close one"), 3, 2);
        let first = streams.admit(&token("a")).unwrap();
        let _second = streams.admit(&token("a")).unwrap();
        let refused = streams
            .admit(&token("a"))
            .unwrap_err()
            .problem(String::new());
        assert_eq!(refused.code, Code::TooMany);
        assert!(refused.detail.contains("`token:ci` reads 2"), "{refused:?}");
        assert_eq!(refused.hint.as_deref(), Some("close one"));
        let operator = streams.admit(&Principal::Operator).unwrap();
        let refused = streams
            .admit(&token("b"))
            .unwrap_err()
            .problem(String::new());
        assert!(refused.detail.contains("3 streams"), "{refused:?}");
        drop(first);
        let _third = streams.admit(&token("a")).unwrap();
        drop(operator);
        assert_eq!((streams.count(), streams.counted().by_asker.len()), (2, 1));
    }

    #[test]
    fn who_reads_too_much_output_is_not_sent_to_the_events() {
        let outputs = Streams::of_output();
        let all = (0..OUTPUTS_PER_ASKER_MAX).map(|_| outputs.admit(&token("a")).unwrap());
        let _all: Vec<_> = all.collect();
        let refused = outputs.admit(&token("a")).unwrap_err();
        let hint = refused.problem(String::new()).hint.unwrap();
        assert!(
            hint.contains("offset") && !hint.contains("events"),
            "{hint}"
        );
    }

    #[test]
    fn an_answer_is_counted_until_its_body_goes_and_the_operators_are_not() {
        let outputs = Streams::new(("answers with output", "close one"), 3, 1);
        let answer = |who: &Principal| {
            let place = outputs.admit_but_the_operator(who)?;
            ApiResult::Ok(held(Response::new(Body::from("bytes")), place))
        };
        let first = answer(&token("a")).unwrap();
        assert!(answer(&token("a")).is_err());
        let _other = answer(&token("b")).unwrap();
        let own: Vec<_> = (0..9)
            .map(|_| answer(&Principal::Operator).unwrap())
            .collect();
        assert_eq!((own.len(), outputs.count()), (9, 2));
        drop(first);
        answer(&token("a")).unwrap();
    }
}
