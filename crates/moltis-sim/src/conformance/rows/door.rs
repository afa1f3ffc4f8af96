//! Sections 1 to 3: the upgrade, the channel, and who is who.

use moltis_identity::random;
use moltis_identity::{SecretKey, StrictVerifier};
use moltis_proto::handshake::gateway::GatewayHandshake;
use moltis_proto::handshake::{Binding, GatewayProof, Verdict};
use moltis_proto::limits::HANDSHAKE_FRAME_BYTES_MAX;
use moltis_proto::version::{Ledger, LedgerRange};
use moltis_proto::{Codec, Nonce, PublicKey, Refusal, Signature, Subprotocol};
use tokio_tungstenite::tungstenite::http::header;

use super::{Row, row};
use crate::conformance::secret;
use crate::conformance::stage::{Choice, Stage};
use crate::conformance::trouble::{Played, ensure, failed};

pub(super) const ROWS: &[Row] = &[
    row!(
        Must,
        "upgrade",
        "1 WebSocket",
        "dials /ws with a subprotocol and without Origin and Cookie",
        upgrade
    ),
    row!(
        Must,
        "subprotocols",
        "1 WebSocket",
        "speaks every subprotocol that it offers",
        subprotocols
    ),
    row!(
        Must,
        "noise-low-order",
        "2 Noise",
        "refuses an ephemeral key of low order",
        low_order
    ),
    row!(
        Must,
        "noise-changed",
        "2 Noise",
        "refuses a second Noise message that was changed",
        noise_changed
    ),
    row!(
        Must,
        "proof-signature",
        "3 Signatures",
        "shows nothing of itself to a gateway whose signature is wrong",
        wrong_signature
    ),
    row!(
        Must,
        "proof-elsewhere",
        "3 Signatures",
        "refuses a proof that was signed for another channel",
        another_channel
    ),
    row!(
        Must,
        "proof-weak-key",
        "3 Signatures",
        "refuses a gateway's key of small order",
        weak_key
    ),
    row!(
        Must,
        "own-key",
        "3 Signatures",
        "refuses a gateway that shows the node's own key",
        own_key
    ),
    row!(
        Must,
        "out-of-turn",
        "3 Handshake",
        "closes on a message out of turn",
        out_of_turn
    ),
    row!(
        Must,
        "handshake-frame",
        "3 Handshake",
        "closes on a frame of more than 4 KiB before it is accepted",
        long_frame
    ),
    row!(
        Must,
        "ledger-choice",
        "3 The ledger",
        "chooses the highest number of the gateway's range that it speaks",
        ledger_choice
    ),
    row!(
        Must,
        "ledger-none",
        "3 The ledger",
        "proves nothing to a gateway without a common number",
        ledger_none
    ),
    row!(
        Must,
        "ledger-changed",
        "3 The ledger",
        "refuses an `accepted` with another number than it signed",
        ledger_changed
    ),
    row!(
        Must,
        "pin-kept",
        "3 Pins",
        "keeps the key of the first `accepted`, also when it is started anew",
        pin_kept
    ),
    row!(
        Must,
        "pin-mismatch",
        "3 Pins",
        "sends no proof to a gateway with another key",
        pin_mismatch
    ),
];

async fn upgrade(stage: &mut Stage) -> Played {
    let mut line = stage.upgraded().await?;
    let path = line.asked.path.clone();
    ensure(path == "/ws", "the path `/ws`", path)?;
    for name in [header::ORIGIN, header::COOKIE] {
        let value = line.asked.headers.get(&name);
        let came = format!("{name}: {value:?}");
        ensure(value.is_none(), format!("no `{name}` header"), came)?;
    }
    line.noise().await?;
    stage.verify(&mut line).await?;
    Ok(())
}

