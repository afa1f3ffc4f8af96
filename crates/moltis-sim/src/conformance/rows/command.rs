//! Section 6: what runs, in which surroundings, and how it ends.

use std::collections::BTreeMap;
use std::path::Path;

use moltis_proto::run::{ExitStatus, Outcome, Reason, RunSpec, StdinMode, Tty, TtySize};
use moltis_proto::{RunRefusal, ToNode};

use super::{Row, row};
use crate::conformance::peer::Peer;
use crate::conformance::process::SECRET;
use crate::conformance::run::{argv, same_bytes, shell};
use crate::conformance::stage::Stage;
use crate::conformance::trouble::{Played, Trouble, ensure, failed, shown};

pub(super) const ROWS: &[Row] = &[
    row!(
        Must,
        "run-argv",
        "6 Starting",
        "runs a program with exactly these words",
        words
    ),
    row!(
        Must,
        "run-shell",
        "6 Starting",
        "runs a line by /bin/sh -c",
        line
    ),
    row!(
        Must,
        "run-cwd",
        "6 Starting",
        "starts where `cwd` says, or says that it cannot",
        cwd
    ),
    row!(
        Must,
        "run-env",
        "6 Environment",
        "gives a clean environment, and the variables of the request",
        env
    ),
    row!(
        Must,
        "env-refused",
        "6 Environment",
        "refuses every other variable, and drops none in silence",
        env_refused
    ),
    row!(
        Must,
        "spec-refused",
        "6 Starting",
        "refuses a `spec` that is `invalid`",
        invalid
    ),
    row!(
        Must,
        "run-codes",
        "6 Ending",
        "tells exit codes and signals as the kernel does",
        codes
    ),
    row!(
        Must,
        "run-not-found",
        "6 Ending",
        "tells a program that is missing or not executable",
        not_found
    ),
    row!(
        Must,
        "stdin-empty",
        "6 Stdin",
        "gives /dev/null where stdin is `empty`",
        stdin_empty
    ),
    row!(
        Must,
        "stdin",
        "6 Stdin",
        "feeds stdin in order, acknowledges it, and skips what it has",
        stdin
    ),
    row!(
        Must,
        "stdin-hole",
        "6 Stdin",
        "closes on a hole in stdin",
        stdin_hole
    ),
    row!(
        May,
        "tty",
        "6 Starting",
        "gives a terminal of the size asked for",
        tty
    ),
    row!(
        Must,
        "side-by-side",
        "6 Runs",
        "runs eight commands at once, and answers pings meanwhile",
        side_by_side
    ),
];

async fn words(stage: &mut Stage) -> Played {
    let mut peer = stage.joined().await?;
    let words = ["printf", "[%s]", "two words", "", "*", "$HOME", "ä\n", "-n"];
    let run = peer.play(argv(&words)).await?;
    run.exited(0)?;
    run.printed("[two words][][*][$HOME][ä\n][-n]".as_bytes())?;
    let (ending, totals) = run
        .ended
        .as_ref()
        .ok_or_else(|| failed("`ended`", "none"))?;
    let came = format!("{totals:?}");
    ensure(
        totals.stdout == run.stdout.len() as u64 && totals.stderr == 0,
        "totals of the output",
        came,
    )?;
    let came = format!("{} ms", ending.duration_ms);
    ensure(
        ending.duration_ms < 60_000,
        "a duration in milliseconds",
        came,
    )?;
    ensure(
        run.started.len() == 1,
        "`started`, once",
        format!("{:?}", run.started),
    )
}

async fn line(stage: &mut Stage) -> Played {
    let mut peer = stage.joined().await?;
    let run = peer
        .play(shell("echo a | tr a b; echo c >&2; exit 7"))
        .await?;
    run.exited(7)?;
    run.printed(b"b\n")?;
    same_bytes("stderr", b"c\n", &run.stderr)
}

async fn cwd(stage: &mut Stage) -> Played {
    let dir = std::fs::canonicalize(stage.work()).map_err(anyhow::Error::from)?;
    let mut peer = stage.joined().await?;
    let at = |dir: &Path| RunSpec {
        cwd: Some(dir.display().to_string()),
        ..argv(&["pwd", "-P"])
    };
    let run = peer.play(at(&dir)).await?;
    run.exited(0)?;
    run.printed(format!("{}\n", dir.display()).as_bytes())?;
    let run = peer.play(at(&dir.join("missing"))).await?;
    run.ended_as(Outcome::FailedToStart, Some(Reason::WorkingDir), None)
}

