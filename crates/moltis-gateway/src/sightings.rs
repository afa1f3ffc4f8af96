//! Who was seen when: written in slices, because it changes all the time and matters little.

use std::sync::Arc;
use std::time::Duration;

use crate::exec::Shared;
use crate::session::chain;
use crate::session::seat::Seat;
use crate::store::{Sighting, Target};

/// Time between two slices.
const EVERY: Duration = Duration::from_mins(1);

/// Sightings in one transaction, which stays within 2 ms.
const SLICE_MAX: usize = 64;

/// Returns what a seat says of its node.
pub(crate) fn sighting_of(seat: &Seat) -> Option<Sighting> {
    let Target::Node(device_id) = seat.sitter.target else {
        return None;
    };
    Some(Sighting {
        device_id,
        at: seat.heard_at(),
        address: seat
            .sitter
            .remote
            .map(|address| address.to_string())
            .unwrap_or_default(),
    })
}

/// Writes who is here, each minute, and once more at the end.
pub(crate) async fn write_slices(shared: Arc<Shared>) {
    let stop = shared.tasks.stop().clone();
    loop {
        let stopped = tokio::select! {
            biased;
            () = stop.cancelled() => true,
            () = tokio::time::sleep(EVERY) => false,
        };
        let mut seen = shared.take_seen();
        seen.extend(
            shared
                .roster
                .seats()
                .iter()
                .filter_map(|seat| sighting_of(seat)),
        );
        for slice in seen.chunks(SLICE_MAX) {
            if let Err(error) = shared.store.touch_nodes(slice.to_vec()).await {
                tracing::warn!(error = %chain(&error), "it cannot be noted which nodes were seen");
                break;
            }
        }
        if stopped {
            return;
        }
    }
}
