//! The newest events, each with its number: a value that is pushed to and looked at.
//!
//! Samples come often and say little, so they lie in a lane of their own: ten thousand nodes that
//! report twice a minute push out each other's samples, and never the one run that has ended.

use std::collections::VecDeque;

use super::{Event, Kinds};
use crate::api::events::EventKind;

/// Events that are kept, samples aside: 512 KiB. Ten thousand nodes that go at once fit.
pub const EVENTS_KEPT: usize = 16_384;

/// Samples that are kept: as many bytes, which ten thousand nodes fill in 49 seconds.
pub const SAMPLES_KEPT: usize = 16_384;

/// What has happened lately.
#[derive(Debug)]
pub(super) struct Ring {
    newest: u64,
    events: Lane,
    samples: Lane,
}

#[derive(Debug)]
struct Lane {
    /// The oldest first, by ascending numbers.
    kept: VecDeque<(u64, Event)>,
    kept_max: usize,
    /// The number of the newest event that was let go of; 0 while all are kept.
    gone: u64,
}

/// What stands behind a number.
#[derive(Debug, PartialEq)]
pub(super) enum Found {
    /// This event.
    Next(u64, Event),
    /// Nothing of what was asked for.
    Nothing,
    /// Something that is not kept any more, or that has never been.
    Gone,
}

impl Default for Ring {
    fn default() -> Self {
        Self::new(EVENTS_KEPT, SAMPLES_KEPT)
    }
}

impl Ring {
    pub(super) fn new(events_max: usize, samples_max: usize) -> Self {
        Self {
            newest: 0,
            events: Lane::new(events_max),
            samples: Lane::new(samples_max),
        }
    }

    /// Returns the number of the newest event; 0 before the first.
    pub(super) fn newest(&self) -> u64 {
        self.newest
    }

    /// Takes what has happened, and returns its number.
    pub(super) fn push(&mut self, event: Event) -> u64 {
        self.newest += 1;
        let lane = match event.kind() {
            EventKind::Telemetry => &mut self.samples,
            _ => &mut self.events,
        };
        lane.push(self.newest, event);
        self.newest
    }

    /// Returns the first event of these kinds behind a number.
    pub(super) fn find(&self, behind: u64, kinds: Kinds) -> Found {
        let samples = kinds.contains(EventKind::Telemetry);
        if behind > self.newest
            || behind < self.events.gone
            || (samples && behind < self.samples.gone)
        {
            return Found::Gone;
        }
        let event = self.events.first(behind, kinds);
        let sample = self.samples.first(behind, kinds).filter(|_| samples);
        let earlier = match (event, sample) {
            (Some(event), Some(sample)) if sample.0 < event.0 => Some(sample),
            (Some(event), _) => Some(event),
            (None, sample) => sample,
        };
        earlier.map_or(Found::Nothing, |(number, event)| {
            Found::Next(*number, event.clone())
        })
    }
}

impl Lane {
    fn new(kept_max: usize) -> Self {
        Self {
            kept: VecDeque::new(),
            kept_max,
            gone: 0,
        }
    }

    fn push(&mut self, number: u64, event: Event) {
        if self.kept.len() >= self.kept_max
            && let Some((gone, _)) = self.kept.pop_front()
        {
            self.gone = gone;
        }
        self.kept.push_back((number, event));
    }

    fn first(&self, behind: u64, kinds: Kinds) -> Option<&(u64, Event)> {
        let from = self.kept.partition_point(|(number, _)| *number <= behind);
        let mut rest = self.kept.range(from..);
        rest.find(|(_, event)| kinds.contains(event.kind()))
    }
}

#[cfg(test)]
mod tests {
    use moltis_proto::{DeviceId, RunId};

    use super::*;

    const RUNS: [EventKind; 1] = [EventKind::RunEnded];

    fn run() -> Event {
        Event::RunEnded(RunId::from_bytes([1; 16]))
    }

    fn sample() -> Event {
        Event::Telemetry(DeviceId::from_bytes([2; 16]))
    }

    /// Reads everything behind a number.
    fn read(ring: &Ring, mut behind: u64, kinds: Kinds) -> Result<Vec<u64>, ()> {
        let mut seen = Vec::new();
        loop {
            match ring.find(behind, kinds) {
                Found::Next(number, _) => {
                    seen.push(number);
                    behind = number;
                }
                Found::Nothing => return Ok(seen),
                Found::Gone => return Err(()),
            }
        }
    }

    #[test]
    fn two_lanes_are_read_as_one() {
        let mut ring = Ring::new(10, 10);
        for event in [run(), sample(), sample(), run(), sample()] {
            ring.push(event);
        }
        assert_eq!(read(&ring, 0, Kinds::ALL), Ok(vec![1, 2, 3, 4, 5]));
        assert_eq!(read(&ring, 2, Kinds::ALL), Ok(vec![3, 4, 5]));
        assert_eq!(read(&ring, 0, RUNS.into_iter().collect()), Ok(vec![1, 4]));
    }

    #[test]
    fn a_flood_of_samples_pushes_out_samples_alone() {
        let mut ring = Ring::new(4, 4);
        let first = ring.push(run());
        for _ in 0..1000 {
            ring.push(sample());
        }
        let last = ring.push(run());
        let runs: Kinds = RUNS.into_iter().collect();
        assert_eq!(read(&ring, 0, runs), Ok(vec![first, last]));
        assert_eq!(read(&ring, first, Kinds::ALL), Err(()), "samples are gone");
        assert_eq!(read(&ring, 997, Kinds::ALL).map(|seen| seen.len()), Ok(5));
        assert_eq!(read(&ring, 996, Kinds::ALL), Err(()));
    }

    #[test]
    fn nothing_is_kept_beyond_the_bound_and_what_is_gone_is_never_skipped_in_silence() {
        let mut ring = Ring::new(100, 1);
        for number in 1..=1000 {
            assert_eq!(ring.push(run()), number);
            assert!(ring.events.kept.len() <= 100);
            let oldest = number.saturating_sub(100);
            assert_eq!(
                read(&ring, oldest, Kinds::ALL),
                Ok((oldest + 1..=number).collect())
            );
            if oldest > 0 {
                assert_eq!(ring.find(oldest - 1, Kinds::ALL), Found::Gone);
            }
        }
    }

    #[test]
    fn a_number_that_was_never_given_is_not_waited_for() {
        let mut ring = Ring::new(4, 4);
        assert_eq!(ring.find(0, Kinds::ALL), Found::Nothing);
        assert_eq!(ring.find(1, Kinds::ALL), Found::Gone);
        ring.push(run());
        assert_eq!(ring.find(1, Kinds::ALL), Found::Nothing);
        assert_eq!(ring.find(u64::MAX, Kinds::ALL), Found::Gone);
    }
}
