//! A request that starts something: sent until it is answered, and done once.
//!
//! Each has a key of its own. Where a connection broke behind it nobody knows whether it was done; it
//! is sent again under its key then, for as long as a run is followed across an absence of the gateway.

use std::time::Duration;

use moltis_gateway::api::problem::Code;
use moltis_gateway::store::RunKey;
use tokio::time::Instant;

use super::super::Context;
use super::super::patience::Patience;
use super::away::Away;
use super::reader::passes;
use crate::api::{ApiError, Client};
use crate::exit::Exit;
use crate::failure::{Failure, failure};

/// How long a request is sent again without a word.
const QUIET_TIME: Duration = Duration::from_secs(1);

/// What makes a repeated request the same one.
#[derive(Debug)]
pub(super) struct Key(String);

impl Key {
    /// Returns one that nobody has.
    pub(super) fn new() -> Self {
        Self(uuid::Uuid::new_v4().simple().to_string())
    }

    /// Returns the id of the run that a request for one node makes under it; `None` where only the
    /// gateway knows whose key it is.
    pub(super) fn run_at(&self, client: &Client) -> Option<String> {
        client.home()?;
        Some(RunKey::of_operator(&self.0).run_id().to_string())
    }
}

/// Why a request was not done, as far as is known.
#[derive(Debug)]
pub(super) enum NotDone {
    /// It was refused, or the gateway was never reached.
    Refused(ApiError),
    /// It may have been done, and this is the last that was heard of it.
    Unknown(ApiError),
    /// A proxy has answered it each time, and no gateway was ever heard of.
    Unheard(ApiError),
}

impl NotDone {
    /// Returns it as a person meets it. `run` is the id that the run has if there is one.
    pub(super) fn into_failure(self, run: Option<&str>) -> Failure {
        match self {
            Self::Refused(error) => error.not_run(),
            // It names them itself.
            Self::Unknown(error) if !error.runs().is_empty() => {
                error.into_failure().exit(Exit::UNKNOWN)
            }
            Self::Unknown(error) => {
                let failure = failure("whether the command was started is not known")
                    .exit(Exit::UNKNOWN)
                    .hint(match run {
                        Some(run) => format!("where it was: moltis runs show {run}"),
                        None => "look at the newest ones: moltis runs list".to_owned(),
                    });
                match error {
                    // Its hint is of a request that nobody repeats.
                    ApiError::Cut(cut) => failure.because(self::failure(cut.to_string())),
                    error => failure.because(error.into_failure()),
                }
            }
            Self::Unheard(error) => failure(
                "the gateway was not reached, and whether the command was started is not known",
            )
            .because(error.into_failure())
            .exit(Exit::UNKNOWN),
        }
    }
}

/// Says that a request whose fate is unknown is sent again because of this.
pub(super) fn note_another_attempt(context: &Context, error: &ApiError) {
    let text = format!("{error}; trying again, and nothing starts twice");
    context.output.note(&text);
}

/// Sends a request under its key. With patience it waits, while nothing was sent yet, for a gateway
/// that is about to come back. When its fate is unknown it is sent again, which `again` is told once;
/// and still nothing starts twice.
pub(super) async fn once<T>(
    key: &Key,
    mut patience: Option<Patience<'_>>,
    again: impl AsyncFnOnce(&ApiError),
    mut send: impl AsyncFnMut(&str) -> Result<T, ApiError>,
) -> Result<T, NotDone> {
    let mut again = Some(again);
    let mut away = Away::new();
    let mut is_heard_of = false;
    let mut open_since = None;
    loop {
        let error = match send(&key.0).await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        if open_since.is_none() && !error.leaves_it_open() {
            if let Some(patience) = &mut patience
                && patience.waits_after(&error).await
            {
                continue;
            }
            return Err(NotDone::Refused(error));
        }
        let since = *open_since.get_or_insert_with(Instant::now);
        if error.code().is_some_and(|code| !says_nothing_of_it(code)) {
            return Err(NotDone::Refused(error));
        }
        is_heard_of |= error.is_of_a_gateway();
        away.begins();
        let is_made = !error.runs().is_empty() && !error.passes();
        if is_made || !passes(&error) || away.is_too_long() {
            return Err(if is_heard_of {
                NotDone::Unknown(error)
            } else {
                NotDone::Unheard(error)
            });
        }
        if since.elapsed() >= QUIET_TIME
            && let Some(again) = again.take()
        {
            again(&error).await;
        }
        away.pause().await;
    }
}

