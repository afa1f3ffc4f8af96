//! The rules of output, one by one, and a seeded run against a plain model.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::run::Stream::{Stderr, Stdout};

const WINDOWS: Windows = Windows {
    run_bytes: 400,
    connection_bytes: 4000,
    stdin_bytes: 100,
    chunk_bytes_max: 100,
};

/// An instant to count from. The machine itself never asks for one.
fn start() -> Instant {
    #[expect(clippy::disallowed_methods, reason = "an arbitrary origin")]
    Instant::now()
}

fn inbox() -> Inbox {
    Inbox::new(&WINDOWS, 0, 0)
}

#[test]
fn bytes_in_order_are_fresh() {
    let (mut inbox, now) = (inbox(), start());
    for offset in [0, 100, 200] {
        assert_eq!(
            inbox.handle_output(Stdout, offset, 100, now),
            Ok(Fresh::From { skip: 0 })
        );
    }
    assert_eq!(inbox.received(Stdout), 300);
    assert_eq!(inbox.received(Stderr), 0);
}

#[test]
fn bytes_that_are_here_already_are_skipped() {
    let (mut inbox, now) = (inbox(), start());
    inbox.handle_output(Stdout, 0, 100, now).unwrap();
    assert_eq!(inbox.handle_output(Stdout, 0, 50, now), Ok(Fresh::Nothing));
    assert_eq!(
        inbox.handle_output(Stdout, 70, 50, now),
        Ok(Fresh::From { skip: 30 })
    );
    assert_eq!(inbox.received(Stdout), 120);
}

#[test]
fn a_hole_that_nobody_marked_is_an_error() {
    let (mut inbox, now) = (inbox(), start());
    inbox.handle_output(Stdout, 0, 10, now).unwrap();
    assert_eq!(
        inbox.handle_output(Stdout, 11, 10, now),
        Err(InboxError::Hole {
            stream: Stdout,
            expected: 10,
            found: 11
        })
    );
    assert!(matches!(
        inbox.handle_gap(Stdout, 11, 20, now),
        Err(InboxError::Hole { .. })
    ));
}

#[test]
fn a_marked_hole_is_legal_and_takes_no_room_in_the_window() {
    let (mut inbox, now) = (inbox(), start());
    inbox.handle_output(Stdout, 0, 100, now).unwrap();
    inbox.handle_gap(Stdout, 100, 1_000_000, now).unwrap();
    assert_eq!(inbox.in_flight(), 100);
    inbox.handle_output(Stdout, 1_000_000, 100, now).unwrap();
    assert_eq!(inbox.in_flight(), 200);
    inbox.handle_stored(Stdout, 1_000_050);
    let ack = inbox.take_ack(now).unwrap();
    assert_eq!(ack.stdout, 1_000_050);
    assert_eq!(inbox.in_flight(), 50);
}

#[test]
fn an_acknowledgement_inside_a_hole_keeps_the_count_right() {
    let (mut inbox, now) = (inbox(), start());
    inbox.handle_gap(Stdout, 0, 1000, now).unwrap();
    inbox.handle_output(Stdout, 1000, 100, now).unwrap();
    for stored in [1, 500, 999, 1000, 1100] {
        inbox.handle_stored(Stdout, stored);
        inbox.take_ack(now).unwrap();
        let left = 1100_u64.saturating_sub(stored.max(1000));
        assert_eq!(inbox.in_flight(), left, "acknowledged {stored}");
    }
}

#[test]
fn gaps_that_lie_are_errors() {
    let now = start();
    for (from, to) in [(50, 50), (50, 40), (40, 60), (0, 51)] {
        let mut inbox = inbox();
        inbox.handle_output(Stdout, 0, 50, now).unwrap();
        assert!(
            matches!(
                inbox.handle_gap(Stdout, from, to, now),
                Err(InboxError::Gap { .. })
            ),
            "{from} to {to}"
        );
    }
}

#[test]
fn nothing_may_lie_beyond_the_window_of_both_streams_together() {
    let (mut inbox, now) = (inbox(), start());
    for offset in [0, 100] {
        inbox.handle_output(Stdout, offset, 100, now).unwrap();
        inbox.handle_output(Stderr, offset, 100, now).unwrap();
    }
    assert_eq!(
        inbox.handle_output(Stderr, 200, 1, now),
        Err(InboxError::BeyondWindow {
            found: 401,
            window: 400
        })
    );
}

#[test]
fn chunks_have_a_size() {
    let (mut inbox, now) = (inbox(), start());
    for len in [0, 101] {
        assert!(matches!(
            inbox.handle_output(Stdout, 0, len, now),
            Err(InboxError::Chunk { .. })
        ));
    }
}

#[test]
fn bytes_from_below_the_resumed_offset_were_never_asked_for() {
    let (mut inbox, now) = (Inbox::new(&WINDOWS, 500, 0), start());
    assert_eq!(
        inbox.handle_output(Stdout, 499, 100, now),
        Err(InboxError::BelowResume {
            stream: Stdout,
            found: 499,
            floor: 500
        })
    );
    assert!(inbox.handle_output(Stdout, 500, 100, now).is_ok());
}

#[test]
fn offsets_stay_exact_in_json() {
    let now = start();
    let mut inbox = Inbox::new(&WINDOWS, OFFSET_MAX - 10, 0);
    assert!(matches!(
        inbox.handle_output(Stdout, OFFSET_MAX - 10, 11, now),
        Err(InboxError::Range { .. })
    ));
    assert!(matches!(
        inbox.handle_output(Stdout, u64::MAX, 11, now),
        Err(InboxError::Range { .. })
    ));
    assert!(matches!(
        inbox.handle_gap(Stdout, OFFSET_MAX - 10, u64::MAX, now),
        Err(InboxError::Range { .. })
    ));
}

