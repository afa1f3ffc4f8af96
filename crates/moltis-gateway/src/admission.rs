//! Who may try to prove itself: strangers are counted, and failing costs.
//!
//! A connection is a stranger's until a known key has proved itself on it. Strangers are bounded in
//! all and for each source; a failed or unfinished handshake costs its source a token, and a source
//! without tokens is told to come back later, each time longer. A proof by a known key costs
//! nothing, so a building full of nodes behind one address returns at once.
//!
//! [`Ledger`] is the rule book, pure; [`Admission`] shares it and bounds the work on handshakes.
//! Called by `socket`, before and after each handshake.

mod ledger;

use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

use ledger::{Ledger, Source};

/// The bounds of [`Admission`]; the defaults are those of `moltis_proto::limits`.
#[derive(Debug, Clone, PartialEq)]
pub struct AdmissionConfig {
    /// Strangers' connections in all. One more is answered 503.
    pub strangers_max: usize,
    /// Strangers' connections from one source. One more is answered 503.
    pub strangers_per_source_max: usize,
    /// Failed handshakes that a source is forgiven each second.
    pub failures_per_second: f64,
    /// Failed handshakes that a source is forgiven at once.
    pub failures_burst: f64,
    /// Handshakes whose cryptography runs at the same time; more wait.
    pub crypto_at_once: NonZeroUsize,
}

impl Default for AdmissionConfig {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        Self {
            strangers_max: moltis_proto::limits::STRANGERS_MAX,
            strangers_per_source_max: moltis_proto::limits::STRANGERS_PER_SOURCE_MAX,
            failures_per_second: 5.0,
            failures_burst: 20.0,
            crypto_at_once: cores.saturating_mul(NonZeroUsize::MIN.saturating_add(1)),
        }
    }
}

/// A stranger is turned away: there is no room, or its source has failed too often.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many strangers, or too many failures from there: come back in {} s", retry_after.as_secs())]
pub struct TurnedAway {
    /// When to come back, jittered.
    pub retry_after: Duration,
}

/// The door keeper. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Admission {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    ledger: Mutex<Ledger>,
    crypto: Semaphore,
}

impl Admission {
    /// Returns a door keeper with these bounds.
    pub fn new(config: &AdmissionConfig) -> Self {
        Self {
            shared: Arc::new(Shared {
                ledger: Mutex::new(Ledger::new(config)),
                crypto: Semaphore::new(config.crypto_at_once.get()),
            }),
        }
    }

    /// Lets a stranger in, to prove itself.
    ///
    /// # Errors
    /// [`TurnedAway`].
    pub fn admit(&self, address: IpAddr) -> Result<Stranger, TurnedAway> {
        let source = Source::of(address);
        let source = self
            .with(|ledger| ledger.admit(source, Instant::now().into_std()))
            .map_err(|wait| TurnedAway {
                retry_after: jittered(wait, moltis_identity::random::bytes()),
            })?;
        Ok(Stranger {
            admission: self.clone(),
            source,
            cost: Cost::Failure,
        })
    }

    /// Runs a piece of handshake cryptography when there is room for it.
    pub async fn crypto<T>(&self, work: impl FnOnce() -> T) -> T {
        // The semaphore is never closed; were it, working at once is the lesser harm.
        let permit = self.shared.crypto.acquire().await.ok();
        let result = work();
        drop(permit);
        result
    }

    /// Returns how many strangers are connected.
    pub fn strangers(&self) -> usize {
        self.with(|ledger| ledger.strangers())
    }

    fn with<T>(&self, look: impl FnOnce(&mut Ledger) -> T) -> T {
        let mut ledger = self
            .shared
            .ledger
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        look(&mut ledger)
    }
}

/// One stranger's connection. Dropping it gives the room back and, unless somebody vouched for the
/// stranger, charges its source.
#[derive(Debug)]
pub struct Stranger {
    admission: Admission,
    source: Source,
    cost: Cost,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cost {
    Nothing,
    Failure,
}

impl Stranger {
    /// It has proved to be somebody we know: it costs nothing, and is a stranger no more.
    pub fn is_known(mut self) {
        self.cost = Cost::Nothing;
    }

    /// It has proved its key and waits for a person: it keeps its room, but costs nothing.
    pub fn waits(&mut self) {
        self.cost = Cost::Nothing;
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let (source, failed) = (self.source, self.cost == Cost::Failure);
        self.admission
            .with(|ledger| ledger.leave(source, failed, Instant::now().into_std()));
    }
}

/// Spreads a wait over itself and half as much again, so that those who were sent away together do
/// not come back together.
fn jittered(wait: Duration, random: [u8; 2]) -> Duration {
    wait + wait.mul_f64(f64::from(u16::from_le_bytes(random)) / f64::from(u16::MAX) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn two_tokens() -> Admission {
        Admission::new(&AdmissionConfig {
            failures_per_second: 1.0,
            failures_burst: 2.0,
            ..AdmissionConfig::default()
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_known_node_may_come_as_often_as_it_likes() {
        let admission = two_tokens();
        for _ in 0..1000 {
            admission.admit(HERE).unwrap().is_known();
        }
        assert_eq!(admission.strangers(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_fails_is_sent_away_and_may_come_back() {
        let admission = two_tokens();
        for _ in 0..2 {
            drop(admission.admit(HERE).unwrap());
        }
        let turned = admission.admit(HERE).unwrap_err();
        assert!(turned.retry_after >= Duration::from_secs(1));
        tokio::time::advance(turned.retry_after).await;
        assert!(admission.admit(HERE).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_a_person_keeps_its_room_and_pays_nothing() {
        let admission = two_tokens();
        for _ in 0..10 {
            let mut stranger = admission.admit(HERE).unwrap();
            stranger.waits();
            assert_eq!(admission.strangers(), 1);
        }
        assert_eq!(admission.strangers(), 0);
    }

    #[test]
    fn jitter_stays_within_half_of_the_wait() {
        let wait = Duration::from_secs(10);
        assert_eq!(jittered(wait, [0, 0]), wait);
        assert_eq!(jittered(wait, [255, 255]), Duration::from_secs(15));
    }
}
