//! Every bound of the protocol: its unit, its reason, and what happens when it is hit.

use std::time::Duration;

/// Bytes of one Noise message, one WebSocket message, one frame (Noise specification, 3).
/// A longer message closes the connection.
pub const FRAME_BYTES_MAX: usize = 65_535;

/// Bytes of plaintext in one frame: a Noise message less its 16-byte tag.
pub const PLAINTEXT_BYTES_MAX: usize = FRAME_BYTES_MAX - 16;

/// Bytes of output, stdin or tunnel data in one postcard frame. The rest of the frame is room for
/// the message around them.
pub const CHUNK_BYTES_MAX: usize = 60 * 1024;

/// The same in JSON, where base64 makes four characters of three bytes: 44 KiB become 59 KiB.
pub const CHUNK_BYTES_MAX_JSON: usize = 44 * 1024;

/// Bytes of one frame before the gateway has accepted the node. A longer one closes.
pub const HANDSHAKE_FRAME_BYTES_MAX: usize = 4 * 1024;

/// Bytes of all frames of one peer before acceptance. More closes.
pub const HANDSHAKE_BYTES_MAX: usize = 16 * 1024;

/// How long a peer may take from the upgrade to its introduction. Longer closes.
pub const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(10);

/// Bytes of a telemetry sample. Its lists are cut until it fits, and say so.
pub const TELEMETRY_BYTES_MAX: usize = 16 * 1024;

/// Time between two telemetry samples.
pub const TELEMETRY_INTERVAL: Duration = Duration::from_secs(30);

/// Runs in one page of the list that a node sends after acceptance: 256 × about 120 bytes is half
/// a frame in postcard.
pub const RUNS_PAGE_MAX: usize = 256;

/// The same in JSON, where a run takes some 300 bytes.
pub const RUNS_PAGE_MAX_JSON: usize = 128;

/// How long a node may take from its acceptance to the last page of that list: 16,384 runs over a
/// line of 2 Mbit/s, or a keeper that is started first. Longer closes.
pub const RUNS_TIME_MAX: Duration = Duration::from_secs(15);

/// Bytes of one run that may be under way without an acknowledgement. Four chunks at the least.
pub const RUN_WINDOW_BYTES: u32 = 1024 * 1024;

/// Bytes of all runs of one connection that may be under way without an acknowledgement.
pub const CONNECTION_WINDOW_BYTES: u32 = 8 * 1024 * 1024;

/// Bytes of stdin of one run that may be under way to a child that does not read them.
pub const STDIN_WINDOW_BYTES: u32 = 256 * 1024;

/// The receiver acknowledges at the latest this long after the first byte it has not acknowledged.
pub const ACK_DELAY: Duration = Duration::from_millis(20);

/// Bytes below the acknowledged offset that a node keeps of each stream until `Forget`: what a
/// gateway may have held in memory only when it died.
pub const KEPT_BELOW_ACK_BYTES: u64 = 64 * 1024;

/// Bytes of a stream that the gateway holds in memory before it makes a file. Never more than
/// [`KEPT_BELOW_ACK_BYTES`], or a crash could lose what was acknowledged.
pub const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Bytes of unacknowledged output of one stream that a node holds in memory before its spool.
pub const OUTBOX_MEMORY_BYTES: u64 = 1024 * 1024;

/// Bytes of the spool of one stream. Past it the first [`SPOOL_HEAD_BYTES`] and the newest are kept.
pub const SPOOL_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Bytes kept of the beginning of a stream whose spool is full.
pub const SPOOL_HEAD_BYTES: u64 = 1024 * 1024;

