//! Sections 5 and 7: the life of a connection, and frames that no gateway should send.

use std::time::{Duration, SystemTime};

use moltis_proto::code::{CloseCode, GoodbyeReason};
use moltis_proto::handshake::SessionLimits;
use moltis_proto::limits::FRAME_BYTES_MAX;
use moltis_proto::version::{Ledger, LedgerRange};
use moltis_proto::{Codec, ToGateway, ToKeeper, ToNode};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;

use super::{Row, row};
use crate::conformance::peer::{Peer, Step};
use crate::conformance::stage::Stage;
use crate::conformance::trouble::{Played, ensure, failed, seconds};

pub(super) const ROWS: &[Row] = &[
    row!(
        Must,
        "runs-first",
        "6 Runs",
        "lists what it holds, once, before any other run message",
        runs_first
    ),
    row!(
        Must,
        "telemetry",
        "7 Life of a connection",
        "sends a sample at once and then in the interval it is told",
        telemetry
    ),
    row!(
        Must,
        "sample",
        "7 Life of a connection",
        "sends a sample when it is asked for one",
        sample
    ),
    row!(
        Must,
        "clock",
        "7 Life of a connection",
        "tells its clock from ledger 2 on, and not before",
        clock
    ),
    row!(
        Must,
        "ping",
        "7 Life of a connection",
        "answers a ping with a pong of the same number",
        ping
    ),
    row!(
        Must,
        "silence",
        "7 Life of a connection",
        "pings a silent gateway, gives it up in time, and dials again",
        silence
    ),
    row!(
        Must,
        "websocket-ping",
        "1 WebSocket",
        "answers WebSocket pings, and takes them for no sign of life",
        websocket_ping
    ),
    row!(
        Must,
        "reconnect",
        "7 Life of a connection",
        "dials again after a cut, after half a second at the earliest",
        reconnect
    ),
    row!(
        Must,
        "goodbye",
        "7 Life of a connection",
        "comes back when `goodbye` says, not sooner",
        goodbye
    ),
    row!(
        Must,
        "superseded",
        "7 Life of a connection",
        "ends a connection that was taken over, and does not come back at once",
        superseded
    ),
    row!(
        Must,
        "closed-revoked",
        "7 Life of a connection",
        "does not come back at once when it was revoked",
        revoked
    ),
    row!(
        Must,
        "text-frame",
        "1 WebSocket",
        "closes on a text message",
        text_frame
    ),
    row!(
        Must,
        "bad-frame",
        "2 Noise",
        "closes on a frame that does not open",
        bad_frame
    ),
    row!(
        Must,
        "replayed-frame",
        "2 Noise",
        "closes on a frame that was sent before",
        replayed_frame
    ),
    row!(
        Must,
        "long-frame",
        "1 WebSocket",
        "closes on a message of more than 65,535 bytes",
        long_frame
    ),
    row!(
        Must,
        "unknown-message",
        "5 Messages after `accepted`",
        "closes on a message that it does not know",
        unknown_message
    ),
    row!(
        Must,
        "leftover-bytes",
        "3 Types",
        "closes on bytes behind a message",
        leftover
    ),
    row!(
        Must,
        "keeper-only",
        "5 Messages after `accepted`",
        "closes on `attach` and `leave`, which no gateway says",
        keeper_only
    ),
    row!(
        May,
        "last-word",
        "7 Life of a connection",
        "says `close: protocol` before it closes on a broken rule",
        last_word
    ),
];

/// How long a node is watched that should not come back at once.
const WATCH: Duration = Duration::from_millis(400);

async fn runs_first(stage: &mut Stage) -> Played {
    let mut peer = stage.joined().await?;
    let came = format!("{} runs", peer.listed.runs.len());
    ensure(
        peer.listed.runs.is_empty(),
        "an empty list from a node that is new",
        came,
    )?;
    // A second list would be found by the books.
    peer.listen(Duration::from_millis(500)).await
}

