//! When one key sits in two places: processes that take over from each other again and again. Pure.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use moltis_proto::DeviceId;

/// Takeovers within [`WITHIN`] that are an accident: a service restarted by hand while the old
/// connection was not yet given up.
const HARMLESS: usize = 3;

const WITHIN: Duration = Duration::from_mins(5);

/// The takeovers of the last minutes, by device.
#[derive(Debug, Default)]
pub(super) struct Takeovers(HashMap<DeviceId, VecDeque<Instant>>);

impl Takeovers {
    /// Notes that another process has taken over a device's connection. Returns whether that has
    /// to be reported: once, until it has been quiet for a while.
    pub(super) fn note(&mut self, device: DeviceId, now: Instant) -> bool {
        self.0.retain(|_, times| {
            times.retain(|at| now.saturating_duration_since(*at) < WITHIN);
            !times.is_empty()
        });
        let times = self.0.entry(device).or_default();
        times.push_back(now);
        if times.len() > HARMLESS + 1 {
            times.pop_front();
            return false;
        }
        times.len() == HARMLESS + 1
    }

    /// Returns whether a device was reported and has not been quiet since.
    pub(super) fn is_reported(&self, device: DeviceId, now: Instant) -> bool {
        let times = self.0.get(&device);
        let recent = times.into_iter().flatten();
        let recent = recent.filter(|at| now.saturating_duration_since(**at) < WITHIN);
        recent.count() > HARMLESS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICE: DeviceId = DeviceId::from_bytes([1; 16]);

    fn start() -> Instant {
        tokio::time::Instant::now().into_std()
    }

    #[test]
    fn the_fourth_takeover_in_five_minutes_is_reported_once() {
        let (mut takeovers, now) = (Takeovers::default(), start());
        let reports: Vec<bool> = (0..8)
            .map(|at| takeovers.note(DEVICE, now + Duration::from_secs(at)))
            .collect();
        assert_eq!(
            reports,
            [false, false, false, true, false, false, false, false]
        );
        let later = |seconds| now + Duration::from_secs(seconds);
        assert!(takeovers.is_reported(DEVICE, later(8)));
        assert!(!takeovers.is_reported(DEVICE, later(305)), "it is quiet");
        assert!(!takeovers.is_reported(DeviceId::from_bytes([2; 16]), later(8)));
    }

    #[test]
    fn takeovers_that_lie_far_apart_are_harmless() {
        let (mut takeovers, now) = (Takeovers::default(), start());
        for minutes in 0..20 {
            let at = now + Duration::from_mins(2 * minutes);
            assert!(!takeovers.note(DEVICE, at), "{minutes}");
        }
    }

    #[test]
    fn devices_do_not_count_for_each_other() {
        let (mut takeovers, now) = (Takeovers::default(), start());
        for device in 0..20 {
            assert!(!takeovers.note(DeviceId::from_bytes([device; 16]), now));
        }
        assert_eq!(takeovers.0.len(), 20);
        takeovers.note(DEVICE, now + WITHIN);
        assert_eq!(takeovers.0.len(), 1);
    }
}
