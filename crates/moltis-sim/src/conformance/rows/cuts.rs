//! Section 6: what is started once stays started once, whatever happens to connection and node.

use std::time::Duration;

use moltis_proto::key::Digest;
use moltis_proto::run::{GapReason, Outcome, RunState};
use moltis_proto::{RunId, RunRefusal, ToKeeper};

use super::output::{counted, counting};
use super::{Row, row};
use crate::conformance::peer::Peer;
use crate::conformance::run::shell;
use crate::conformance::stage::Stage;
use crate::conformance::trouble::{Played, Trouble, ensure, failed};

pub(super) const ROWS: &[Row] = &[
    row!(
        Must,
        "start-twice",
        "6 Starting",
        "answers a second `start` with `state`, and runs nothing twice",
        twice
    ),
    row!(
        Must,
        "start-changed",
        "6 Starting",
        "refuses a `start` whose digest has changed",
        changed
    ),
    row!(
        Must,
        "start-forgotten",
        "6 Starting",
        "refuses a `start` of a run that was forgotten",
        forgotten
    ),
    row!(
        Must,
        "cut-running",
        "6 After a cut",
        "goes on while it is cut, and sends every byte once",
        running
    ),
    row!(
        Must,
        "cut-ended",
        "6 After a cut",
        "lists a run that ended meanwhile, and tells its output and ending",
        ended
    ),
    row!(
        Must,
        "cut-unresumed",
        "6 After a cut",
        "sends nothing of a run that is not resumed",
        unresumed
    ),
    row!(
        Must,
        "resume-below",
        "6 After a cut",
        "has the newest 64 KiB below what was acknowledged",
        below
    ),
    row!(
        Must,
        "resume-freed",
        "6 After a cut",
        "marks what it has no more as a gap, `freed`",
        freed
    ),
    row!(
        Must,
        "ended-again",
        "6 Ending",
        "tells an ending again after each `resume`, until `forget`",
        again
    ),
    row!(
        Must,
        "forget",
        "6 Runs",
        "lists a forgotten run no more",
        forget
    ),
    row!(
        Must,
        "killed-node",
        "6 Starting",
        "runs nothing twice, also when it was killed in between",
        killed
    ),
    row!(
        May,
        "outlive-node",
        "6 Starting",
        "lets a command outlive the node's process",
        outlive
    ),
];

/// A line that counts its own starts in a file.
fn counts(stage: &Stage, rest: &str) -> (std::path::PathBuf, String) {
    let file = stage.work().join("starts");
    let line = format!("echo started >> '{}'; {rest}", file.display());
    (file, line)
}

fn starts(file: &std::path::Path) -> usize {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().count()
}

fn once(file: &std::path::Path) -> Played {
    let came = format!("it ran {} times", starts(file));
    ensure(starts(file) == 1, "the command runs once", came)
}

async fn answered(peer: &mut Peer, run_id: RunId, expected: &str) -> Played {
    peer.until(expected, |peer| {
        let run = peer.runs.get(&run_id)?;
        (run.state.is_some() || run.refused.is_some()).then_some(())
    })
    .await
}

async fn twice(stage: &mut Stage) -> Played {
    let (file, line) = counts(stage, "sleep 1; echo done");
    let mut peer = stage.joined().await?;
    let run_id = peer.start(shell(line)).await?;
    peer.start_again(run_id).await?;
    answered(
        &mut peer,
        run_id,
        "`state`: the run is known with this digest",
    )
    .await?;
    let run = peer.run(run_id)?;
    let came = format!("refused: {:?}", run.refused);
    ensure(run.refused.is_none(), "`state`", came)?;
    let digest = run.state.as_ref().map(|state| state.digest);
    ensure(
        digest == Some(run.digest),
        "a summary with the digest of its `start`",
        format!("{:?}", run.state),
    )?;
    let run = peer.finish(run_id).await?;
    run.printed(b"done\n")?;
    once(&file)
}

async fn changed(stage: &mut Stage) -> Played {
    let (file, line) = counts(stage, "sleep 1");
    let mut peer = stage.joined().await?;
    let run_id = peer.start(shell(line)).await?;
    peer.until("`started`", |peer| {
        peer.runs.get(&run_id)?.started.first().copied()
    })
    .await?;
    let spec = Box::new(peer.run(run_id)?.spec.clone());
    let digest = Digest::from_bytes([0xee; 32]);
    peer.say(ToKeeper::Start {
        run_id,
        digest,
        spec,
    })
    .await?;
    answered(&mut peer, run_id, "`refused: digest_mismatch`").await?;
    let refused = peer.run(run_id)?.refused;
    let is_right = refused == Some(RunRefusal::DigestMismatch);
    ensure(
        is_right,
        "`refused: digest_mismatch`",
        format!("{refused:?}"),
    )?;
    // Before it is over, the first one may have yet to write.
    peer.until("the `ended` of the run that goes on", |peer| {
        peer.runs.get(&run_id)?.ended.as_ref().map(drop)
    })
    .await?;
    once(&file)
}