/// Bytes of all spools of one keeper, or a tenth of its disk where that is less, but not less than
/// [`SPOOL_BYTES_MAX`]. Past it no spool grows: each keeps its beginning and the newest in the room
/// that it has.
pub const SPOOLS_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// Returns how many bytes output leaves free on a file system of this size: for the gateway's store
/// and a keeper's journal, so that the run which fills a disk can be cancelled, and what frees it
/// can be run. An eighth, at most 64 MiB: a `-wal` file of 16 MiB, what its checkpoint adds, and
/// thousands of runs. Past it output counts as meeting a full disk.
pub const fn disk_reserve_bytes(disk_bytes: u64) -> u64 {
    const MAX: u64 = 64 * 1024 * 1024;
    let part = disk_bytes / 8;
    if part < MAX { part } else { MAX }
}

/// A reader that finds the memory of its outbox full waits this long for room before it spools.
pub const SPOOL_AFTER: Duration = Duration::from_millis(250);

/// Runs that one keeper holds at once, ended ones that wait for `Forget` included. One more is
/// refused as [`RunRefusal::TooMany`](crate::RunRefusal::TooMany).
pub const RUNS_MAX: usize = 4096;

/// Journals in the list of runs: that of the keeper itself, and those of dead ones in which runs stand.
pub const JOURNALS_MAX: usize = 256;

/// A side that has received nothing for this long sends a ping.
pub const PING_AFTER: Duration = Duration::from_secs(15);

/// A side that has received nothing for this long gives the connection up.
pub const SILENCE_MAX: Duration = Duration::from_secs(45);

/// Shortest and longest wait of a node before it dials again; jitter is taken within them.
pub const BACKOFF_MIN: Duration = Duration::from_millis(500);
/// See [`BACKOFF_MIN`].
pub const BACKOFF_MAX: Duration = Duration::from_mins(1);

/// A connection that lived this long resets the back-off.
pub const HEALTHY_AFTER: Duration = Duration::from_mins(1);

/// A `Start` is sent only this long after its row was written; later the run has failed to start.
pub const START_TIME_MAX: Duration = Duration::from_secs(30);

/// Time between SIGTERM and SIGKILL where the request names none.
pub const GRACE: Duration = Duration::from_secs(5);

/// Longest grace that a request may ask for.
pub const GRACE_MAX: Duration = Duration::from_mins(5);

/// How long output is awaited after the child has ended, while a grandchild holds the pipe.
pub const DRAIN: Duration = Duration::from_secs(2);

/// Bytes of one string on the wire, arguments and shell lines aside.
pub const TEXT_BYTES_MAX: usize = 4 * 1024;

/// Bytes of an encoded `Start`. A longer command belongs into stdin.
pub const START_BYTES_MAX: usize = PLAINTEXT_BYTES_MAX;

/// Bytes of words beside an ending; longer ones are cut.
pub const DETAIL_BYTES_MAX: usize = 512;

/// Requests to pair that wait at once, in all and from one address.
pub const PENDING_MAX: usize = 16;
/// See [`PENDING_MAX`].
pub const PENDING_PER_ADDRESS_MAX: usize = 3;

/// How long a request to pair waits for a person.
pub const PENDING_TIME: Duration = Duration::from_hours(1);

/// How long the pairing window stays open where nothing else is asked, and at the most.
pub const WINDOW_TIME: Duration = Duration::from_mins(10);
/// See [`WINDOW_TIME`].
pub const WINDOW_TIME_MAX: Duration = Duration::from_hours(1);

/// Unauthenticated connections that a gateway holds, in all and from one source. One more is
/// answered 503 with a time to come back.
pub const STRANGERS_MAX: usize = 1024;
/// See [`STRANGERS_MAX`].
pub const STRANGERS_PER_SOURCE_MAX: usize = 256;

const _: () = {
    assert!(HEAD_BYTES_MAX as u64 <= KEPT_BELOW_ACK_BYTES);
    assert!(RUN_WINDOW_BYTES as usize >= 4 * CHUNK_BYTES_MAX);
    assert!(CHUNK_BYTES_MAX_JSON.div_ceil(3) * 4 + 512 < PLAINTEXT_BYTES_MAX);
};
