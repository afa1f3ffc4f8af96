//! Section 4, and the end of section 3: waiting for a person, and being turned away.

use std::time::Duration;

use moltis_identity::{SecretKey, random};
use moltis_proto::handshake::gateway::VerifiedNode;
use moltis_proto::handshake::{Intent, Verdict};
use moltis_proto::{Nonce, Refusal, RequestId};
use tokio::time::{Instant, sleep};

use super::{Row, row};
use crate::conformance::line::{Came, Line};
use crate::conformance::stage::Stage;
use crate::conformance::trouble::{Played, Trouble, ensure, failed, seconds};

pub(super) const ROWS: &[Row] = &[
    row!(
        Must,
        "pair-intent",
        "4 Pairing",
        "asks to pair until it has been accepted once",
        intent
    ),
    row!(
        Must,
        "pending-wait",
        "4 Pairing",
        "waits while `pending` is repeated, and works once it is accepted",
        wait
    ),
    row!(
        Must,
        "pending-cut",
        "4 Pairing",
        "dials again with `pair` when the connection drops while it waits",
        cut
    ),
    row!(
        Must,
        "pending-silence",
        "4 Pairing",
        "gives up after 45 s of silence while it waits, and dials again",
        silence
    ),
    row!(
        Must,
        "pending-key",
        "3 Pins",
        "stops when another key appears while it waits",
        another_key
    ),
    row!(
        Must,
        "code-commitment",
        "3 The connection code",
        "closes when the revealed secret is not the committed one",
        commitment
    ),
    row!(
        May,
        "code-shown",
        "3 The connection code",
        "shows the code that the gateway shows",
        code
    ),
    row!(
        Must,
        "refused-rests",
        "4 Pairing",
        "does not come back at once when a person has turned it away",
        rests
    ),
    row!(
        Must,
        "rate-limited",
        "4 Pairing",
        "comes back when `rate_limited` says, not sooner",
        rate_limited
    ),
    row!(
        Must,
        "retry-after",
        "1 WebSocket",
        "comes back when 503 with `Retry-After` says, not sooner",
        retry_after
    ),
];

/// How long a node is watched that should rest.
const WATCH: Duration = Duration::from_secs(5);

fn pending(node: &VerifiedNode) -> Verdict {
    node.pending(RequestId::from_bytes([3; 16]), 3_600_000)
}

async fn waiting(stage: &mut Stage) -> Played<(Line, VerifiedNode)> {
    let (mut line, node) = stage.verified().await?;
    line.send(&pending(&node)).await?;
    Ok((line, node))
}

/// The node stays and says nothing.
async fn stays(line: &mut Line, time: Duration) -> Played {
    let until = Instant::now() + time;
    loop {
        match line.read(until).await? {
            Came::Nothing => return Ok(()),
            Came::Pong => {}
            Came::Frame(frame) => {
                let came = format!("a frame of {} bytes", frame.len());
                return Err(failed("a node that waits says nothing", came));
            }
            Came::Closed(how) => return Err(failed("a node that waits stays", how)),
        }
    }
}

async fn intent(stage: &mut Stage) -> Played {
    let (_, node) = stage.verified().await?;
    let came = format!("`{:?}`", node.intent());
    ensure(
        node.intent() == Intent::Pair,
        "`pair` from a node that is new",
        came,
    )
}

async fn wait(stage: &mut Stage) -> Played {
    let (mut line, node) = waiting(stage).await?;
    for _ in 0..2 {
        stays(&mut line, Duration::from_millis(300)).await?;
        line.send(&pending(&node)).await?;
    }
    let mut peer = stage.accept(line, node).await?;
    peer.listed().await
}

async fn cut(stage: &mut Stage) -> Played {
    let (line, _) = waiting(stage).await?;
    drop(line);
    let (line, node) = stage.verified().await?;
    let came = format!("`{:?}`", node.intent());
    ensure(
        node.intent() == Intent::Pair,
        "`pair` again: nobody has approved it yet",
        came,
    )?;
    let mut peer = stage.accept(line, node).await?;
    peer.listed().await
}