/// Returns whether a gateway that has the run of a repeated request may answer this all the same: it
/// asks first who is there, and cannot always read. Any other refusal is one of a gateway that has
/// looked and has no such run.
fn says_nothing_of_it(code: Code) -> bool {
    matches!(
        code,
        Code::Unauthenticated
            | Code::ScopeMissing
            | Code::TlsRequired
            | Code::Csrf
            | Code::WrongHost
            | Code::TooMany
            | Code::Internal
            | Code::StoreReadOnly
            | Code::ShuttingDown
            | Code::IdempotencyConflict
            | Code::Unrecognised
    )
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use hyper::StatusCode;
    use moltis_gateway::api::problem::Problem;
    use tokio::time::advance;

    use super::*;
    use crate::api::Cut;

    fn problem(code: Code, runs: &[&str]) -> ApiError {
        ApiError::Problem(Box::new(Problem {
            code,
            status: code.status(),
            title: code.title().to_owned(),
            detail: format!("it is {code}"),
            hint: None,
            candidates: Vec::new(),
            gap: None,
            next_offset: None,
            runs: runs.iter().map(|id| (*id).to_owned()).collect(),
            retry_after_seconds: None,
            request_id: String::new(),
        }))
    }

    fn cut() -> ApiError {
        ApiError::Cut(Cut::torn())
    }

    /// Sends a request that is answered so, and returns what a person is told and the code. Behind the
    /// last answer comes no other.
    async fn told(answers: Vec<ApiError>) -> (String, Exit) {
        let answers = RefCell::new(answers.into_iter());
        let send = async |_: &str| -> Result<(), ApiError> {
            Err(answers.borrow_mut().next().expect("nobody asks again"))
        };
        let failed = once(&Key::new(), None, async |_: &_| {}, send).await;
        let report = crate::failure::report(&failed.unwrap_err().into_failure(Some("0a")).into());
        (report.line(), report.exit)
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_that_may_be_there_is_never_told_as_one_that_is_not() {
        for code in [
            Code::Internal,
            Code::StoreReadOnly,
            Code::Unauthenticated,
            Code::NodeNotFound,
        ] {
            let (_, exit) = told(vec![problem(code, &[])]).await;
            assert_eq!(exit, Exit::NOT_RUN, "{code}: nothing else was asked");
        }
        let (line, exit) = told(vec![problem(Code::StoreReadOnly, &["0a"])]).await;
        assert_eq!(exit, Exit::UNKNOWN, "{line}");
        assert!(line.starts_with("it is store_read_only"), "{line}");
        let (line, exit) = told(vec![cut(), problem(Code::Unauthenticated, &[])]).await;
        assert_eq!(exit, Exit::UNKNOWN, "{line}");
        assert!(line.contains("moltis runs show 0a"), "{line}");
        // One that had it would have told of it.
        let (line, exit) = told(vec![cut(), problem(Code::NodeOffline, &[])]).await;
        assert_eq!(exit, Exit::NOT_RUN, "{line}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_have_been_done_is_asked_for_again_for_ten_minutes() {
        const MINUTE: Duration = Duration::from_mins(1);
        let status = StatusCode::BAD_GATEWAY;
        for (error, is_heard_of) in [
            (cut as fn() -> ApiError, true),
            (|| problem(Code::Internal, &[]), true),
            (|| problem(Code::StoreReadOnly, &[]), true),
            (|| problem(Code::ShuttingDown, &["0a"]), true),
            (
                move || ApiError::ProxyWithoutGateway {
                    status: StatusCode::BAD_GATEWAY,
                },
                false,
            ),
        ] {
            let started = Instant::now();
            let (sent, told) = (Cell::new(0), Cell::new(0));
            let send = async |_: &str| -> Result<(), ApiError> {
                sent.set(sent.get() + 1);
                let first = ApiError::ProxyWithoutGateway { status };
                Err(if sent.get() == 1 { first } else { error() })
            };
            let again = async |_: &_| told.set(told.get() + 1);
            let failed = once(&Key::new(), None, again, send).await;
            assert_eq!(matches!(failed, Err(NotDone::Unknown(_))), is_heard_of);
            let took = started.elapsed();
            assert!((10 * MINUTE..11 * MINUTE).contains(&took), "{took:?}");
            assert_eq!(told.get(), 1);
        }
        advance(MINUTE).await;
    }
}
