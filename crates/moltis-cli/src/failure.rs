//! An error as a person meets it: what failed, why, and what to type next.
//!
//! [`Failure`] is an ordinary error, so that `?` and `anyhow` carry it; the hints and the exit code
//! of everything in the chain are collected at the very end, in [`report`].

use std::error::Error;
use std::fmt;

use crate::exit::Exit;

/// What failed, with hints and an exit code; the cause hangs on `source`.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    hints: Vec<String>,
    exit: Option<Exit>,
    cause: Option<anyhow::Error>,
}

/// Returns a failure that says `message`: a lower-case fragment, names in backticks, no full stop.
pub(crate) fn failure(message: impl Into<String>) -> Failure {
    Failure {
        message: message.into(),
        hints: Vec::new(),
        exit: None,
        cause: None,
    }
}

/// Returns a failure of the command line itself.
pub(crate) fn usage(message: impl Into<String>) -> Failure {
    failure(message).exit(Exit::USAGE)
}

impl Failure {
    /// Adds what to type or to do next.
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Ends the process with this code.
    #[must_use]
    pub(crate) fn exit(mut self, exit: Exit) -> Self {
        self.exit = Some(exit);
        self
    }

    /// Adds why.
    #[must_use]
    pub(crate) fn because(mut self, cause: impl Into<anyhow::Error>) -> Self {
        self.cause = Some(cause.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.as_ref().map(|cause| {
            let cause: &(dyn Error + 'static) = cause.as_ref();
            cause
        })
    }
}

/// Makes an error that is not ours yet into a [`Failure`] around it.
pub(crate) trait OrFail<T> {
    /// Says what could not be done, with the error as the cause.
    fn or_fail(self, message: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T, E: Into<anyhow::Error>> OrFail<T> for Result<T, E> {
    fn or_fail(self, message: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|cause| failure(message()).because(cause))
    }
}

/// What is printed of an error, and what the process ends with.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Report {
    /// The error and its causes.
    pub(crate) messages: Vec<String>,
    /// What to do next.
    pub(crate) hints: Vec<String>,
    /// The outermost code that was named.
    pub(crate) exit: Exit,
}

impl Report {
    /// Returns all of it on one line, for a log.
    pub(crate) fn line(&self) -> String {
        let hints = self.hints.iter().map(|hint| format!(" ({hint})"));
        self.messages.join(": ") + &hints.collect::<String>()
    }
}

/// Collects the chain of an error. A cause that only repeats what stands before it is left out.
pub(crate) fn report(error: &anyhow::Error) -> Report {
    let mut report = Report {
        messages: Vec::new(),
        hints: Vec::new(),
        exit: Exit::FAILURE,
    };
    let mut exit = None;
    for cause in error.chain() {
        let message = cause.to_string();
        if !report.messages.iter().any(|said| said.contains(&message)) {
            report.messages.push(message);
        }
        if let Some(failure) = cause.downcast_ref::<Failure>() {
            report.hints.extend(failure.hints.iter().cloned());
            exit = exit.or(failure.exit);
        }
    }
    report.exit = exit.unwrap_or(Exit::FAILURE);
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_and_codes_are_collected_from_the_whole_chain() {
        let inner = failure("no such file").hint("make it").exit(Exit::NOT_RUN);
        let outer = failure("cannot read `x`").because(inner).hint("or not");
        let report = report(&outer.into());
        assert_eq!(report.messages, ["cannot read `x`", "no such file"]);
        assert_eq!(report.hints, ["or not", "make it"]);
        assert_eq!(report.exit, Exit::NOT_RUN);
    }

    #[test]
    fn a_cause_that_repeats_is_said_once() {
        let cause = std::io::Error::other("disk on fire");
        let outer = failure("cannot write: disk on fire").because(cause);
        assert_eq!(report(&outer.into()).messages.len(), 1);
    }
}