async fn subprotocols(stage: &mut Stage) -> Played {
    let first = stage.upgraded().await?;
    let offers = first.asked.headers.get_all(header::SEC_WEBSOCKET_PROTOCOL);
    let offers: String = offers
        .iter()
        .filter_map(|value| value.to_str().ok())
        .collect::<Vec<_>>()
        .join(",");
    drop(first);
    let offered =
        |known: &&Subprotocol| offers.split(',').any(|offer| offer.trim() == known.name());
    let offered: Vec<Subprotocol> = Subprotocol::ALL.iter().filter(offered).copied().collect();
    for subprotocol in offered {
        // A gateway that knows this one only, so that nothing but the choice differs.
        stage.kill_node().await;
        stage.choice = Choice::Only(subprotocol);
        let peer = stage.joined().await.map_err(|trouble| match trouble {
            crate::conformance::trouble::Trouble::Failed { expected, came } => {
                failed(format!("with `{}`: {expected}", subprotocol.name()), came)
            }
            other => other,
        })?;
        drop(peer);
    }
    Ok(())
}

/// Four of the encodings whose shared secret is zero whatever the other half is (RFC 7748, 6.1).
const LOW_ORDER: [[u8; 32]; 2] = {
    let zero = [0; 32];
    let mut one = [0; 32];
    one[0] = 1;
    [zero, one]
};

async fn low_order(stage: &mut Stage) -> Played {
    for point in LOW_ORDER {
        stage.kill_node().await;
        let mut line = stage.upgraded().await?;
        let mut answer = line.noise_answer().await?;
        answer[..32].copy_from_slice(&point);
        line.write(answer).await;
        line.closes_without_a_word("the gateway's ephemeral key is of low order")
            .await?;
    }
    Ok(())
}

async fn noise_changed(stage: &mut Stage) -> Played {
    let mut line = stage.upgraded().await?;
    let mut answer = line.noise_answer().await?;
    answer[40] ^= 1;
    line.write(answer).await;
    line.closes_without_a_word("the second Noise message does not open")
        .await
}

async fn proven(stage: &mut Stage, change: impl FnOnce(&mut GatewayProof), why: &str) -> Played {
    let mut line = stage.met().await?;
    let (_, mut proof) = stage.challenge(&line)?;
    change(&mut proof);
    line.send(&proof).await?;
    line.closes_without_a_word(why).await
}

async fn wrong_signature(stage: &mut Stage) -> Played {
    let why = "the signature of `GatewayProof` does not hold, so no `NodeProof` may follow";
    proven(
        stage,
        |proof| {
            let mut signature = *proof.signature.as_bytes();
            signature[7] ^= 1;
            proof.signature = Signature::from_bytes(signature);
        },
        why,
    )
    .await?;
    stage.kill_node().await;
    proven(
        stage,
        |proof| proof.nonce_g = Nonce::from_bytes([9; 32]),
        why,
    )
    .await
}

async fn another_channel(stage: &mut Stage) -> Played {
    let mut line = stage.met().await?;
    let binding = line.binding()?;
    let elsewhere = Binding {
        hash: [7; 32],
        ..binding
    };
    let nonce = || Nonce::from_bytes(random::bytes());
    let (_, proof) = GatewayHandshake::new(
        elsewhere,
        &stage.key,
        &StrictVerifier,
        stage.ledgers,
        nonce(),
        nonce(),
    );
    line.send(&proof).await?;
    line.closes_without_a_word("the proof is bound to another channel's `h`")
        .await
}

async fn weak_key(stage: &mut Stage) -> Played {
    // The identity of the curve: R = identity and S = 0 verify over anything where checks are lax.
    let mut identity = [0; 32];
    identity[0] = 1;
    let mut signature = [0; 64];
    signature[0] = 1;
    let why = "the gateway's key is of small order: any signature fits it";
    proven(
        stage,
        |proof| {
            proof.gateway_key = PublicKey::from_bytes(identity);
            proof.signature = Signature::from_bytes(signature);
        },
        why,
    )
    .await
}

