//! How a connection broke, in words for a person. What the libraries below say of it is not told:
//! nobody does anything else for it.

use std::fmt;
use std::time::Duration;

use hyper::Method;

use crate::failure::{Failure, failure};

/// A connection that broke, or on which nothing came in time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cut {
    how: How,
    asked: Asked,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum How {
    /// Before the TLS handshake was done.
    Unopened,
    /// Before an answer began.
    Unanswered,
    /// In the middle of an answer.
    Torn,
    /// The gateway there said nothing for so long.
    Silent(String, Duration),
    /// What came is no answer of a gateway.
    Garbled,
}

/// What was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// A question, or nothing.
    Question,
    /// Something to do, which may be done.
    Act,
}

impl Cut {
    /// It broke before anything was sent.
    pub(super) fn unopened() -> Self {
        Self::question(How::Unopened)
    }

    /// It broke before this was answered.
    pub(super) fn unanswered(method: &Method) -> Self {
        let asked = if *method == Method::GET {
            Asked::Question
        } else {
            Asked::Act
        };
        Self {
            how: How::Unanswered,
            asked,
        }
    }

    /// It broke in the middle of an answer.
    pub(crate) fn torn() -> Self {
        Self::question(How::Torn)
    }

    /// Nothing came of the gateway at `place` for that long.
    pub(super) fn silent(place: String, time: Duration) -> Self {
        Self::question(How::Silent(place, time))
    }

    /// What came cannot be read.
    pub(crate) fn garbled() -> Self {
        Self::question(How::Garbled)
    }

    /// The same of what this asked for.
    pub(super) fn of(self, method: &Method) -> Self {
        Self {
            how: self.how,
            ..Self::unanswered(method)
        }
    }

    fn question(how: How) -> Self {
        Self {
            how,
            asked: Asked::Question,
        }
    }

    /// Returns it with what to type next.
    pub(super) fn into_failure(self) -> Failure {
        let unknown = match self.asked {
            Asked::Question => "",
            Asked::Act => "; whether it has done what it was asked for is not known",
        };
        let failure = failure(format!("{self}{unknown}"));
        let next = match (&self.how, self.asked) {
            (How::Silent(..), _) => {
                "it is stopped, or has more to do than it can: look on its machine, with \
                 moltis gateway logs; commands that run go on when it is restarted"
            }
            (_, Asked::Question) => "ask again; whether the gateway is there: moltis doctor",
            (_, Asked::Act) => {
                "look before you type it again; whether the gateway is there: moltis doctor"
            }
        };
        failure.hint(next)
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.how {
            How::Unopened => f.write_str("the connection to the gateway broke as it was opened"),
            How::Unanswered => {
                f.write_str("the connection to the gateway broke before it answered")
            }
            How::Torn => {
                f.write_str("the connection to the gateway broke in the middle of its answer")
            }
            How::Silent(place, time) => write!(
                f,
                "the gateway at {place} takes connections and gave no answer within {} s",
                time.as_secs()
            ),
            How::Garbled => f.write_str("what came from the gateway cannot be read"),
        }
    }
}
