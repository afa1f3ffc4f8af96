//! Section 6: how runs end that do not end by themselves, and what is left of them.

use std::time::Duration;

use moltis_proto::ToKeeper;
use moltis_proto::run::{ExitStatus, Outcome};
use rustix::process::{Pid, test_kill_process};
use tokio::time::{Instant, sleep};

use super::{Row, row};
use crate::conformance::peer::Peer;
use crate::conformance::run::{argv, shell};
use crate::conformance::stage::Stage;
use crate::conformance::trouble::{Played, ensure, seconds, shown};

pub(super) const ROWS: &[Row] = &[
    row!(
        Must,
        "signal",
        "5 Messages after `accepted`",
        "sends a signal to the run's process group",
        signal
    ),
    row!(
        Must,
        "cancel",
        "6 Cancel",
        "cancels with SIGTERM first, and keeps what was printed",
        cancel
    ),
    row!(
        Must,
        "cancel-kill",
        "6 Cancel",
        "kills the whole process group after the grace",
        cancel_kill
    ),
    row!(
        Must,
        "timeout",
        "6 Cancel",
        "ends a run and its group when its time is over",
        timeout
    ),
    row!(
        Must,
        "background",
        "6 Cancel",
        "waits for a background process two seconds at most",
        background
    ),
];

/// Waits until a run has printed this.
async fn prints(peer: &mut Peer, run_id: moltis_proto::RunId, text: &[u8]) -> Played {
    let expected = format!("stdout {}", shown(text));
    peer.until(&expected, |peer| {
        let run = peer.runs.get(&run_id)?;
        run.stdout.ends_with(text).then_some(())
    })
    .await
}

async fn signal(stage: &mut Stage) -> Played {
    let mut peer = stage.joined().await?;
    let endless = stage.endless("sleep 0.1");
    let line = format!("trap 'echo caught; exit 3' USR1; echo ready; {endless}");
    let run_id = peer.start(shell(line)).await?;
    prints(&mut peer, run_id, b"ready\n").await?;
    let signal = rustix::process::Signal::USR1.as_raw();
    peer.say(ToKeeper::Signal { run_id, signal }).await?;
    let run = peer.finish(run_id).await?;
    run.exited(3)?;
    run.printed(b"ready\ncaught\n")
}

async fn cancel(stage: &mut Stage) -> Played {
    let mut peer = stage.joined().await?;
    let endless = stage.endless("sleep 0.1");
    let line = format!("trap 'echo bye; exit 0' TERM; echo ready; {endless}");
    let run_id = peer.start(shell(line)).await?;
    prints(&mut peer, run_id, b"ready\n").await?;
    peer.say(ToKeeper::Cancel {
        run_id,
        grace_ms: 10_000,
    })
    .await?;
    let run = peer.finish(run_id).await?;
    let ending = run.ending()?;
    let came = format!("{:?}", ending.outcome);
    ensure(ending.outcome == Outcome::Cancelled, "`cancelled`", came)?;
    run.printed(b"ready\nbye\n")?;
    // What had ended keeps its ending.
    let run_id = peer.start(argv(&["true"])).await?;
    peer.finish(run_id).await?.exited(0)?;
    peer.say(ToKeeper::Cancel {
        run_id,
        grace_ms: 0,
    })
    .await?;
    peer.resume(run_id).await?;
    peer.finish(run_id).await?.exited(0)
}

/// A line that ignores SIGTERM, with a child that does too; both print their process ids.
fn stubborn(stage: &Stage) -> String {
    let endless = stage.endless("sleep 0.2");
    format!(
        "trap '' TERM; echo $$; (trap '' TERM; echo $(exec sh -c 'echo $PPID'); {endless}) & {endless}"
    )
}

async fn group(peer: &mut Peer, run_id: moltis_proto::RunId) -> Played<Vec<Pid>> {
    peer.until("two process ids on stdout", |peer| {
        let run = peer.runs.get(&run_id)?;
        let text = String::from_utf8_lossy(&run.stdout);
        let pids = text
            .lines()
            .filter_map(|line| Pid::from_raw(line.trim().parse().ok()?));
        let pids: Vec<_> = pids.collect();
        (text.ends_with('\n') && pids.len() == 2).then_some(pids)
    })
    .await
}

async fn all_gone(pids: &[Pid]) -> Played {
    let until = Instant::now() + Duration::from_secs(10);
    while pids.iter().any(|&pid| test_kill_process(pid).is_ok()) {
        let came = format!("some of {pids:?} live");
        ensure(
            Instant::now() < until,
            "the whole process group is gone",
            came,
        )?;
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

async fn cancel_kill(stage: &mut Stage) -> Played {
    let mut peer = stage.joined().await?;
    let run_id = peer.start(shell(stubborn(stage))).await?;
    let pids = group(&mut peer, run_id).await?;
    peer.say(ToKeeper::Cancel {
        run_id,
        grace_ms: 300,
    })
    .await?;
    let run = peer.finish(run_id).await?;
    run.ended_as(Outcome::Cancelled, None, Some(ExitStatus::Signal(9)))?;
    all_gone(&pids).await
}

async fn timeout(stage: &mut Stage) -> Played {
    let mut peer = stage.joined().await?;
    let mut spec = shell(stubborn(stage));
    spec.timeout_ms = Some(2000);
    spec.grace_ms = 300;
    let since = Instant::now();
    let run_id = peer.start(spec).await?;
    let pids = group(&mut peer, run_id).await?;
    let run = peer.finish(run_id).await?;
    run.ended_as(Outcome::TimedOut, None, Some(ExitStatus::Signal(9)))?;
    let took = since.elapsed();
    let is_right = took >= Duration::from_millis(1900) && took < Duration::from_secs(15);
    ensure(
        is_right,
        "an ending after 2 s (`timeout_ms`) and the grace",
        seconds(took),
    )?;
    all_gone(&pids).await
}

async fn background(stage: &mut Stage) -> Played {
    let mut peer = stage.joined().await?;
    let since = Instant::now();
    let line = format!("({}) & echo done", stage.endless("sleep 1"));
    let run = peer.play(shell(line)).await?;
    run.exited(0)?;
    run.printed(b"done\n")?;
    let took = since.elapsed();
    let expected = "an ending two seconds after the command's, at most";
    ensure(took < Duration::from_secs(12), expected, seconds(took))
}
