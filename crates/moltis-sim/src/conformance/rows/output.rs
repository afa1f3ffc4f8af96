//! Section 6: output is whole, in order, live, and within its windows.

use std::time::Duration;

use moltis_proto::RunId;

use super::{Row, row};
use crate::conformance::peer::{Acks, Peer};
use crate::conformance::run::{Run, same_bytes, shell};
use crate::conformance::stage::Stage;
use crate::conformance::trouble::{Played, ensure, failed};

pub(super) const ROWS: &[Row] = &[
    row!(
        Must,
        "output-live",
        "6 Output",
        "sends output while the command runs",
        live
    ),
    row!(
        Must,
        "output-whole",
        "6 Output",
        "sends 1 MB of stdout, then 1 MB of stderr, byte for byte",
        whole
    ),
    row!(
        Must,
        "output-binary",
        "6 Output",
        "sends every value of a byte as it is",
        binary
    ),
    row!(
        Must,
        "output-chunks",
        "6 Output",
        "cuts output into chunks of `chunk_bytes_max` at most",
        chunks
    ),
    row!(
        Must,
        "window-run",
        "6 Output",
        "stops at `run_bytes` without an acknowledgement, and goes on with one",
        run_window
    ),
    row!(
        Must,
        "window-connection",
        "6 Output",
        "stops at `connection_bytes` of all runs together",
        connection_window
    ),
    row!(
        Must,
        "window-fair",
        "6 Output",
        "lets other runs speak while one waits for its window",
        fair
    ),
];

/// Prints this many bytes, none of them like its neighbour; `text` returns the same.
pub(super) fn counting(bytes: usize) -> String {
    format!("seq 1 {} | head -c {bytes}", bytes / 2 + 10)
}

pub(super) fn counted(bytes: usize) -> Vec<u8> {
    let numbers = (1..).flat_map(|number: u32| format!("{number}\n").into_bytes());
    numbers.take(bytes).collect()
}

async fn live(stage: &mut Stage) -> Played {
    let go = stage.work().join("go");
    let mut peer = stage.joined().await?;
    let line = format!(
        "echo first; until test -e '{}'; do sleep 0.1; done; echo second",
        go.display()
    );
    let run_id = peer.start(shell(line)).await?;
    peer.until(
        "the first line, while the command waits for a file",
        |peer| (peer.runs.get(&run_id)?.stdout == b"first\n").then_some(()),
    )
    .await?;
    std::fs::write(&go, "").map_err(anyhow::Error::from)?;
    let run = peer.finish(run_id).await?;
    run.exited(0)?;
    run.printed(b"first\nsecond\n")
}

async fn whole(stage: &mut Stage) -> Played {
    const MEGABYTE: usize = 1024 * 1024;
    let mut peer = stage.joined().await?;
    let line = format!("{}; {} >&2", counting(MEGABYTE), counting(MEGABYTE));
    let run = peer.play(shell(line)).await?;
    run.exited(0)?;
    let expected = counted(MEGABYTE);
    run.printed(&expected)?;
    same_bytes("stderr", &expected, &run.stderr)?;
    let totals = run.ended.as_ref().map(|(_, totals)| *totals);
    let is_right =
        totals.is_some_and(|totals| totals.stdout == 1_048_576 && totals.stderr == 1_048_576);
    ensure(
        is_right,
        "totals of 1,048,576 bytes each",
        format!("{totals:?}"),
    )
}

async fn binary(stage: &mut Stage) -> Played {
    let all: Vec<u8> = (0..=255).collect();
    let octal: Vec<_> = all.iter().map(|byte| format!("\\{byte:03o}")).collect();
    let mut peer = stage.joined().await?;
    let run = peer
        .play(shell(format!("printf '{}'", octal.concat())))
        .await?;
    run.exited(0)?;
    run.printed(&all)
}

async fn chunks(stage: &mut Stage) -> Played {
    stage.windows.chunk_bytes_max = 1000;
    stage.windows.run_bytes = 4000;
    // What checks each chunk is the book of the run.
    let mut peer = stage.joined().await?;
    let run = peer.play(shell(counting(50_000))).await?;
    run.exited(0)?;
    run.printed(&counted(50_000))
}

fn small_windows(stage: &mut Stage) {
    stage.windows.chunk_bytes_max = 4096;
    stage.windows.run_bytes = 20_000;
    stage.windows.connection_bytes = 50_000;
}

/// Waits until the node can send no further full chunk, and then a little longer.
async fn fills(peer: &mut Peer, what: &str, at_least: u64) -> Played {
    peer.until(what, |peer| {
        let under_way: u64 = peer.runs.values().map(Run::under_way).sum();
        (under_way >= at_least).then_some(())
    })
    .await?;
    // What goes beyond the window is found by the books.
    peer.listen(Duration::from_millis(700)).await
}

async fn run_window(stage: &mut Stage) -> Played {
    small_windows(stage);
    let mut peer = stage.joined().await?;
    peer.acks = Acks::Withheld;
    let run_id = peer.start(shell(counting(200_000))).await?;
    // A node may wait until a full chunk has room.
    let most = u64::from(stage.windows.run_bytes - stage.windows.chunk_bytes_max);
    fills(&mut peer, "output up to the window of 20,000 bytes", most).await?;
    peer.acks = Acks::Prompt;
    peer.acknowledge(run_id).await?;
    let run = peer.finish(run_id).await?;
    run.exited(0)?;
    run.printed(&counted(200_000))
}

async fn connection_window(stage: &mut Stage) -> Played {
    small_windows(stage);
    let mut peer = stage.joined().await?;
    peer.acks = Acks::Withheld;
    let mut started: Vec<RunId> = Vec::new();
    for _ in 0..4 {
        started.push(peer.start(shell(counting(100_000))).await?);
    }
    let most = u64::from(stage.windows.connection_bytes - 2 * stage.windows.chunk_bytes_max);
    let what = "output of four runs up to the connection's window of 50,000 bytes";
    fills(&mut peer, what, most).await?;
    peer.acks = Acks::Prompt;
    for &run_id in &started {
        peer.acknowledge(run_id).await?;
    }
    for run_id in started {
        let run = peer.finish(run_id).await?;
        run.exited(0)?;
        run.printed(&counted(100_000))?;
    }
    Ok(())
}

async fn fair(stage: &mut Stage) -> Played {
    small_windows(stage);
    let mut peer = stage.joined().await?;
    peer.acks = Acks::Withheld;
    let slow = peer.start(shell(counting(100_000))).await?;
    fills(&mut peer, "output up to the window of 20,000 bytes", 10_000).await?;
    let quick = peer.start(shell("echo quick")).await?;
    peer.until(
        "another run's output, while one is stopped by its window",
        |peer| peer.runs.get(&quick)?.ended.as_ref().map(drop),
    )
    .await?;
    ensure(
        peer.run(slow)?.ended.is_none(),
        "the stopped run waits",
        "it has ended",
    )?;
    peer.acks = Acks::Prompt;
    peer.acknowledge(slow).await?;
    let run = peer.finish(slow).await?;
    if run.stdout.len() != 100_000 {
        return Err(failed("100,000 bytes", run.stdout.len().to_string()));
    }
    run.exited(0)
}