async fn own_key(stage: &mut Stage) -> Played {
    let (line, node) = stage.verified().await?;
    drop(line);
    stage.kill_node().await;
    let key = node.node_key();
    let why = "the gateway shows the node's own key";
    if let Some(secret) = secret::find(&stage.state_dir(), key) {
        // Nothing else is wrong with such a proof.
        stage.key = secret;
        return proven(stage, |_| {}, why).await;
    }
    stage
        .story
        .did("the node's secret is not found, so the signature is wrong too");
    proven(stage, |proof| proof.gateway_key = key, why).await
}

async fn out_of_turn(stage: &mut Stage) -> Played {
    let mut line = stage.met().await?;
    let early = Verdict::Refused {
        code: Refusal::Rejected,
    };
    line.send(&early).await?;
    line.closes_without_a_word("a `Verdict` came where a `GatewayProof` was due")
        .await?;
    stage.kill_node().await;
    let mut line = stage.met().await?;
    let (_, proof) = stage.challenge(&line)?;
    line.send(&proof).await?;
    line.send(&proof).await?;
    // Its own two frames may be under way.
    line.closes_saying("a second `GatewayProof` came where a `Verdict` was due", 2)
        .await
}

async fn long_frame(stage: &mut Stage) -> Played {
    let mut line = stage.met().await?;
    let (_, proof) = stage.challenge(&line)?;
    let codec = line.subprotocol().codec();
    let mut plain = codec.encode(&proof).map_err(anyhow::Error::from)?;
    // White space is fine in JSON; the length alone is wrong.
    let filler = if codec == Codec::Json { b' ' } else { 0 };
    plain.resize(HANDSHAKE_FRAME_BYTES_MAX, filler);
    stage
        .story
        .sent("a `GatewayProof` in a frame of 4,112 bytes");
    line.write_plain(&plain).await?;
    line.closes_without_a_word("a frame before acceptance is at most 4 KiB")
        .await
}

async fn ledger_choice(stage: &mut Stage) -> Played {
    let range = |min, max| LedgerRange {
        min: Ledger(min),
        max: Ledger(max),
    };
    let mut chosen = Vec::new();
    for ledgers in [range(1, 1), range(1, 2), range(1, 900)] {
        stage.kill_node().await;
        stage.ledgers = ledgers;
        let (_, node) = stage.verified().await?;
        chosen.push(node.ledger());
    }
    let came = format!(
        "1 of 1, {} of 1 to 2, {} of 1 to 900",
        chosen[1].0, chosen[2].0
    );
    let knows_more = chosen[2] > chosen[1] && chosen[1] < Ledger(2);
    ensure(
        chosen[1] <= chosen[2] && !knows_more,
        "the highest number of the range that the node speaks",
        came,
    )
}

async fn ledger_none(stage: &mut Stage) -> Played {
    stage.ledgers = LedgerRange {
        min: Ledger(60_000),
        max: Ledger(60_001),
    };
    let mut line = stage.met().await?;
    let (_, proof) = stage.challenge(&line)?;
    line.send(&proof).await?;
    line.closes_without_a_word("the gateway speaks 60000 to 60001, which no node does")
        .await
}

async fn ledger_changed(stage: &mut Stage) -> Played {
    let (line, node) = stage.verified().await?;
    let mut peer = stage.accept_as(line, node, Ledger(60_000)).await?;
    peer.closes("the number in `accepted` is not the one that it signed")
        .await?;
    ensure(
        !peer.listed.is_complete,
        "nothing behind such an `accepted`",
        "the node went on with its list of runs",
    )
}

async fn pin_kept(stage: &mut Stage) -> Played {
    stage.joined().await?;
    stage.kill_node().await;
    stage.joined().await?;
    Ok(())
}

async fn pin_mismatch(stage: &mut Stage) -> Played {
    let peer = stage.joined().await?;
    stage.kill_node().await;
    drop(peer);
    stage.key = SecretKey::generate();
    let mut line = stage.met().await?;
    let (_, proof) = stage.challenge(&line)?;
    line.send(&proof).await?;
    line.closes_without_a_word(
        "the gateway's key is not the pinned one, so no `NodeProof` may follow",
    )
    .await
}