async fn silence(stage: &mut Stage) -> Played {
    let (mut line, _) = waiting(stage).await?;
    let since = Instant::now();
    let expected = "the node gives up after 45 seconds of silence, and not before";
    let until = since + Duration::from_mins(1) + stage.patience();
    loop {
        match line.read(until).await? {
            Came::Closed(_) => break,
            Came::Pong => {}
            Came::Frame(_) => return Err(failed("a node that waits says nothing", "a frame")),
            Came::Nothing => {
                let came = format!("it still waits after {}", seconds(since.elapsed()));
                return Err(failed(expected, came));
            }
        }
    }
    let waited = since.elapsed();
    let came = format!("it gave up after {}", seconds(waited));
    ensure(waited >= Duration::from_secs(44), expected, came)?;
    stage.dialled().await?;
    Ok(())
}

async fn another_key(stage: &mut Stage) -> Played {
    let (line, _) = waiting(stage).await?;
    drop(line);
    stage.key = SecretKey::generate();
    let mut line = stage.met().await?;
    let (_, proof) = stage.challenge(&line)?;
    line.send(&proof).await?;
    line.closes_without_a_word("another key appeared while it waited, so no `NodeProof` may follow")
        .await
}

async fn commitment(stage: &mut Stage) -> Played {
    let (mut line, _) = stage.verified().await?;
    let lie = Verdict::Pending {
        request_id: RequestId::from_bytes([3; 16]),
        expires_in_ms: 3_600_000,
        code_reveal: Nonce::from_bytes(random::bytes()),
    };
    line.send(&lie).await?;
    line.closes_without_a_word("`code_reveal` is not what `code_commit` is the SHA-256 of")
        .await
}

async fn code(stage: &mut Stage) -> Played {
    let (_line, node) = waiting(stage).await?;
    let until = Instant::now() + Duration::from_secs(5);
    loop {
        let printed = stage.printed();
        if let Some(shown) = printed
            .split(|c: char| c.is_whitespace() || c == '"')
            .find(looks_like_a_code)
        {
            let code = node.connection_code().as_str();
            return ensure(
                shown == code,
                format!("the code {code}, as the gateway shows it"),
                format!("{shown} in what the node prints"),
            );
        }
        if Instant::now() > until {
            return Err(Trouble::NotOffered(
                "the node prints no code, so a person has to look at the fingerprints".to_owned(),
            ));
        }
        sleep(Duration::from_millis(50)).await;
    }
}

fn looks_like_a_code(word: &&str) -> bool {
    word.len() == 14
        && word.split('-').count() == 3
        && word.split('-').all(|group| {
            group.len() == 4
                && group
                    .bytes()
                    .all(|b| b.is_ascii_digit() || b.is_ascii_uppercase())
        })
}

async fn rests(stage: &mut Stage) -> Played {
    for code in [
        Refusal::Rejected,
        Refusal::Revoked,
        Refusal::PairingOff,
        Refusal::KeyMismatch,
    ] {
        stage.kill_node().await;
        let (mut line, _) = stage.verified().await?;
        line.send(&Verdict::Refused { code }).await?;
        line.close().await;
        let why = format!("`refused: {code:?}` is not mended by dialling");
        stage.does_not_dial(WATCH, &why).await?;
    }
    Ok(())
}

async fn rate_limited(stage: &mut Stage) -> Played {
    let (mut line, _) = stage.verified().await?;
    let code = Refusal::RateLimited { retry_ms: 3000 };
    let since = Instant::now();
    line.send(&Verdict::Refused { code }).await?;
    line.close().await;
    comes_back(stage, since, "`rate_limited` says 3 s").await
}

async fn retry_after(stage: &mut Stage) -> Played {
    // A node that never met a gateway at this address may think that none is there.
    stage.joined().await?;
    stage.busy(3).await?;
    let since = Instant::now();
    comes_back(stage, since, "`Retry-After` says 3 s").await
}

async fn comes_back(stage: &mut Stage, since: Instant, why: &str) -> Played {
    let early = Duration::from_secs(3).saturating_sub(since.elapsed());
    stage
        .does_not_dial(early.saturating_sub(Duration::from_millis(50)), why)
        .await?;
    stage.dialled().await?;
    Ok(())
}