fn every_second() -> SessionLimits {
    SessionLimits {
        telemetry_interval_ms: 1000,
        ..SessionLimits::STANDARD
    }
}

async fn telemetry(stage: &mut Stage) -> Played {
    stage.limits = every_second();
    let mut peer = stage.joined().await?;
    let samples = peer
        .until("four samples, one a second", |peer| {
            (peer.samples.len() >= 4).then(|| peer.samples.clone())
        })
        .await?;
    // The first may take its time, and be late.
    let between = samples[3].0 - samples[1].0;
    let is_regular = (Duration::from_millis(1200)..Duration::from_secs(8)).contains(&between);
    ensure(
        is_regular,
        "two intervals of a second each",
        seconds(between),
    )?;
    for (_, sample) in samples {
        let usage = sample.cpu_usage_percent.unwrap_or_default();
        let is_sane = sample.cpu_count >= 1
            && (0.0..=100.0).contains(&usage)
            && sample.load_1m >= 0.0
            && sample.memory_available_bytes <= sample.memory_total_bytes
            && sample.disk_available_bytes <= sample.disk_total_bytes;
        let expected = "CPUs, percent of 0 to 100, and no more available than there is";
        ensure(is_sane, expected, format!("{sample:?}"))?;
    }
    Ok(())
}

async fn sample(stage: &mut Stage) -> Played {
    let mut peer = stage.joined().await?;
    peer.until("the sample that comes at once", |peer| {
        (!peer.samples.is_empty()).then_some(())
    })
    .await?;
    peer.send(&ToNode::Sample).await?;
    peer.until("a sample, asked for by `sample`", |peer| {
        (peer.samples.len() >= 2).then_some(())
    })
    .await
}

async fn clock(stage: &mut Stage) -> Played {
    stage.limits = every_second();
    let mut peer = stage.joined().await?;
    if peer.node.ledger() >= Ledger::CLOCK {
        let told = peer
            .until("its `clock`, as often as telemetry", |peer| {
                peer.clocks.get(1).map(|clock| clock.1)
            })
            .await?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = u64::try_from(now.unwrap_or_default().as_millis()).unwrap_or(u64::MAX);
        let came = format!("{told}, {} ms apart", now.abs_diff(told));
        // One machine has one clock; what is allowed is the way.
        ensure(now.abs_diff(told) < 10_000, format!("about {now}"), came)?;
    }
    drop(peer);
    stage.kill_node().await;
    stage.ledgers = LedgerRange {
        min: Ledger(1),
        max: Ledger(1),
    };
    let mut peer = stage.joined().await?;
    peer.until("two samples", |peer| {
        (peer.samples.len() >= 2).then_some(())
    })
    .await?;
    let came = format!("{} of them", peer.clocks.len());
    ensure(peer.clocks.is_empty(), "no `clock` on ledger 1", came)
}

async fn ping(stage: &mut Stage) -> Played {
    let mut peer = stage.joined().await?;
    for number in [0, 7, (1 << 53) - 1] {
        peer.send(&ToNode::Ping { number }).await?;
        peer.until(&format!("a pong with {number}"), |peer| {
            (peer.pongs.last() == Some(&number)).then_some(())
        })
        .await?;
    }
    Ok(())
}

fn soon() -> SessionLimits {
    SessionLimits {
        telemetry_interval_ms: 1000,
        ping_after_ms: 1000,
        silence_max_ms: 4000,
    }
}

/// Says nothing until the node gives up, and returns how long that took.
async fn gives_up(peer: &mut Peer, mut poke: impl FnMut() -> Option<Message>) -> Played<Duration> {
    peer.is_silent = true;
    let since = Instant::now();
    let until = since + Duration::from_secs(30);
    loop {
        match peer
            .step(Instant::now() + Duration::from_millis(500))
            .await?
        {
            Step::Closed => return Ok(since.elapsed()),
            Step::Said | Step::Nothing => {}
        }
        if let Some(message) = poke() {
            peer.line.write_message(message).await;
        }
        ensure(
            Instant::now() < until,
            "the node gives up after 4 s of silence (`silence_max_ms`)",
            "it is still connected after 30 s",
        )?;
    }
}