async fn done(peer: &mut Peer, stage: &Stage) -> Played<(std::path::PathBuf, RunId)> {
    let (file, line) = counts(stage, "echo done");
    let run_id = peer.start(shell(line)).await?;
    peer.finish(run_id).await?.exited(0)?;
    Ok((file, run_id))
}

async fn forgotten(stage: &mut Stage) -> Played {
    let mut peer = stage.joined().await?;
    let (file, run_id) = done(&mut peer, stage).await?;
    peer.say(ToKeeper::Forget { run_id }).await?;
    peer.start_again(run_id).await?;
    answered(&mut peer, run_id, "`refused: forgotten`").await?;
    let refused = peer.run(run_id)?.refused;
    let is_right = refused == Some(RunRefusal::Forgotten);
    ensure(is_right, "`refused: forgotten`", format!("{refused:?}"))?;
    once(&file)
}

/// Waits until this much of stdout has come.
async fn has_come(peer: &mut Peer, run_id: RunId, bytes: usize) -> Played {
    peer.until(&format!("{bytes} bytes of stdout"), |peer| {
        (peer.runs.get(&run_id)?.stdout.len() >= bytes).then_some(())
    })
    .await
}

/// Fails unless the node lists this run; returns whether it runs still.
fn listed(peer: &Peer, run_id: RunId) -> Played<bool> {
    let digest = peer.run(run_id)?.digest;
    let summary = peer.listed.runs.iter().find(|run| run.run_id == run_id);
    let summary = summary.ok_or_else(|| {
        let came = format!("a list of {} others", peer.listed.runs.len());
        failed("the run in the node's list after the cut", came)
    })?;
    let came = format!("{:?}", summary.digest);
    ensure(summary.digest == digest, "the digest of its `start`", came)?;
    Ok(matches!(summary.state, RunState::Running { .. }))
}

async fn back(stage: &mut Stage, peer: Peer) -> Played<Peer> {
    let runs = peer.cut();
    Ok(stage.joined().await?.knowing(runs))
}

async fn running(stage: &mut Stage) -> Played {
    let part = counting(40_000);
    let rest = format!("for part in 1 2 3 4 5 6 7 8; do {part}; sleep 0.3; done");
    let (file, line) = counts(stage, &rest);
    let mut peer = stage.joined().await?;
    let run_id = peer.start(shell(line)).await?;
    for bytes in [1, 100_000, 200_000] {
        has_come(&mut peer, run_id, bytes).await?;
        peer = back(stage, peer).await?;
        listed(&peer, run_id)?;
        peer.resume(run_id).await?;
    }
    let run = peer.finish(run_id).await?;
    run.exited(0)?;
    run.printed(&counted(40_000).repeat(8))?;
    once(&file)
}

async fn ended(stage: &mut Stage) -> Played {
    let go = stage.work().join("go");
    let rest = format!(
        "echo before; until test -e '{}'; do sleep 0.1; done; {}; exit 5",
        go.display(),
        counting(200_000)
    );
    let (file, line) = counts(stage, &rest);
    let mut peer = stage.joined().await?;
    let run_id = peer.start(shell(line)).await?;
    has_come(&mut peer, run_id, 7).await?;
    let runs = peer.cut();
    std::fs::write(&go, "").map_err(anyhow::Error::from)?;
    let mut peer = stage.joined().await?.knowing(runs);
    listed(&peer, run_id)?;
    peer.resume(run_id).await?;
    let run = peer.finish(run_id).await?;
    run.exited(5)?;
    run.printed(&[b"before\n", &counted(200_000)[..]].concat())?;
    once(&file)
}

async fn unresumed(stage: &mut Stage) -> Played {
    let mut peer = stage.joined().await?;
    let line = stage.endless("echo more; sleep 0.1");
    let run_id = peer.start(shell(line)).await?;
    has_come(&mut peer, run_id, 5).await?;
    let mut peer = back(stage, peer).await?;
    // Whatever the node sends of it now is found by the books.
    peer.listen(Duration::from_secs(1)).await?;
    peer.say(ToKeeper::Cancel {
        run_id,
        grace_ms: 100,
    })
    .await?;
    peer.resume(run_id).await?;
    peer.finish(run_id).await?;
    Ok(())
}

const KEPT: usize = 64 * 1024;

async fn below(stage: &mut Stage) -> Played {
    let mut peer = stage.joined().await?;
    let run_id = peer
        .start(shell(format!("{}; sleep 3", counting(300_000))))
        .await?;
    has_come(&mut peer, run_id, 300_000).await?;
    let mut peer = back(stage, peer).await?;
    let from = (300_000 - KEPT) as u64;
    peer.resume_at(run_id, from, 0).await?;
    let run = peer.finish(run_id).await?;
    run.exited(0)?;
    run.printed(&counted(300_000))
}

