//! Who comes in, who is turned away, and when a keeper goes by itself.

use std::time::Duration;

use moltis_node::keeper::wire::{FrameReader, FrameWriter};
use moltis_node::keeper::{self, KeeperError, KeeperStream};
use moltis_proto::message::Windows;
use moltis_proto::{FromKeeper, ToKeeper, limits};
use tokio_util::sync::CancellationToken;

use crate::client::{WINDOWS, id, shell};
use crate::fixture::{Inside, config, rules};

/// Says `Attach`, and returns what comes of it.
async fn attach(stream: KeeperStream, windows: Windows) -> Option<FromKeeper> {
    let (reader, writer) = tokio::io::split(stream);
    let attach = ToKeeper::Attach { windows };
    FrameWriter::new(writer).send(&attach).await.ok()?;
    FrameReader::new(reader).message().await.ok()?
}

#[tokio::test]
async fn windows_that_cannot_work_are_turned_away_and_the_client_before_stays() {
    let keeper = Inside::new();
    let mut client = keeper.client().await;
    let chunk_max = u32::try_from(limits::CHUNK_BYTES_MAX).unwrap();
    let unsound = [
        Windows {
            chunk_bytes_max: 0,
            ..WINDOWS
        },
        Windows {
            chunk_bytes_max: chunk_max + 1,
            ..WINDOWS
        },
        Windows {
            run_bytes: 4 * WINDOWS.chunk_bytes_max - 1,
            ..WINDOWS
        },
        Windows {
            connection_bytes: WINDOWS.run_bytes - 1,
            ..WINDOWS
        },
        Windows {
            stdin_bytes: 0,
            ..WINDOWS
        },
    ];
    for windows in unsound {
        let heard = attach(keeper.stream().await, windows).await;
        assert_eq!(heard, None, "{windows:?}");
    }
    client.run(id(1), shell("true")).await;
}

#[tokio::test]
async fn sixteen_may_stand_at_the_door_for_ten_seconds_and_one_more_is_turned_away() {
    let keeper = Inside::new();
    let mut client = keeper.client().await;
    let mut silent = Vec::new();
    for _ in 0..16 {
        silent.push(keeper.stream().await);
    }
    assert_eq!(attach(keeper.stream().await, WINDOWS).await, None);
    client.run(id(1), shell("true")).await;
    tokio::time::pause();
    for stream in silent {
        // Time goes on while this waits; whoever says nothing is not waited for.
        let mut reader = FrameReader::new(stream);
        assert!(matches!(reader.next().await, Ok(None)));
    }
    let heard = attach(keeper.stream().await, WINDOWS).await;
    assert!(matches!(heard, Some(FromKeeper::Runs { .. })), "{heard:?}");
}

#[tokio::test]
async fn a_keeper_leaves_ten_minutes_after_its_last_run_was_forgotten() {
    let keeper = Inside::new();
    let mut client = keeper.client().await;
    client.run(id(1), shell("true")).await;
    let later = async || {
        tokio::time::pause();
        tokio::time::sleep(Duration::from_mins(11)).await;
        tokio::time::resume();
    };
    later().await;
    client.run(id(2), shell("true")).await;
    drop(client);
    later().await;
    let (mut client, listed) = keeper.attach().await;
    assert_eq!(listed.runs.len(), 2, "it has runs");
    for number in 1..=2 {
        client.say(ToKeeper::Forget { run_id: id(number) }).await;
    }
    later().await;
    client.run(id(1), shell("true")).await; // refused, but answered: somebody is attached
    drop(client);
    later().await;
    let gone = keeper.keeper.connect().await.unwrap_err();
    assert_eq!(gone.kind(), std::io::ErrorKind::ConnectionRefused);
    let left = std::fs::read_dir(keeper.dir.path()).unwrap();
    let names = left.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut left: Vec<_> = names.collect();
    left.sort_by_key(|name| name == "keepers.lock"); // an id may stand behind it
    // What it has forgotten is refused by the next one, too.
    assert!(
        left.len() == 2 && left[0].ends_with(".journal") && left[1] == "keepers.lock",
        "{left:?}"
    );
}

#[tokio::test]
async fn a_socket_with_too_long_a_path_is_said_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let deep = dir.path().join("d".repeat(60));
    let config = config(&deep, rules(), 1);
    let served = keeper::serve(config, CancellationToken::new()).await;
    let Err(KeeperError::SocketPath { path }) = served else {
        panic!("{served:?}");
    };
    assert!(path.starts_with(&deep));
    let left: Vec<_> = std::fs::read_dir(&deep).unwrap().collect();
    assert_eq!(left.len(), 1, "only its lock: {left:?}");
}

#[tokio::test]
async fn a_window_of_four_chunks_and_the_laziest_client_get_everything() {
    let keeper = Inside::new();
    let windows = Windows {
        run_bytes: 4 * 1024,
        connection_bytes: 4 * 1024,
        chunk_bytes_max: 1024,
        ..WINDOWS
    };
    let (mut client, _) = crate::client::Client::attach_with(keeper.stream().await, windows).await;
    client.acknowledges = false;
    client.start(id(1), shell("head -c 300000 /dev/zero")).await;
    let mut acked = 0;
    while client.runs[&id(1)].ended.is_none() {
        let message = client.next().await;
        client.take(message).await;
        let sent = client.runs[&id(1)].next[0];
        assert!(sent - acked <= 4 * 1024);
        if sent - acked == 4 * 1024 {
            client.acknowledge(id(1)).await;
            acked = sent;
        }
    }
    assert_eq!(client.runs[&id(1)].next[0], 300_000);
}

#[tokio::test]
async fn names_of_ten_kilobytes_start_nothing_and_fill_no_ending() {
    let keeper = Inside::new();
    let mut client = keeper.client().await;
    let long = "n".repeat(10_000);
    let mut elsewhere = shell("true");
    elsewhere.cwd = Some(format!("/{long}"));
    let cases = [
        crate::client::argv(&[&long]),
        crate::client::argv(&[&format!("/{long}")]),
        elsewhere,
    ];
    for (number, spec) in (1..).zip(cases) {
        let ending = client.run(id(number), spec).await.ending().clone();
        assert_eq!(ending.outcome, moltis_proto::run::Outcome::FailedToStart);
        assert!(ending.detail.len() <= limits::DETAIL_BYTES_MAX);
        assert!(ending.detail.contains("nnn"), "{}", ending.detail);
    }
    let mut variable = shell("true");
    variable.env.insert(long, "x".to_owned());
    let refused = client.run(id(9), variable).await.refused;
    assert_eq!(refused, Some(moltis_proto::RunRefusal::EnvNotAllowed));
}
