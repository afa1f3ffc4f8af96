//! Who sees everything: each event goes into the trace and before the model, which may object.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::model::{Happened, Model, Violation};
use super::trace::{Trace, note};

/// The trace and the model of a world. Cloning shares them.
#[derive(Debug, Clone)]
pub(super) struct Witness {
    pub(super) trace: Trace,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    model: Model,
    /// The first thing that must never be.
    violation: Option<Violation>,
}

impl Witness {
    pub(super) fn new(trace: Trace) -> Self {
        Self {
            trace,
            seen: Arc::default(),
        }
    }

    /// Writes an event down, and has the model look at it.
    pub(super) fn see(&self, happened: Happened) {
        note!(self.trace, "model", "{happened:?}");
        let mut seen = self.seen();
        if let Err(violation) = seen.model.handle(happened) {
            self.object(&mut seen, violation);
        }
    }

    /// Takes note of something that must never be.
    pub(super) fn violated(&self, violation: Violation) {
        self.object(&mut self.seen(), violation);
    }

    /// Returns the first thing that must never be, if there was one.
    pub(super) fn violation(&self) -> Option<Violation> {
        self.seen().violation.clone()
    }

    /// Tells the model what nobody has to read of.
    pub(super) fn tell(&self, tell: impl FnOnce(&mut Model)) {
        tell(&mut self.seen().model);
    }

    /// Asks the model something.
    pub(super) fn ask<T>(&self, ask: impl FnOnce(&Model) -> T) -> T {
        ask(&self.seen().model)
    }

    fn object(&self, seen: &mut Seen, violation: Violation) {
        note!(self.trace, "model", "VIOLATION {violation}");
        seen.violation.get_or_insert(violation);
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
