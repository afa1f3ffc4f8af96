//! When a node's record changes: the roster is made anew, and who is revoked or forgotten goes.
//!
//! The desk says that something has changed; here it becomes true for everybody else. Also here,
//! because it comes with the same minute: the desk is told who is here, and telemetry is written.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use moltis_proto::DeviceId;
use moltis_proto::code::CloseCode;
use tokio::time::Instant;

use crate::exec::{Shared, Write};
use crate::session::seat::Seat;
use crate::store::Target;
use crate::telemetry::HourRow;

/// Time between two times that the desk is told who is here.
const SEEN_EVERY: Duration = Duration::from_mins(1);

/// Time between two times that everybody is told what nodes say anew of themselves, for each node that
/// is known: to take all of them down costs a microsecond for each, and after an upgrade each has
/// news. Half a second for ten thousand, nothing that anybody notices for a few.
const NEWS_EVERY_FOR_EACH: Duration = Duration::from_micros(50);

/// Follows the desk until the gateway stops.
pub(crate) async fn follow(shared: Arc<Shared>) {
    let stop = shared.tasks.stop().clone();
    let (mut changes, mut news) = (shared.desk.changes(), shared.desk.news());
    let (mut news_due, mut told) = (None, None::<Instant>);
    let mut minute = tokio::time::interval(SEEN_EVERY);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => {
                write_history(&shared, Write::All).await;
                return;
            }
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
                apply(&shared);
                (news_due, told) = (None, Some(Instant::now()));
            }
            Ok(()) = news.changed(), if news_due.is_none() => {
                let now = Instant::now();
                let known = u32::try_from(shared.roster.directory().iter().count()).unwrap_or(u32::MAX);
                let every = NEWS_EVERY_FOR_EACH.saturating_mul(known);
                news_due = Some(told.map_or(now, |told| now.max(told + every)));
            }
            () = until(news_due) => {
                apply(&shared);
                (news_due, told) = (None, Some(Instant::now()));
            }
            _ = minute.tick() => {
                shared.roster.seats().iter().for_each(|seat| saw(&shared, seat));
                write_history(&shared, Write::Due).await;
            }
        }
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// Swaps what is known, and lets go of who may not be here any more.
fn apply(shared: &Arc<Shared>) {
    let nodes = shared.desk.nodes();
    let welcome: HashSet<DeviceId> = nodes
        .iter()
        .filter(|node| node.revoked_at.is_none())
        .map(|node| node.device_id)
        .collect();
    let before = shared.roster.directory();
    shared.roster.set_known(nodes);
    for seat in shared.roster.seats() {
        if let Target::Node(device) = seat.sitter.target
            && !welcome.contains(&device)
        {
            seat.close(CloseCode::Revoked);
        }
    }
    for node in before.iter() {
        if node.revoked_at.is_none() && !welcome.contains(&node.device_id) {
            shared.end_all_of_revoked(node.device_id);
            shared.forget_history(node.device_id);
        }
    }
}

/// Writes hours of telemetry. What cannot be written is gone with the hour: it is for charts.
async fn write_history(shared: &Shared, which: Write) {
    for row in shared.hours_to_write(which) {
        let HourRow {
            device_id,
            hour,
            samples,
        } = row;
        let written = shared
            .store
            .put_telemetry_hour(device_id, hour, samples)
            .await;
        if let Err(error) = written {
            tracing::warn!(%error, "telemetry cannot be written");
            return;
        }
    }
}

/// Tells the desk that a node is here, or was until now.
pub(crate) fn saw(shared: &Shared, seat: &Seat) {
    if let (Target::Node(device), Some(remote)) = (&seat.sitter.target, seat.sitter.remote) {
        shared.desk.saw(*device, remote);
    }
}