async fn env(stage: &mut Stage) -> Played {
    let mut peer = stage.joined().await?;
    let asked = [
        ("LANG", "de_DE.UTF-8"),
        ("LC_ALL", "C"),
        ("NO_COLOR", ""),
        ("TERM", "dumb"),
    ];
    let mut spec = argv(&["env"]);
    spec.env = asked
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    let run = peer.play(spec).await?;
    run.exited(0)?;
    let text = String::from_utf8_lossy(&run.stdout);
    let found: BTreeMap<_, _> = text
        .lines()
        .filter_map(|line| line.split_once('='))
        .collect();
    for (name, value) in asked {
        let came = format!("{name}={:?}", found.get(name));
        ensure(
            found.get(name) == Some(&value),
            format!("{name}={value}, as the request says"),
            came,
        )?;
    }
    for name in ["HOME", "PATH"] {
        let is_there = found.get(name).is_some_and(|value| !value.is_empty());
        ensure(
            is_there,
            format!("{name} in the node's own base"),
            text.clone(),
        )?;
    }
    let base = ["HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "PATH"];
    let strange = found
        .keys()
        .find(|name| !base.contains(name) && asked.iter().all(|(asked, _)| asked != *name));
    // Every node is started with a secret, so that one that passes its own environment on is found.
    let secret = if found.contains_key(SECRET) {
        ", and a secret of the node's own"
    } else {
        ""
    };
    let came = format!("`{}` beside them{secret}", strange.unwrap_or(&""));
    ensure(
        strange.is_none(),
        "a cleared environment with HOME, USER, LOGNAME, SHELL, TMPDIR, PATH",
        came,
    )
}

async fn env_refused(stage: &mut Stage) -> Played {
    let mut peer = stage.joined().await?;
    let long = "x".repeat(4097);
    let cases = [
        ("LD_PRELOAD", "x"),
        ("DYLD_INSERT_LIBRARIES", "x"),
        ("PATH", "/tmp"),
        ("BUILD_ID", "7"),
        ("MY_TOKEN", "x"),
        ("lang", "C"),
        ("LC_", "C"),
        ("LANG", "a\nb"),
        ("TERM", "../x"),
        ("LC_ALL", &long),
    ];
    for (name, value) in cases {
        let mut spec = argv(&["true"]);
        spec.env = BTreeMap::from([(name.to_owned(), value.to_owned())]);
        let what = format!("{name}={}", shown(value.as_bytes()));
        refused(&mut peer, spec, RunRefusal::EnvNotAllowed, &what).await?;
    }
    let mut spec = argv(&["true"]);
    let name = |number: u8| {
        format!(
            "LC_{}{}",
            char::from(b'A' + number / 26),
            char::from(b'A' + number % 26)
        )
    };
    spec.env = (0..65)
        .map(|number| (name(number), "C".to_owned()))
        .collect();
    refused(&mut peer, spec, RunRefusal::EnvNotAllowed, "65 variables").await
}

async fn invalid(stage: &mut Stage) -> Played {
    let mut peer = stage.joined().await?;
    let cases = [
        ("an empty argv", argv(&[])),
        ("a zero byte in a word", argv(&["echo", "a\0b"])),
        ("a zero byte in a line", shell("echo a\0b")),
        (
            "a `cwd` that is not absolute",
            RunSpec {
                cwd: Some("tmp".to_owned()),
                ..argv(&["true"])
            },
        ),
        (
            "`timeout_ms` 0",
            RunSpec {
                timeout_ms: Some(0),
                ..argv(&["true"])
            },
        ),
        (
            "`grace_ms` 300001",
            RunSpec {
                grace_ms: 300_001,
                ..argv(&["true"])
            },
        ),
    ];
    for (what, spec) in cases {
        refused(&mut peer, spec, RunRefusal::Invalid, what).await?;
    }
    // And it goes on.
    peer.play(argv(&["true"])).await?.exited(0)
}

/// The node has to refuse this run with this code.
async fn refused(peer: &mut Peer, spec: RunSpec, code: RunRefusal, what: &str) -> Played {
    let run_id = peer.start(spec).await?;
    let expected = format!("`refused: {code:?}` for {what}");
    peer.until(&expected, |peer| {
        let run = peer.runs.get(&run_id)?;
        (run.refused.is_some() || run.ended.is_some()).then_some(())
    })
    .await?;
    let run = peer.run(run_id)?;
    let came = format!("refused {:?}, ended {:?}", run.refused, run.ended);
    ensure(run.refused == Some(code), expected, came)
}

async fn codes(stage: &mut Stage) -> Played {
    let mut peer = stage.joined().await?;
    for code in [0, 1, 126, 255] {
        peer.play(shell(format!("exit {code}")))
            .await?
            .exited(code)?;
    }
    for signal in [15, 9] {
        let run = peer
            .play(shell(format!("echo before; kill -{signal} $$")))
            .await?;
        run.ended_as(Outcome::Signaled, None, Some(ExitStatus::Signal(signal)))?;
        run.printed(b"before\n")?;
    }
    Ok(())
}

async fn not_found(stage: &mut Stage) -> Played {
    let plain = stage.work().join("plain");
    std::fs::write(&plain, "no program").map_err(anyhow::Error::from)?;
    let mut peer = stage.joined().await?;
    for program in ["/no/such/program", "no-such-program-anywhere"] {
        let run = peer.play(argv(&[program])).await?;
        run.ended_as(Outcome::FailedToStart, Some(Reason::NotFound), None)?;
        ensure(run.started.is_empty(), "no `started`", "one")?;
    }
    let run = peer.play(argv(&[&plain.display().to_string()])).await?;
    run.ended_as(Outcome::FailedToStart, Some(Reason::NotExecutable), None)
}

async fn stdin_empty(stage: &mut Stage) -> Played {
    let mut peer = stage.joined().await?;
    let run = peer.play(argv(&["cat"])).await?;
    run.exited(0)?;
    run.printed(b"")
}

fn open(spec: RunSpec) -> RunSpec {
    RunSpec {
        stdin: StdinMode::Open,
        ..spec
    }
}

async fn stdin(stage: &mut Stage) -> Played {
    stage.windows.stdin_bytes = 10_000;
    let mut peer = stage.joined().await?;
    let run_id = peer.start(open(argv(&["cat"]))).await?;
    let text: Vec<u8> = (0..100_000_u32).map(|n| (n % 251) as u8).collect();
    let mut sent = 0;
    while sent < text.len() {
        // Never more under way than the window, and 500 bytes again that the node has.
        let taken = peer.run(run_id)?.stdin.0;
        let room = taken + 10_000 - sent as u64;
        if room == 0 {
            let expected = "a `stdin_ack` once the pipe has taken what was sent";
            peer.until(expected, |peer| {
                let run = peer.runs.get(&run_id)?;
                (run.stdin.0 > taken || run.refused.is_some()).then_some(())
            })
            .await?;
            if let Some(code) = peer.run(run_id)?.refused {
                return Err(failed(
                    "a run with an open stdin",
                    format!("refused: {code:?}"),
                ));
            }
            continue;
        }
        let from = sent.saturating_sub(500);
        let room = usize::try_from(room).unwrap_or(usize::MAX).min(4000);
        let to = text.len().min(sent + room);
        peer.stdin(run_id, from as u64, &text[from..to], false)
            .await?;
        sent = to;
    }
    peer.stdin(run_id, text.len() as u64, b"", true).await?;
    let run = peer.finish(run_id).await?;
    run.exited(0)?;
    run.printed(&text)
}

async fn stdin_hole(stage: &mut Stage) -> Played {
    let mut peer = stage.joined().await?;
    let run_id = peer.start(open(argv(&["cat"]))).await?;
    peer.until("`started`", |peer| {
        peer.runs.get(&run_id)?.started.first().copied()
    })
    .await?;
    peer.stdin(run_id, 10, b"behind a hole", false).await?;
    peer.closes("bytes 0 to 10 of stdin are missing").await?;
    Ok(())
}

async fn tty(stage: &mut Stage) -> Played {
    let mut peer = stage.joined().await?;
    let size = TtySize { cols: 91, rows: 37 };
    let mut spec = open(shell(
        "stty size; test -t 1 && echo terminal; echo $TERM >&2",
    ));
    spec.tty = Some(Tty {
        size,
        term: "xterm".to_owned(),
    });
    let run_id = peer.start(spec).await?;
    peer.until("`ended`", |peer| {
        let run = peer.runs.get(&run_id)?;
        (run.ended.is_some() || run.refused.is_some()).then_some(())
    })
    .await?;
    let run = peer.run(run_id)?;
    let ended = run.ended.as_ref().map(|(ending, _)| ending.outcome);
    if ended == Some(Outcome::FailedToStart) {
        let why = "it has no terminals to give";
        return Err(Trouble::NotOffered(why.to_owned()));
    }
    let run = peer.finish(run_id).await?;
    run.exited(0)?;
    run.printed(b"37 91\r\nterminal\r\nxterm\r\n")?;
    same_bytes("stderr", b"", &run.stderr)
}

async fn side_by_side(stage: &mut Stage) -> Played {
    let dir = stage.work();
    let mut peer = stage.joined().await?;
    // Each waits until all eight are there: one after the other they would wait for ever.
    let line = |number: u8| {
        let dir = dir.display();
        format!(
            "cd '{dir}'; : > s{number}; until test -e s0 -a -e s1 -a -e s2 -a -e s3 -a -e s4 -a -e s5 -a -e s6 -a -e s7; do sleep 0.1; done; echo {number}"
        )
    };
    let mut started = Vec::new();
    for number in 0..8 {
        started.push((number, peer.start(shell(line(number))).await?));
    }
    peer.send(&ToNode::Ping { number: 8 }).await?;
    peer.until("a pong while eight commands run", |peer| {
        (peer.pongs.last() == Some(&8)).then_some(())
    })
    .await?;
    for (number, run_id) in started {
        let run = peer.finish(run_id).await?;
        run.exited(0)?;
        run.printed(format!("{number}\n").as_bytes())?;
    }
    Ok(())
}
