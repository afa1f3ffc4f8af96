//! How many TCP connections there are, in all and from one source: each costs a descriptor and a
//! buffer before it has said a word.
//!
//! A connection counts until it ends or becomes a node's; strangers among those are counted by
//! [`admission`](crate::admission). The Unix socket is the operator's and counts for nothing, so
//! that a gateway that is full can still be asked why. Called by the accept loop of [`super::serve`].

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::throttle::network;

/// Connections in all: below the descriptors that systems grant, with room for nodes and files.
const GUESTS_MAX: usize = 4096;

/// Connections from one source. More than the strangers of a source, who are told when to come
/// back. This machine is spared: a proxy there speaks for everybody.
const GUESTS_PER_SOURCE_MAX: usize = 512;

/// The connections of one gateway. Cloning shares them.
#[derive(Debug, Clone)]
pub(crate) struct Guests {
    counted: Arc<Mutex<Counted>>,
    max: usize,
    per_source_max: usize,
}

#[derive(Debug, Default)]
struct Counted {
    all: usize,
    by_source: HashMap<IpAddr, usize>,
}

/// A connection that is counted until this is dropped.
#[derive(Debug)]
pub(crate) struct Guest {
    guests: Guests,
    source: Option<IpAddr>,
}

impl Default for Guests {
    fn default() -> Self {
        Self::new(GUESTS_MAX, GUESTS_PER_SOURCE_MAX)
    }
}

impl Guests {
    /// Returns a count with these bounds.
    pub(crate) fn new(max: usize, per_source_max: usize) -> Self {
        Self {
            counted: Arc::default(),
            max,
            per_source_max,
        }
    }

    /// Counts one more; `None` where there is no room for it.
    pub(crate) fn admit(&self, address: Option<IpAddr>) -> Option<Guest> {
        let source = address
            .filter(|ip| !ip.to_canonical().is_loopback())
            .map(network);
        let mut counted = self.counted();
        let from_there = source.and_then(|source| counted.by_source.get(&source).copied());
        if counted.all >= self.max || from_there.unwrap_or(0) >= self.per_source_max {
            return None;
        }
        counted.all += 1;
        if let Some(source) = source {
            *counted.by_source.entry(source).or_default() += 1;
        }
        Some(Guest {
            guests: self.clone(),
            source,
        })
    }

    /// Returns how many there are.
    #[cfg(feature = "metrics")]
    pub(crate) fn count(&self) -> usize {
        self.counted().all
    }

    fn counted(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut counted = self.guests.counted();
        counted.all -= 1;
        let Some(source) = self.source else { return };
        if let Some(from_there) = counted.by_source.get_mut(&source) {
            *from_there -= 1;
            if *from_there == 0 {
                counted.by_source.remove(&source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_too_many_is_turned_away_until_another_goes() {
        let guests = Guests::new(5, 2);
        let from = |text: &str| guests.admit(Some(text.parse().unwrap()));
        let first = from("192.0.2.1").unwrap();
        let _second = from("192.0.2.1").unwrap();
        assert!(from("192.0.2.1").is_none());
        assert!(
            from("::ffff:192.0.2.1").is_none(),
            "the same in other clothes"
        );
        let _other = from("192.0.2.2").unwrap();
        drop(first);
        let _third = from("192.0.2.1").unwrap();
        // A network of IPv6 is one source.
        let _six = from("2001:db8::1").unwrap();
        let _seven = from("2001:db8::2").unwrap();
        assert!(from("192.0.2.9").is_none(), "five in all");
        assert_eq!(guests.counted().by_source.len(), 3);
    }

    #[test]
    fn this_machine_has_no_bound_of_its_own_and_nothing_stays_behind() {
        let guests = Guests::new(5, 2);
        let local: Vec<_> = (0..6)
            .map(|_| guests.admit(Some("127.0.0.1".parse().unwrap())))
            .collect();
        assert_eq!(local.iter().flatten().count(), 5);
        drop(local);
        assert_eq!(guests.counted().all, 0);
    }
}