#[test]
fn the_same_again_and_again_is_a_flood() {
    let (mut inbox, now) = (inbox(), start());
    inbox.handle_output(Stdout, 0, 100, now).unwrap();
    let flood = (0..100).find_map(|_| inbox.handle_output(Stdout, 0, 1, now).err());
    assert_eq!(flood, Some(InboxError::Flood));
}

#[test]
fn a_flood_of_gaps_ends() {
    let (mut inbox, now) = (inbox(), start());
    let flood =
        (0..=u64::from(GAPS_MAX)).find_map(|at| inbox.handle_gap(Stdout, at, at + 1, now).err());
    assert_eq!(flood, Some(InboxError::Flood));
}

#[test]
fn an_ending_counts_what_is_here() {
    let now = start();
    let totals = |stdout| Totals { stdout, stderr: 0 };
    for (total, lost, right) in [
        (100, false, true),
        (99, false, false),
        (101, false, false),
        (100, true, true),
        (0, true, true),
        (101, true, false),
    ] {
        let mut inbox = inbox();
        inbox.handle_output(Stdout, 0, 100, now).unwrap();
        assert_eq!(
            inbox.handle_ended(&totals(total), lost).is_ok(),
            right,
            "{total} {lost}"
        );
    }
}

#[test]
fn a_run_ends_once_and_says_nothing_afterwards() {
    let (mut inbox, now) = (inbox(), start());
    let none = Totals::default();
    inbox.handle_ended(&none, false).unwrap();
    assert_eq!(inbox.handle_ended(&none, false), Err(InboxError::AfterEnd));
    assert_eq!(
        inbox.handle_output(Stdout, 0, 1, now),
        Err(InboxError::AfterEnd)
    );
    assert_eq!(
        inbox.handle_gap(Stdout, 0, 1, now),
        Err(InboxError::AfterEnd)
    );
}

#[test]
fn only_what_is_stored_is_acknowledged() {
    let (mut inbox, now) = (inbox(), start());
    inbox.handle_output(Stdout, 0, 100, now).unwrap();
    let late = now + Duration::from_secs(1);
    assert_eq!(inbox.poll_ack(late), None);
    inbox.handle_stored(Stdout, 1_000_000);
    assert_eq!(
        inbox.poll_ack(late),
        Some(AckOffsets {
            stdout: 100,
            stderr: 0
        })
    );
    assert_eq!(inbox.poll_ack(late), None);
}

#[test]
fn a_quarter_of_the_window_is_acknowledged_at_once() {
    let (mut inbox, now) = (inbox(), start());
    inbox.handle_output(Stdout, 0, 99, now).unwrap();
    inbox.handle_stored(Stdout, 99);
    assert_eq!(inbox.poll_ack(now), None);
    inbox.handle_output(Stderr, 0, 1, now).unwrap();
    inbox.handle_stored(Stderr, 1);
    assert!(inbox.poll_ack(now).is_some());
}

#[test]
fn a_single_byte_is_acknowledged_after_twenty_milliseconds() {
    let (mut inbox, now) = (inbox(), start());
    inbox.handle_output(Stdout, 0, 1, now).unwrap();
    inbox.handle_stored(Stdout, 1);
    assert_eq!(inbox.poll_timeout(), Some(now + ACK_DELAY));
    assert_eq!(inbox.poll_ack(now + Duration::from_millis(19)), None);
    assert!(inbox.poll_ack(now + Duration::from_millis(20)).is_some());
    assert_eq!(inbox.poll_timeout(), None);
}

#[test]
fn a_sender_at_its_window_hears_at_once_of_every_byte() {
    let (mut inbox, now) = (inbox(), start());
    for offset in [0, 100, 200] {
        inbox.handle_output(Stdout, offset, 100, now).unwrap();
    }
    inbox.handle_output(Stdout, 300, 1, now).unwrap();
    assert!(inbox.sender_is_blocked());
    inbox.handle_stored(Stdout, 1);
    assert!(inbox.poll_ack(now).is_some());
}

proptest! {
    /// A sender that keeps to the window and a store that lags behind never deadlock, whatever
    /// the sizes: after storing everything and waiting the delay, the sender has room again.
    #[test]
    fn credit_always_comes_back(
        steps in prop::collection::vec((0_usize..2, 1_usize..=100, 0_u64..300, 0_u64..30), 1..200)
    ) {
        let mut inbox = inbox();
        let mut now = start();
        let mut sent = [0_u64; 2];
        let mut told = [0_u64; 2];
        for (which, len, store, wait) in steps {
            now += Duration::from_millis(wait);
            let stream = Stream::BOTH[which];
            let under_way: u64 = (0..2).map(|at| sent[at] - told[at]).sum();
            if under_way + len as u64 <= u64::from(WINDOWS.run_bytes) {
                inbox.handle_output(stream, sent[which], len, now).unwrap();
                sent[which] += len as u64;
            }
            inbox.handle_stored(stream, sent[which].min(told[which] + store));
            if let Some(ack) = inbox.poll_ack(now) {
                prop_assert!(ack.stdout <= sent[0] && ack.stderr <= sent[1]);
                told = [ack.stdout, ack.stderr];
            }
            prop_assert_eq!(inbox.in_flight(), (0..2).map(|at| sent[at] - told[at]).sum::<u64>());
        }
        for stream in Stream::BOTH {
            inbox.handle_stored(stream, sent[stream.index()]);
        }
        now += ACK_DELAY;
        inbox.poll_ack(now);
        prop_assert_eq!(inbox.in_flight(), 0);
    }
}