async fn freed(stage: &mut Stage) -> Played {
    let mut peer = stage.joined().await?;
    let run_id = peer.start(shell(counting(300_000))).await?;
    peer.finish(run_id).await?.exited(0)?;
    let mut peer = back(stage, peer).await?;
    listed(&peer, run_id)?;
    peer.resume_at(run_id, 0, 0).await?;
    let run = peer.finish(run_id).await?;
    run.exited(0)?;
    let came = format!("{} bytes, gaps {:?}", run.stdout.len(), run.gaps);
    ensure(
        run.stdout.len() == 300_000,
        "300,000 bytes, gaps counted",
        came,
    )?;
    // Who has more than it must may send it: then there is no gap.
    let mut kept_from = 0;
    for &(_, from, to, reason) in &run.gaps {
        let came = format!("{from} to {to}: {reason:?}");
        ensure(
            reason == GapReason::Freed && from == kept_from,
            "one gap from 0, `freed`",
            came,
        )?;
        kept_from = to;
    }
    let kept_from = usize::try_from(kept_from).unwrap_or(usize::MAX);
    ensure(
        kept_from <= 300_000 - KEPT,
        "at least the newest 64 KiB",
        format!("a gap up to {kept_from}"),
    )?;
    let expected = counted(300_000);
    crate::conformance::run::same_bytes(
        "what is left",
        &expected[kept_from..],
        &run.stdout[kept_from..],
    )
}

async fn again(stage: &mut Stage) -> Played {
    let mut peer = stage.joined().await?;
    let (file, run_id) = done(&mut peer, stage).await?;
    peer.resume(run_id).await?;
    peer.finish(run_id).await?.exited(0)?;
    let mut peer = back(stage, peer).await?;
    listed(&peer, run_id)?;
    peer.resume(run_id).await?;
    peer.finish(run_id).await?.exited(0)?;
    once(&file)
}

async fn forget(stage: &mut Stage) -> Played {
    let mut peer = stage.joined().await?;
    let (_, kept) = done(&mut peer, stage).await?;
    let (_, gone) = done(&mut peer, stage).await?;
    peer.say(ToKeeper::Forget { run_id: gone }).await?;
    // What is said behind it is done behind it.
    peer.play(shell("true")).await?.exited(0)?;
    let peer = back(stage, peer).await?;
    listed(&peer, kept)?;
    let is_gone = peer.listed.runs.iter().all(|run| run.run_id != gone);
    ensure(
        is_gone,
        "no run that was forgotten in the list",
        format!("{gone}"),
    )
}

async fn killed(stage: &mut Stage) -> Played {
    let (file, line) = counts(stage, "echo first; sleep 2; echo second");
    let mut peer = stage.joined().await?;
    let run_id = peer.start(shell(line)).await?;
    has_come(&mut peer, run_id, 6).await?;
    stage.kill_node().await;
    let mut peer = back(stage, peer).await?;
    peer.start_again(run_id).await?;
    let expected = "`state` of a run that it knows, or `refused: forgotten`";
    answered(&mut peer, run_id, expected).await?;
    let run = peer.run(run_id)?;
    let is_right = run.state.is_some() || run.refused == Some(RunRefusal::Forgotten);
    ensure(is_right, expected, format!("refused: {:?}", run.refused))?;
    once(&file)?;
    if run.state.is_some() {
        // It is told how that run ended, or that nobody knows.
        peer.resume(run_id).await?;
        let ending = peer.finish(run_id).await?.ending()?.outcome;
        let is_right = matches!(ending, Outcome::Exited | Outcome::Lost | Outcome::Signaled);
        ensure(
            is_right,
            "`exited`, or `lost` where the truth went with the node",
            format!("{ending:?}"),
        )?;
    }
    once(&file)
}

async fn outlive(stage: &mut Stage) -> Played {
    let go = stage.work().join("go");
    let rest = format!(
        "echo first; until test -e '{}'; do sleep 0.1; done; echo second",
        go.display()
    );
    let (file, line) = counts(stage, &rest);
    let mut peer = stage.joined().await?;
    let run_id = peer.start(shell(line)).await?;
    has_come(&mut peer, run_id, 6).await?;
    stage.kill_node().await;
    let mut peer = back(stage, peer).await?;
    let lives = peer
        .listed
        .runs
        .iter()
        .any(|run| run.run_id == run_id && matches!(run.state, RunState::Running { .. }));
    std::fs::write(&go, "").map_err(anyhow::Error::from)?;
    if !lives {
        return Err(Trouble::NotOffered(
            "its commands end with its process".to_owned(),
        ));
    }
    peer.resume(run_id).await?;
    let run = peer.finish(run_id).await?;
    run.exited(0)?;
    run.printed(b"first\nsecond\n")?;
    once(&file)
}
