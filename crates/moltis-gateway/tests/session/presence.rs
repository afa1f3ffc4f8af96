//! Who is here, what it last said, and a key in two places.

use std::time::Duration;

use jiff::Timestamp;
use moltis_gateway::api::doctor::Level;
use moltis_gateway::events::Event;
use moltis_proto::ToGateway;
use moltis_proto::code::CloseCode;
use moltis_proto::telemetry::{Runtime, Sample};
use moltis_proto::{DeviceId, ToNode};

use crate::gateway::{TestGateway, shell, until};
use crate::raw::Device;

async fn points(gateway: &TestGateway, device: DeviceId) -> usize {
    let day = Timestamp::now() - jiff::SignedDuration::from_hours(24);
    gateway.gateway.telemetry(device, day).await.unwrap().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sample_is_shown_at_once_and_its_figures_outlive_the_gateway() {
    let gateway = TestGateway::start().await;
    let device = Device::new("box");
    device.pair(&gateway).await;
    let mut node = device.ready(&gateway).await;
    let sample = Sample {
        cpu_count: 3,
        ..Sample::default()
    };
    node.send(&ToGateway::Telemetry(Box::new(sample))).await;
    let shown = until("the sample", || {
        gateway.gateway.roster().get(device.id())?.sample
    })
    .await;
    assert_eq!(shown.sample.cpu_count, 3);
    assert_eq!(points(&gateway, device.id()).await, 1);
    let gateway = gateway.restart().await;
    assert_eq!(points(&gateway, device.id()).await, 1);
    let mut node = device.ready(&gateway).await;
    node.send(&ToGateway::Telemetry(Box::default())).await;
    until("the sample", || {
        gateway.gateway.roster().get(device.id())?.sample
    })
    .await;
    assert_eq!(points(&gateway, device.id()).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_in_two_places_is_reported_and_the_newest_stays() {
    let gateway = TestGateway::start().await;
    let device = Device::new("box");
    device.pair(&gateway).await;
    gateway.offline(device.id()).await;
    let mut events = gateway.gateway.events().subscribe();
    let mut node = device.ready(&gateway).await;
    for _ in 0..4 {
        let newer = device.ready(&gateway).await;
        assert_eq!(
            node.closed().await,
            Some(ToNode::Close {
                code: CloseCode::Superseded
            })
        );
        node = newer;
    }
    let mut cloned = 0;
    while let Ok(Some(event)) = events.try_recv() {
        cloned += usize::from(event == Event::KeyCloned(device.id()));
    }
    assert_eq!(cloned, 1);
    let lines = gateway
        .gateway
        .store()
        .audit_lines(None, 100)
        .await
        .unwrap();
    let noted = lines.iter().filter(|line| line.action == "node.cloned");
    assert_eq!(noted.count(), 1);
    gateway.online(device.id()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_gone_was_last_seen_when_it_was_last_heard() {
    let gateway = TestGateway::start().await;
    let device = Device::new("box");
    device.pair(&gateway).await;
    gateway.offline(device.id()).await;
    let before = Timestamp::now();
    // Presence is noted by the millisecond.
    tokio::time::sleep(Duration::from_millis(2)).await;
    let mut node = device.ready(&gateway).await;
    let run = gateway.start_run(shell("true").on("box")).await;
    node.hear_run().await;
    node.drop_line(&gateway, &device).await;
    let seen = gateway.gateway.roster().get(device.id()).unwrap();
    assert!(seen.last_seen() >= Some(before), "{:?}", seen.last_seen());
    let status = gateway.gateway.runs().status(run.id()).await.unwrap();
    assert!(!status.reachable);
    assert_eq!(status.last_heard_at, seen.last_seen());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_machine_has_is_kept_from_everybody() {
    let gateway = TestGateway::start().await;
    let device = Device::new("box");
    device.pair(&gateway).await;
    let mut node = device.ready(&gateway).await;
    let sample = Sample {
        cpu_count: 3,
        cpu_usage_percent: Some(f32::NAN),
        load_1m: f32::NEG_INFINITY,
        memory_total_bytes: 7,
        memory_available_bytes: 8,
        runtimes: vec![Runtime {
            name: "py\u{1b}thon".to_owned(),
            version: "3".to_owned(),
        }],
        ..Sample::default()
    };
    node.send(&ToGateway::Telemetry(Box::new(sample))).await;
    let shown = until("the sample", || {
        gateway.gateway.roster().get(device.id())?.sample
    })
    .await;
    assert_eq!(shown.sample.cpu_count, 3);
    assert_eq!(shown.sample.cpu_usage_percent, None);
    assert!(shown.sample.load_1m.abs() < f32::EPSILON);
    assert_eq!(shown.sample.memory_available_bytes, 7);
    assert_eq!(shown.sample.runtimes[0].name, "python");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sample_that_is_too_long_closes() {
    let gateway = TestGateway::start().await;
    let device = Device::new("box");
    device.pair(&gateway).await;
    let mut node = device.ready(&gateway).await;
    let runtime = Runtime {
        name: "x".repeat(4000),
        version: "y".repeat(4000),
    };
    let sample = Sample {
        runtimes: vec![runtime; 3],
        ..Sample::default()
    };
    node.send(&ToGateway::Telemetry(Box::new(sample))).await;
    assert_eq!(
        node.closed().await,
        Some(ToNode::Close {
            code: CloseCode::Protocol
        })
    );
    let kept = gateway.gateway.roster().get(device.id()).unwrap().sample;
    assert!(kept.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_wrong_is_told_and_believed_when_it_is_put_right() {
    let gateway = TestGateway::start().await;
    let device = Device::new("box");
    device.pair(&gateway).await;
    let mut node = device.ready(&gateway).await;
    let look = async || {
        let all = gateway.gateway.doctor().await;
        all.into_iter()
            .find(|found| found.check == "clock")
            .unwrap()
    };
    let untold = look().await;
    assert_eq!(untold.level, Level::Ok);
    assert!(untold.message.starts_with("0 of 1"), "{untold:?}");
    let now = || u64::try_from(Timestamp::now().as_millisecond()).unwrap();
    for (unix_ms, level, words) in [
        (
            now() + 7_200_500,
            Level::Warning,
            "`box` is 2 h 0 min ahead of",
        ),
        (now() - 60_000, Level::Warning, "`box` is 1 min 0 s behind"),
        (0, Level::Warning, "behind"),
        (u64::MAX, Level::Warning, "ahead of"),
        (now(), Level::Ok, "all 1 connected nodes agree"),
    ] {
        node.send(&ToGateway::Clock { unix_ms }).await;
        // Its answer comes behind what was said before.
        node.send(&ToGateway::Ping { number: unix_ms }).await;
        let answer = ToNode::Pong { number: unix_ms };
        while node.hear().await.unwrap() != answer {}
        let found = look().await;
        assert_eq!(found.level, level, "{found:?}");
        assert!(found.message.contains(words), "{found:?}");
    }
}
