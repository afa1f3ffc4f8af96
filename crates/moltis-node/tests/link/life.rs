//! Silence, sleep, goodbyes and coming back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use moltis_node::{GiveUp, LinkError, LinkEvent};
use moltis_proto::code::{CloseCode, GoodbyeReason};
use moltis_proto::handshake::{SessionLimits, Verdict};
use moltis_proto::liveness::Lifeless;
use moltis_proto::telemetry::Sample;
use moltis_proto::version::{Ledger, LedgerRange};
use moltis_proto::{ToGateway, ToNode};
use moltis_telemetry::{Collector, CollectorConfig};
use tokio::time::Instant;

use crate::gateway::{Peer, TestGateway, accepted_with, pending};
use crate::node::{TestNode, config};
use crate::session::{CHUNK, output, start};

#[tokio::test]
async fn a_half_open_connection_is_pinged_and_given_up_in_45_seconds() {
    let gateway = TestGateway::bind().await;
    let mut node = TestNode::run(config(gateway.url()));
    let (mut peer, _keeper) = tokio::join!(gateway.admit(), node.idle_keeper());
    peer.hear().await;
    tokio::time::pause();
    let begun = Instant::now();
    let after = || (begun.elapsed().as_millis() + 500) / 1000;
    assert_eq!(peer.hear().await, ToGateway::Ping { number: 1 });
    assert_eq!(after(), 15);
    assert_eq!(peer.hear().await, ToGateway::Ping { number: 2 });
    assert_eq!(after(), 30);
    assert_eq!(
        peer.hear().await,
        ToGateway::Close {
            code: CloseCode::Silence
        }
    );
    assert_eq!(after(), 45);
    let (error, _) = node.disconnected().await;
    assert!(
        matches!(&*error, LinkError::Lifeless(Lifeless::Silence(_))),
        "{error:?}"
    );
    tokio::time::resume();
    let (mut peer, _keeper) = tokio::join!(gateway.admit(), node.idle_keeper());
    peer.hear().await;
}

#[tokio::test]
async fn a_gateway_that_answers_pings_is_kept() {
    let gateway = TestGateway::bind().await;
    let mut node = TestNode::run(config(gateway.url()));
    let (mut peer, _keeper) = tokio::join!(gateway.admit(), node.idle_keeper());
    peer.hear().await;
    tokio::time::pause();
    for expected in 1..20 {
        let ToGateway::Ping { number } = peer.hear().await else {
            panic!("no ping");
        };
        assert_eq!(number, expected);
        peer.say(ToNode::Pong { number }).await;
    }
}

