//! `GET runs/{id}/events`: whole and once, from any event on, while the run goes on and afterwards.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::client::Client;
use crate::feed::{Block, Feed, Next, asked};
use crate::gateway::{TestGateway, until_asked};

/// What a run has written, put together from its events.
#[derive(Debug, Default, PartialEq)]
struct Heard {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    names: Vec<String>,
    last: Option<String>,
}

impl Heard {
    fn take(&mut self, event: &Block) {
        let name = event.name.clone().unwrap();
        if name == "output" {
            let out = match event.data["stream"].as_str().unwrap() {
                "stdout" => &mut self.stdout,
                "stderr" => &mut self.stderr,
                other => panic!("{other}"),
            };
            assert_eq!(event.data["offset"], out.len(), "{event:?}");
            let bytes = STANDARD
                .decode(event.data["data"].as_str().unwrap())
                .unwrap();
            assert!((1..=48 * 1024).contains(&bytes.len()));
            out.extend_from_slice(&bytes);
        }
        self.names.push(name);
        self.last.clone_from(&event.id);
        assert!(self.last.is_some(), "every event has an id");
    }

    /// Reads a run to its end, and comes back after each so many events.
    async fn all(client: &Client, path: &str, cut_after: usize) -> Self {
        let mut heard = Self::default();
        let mut feed = Feed::open(client, path, None).await;
        loop {
            for _ in 0..cut_after {
                heard.take(&feed.event().await);
                if heard.names.last().unwrap() == "ended" {
                    return heard;
                }
            }
            feed = Feed::open(client, path, heard.last.as_deref()).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_told_whole_and_once_however_often_its_reader_is_cut_off() {
    let gateway = TestGateway::start().await;
    let client = Client::of(&gateway).await;
    let _node = gateway.node("box").await;
    let command = "for n in 1 2 3 4 5; do seq 1 30000; seq 1 9999 >&2; done";
    let id = client
        .start(json!({"node": "box", "command": command}))
        .await;
    let path = format!("runs/{id}/events");
    let (often, seldom) = tokio::join!(
        Heard::all(&client, &path, 1),
        Heard::all(&client, &path, usize::MAX),
    );
    let numbers = |to: u32| {
        let all: Vec<_> = (1..=to).map(|number| number.to_string()).collect();
        all.join("\n") + "\n"
    };
    assert!(seldom.stdout == numbers(30_000).repeat(5).as_bytes());
    assert!(seldom.stderr == numbers(9999).repeat(5).as_bytes());
    assert!((&often.stdout, &often.stderr) == (&seldom.stdout, &seldom.stderr));
    let last = format!("{}-{}-ended", seldom.stdout.len(), seldom.stderr.len());
    for heard in [&often, &seldom] {
        assert_eq!(heard.names.first().unwrap(), "started");
        assert_eq!(
            heard.names.iter().filter(|name| *name == "started").count(),
            1
        );
        assert_eq!(heard.last.as_ref(), Some(&last));
    }
    // The same once it is over, and at a later process.
    let again = Heard::all(&client, &path, 3).await;
    assert!((&again.stdout, &again.stderr) == (&seldom.stdout, &seldom.stderr));
    let gateway = gateway.restart().await;
    let client = Client::of(&gateway).await;
    let mut feed = Feed::open(&client, &path, Some("100000-7")).await;
    let event = feed.event().await;
    assert_eq!(event.name.as_deref(), Some("output"));
    let offset = match event.data["stream"].as_str() {
        Some("stdout") => 100_000,
        _ => 7,
    };
    assert_eq!(event.data["offset"], offset);
    // Who has the end is told, as a browser needs it, that there is nothing more.
    let answer = client.open(asked(&path, Some(&last))).await;
    assert_eq!(answer.status(), 204);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_is_none_of_the_run_begins_again_and_says_so() {
    let gateway = TestGateway::start().await;
    let client = Client::of(&gateway).await;
    let result = client.run(json!({"command": "printf out"})).await;
    let path = format!("runs/{}/events", result["run_id"].as_str().unwrap());
    for last in ["nonsense", "4-0", "3-1-ended", "-1-0", "4f2a91c3-17x"] {
        let (events, end) = Feed::open(&client, &path, Some(last)).await.rest().await;
        assert!(matches!(end, Next::End), "{end:?}");
        let names: Vec<_> = events
            .iter()
            .map(|event| event.name.as_deref().unwrap())
            .collect();
        assert_eq!(names, ["reset", "started", "output", "ended"], "{last}");
        assert_eq!(events[0].data, json!({"reason": "unknown_id"}));
        assert_eq!(events[3].data["outcome"], "exited");
    }
    let answer = client
        .get("runs/ffffffffffffffffffffffffffffffff/events")
        .await;
    assert_eq!(answer.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_never_began_ends_without_a_start() {
    let gateway = TestGateway::start().await;
    let client = Client::of(&gateway).await;
    let result = client.run(json!({"argv": ["/nowhere/at-all"]})).await;
    assert_eq!(result["outcome"], "failed_to_start");
    let path = format!("runs/{}/events", result["run_id"].as_str().unwrap());
    let (events, _) = Feed::open(&client, &path, None).await.rest().await;
    let [ended] = &events[..] else {
        panic!("{events:?}");
    };
    assert_eq!(ended.name.as_deref(), Some("ended"));
    assert_eq!(ended.data["outcome_reason"], "not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gap_is_an_event_and_a_slow_reader_holds_nobody() {
    let gateway = TestGateway::start_with(|config| {
        config.runs.output.run_bytes_max = 4 * 1024 * 1024;
        config.runs.output.segment_bytes = 1024 * 1024;
    })
    .await;
    let client = Client::of(&gateway).await;
    let _node = gateway.node("box").await;
    let command = "head -c 16777216 /dev/zero";
    let id = client
        .start(json!({"node": "box", "command": command}))
        .await;
    let path = format!("runs/{id}/events");
    let mut slow = Feed::open(&client, &path, None).await;
    slow.event().await;
    // It reads nothing more until the run is over, which others are told in time.
    until_asked("the end of the run", async || {
        let run = client.get(&format!("runs/{id}")).await.value();
        (run["state"] == "ended").then_some(())
    })
    .await;
    let (events, end) = slow.rest().await;
    assert!(matches!(end, Next::End), "{end:?}");
    let mut at = 0;
    let mut gaps = 0;
    for event in &events {
        match event.name.as_deref().unwrap() {
            "output" => {
                assert_eq!(event.data["offset"], at);
                at += STANDARD
                    .decode(event.data["data"].as_str().unwrap())
                    .unwrap()
                    .len();
            }
            "gap" => {
                assert_eq!(
                    (&event.data["from"], &event.data["stream"]),
                    (&at.into(), &"stdout".into())
                );
                at = usize::try_from(event.data["to"].as_u64().unwrap()).unwrap();
                gaps += 1;
            }
            "ended" => assert_eq!(event.data["stdout_bytes"], at),
            other => panic!("{other}"),
        }
    }
    assert_eq!((at, gaps > 0), (16_777_216, true));
}
