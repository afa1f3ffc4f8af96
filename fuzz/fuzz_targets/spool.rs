//! What a dead keeper left of a spool: a header of any figures whose checksum holds, a page that is
//! damaged, a file that is shorter than it says. A client gets what the header speaks of or a gap, and
//! then the ending; no figures make the outbox of the next keeper fail, hang or fill its memory.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use moltis_fuzz::Input;
use moltis_node::keeper::fuzzing::{PAGE_BYTES, page_of, read_page};
use moltis_proto::message::Windows;
use moltis_proto::run::outbox::{
    Outbox, OutboxLimits, Recovered, SpoolDone, SpoolHeader, SpoolOp, Transmit,
};
use moltis_proto::run::{Ending, GapReason, Outcome, Reason, Stream, Totals};

/// What stands on every disk.
static DISK: [u8; 256 * 1024] = [7; 256 * 1024];

/// Steps after which a client gives up on a stream of figures beyond every disk.
const STEPS_MAX: usize = 64;

fn ending() -> Ending {
    Ending {
        outcome: Outcome::Lost,
        reason: Some(Reason::KeeperDied),
        status: None,
        detail: String::new(),
        duration_ms: 0,
        descendants_may_survive: true,
    }
}

/// Reads the page of one stream, as a keeper left it and somebody changed it.
fn recovered(input: &mut Input<'_>) -> Recovered {
    let mut page = [0; PAGE_BYTES];
    if input.below(4) == 0 {
        let raw = input.piece(PAGE_BYTES);
        page[..raw.len()].copy_from_slice(raw);
    } else {
        let written = SpoolHeader {
            base: input.number(),
            head_bytes: input.number(),
            ring_bytes: input.number(),
            from: input.number(),
            to: input.number(),
        };
        let growing = input.flag().then(|| u32::from(input.short()));
        page = page_of(&written, growing);
        let found = read_page(&page);
        assert_eq!(found, written.is_sound().then_some((written, growing)));
        if input.below(4) == 0 {
            let (at, to) = (usize::from(input.byte()), input.byte());
            page[at] = to;
            let found = read_page(&page);
            assert!(
                found.is_none() || found == Some((written, growing)),
                "{found:?}"
            );
        }
    }
    let header = read_page(&page).map(|(header, _)| header);
    assert!(header.is_none_or(|header| header.is_sound()));
    Recovered {
        header,
        total: input.flag().then(|| input.number()),
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let limits = OutboxLimits::default();
    let now = moltis_fuzz::start();
    let streams = [recovered(&mut input), recovered(&mut input)];
    let mut outbox = Outbox::recovered(limits, streams, ending());
    let windows = Windows {
        run_bytes: 1 << 20,
        connection_bytes: 1 << 23,
        stdin_bytes: 1 << 18,
        chunk_bytes_max: 60 * 1024,
    };
    let resumed = Totals {
        stdout: input.number(),
        stderr: input.number(),
    };
    if outbox.handle_resume(&windows, resumed, now).is_err() {
        let beyond = |stream: Stream| resumed.of(stream) > outbox.totals().of(stream);
        assert!(Stream::BOTH.into_iter().any(beyond));
        return;
    }
    let disk_bytes = input.number();
    let mut next = [resumed.stdout, resumed.stderr];
    let mut ended = false;
    for _ in 0..STEPS_MAX {
        for stream in Stream::BOTH {
            let Some(op) = outbox.poll_spool(stream) else {
                continue;
            };
            let result = match op {
                SpoolOp::Write { .. } => panic!("a dead run's spool is written"),
                SpoolOp::Clear => Ok(SpoolDone::Done),
                SpoolOp::Read { position, length } => {
                    assert!(
                        length <= DISK.len() as u64,
                        "{length} bytes are read at once"
                    );
                    let is_there = position
                        .checked_add(length)
                        .is_some_and(|to| to <= disk_bytes);
                    if is_there {
                        let length = usize::try_from(length).expect("it was checked");
                        Ok(SpoolDone::Read(Bytes::from_static(&DISK[..length])))
                    } else {
                        Err(GapReason::DiskFailed)
                    }
                }
            };
            outbox.handle_spool(stream, result, now);
        }
        assert!(outbox.memory_bytes() <= 4 << 20);
        match outbox.poll_transmit(usize::MAX, now) {
            Some(Transmit::Output {
                stream,
                offset,
                bytes,
            }) => {
                let next = &mut next[stream.index()];
                assert_eq!(offset, *next);
                *next += bytes.len() as u64;
            }
            Some(Transmit::Gap {
                stream, from, to, ..
            }) => {
                let next = &mut next[stream.index()];
                assert_eq!(from, *next);
                assert!(to > from);
                *next = to;
            }
            Some(Transmit::Ended { totals, .. }) => {
                assert!(!ended);
                ended = true;
                assert_eq!(next, [totals.stdout, totals.stderr]);
            }
            None => {
                let [stdout, stderr] = next;
                let acked = outbox.handle_ack(Totals { stdout, stderr }, now);
                acked.expect("what was sent is acknowledged");
            }
        }
    }
});
