//! The processors of this machine, and a world that stays on one of them.
//!
//! SQLite has threads of its own, and in a world the one that asks waits while the one that answers
//! works. To wake a thread on another processor costs more than most of what it is woken for: a
//! world whose threads share one takes a sixth less.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// The processors that this process may use, each lent to one world at a time.
#[derive(Debug)]
pub(super) struct Processors(Mutex<Vec<usize>>);

impl Processors {
    /// Returns all of them; none where the system does not say.
    pub(super) fn new() -> Self {
        Self(Mutex::new(system::usable()))
    }

    /// Lends one, if there is one that nobody has.
    pub(super) fn lend(&self) -> Lent<'_> {
        let processor = self.free().pop();
        Lent {
            of: self,
            processor,
        }
    }

    fn free(&self) -> MutexGuard<'_, Vec<usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A processor that goes back when this is dropped.
#[derive(Debug)]
pub(super) struct Lent<'a> {
    of: &'a Processors,
    processor: Option<usize>,
}

impl Lent<'_> {
    /// Returns its number.
    pub(super) fn number(&self) -> Option<usize> {
        self.processor
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        self.of.free().extend(self.processor);
    }
}

/// Has this thread, and all that it will start, use one processor.
pub(super) fn stay_on(processor: usize) {
    system::stay_on(processor);
}

#[cfg(target_os = "linux")]
mod system {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    pub(super) fn usable() -> Vec<usize> {
        let set = sched_getaffinity(None).unwrap_or_default();
        let all = 0..CpuSet::MAX_CPU;
        all.filter(|processor| set.is_set(*processor)).collect()
    }

    pub(super) fn stay_on(processor: usize) {
        let mut set = CpuSet::new();
        set.set(processor);
        sched_setaffinity(None, &set).ok(); // it is slower then, and the same
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    pub(super) fn usable() -> Vec<usize> {
        Vec::new()
    }

    pub(super) fn stay_on(_processor: usize) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_is_one_worlds_at_a_time() {
        let two = Processors(Mutex::new(vec![3, 5]));
        let (one, other, third) = (two.lend(), two.lend(), two.lend());
        assert_eq!(
            [one.number(), other.number(), third.number()],
            [Some(5), Some(3), None]
        );
        drop(other);
        assert_eq!(two.lend().number(), Some(3));
    }
}
