//! Whole stories with a real gateway: pairing, runs, cuts at many bytes, a restart, the end.

use std::time::Duration;

use moltis_gateway::audit::Actor;
use moltis_proto::run::Outcome;
use tokio::time::sleep;

use super::output::{counted, counting};
use super::{Row, row};
use crate::conformance::real::{RealGateway, Told};
use crate::conformance::run::same_bytes;
use crate::conformance::stage::Stage;
use crate::conformance::trouble::{Played, ensure};

pub(super) const ROWS: &[Row] = &[
    row!(
        Must,
        "story-approved",
        "4 Pairing",
        "is approved on a real gateway, and runs a command for it",
        approved
    ),
    row!(
        Must,
        "story-rejected",
        "4 Pairing",
        "is rejected on a real gateway, and leaves it alone",
        rejected
    ),
    row!(
        Must,
        "story-closed",
        "4 Pairing",
        "makes no request while the pairing window is closed",
        closed
    ),
    row!(
        Must,
        "story-waits",
        "4 Pairing",
        "finds its request again after a cut, with a new code",
        waits
    ),
    row!(
        Must,
        "story-cuts",
        "6 After a cut",
        "gets a run through five cuts in the midst of frames, whole",
        cuts
    ),
    row!(
        Must,
        "story-restart",
        "6 After a cut",
        "gets a run through the restart of a gateway, whole",
        restart
    ),
    row!(
        Must,
        "story-revoked",
        "7 Life of a connection",
        "is revoked on a real gateway, and leaves it alone",
        revoked
    ),
];

async fn approved(stage: &mut Stage) -> Played {
    let real = RealGateway::start(stage).await?;
    let device = real.pair(stage).await?;
    let handle = real.run(device, "echo hello").await?;
    let told = real.follow(&handle).await?;
    whole(&told, b"hello\n")
}

async fn rejected(stage: &mut Stage) -> Played {
    let real = RealGateway::start(stage).await?;
    real.open_pairing().await?;
    stage.start_node()?;
    let pending = real.request(stage).await?;
    let rejected = real
        .gateway
        .pairing()
        .reject(pending.request.id, Actor::operator());
    rejected.await.map_err(anyhow::Error::from)?;
    left_alone(&real).await
}

/// Waits a while and counts who dialled.
async fn left_alone(real: &RealGateway) -> Played {
    let before = real.relay.connections();
    sleep(Duration::from_secs(5)).await;
    let dialled = real.relay.connections() - before;
    let came = format!("it dialled {dialled} times");
    ensure(
        dialled == 0,
        "the node does not dial for five seconds",
        came,
    )
}

async fn closed(stage: &mut Stage) -> Played {
    let real = RealGateway::start(stage).await?;
    real.close_pairing().await?;
    stage.start_node()?;
    let until = tokio::time::Instant::now() + stage.patience();
    while real.relay.connections() == 0 && tokio::time::Instant::now() < until {
        sleep(Duration::from_millis(20)).await;
    }
    sleep(Duration::from_secs(5)).await;
    let came = format!("{} connections in five seconds", real.relay.connections());
    ensure(
        real.relay.connections() == 1,
        "one attempt: `pairing_off` is not mended by dialling",
        came,
    )?;
    let requests = real.gateway.pairing().pending().len();
    ensure(requests == 0, "no request", format!("{requests}"))
}

async fn waits(stage: &mut Stage) -> Played {
    let real = RealGateway::start(stage).await?;
    real.open_pairing().await?;
    stage.start_node()?;
    let first = real.request(stage).await?;
    real.close_pairing().await?;
    real.relay.cut();
    let expected = "the same request with another code, once the node has dialled again";
    let again = real
        .look(stage, expected, |gateway| {
            let pending = gateway.pairing().pending();
            let same = pending
                .into_iter()
                .find(|it| it.request.id == first.request.id)?;
            (same.request.code != first.request.code).then_some(same)
        })
        .await?;
    let record = real.approve(&again).await?;
    real.online(stage, record.device_id).await
}

async fn cuts(stage: &mut Stage) -> Played {
    let real = RealGateway::start(stage).await?;
    let device = real.pair(stage).await?;
    let line = format!(
        "for part in 1 2 3 4 5 6 7 8; do {}; sleep 0.2; done",
        counting(100_000)
    );
    let handle = real.run(device, &line).await?;
    // In the midst of output, of the next upgrade, of output, of the next proofs, of output.
    real.relay.cut_after(&[20_000, 150, 70_001, 700, 30_017]);
    let told = real.follow(&handle).await?;
    whole(&told, &counted(100_000).repeat(8))?;
    let came = format!("{} of them to come", real.relay.cuts_to_come());
    ensure(real.relay.cuts_to_come() == 0, "five cuts on the way", came)
}

async fn restart(stage: &mut Stage) -> Played {
    let file = stage.work().join("starts");
    let real = RealGateway::start(stage).await?;
    let device = real.pair(stage).await?;
    let line = format!(
        "echo started >> '{}'; for part in 1 2 3 4 5 6; do {}; sleep 0.3; done",
        file.display(),
        counting(50_000)
    );
    let handle = real.run(device, &line).await?;
    let id = handle.id();
    let mut follow = handle.follow(0, 0);
    follow.next().await;
    drop((follow, handle));
    let real = real.restart().await?;
    real.online(stage, device).await?;
    let handle = real.handle(id).await?;
    let told = real.follow(&handle).await?;
    whole(&told, &counted(50_000).repeat(6))?;
    let starts = std::fs::read_to_string(&file).unwrap_or_default();
    ensure(
        starts == "started\n",
        "one start of the command",
        starts.clone(),
    )
}

async fn revoked(stage: &mut Stage) -> Played {
    let real = RealGateway::start(stage).await?;
    let device = real.pair(stage).await?;
    let revoked = real.gateway.pairing().revoke(device, Actor::operator());
    revoked.await.map_err(anyhow::Error::from)?;
    real.offline(stage, device).await?;
    left_alone(&real).await
}

fn whole(told: &Told, expected: &[u8]) -> Played {
    let ending = told.record.ending.as_ref();
    let outcome = ending.map(|ending| ending.outcome);
    ensure(
        outcome == Some(Outcome::Exited),
        "`exited`",
        format!("{ending:?}"),
    )?;
    ensure(
        told.gaps == 0,
        "output without a gap",
        format!("{} gaps", told.gaps),
    )?;
    same_bytes("stdout", expected, &told.stdout)
}