async fn silence(stage: &mut Stage) -> Played {
    stage.limits = soon();
    let mut peer = stage.joined().await?;
    let waited = gives_up(&mut peer, || None).await?;
    let is_right = (Duration::from_secs(3)..Duration::from_secs(15)).contains(&waited);
    let expected = "the node gives up 4 s after the last frame (`silence_max_ms`)";
    ensure(is_right, expected, seconds(waited))?;
    let came = "no `ping`".to_owned();
    ensure(
        !peer.pings.is_empty(),
        "a `ping` after 1 s (`ping_after_ms`)",
        came,
    )?;
    stage.joined().await?;
    Ok(())
}

async fn websocket_ping(stage: &mut Stage) -> Played {
    stage.limits = soon();
    let mut peer = stage.joined().await?;
    let ping = || Some(Message::Ping(bytes::Bytes::from_static(b"?")));
    let waited = gives_up(&mut peer, ping).await?;
    let expected = "the node gives up 4 s after the last frame, WebSocket pings or not";
    ensure(waited < Duration::from_secs(15), expected, seconds(waited))?;
    let came = "no WebSocket pong".to_owned();
    ensure(peer.socket_pongs > 0, "an answer to a WebSocket ping", came)
}

async fn reconnect(stage: &mut Stage) -> Played {
    let mut peer = stage.joined().await?;
    for _ in 0..3 {
        drop(peer);
        let since = Instant::now();
        let stream = stage.dialled().await?;
        let expected = "it waits 0.5 s to 60 s before it dials again";
        let waited = since.elapsed();
        ensure(
            waited >= Duration::from_millis(450),
            expected,
            seconds(waited),
        )?;
        let mut line = stage.upgrade(stream).await?;
        line.noise().await?;
        let node = stage.verify(&mut line).await?;
        peer = stage.accept(line, node).await?;
        peer.listed().await?;
    }
    Ok(())
}

async fn goodbye(stage: &mut Stage) -> Played {
    for (reason, back_in_ms) in [(GoodbyeReason::Shutdown, 3000), (GoodbyeReason::Upgrade, 0)] {
        let mut peer = stage.joined().await?;
        let since = Instant::now();
        peer.send(&ToNode::Goodbye { reason, back_in_ms }).await?;
        peer.closes("it has heard `goodbye`").await?;
        // Or else it may be the end of this connection that it waits for.
        drop(peer);
        // Half a second is the shortest wait, whatever is asked for.
        let least = Duration::from_millis(back_in_ms.max(500));
        let rest = least.saturating_sub(since.elapsed() + Duration::from_millis(50));
        let why = format!("`goodbye` says {back_in_ms} ms, and 0.5 s is the least");
        stage.does_not_dial(rest, &why).await?;
    }
    stage.joined().await?;
    Ok(())
}

async fn superseded(stage: &mut Stage) -> Played {
    let mut peer = stage.joined().await?;
    let code = CloseCode::Superseded;
    peer.send(&ToNode::Close { code }).await?;
    peer.closes("its connection was taken over").await?;
    drop(peer);
    stage
        .does_not_dial(WATCH, "two processes of one device would fight for ever")
        .await
}

async fn revoked(stage: &mut Stage) -> Played {
    let mut peer = stage.joined().await?;
    let code = CloseCode::Revoked;
    peer.send(&ToNode::Close { code }).await?;
    peer.closes("it was revoked").await?;
    drop(peer);
    let watched = Duration::from_secs(5);
    stage
        .does_not_dial(watched, "a node that was revoked is not mended by dialling")
        .await
}