#[tokio::test]
async fn nothing_from_before_a_suspend_is_obeyed() {
    let gateway = TestGateway::bind().await;
    let slept = Arc::new(AtomicU64::new(0));
    let clock = Arc::clone(&slept);
    let mut node = TestNode::start(config(gateway.url()), |node| {
        node.boottime(move || Duration::from_secs(clock.load(Ordering::SeqCst)))
    });
    let (mut peer, mut keeper) = tokio::join!(gateway.admit(), node.idle_keeper());
    peer.hear().await;
    slept.store(44, Ordering::SeqCst);
    peer.say(ToNode::Run(start(1))).await;
    assert_eq!(keeper.hear().await, start(1), "a nap does no harm");
    slept.store(44 + 46, Ordering::SeqCst);
    peer.say(ToNode::Run(start(2))).await;
    assert_eq!(
        peer.hear().await,
        ToGateway::Close {
            code: CloseCode::Slept
        }
    );
    assert_eq!(
        keeper.try_hear().await,
        None,
        "no start from before is obeyed"
    );
    let (error, _) = node.disconnected().await;
    assert!(
        matches!(&*error, LinkError::Lifeless(Lifeless::Slept(_))),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_goodbye_says_when_to_come_back() {
    let gateway = TestGateway::bind().await;
    let mut node = TestNode::run(config(gateway.url()));
    let (mut peer, _keeper) = tokio::join!(gateway.admit(), node.idle_keeper());
    peer.hear().await;
    peer.say(ToNode::Goodbye {
        reason: GoodbyeReason::Upgrade,
        back_in_ms: 2000,
    })
    .await;
    let (_, retry_in) = node.disconnected().await;
    assert!(
        (2.0..=2.5).contains(&retry_in.as_secs_f64()),
        "{retry_in:?}"
    );
    let (mut peer, _keeper) = tokio::join!(gateway.admit(), node.idle_keeper());
    peer.hear().await;
    peer.say(ToNode::Goodbye {
        reason: GoodbyeReason::Shutdown,
        back_in_ms: u64::MAX,
    })
    .await;
    let (_, retry_in) = node.disconnected().await;
    assert!(retry_in <= Duration::from_mins(20), "{retry_in:?}");
}

#[tokio::test]
async fn a_revoked_node_is_told_and_a_terminal_gives_up() {
    let gateway = TestGateway::bind().await;
    let mut node = TestNode::add(config(gateway.url()));
    let (mut peer, _keeper) = tokio::join!(gateway.admit(), node.idle_keeper());
    peer.hear().await;
    peer.say(ToNode::Close {
        code: CloseCode::Revoked,
    })
    .await;
    let error = node.error().await;
    assert!(
        matches!(error, LinkError::Closed(CloseCode::Revoked)),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_node_comes_back_for_ever_and_waits_longer_each_time() {
    let gateway = TestGateway::bind().await;
    let mut node = TestNode::run(config(gateway.url()));
    let mut waits = Vec::new();
    for _ in 0..12 {
        drop(gateway.tcp().await);
        waits.push(node.disconnected().await.1);
        tokio::time::pause();
        tokio::time::advance(Duration::from_mins(1)).await;
        tokio::time::resume();
    }
    let shortest = Duration::from_millis(500)..=Duration::from_secs(1);
    assert!(shortest.contains(&waits[0]), "{waits:?}");
    let longest = Duration::from_secs(30)..=Duration::from_mins(1);
    assert!(
        waits[8..].iter().all(|wait| longest.contains(wait)),
        "{waits:?}"
    );
    let (mut peer, _keeper) = tokio::join!(gateway.admit(), node.idle_keeper());
    peer.hear().await;
}

#[tokio::test]
async fn telemetry_comes_at_once_when_asked_and_in_its_interval() {
    let gateway = TestGateway::bind().await;
    let collector = Collector::new(CollectorConfig {
        ollama_host: Some("127.0.0.1:1".to_owned()),
        ..CollectorConfig::new("")
    });
    let mut node = TestNode::start(config(gateway.url()), |node| node.telemetry(collector));
    let (mut peer, _) = gateway.prove().await;
    let limits = SessionLimits {
        telemetry_interval_ms: 1000,
        ..SessionLimits::STANDARD
    };
    peer.send(&accepted_with(peer.codec, limits)).await;
    let _keeper = node.idle_keeper().await;
    assert!(
        matches!(peer.receive().await, ToGateway::Run(_)),
        "the list of runs is first"
    );
    let first = sample(&mut peer).await;
    assert!(first.cpu_count > 0);
    let begun = Instant::now();
    sample(&mut peer).await;
    assert!(begun.elapsed() > Duration::from_millis(500));
    peer.say(ToNode::Sample).await;
    sample(&mut peer).await;
}

/// Returns the next sample; only the time may be told before.
async fn sample(peer: &mut Peer) -> Box<Sample> {
    let message = match peer.receive().await {
        ToGateway::Clock { .. } => peer.receive().await,
        message => message,
    };
    let ToGateway::Telemetry(sample) = message else {
        unreachable!("no sample, but {message:?}");
    };
    sample
}

#[tokio::test]
async fn control_goes_before_output() {
    let gateway = TestGateway::bind().await;
    let mut node = TestNode::run(config(gateway.url()));
    let (mut peer, mut keeper) = tokio::join!(gateway.admit(), node.idle_keeper());
    peer.hear().await;
    let mut fill = std::pin::pin!(async {
        for number in 0u64.. {
            keeper.say(output(1, number * 60_000, CHUNK)).await;
        }
    });
    // The gateway lets output pile up, asks, and then reads: its answer is behind what the kernels
    // hold, not behind what the keeper still has.
    let full = tokio::time::timeout(Duration::from_secs(1), &mut fill).await;
    full.unwrap_err();
    peer.say(ToNode::Ping { number: 1 }).await;
    let read = async {
        let mut before = 0u64;
        while peer.hear().await != (ToGateway::Pong { number: 1 }) {
            before += 60_000;
        }
        before
    };
    let before = tokio::select! {
        before = read => before,
        () = fill => unreachable!("the keeper has no end"),
    };
    // Both kernels' buffers on loopback may hold some megabytes; the keeper had no end.
    assert!(before < 16 * 1024 * 1024, "{before} bytes before the pong");
}

#[tokio::test]
async fn a_gateway_that_falls_silent_while_a_person_decides_is_left() {
    let gateway = TestGateway::bind().await;
    let mut node = TestNode::start(config(gateway.url()), |node| {
        node.pair().give_up(GiveUp::WhenTurnedAway)
    });
    let (mut peer, verified) = gateway.prove().await;
    peer.send(&pending(&verified)).await;
    while !matches!(node.event().await, LinkEvent::Pending { .. }) {}
    tokio::time::pause();
    let begun = Instant::now();
    let (error, _) = node.disconnected().await;
    assert!(matches!(&*error, LinkError::Lifeless(_)), "{error:?}");
    assert!((45..47).contains(&begun.elapsed().as_secs()));
    tokio::time::resume();
    let (mut peer, _keeper) = tokio::join!(gateway.admit(), node.idle_keeper());
    peer.hear().await;
}

#[tokio::test]
async fn a_node_tells_its_clock_at_once_to_a_gateway_that_understands_it() {
    let gateway = TestGateway::bind().await;
    let mut node = TestNode::run(config(gateway.url()));
    let before = unix_ms();
    let (mut peer, _keeper) = tokio::join!(gateway.admit(), node.idle_keeper());
    let told = loop {
        if let ToGateway::Clock { unix_ms } = peer.receive().await {
            break unix_ms;
        }
    };
    assert!((before..=unix_ms()).contains(&told), "{before} {told}");
}

#[tokio::test]
async fn a_gateway_that_is_older_is_not_told_the_clock() {
    let mut gateway = TestGateway::bind().await;
    gateway.ledgers = LedgerRange {
        min: Ledger(1),
        max: Ledger(1),
    };
    let mut node = TestNode::run(config(gateway.url()));
    let limits = SessionLimits {
        telemetry_interval_ms: 1000,
        ..SessionLimits::STANDARD
    };
    let (mut peer, verified) = gateway.prove().await;
    let Verdict::Accepted { epoch, windows, .. } = accepted_with(peer.codec, limits) else {
        panic!("it is accepted");
    };
    peer.send(&verified.accepted(epoch, windows, limits)).await;
    let _keeper = node.idle_keeper().await;
    tokio::time::pause();
    loop {
        match peer.receive().await {
            // Many times over the clock would have been told by then.
            ToGateway::Ping { .. } => break,
            ToGateway::Clock { .. } => panic!("an older gateway closes on it"),
            _ => {}
        }
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    since.as_millis().try_into().unwrap()
}
