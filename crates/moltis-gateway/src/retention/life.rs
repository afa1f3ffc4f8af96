//! Counts how long the gateway's machine lives, for the age of what goes (ADR 72).
//!
//! A second counts when a gateway was there to see it pass, or when the clock of the running boot
//! shows that it passed between two gateways, a suspend included. What passes while the machine is
//! off does not count: only the time of day could tell, and it tells anything.

use std::time::Duration;

use moltis_proto::BootId;
use moltis_proto::liveness::Moment;

use crate::session::moment;
use crate::store::{Lived, Store, StoreError};

/// The count is written as often as this, so that much is not counted when the machine goes off.
/// What is stamped with it is younger than it seems by as much.
pub(super) const COUNT_EVERY: Duration = Duration::from_mins(10);

/// The count of one gateway.
#[derive(Debug)]
pub(crate) struct Life {
    store: Store,
    counted: Lived,
    at: Moment,
}

impl Life {
    /// Goes on counting where the gateway before has ended. `boot_id` names the running boot: where it
    /// is known, what has passed of it since counts.
    ///
    /// # Errors
    /// Where the store cannot be read. One that takes no writes now keeps no gateway from beginning.
    pub(crate) async fn begin(store: Store, boot_id: Option<BootId>) -> Result<Self, StoreError> {
        Self::begin_at(moment::now(), store, boot_id).await
    }

    async fn begin_at(
        at: Moment,
        store: Store,
        boot_id: Option<BootId>,
    ) -> Result<Self, StoreError> {
        let before = store.lived().await?;
        let between = match boot_id {
            Some(_) if boot_id == before.boot_id => at.boottime.saturating_sub(before.boottime),
            _ => Duration::ZERO,
        };
        let mut counted = Lived {
            total: before.total + between,
            boot_id,
            boottime: at.boottime,
        };
        if let Err(error) = store.set_lived(counted).await {
            note_failure(&error);
            // Rows may still be stamped with the count of before, and must not seem older for it.
            counted.total = before.total;
        }
        Ok(Self { store, counted, at })
    }

    /// Counts what has passed, where that is worth a write.
    ///
    /// # Errors
    /// Where it cannot be written: it is counted the next time.
    pub(super) async fn go_on(&mut self) -> Result<(), StoreError> {
        self.go_on_at(moment::now()).await
    }

    async fn go_on_at(&mut self, now: Moment) -> Result<(), StoreError> {
        if now.since(self.at) < COUNT_EVERY {
            return Ok(());
        }
        self.count_to(now).await
    }

    /// Counts what has passed.
    ///
    /// # Errors
    /// As [`go_on`](Self::go_on).
    pub(super) async fn count(&mut self) -> Result<(), StoreError> {
        self.count_to(moment::now()).await
    }

    async fn count_to(&mut self, now: Moment) -> Result<(), StoreError> {
        let counted = Lived {
            total: self.counted.total + now.since(self.at),
            boottime: now.boottime,
            ..self.counted
        };
        self.store.set_lived(counted).await?;
        (self.counted, self.at) = (counted, now);
        Ok(())
    }
}

/// Says that the count cannot be written.
pub(super) fn note_failure(error: &StoreError) {
    tracing::warn!(%error, "how long the machine has lived cannot be written: what is old stays for longer");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::store;

    const BOOT: Option<BootId> = Some(BootId::from_bytes([1; 16]));
    const OTHER: Option<BootId> = Some(BootId::from_bytes([2; 16]));
    const HOUR: Duration = Duration::from_hours(1);

    /// A moment at which a machine has been on for so long, whatever this one has.
    fn up_for(boottime: Duration) -> Moment {
        let monotonic = tokio::time::Instant::now().into_std() + boottime;
        Moment {
            monotonic,
            boottime,
        }
    }

    async fn hours(store: &Store) -> u64 {
        store.lived().await.unwrap().total.as_secs() / 3600
    }

    #[tokio::test]
    async fn what_passes_between_two_gateways_counts_in_the_same_boot_alone() {
        for (before, now, expected) in [
            (BOOT, BOOT, 11),
            (BOOT, OTHER, 10),
            (None, BOOT, 10),
            (None, None, 10),
        ] {
            let store = store().await;
            let lived = Lived {
                total: 10 * HOUR,
                boot_id: before,
                boottime: 2 * HOUR,
            };
            store.set_lived(lived).await.unwrap();
            let begun = Life::begin_at(up_for(3 * HOUR), store.store.clone(), now);
            begun.await.unwrap();
            assert_eq!(hours(&store).await, expected, "{before:?}, then {now:?}");
        }
    }

    #[tokio::test]
    async fn a_gateway_counts_what_it_sees_pass_a_sleep_included() {
        let store = store().await;
        let begun = Life::begin_at(up_for(HOUR), store.store.clone(), BOOT);
        let mut life = begun.await.unwrap();
        let begun = life.at;
        life.go_on_at(begun).await.unwrap();
        assert_eq!(hours(&store).await, 0);
        // The machine slept, so the clock that stands still meanwhile tells nothing of it.
        let awake = Moment {
            boottime: 3 * HOUR,
            ..begun
        };
        life.go_on_at(awake).await.unwrap();
        assert_eq!(hours(&store).await, 2);
        life.go_on_at(awake).await.unwrap();
        assert_eq!(hours(&store).await, 2, "nothing counts twice");
    }
}