async fn text_frame(stage: &mut Stage) -> Played {
    let mut peer = stage.joined().await?;
    stage.story.sent("the text message `hello`");
    peer.line.write_message(Message::text("hello")).await;
    peer.closes("text messages are not used").await?;
    stage.joined().await?;
    Ok(())
}

async fn bad_frame(stage: &mut Stage) -> Played {
    let mut peer = stage.joined().await?;
    stage.story.sent("a frame with one bit changed");
    let codec = peer.codec();
    let plain = codec.encode(&ToNode::Ping { number: 1 });
    let mut frame = peer.line.seal(&plain.map_err(anyhow::Error::from)?)?;
    frame[0] ^= 1;
    peer.line.write(frame).await;
    peer.closes("a frame that does not open ends the connection")
        .await?;
    no_pong(&peer)?;
    stage.joined().await?;
    Ok(())
}

async fn replayed_frame(stage: &mut Stage) -> Played {
    let mut peer = stage.joined().await?;
    let plain = peer.codec().encode(&ToNode::Ping { number: 1 });
    let frame = peer.line.seal(&plain.map_err(anyhow::Error::from)?)?;
    stage.story.sent("the same frame, twice");
    peer.line.write(frame.clone()).await;
    peer.line.write(frame).await;
    peer.closes("a frame has its number, and opens once")
        .await?;
    let came = format!("{} pongs", peer.pongs.len());
    ensure(peer.pongs.len() <= 1, "one pong", came)
}

async fn long_frame(stage: &mut Stage) -> Played {
    let mut peer = stage.joined().await?;
    stage.story.sent("a binary message of 65,536 bytes");
    peer.line.write(vec![0; FRAME_BYTES_MAX + 1]).await;
    peer.closes("a message is at most 65,535 bytes").await?;
    stage.joined().await?;
    Ok(())
}

async fn unknown_message(stage: &mut Stage) -> Played {
    let mut peer = stage.joined().await?;
    let plain: &[u8] = match peer.codec() {
        Codec::Json => br#"{"dance":{"number":1}}"#,
        Codec::Postcard => &[99, 1],
    };
    stage.story.sent("a message of a kind that no ledger knows");
    peer.line.write_plain(plain).await?;
    peer.closes("the message is not one of section 5").await?;
    stage.joined().await?;
    Ok(())
}

async fn leftover(stage: &mut Stage) -> Played {
    let mut peer = stage.joined().await?;
    let plain = peer.codec().encode(&ToNode::Ping { number: 1 });
    let mut plain = plain.map_err(anyhow::Error::from)?;
    plain.extend_from_slice(b"{}");
    stage
        .story
        .sent("a ping with two bytes left over behind it");
    peer.line.write_plain(&plain).await?;
    peer.closes("bytes left over behind a message are an error")
        .await?;
    no_pong(&peer)
}

async fn keeper_only(stage: &mut Stage) -> Played {
    let mut peer = stage.joined().await?;
    let windows = peer.windows;
    peer.say(ToKeeper::Attach { windows }).await?;
    peer.closes("`attach` is not on this wire").await?;
    stage.kill_node().await;
    let mut peer = stage.joined().await?;
    peer.say(ToKeeper::Leave).await?;
    peer.closes("`leave` is not on this wire").await?;
    Ok(())
}

async fn last_word(stage: &mut Stage) -> Played {
    let mut peer = stage.joined().await?;
    let windows = peer.windows;
    peer.say(ToKeeper::Attach { windows }).await?;
    match peer.closes("`attach` is not on this wire").await? {
        Some(CloseCode::Protocol) => Ok(()),
        Some(code) => Err(failed("`close: protocol`", format!("`close: {code:?}`"))),
        None => Err(crate::conformance::trouble::Trouble::NotOffered(
            "the node closes without a word".to_owned(),
        )),
    }
}

fn no_pong(peer: &Peer) -> Played {
    let came = format!("{:?}", ToGateway::Pong { number: 1 });
    ensure(peer.pongs.is_empty(), "no answer to such a frame", came)
}
