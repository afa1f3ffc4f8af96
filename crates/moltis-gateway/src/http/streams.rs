//! How many streams of events there are, in all and for one asker: each holds a connection for as
//! long as its reader likes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::error::{ApiError, ApiResult};
use crate::api::problem::Code;
use crate::principal::Principal;

/// Streams in all: a quarter of all connections.
const STREAMS_MAX: usize = 1024;

/// Streams of one asker: a token, or the operator. A reader whose network goes away each quarter of
/// a minute leaves 62 half-open streams behind before the kernel gives the first one up
/// (`tcp_retries2`, 924 s), and still has room to come back.
const STREAMS_PER_ASKER_MAX: usize = 64;

/// Seconds after which somebody may have closed one.
const RETRY_AFTER_SECONDS: u64 = 5;

/// The streams of one gateway. Cloning shares them.
#[derive(Debug, Clone)]
pub(super) struct Streams {
    counted: Arc<Mutex<Counted>>,
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
        Self::new(STREAMS_MAX, STREAMS_PER_ASKER_MAX)
    }
}

impl Streams {
    fn new(max: usize, per_asker_max: usize) -> Self {
        Self {
            counted: Arc::default(),
            max,
            per_asker_max,
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
                "`{who}` follows {theirs} streams of events already, and that is the most for one asker"
            ))
            .hint("close one of them; `GET /api/v1/events` tells of everything in one stream"));
        }
        if counted.all >= self.max {
            let all = counted.all;
            return Err(too_many(format!(
                "{all} streams of events are followed already, and that is the most for one gateway"
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
        let streams = Streams::new(3, 2);
        let first = streams.admit(&token("a")).unwrap();
        let _second = streams.admit(&token("a")).unwrap();
        let refused = streams
            .admit(&token("a"))
            .unwrap_err()
            .problem(String::new());
        assert_eq!(refused.code, Code::TooMany);
        assert!(
            refused.detail.contains("`token:ci` follows 2"),
            "{refused:?}"
        );
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
}
