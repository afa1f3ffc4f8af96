//! How runs end: by themselves, not at all, by a signal, by their time, by a wish.

use std::time::Duration;

use tokio::time::Instant;

use moltis_proto::ToKeeper;
use moltis_proto::run::{ExitStatus, Outcome, Reason, RunSpec, Tty, TtySize};

use crate::client::{PATIENCE, argv, id, shell};
use crate::fixture::{Inside, Outside, gone, is_alive};

#[tokio::test]
async fn a_command_ends_with_its_code_and_both_outputs() {
    let keeper = Inside::new();
    let mut client = keeper.client().await;
    let run = client
        .run(id(1), shell("echo out; echo err >&2; exit 7"))
        .await;
    assert_eq!(
        (run.stdout(), run.stderr()),
        ("out\n".to_owned(), "err\n".to_owned())
    );
    assert_eq!(run.ending().outcome, Outcome::Exited);
    assert_eq!(run.ending().status, Some(ExitStatus::Code(7)));
    assert!(!run.ending().descendants_may_survive);
    assert!(run.pid.is_some());
}

#[tokio::test]
async fn how_a_command_ends_is_known_though_whoever_started_the_keeper_ignores_sigchld() {
    let keeper = Outside::start_deaf().await;
    let mut client = keeper.client().await;
    let run = client.run(id(1), shell("exit 7")).await;
    assert_eq!(run.ending().status, Some(ExitStatus::Code(7)));
    // The commands do not ignore it either.
    let run = client
        .run(id(2), shell("grep SigIgn /proc/self/status"))
        .await;
    let ignored = run.stdout();
    let ignored = ignored.trim().rsplit_once('\t').unwrap().1;
    assert_eq!(u64::from_str_radix(ignored, 16).unwrap() >> 16 & 1, 0);
}

#[tokio::test]
async fn a_command_that_a_signal_ends_says_which() {
    let keeper = Inside::new();
    let mut client = keeper.client().await;
    let run = client.run(id(1), shell("kill -9 $$")).await;
    assert_eq!(run.ending().outcome, Outcome::Signaled);
    assert_eq!(run.ending().status, Some(ExitStatus::Signal(9)));
    client
        .start(id(2), shell("echo ready; exec sleep 60"))
        .await;
    client.until(id(2), |run| !run.bytes[0].is_empty()).await;
    client
        .say(ToKeeper::Signal {
            run_id: id(2),
            signal: 2,
        })
        .await;
    let run = client.finish(id(2)).await;
    assert_eq!(run.ending().outcome, Outcome::Signaled);
    assert_eq!(run.ending().status, Some(ExitStatus::Signal(2)));
}

#[tokio::test]
async fn what_cannot_start_says_why() {
    let keeper = Inside::new();
    let mut client = keeper.client().await;
    let dir = keeper.dir.path();
    let flat = dir.join("flat");
    std::fs::write(&flat, "no program").unwrap();
    let script = dir.join("script");
    std::fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&script, mode).unwrap();
    let cases = [
        (argv(&["no-such-program"]), Reason::NotFound),
        (argv(&["/no/such/program"]), Reason::NotFound),
        (argv(&[flat.to_str().unwrap()]), Reason::NotExecutable),
        (argv(&[script.to_str().unwrap()]), Reason::NotExecutable),
        (argv(&["/tmp"]), Reason::NotExecutable),
        (in_directory("/no/such/directory"), Reason::WorkingDir),
        (in_directory(flat.to_str().unwrap()), Reason::WorkingDir),
    ];
    for (number, (spec, reason)) in (1..).zip(cases) {
        let run = client.run(id(number), spec).await;
        assert_eq!(
            run.ending().outcome,
            Outcome::FailedToStart,
            "case {number}"
        );
        assert_eq!(run.ending().reason, Some(reason), "case {number}");
        assert!(!run.ending().detail.is_empty());
        assert_eq!(run.pid, None);
    }
}

fn in_directory(cwd: &str) -> RunSpec {
    let mut spec = shell("pwd");
    spec.cwd = Some(cwd.to_owned());
    spec
}

#[tokio::test]
async fn a_script_without_a_first_line_runs_as_in_a_shell() {
    let keeper = Inside::new();
    let mut client = keeper.client().await;
    let script = keeper.dir.path().join("script");
    std::fs::write(&script, "echo \"$1 $#\"\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&script, mode).unwrap();
    let run = client
        .run(id(1), argv(&[script.to_str().unwrap(), "a", "b"]))
        .await;
    assert_eq!(run.stdout(), "a 2\n");
}

#[tokio::test]
async fn at_its_time_the_whole_group_is_gone_and_the_output_stays() {
    let keeper = Inside::new();
    let mut client = keeper.client().await;
    let mut spec =
        shell("trap '' TERM; (trap '' TERM; echo $BASHPID; sleep 60) & echo before; sleep 60");
    spec.timeout_ms = Some(100);
    spec.grace_ms = 100;
    let run = client.run(id(1), spec).await;
    assert_eq!(run.ending().outcome, Outcome::TimedOut);
    assert_eq!(run.ending().status, Some(ExitStatus::Signal(9)));
    assert!(run.stdout().contains("before"));
    assert!(run.ending().duration_ms >= 200);
}

#[tokio::test]
async fn a_cancelled_command_that_ignores_sigterm_is_killed_after_the_grace() {
    let keeper = Inside::new();
    let mut client = keeper.client().await;
    client
        .start(
            id(1),
            shell("trap '' TERM; echo ready; while :; do sleep 60; done"),
        )
        .await;
    client.until(id(1), |run| !run.bytes[0].is_empty()).await;
    let began = Instant::now();
    client.cancel(id(1), 200).await;
    let run = client.finish(id(1)).await;
    assert!(began.elapsed() >= Duration::from_millis(200));
    assert_eq!(run.ending().outcome, Outcome::Cancelled);
    assert_eq!(run.ending().status, Some(ExitStatus::Signal(9)));
}

#[tokio::test]
async fn a_cancelled_command_may_say_its_last_words() {
    let keeper = Inside::new();
    let mut client = keeper.client().await;
    let line = "trap 'echo last words; exit 3' TERM; echo ready; while :; do sleep 0.01; done";
    client.start(id(1), shell(line)).await;
    client.until(id(1), |run| !run.bytes[0].is_empty()).await;
    client.cancel(id(1), 10_000).await;
    let run = client.finish(id(1)).await;
    assert_eq!(run.stdout(), "ready\nlast words\n");
    assert_eq!(run.ending().outcome, Outcome::Cancelled);
    assert_eq!(run.ending().status, Some(ExitStatus::Code(3)));
}

#[tokio::test]
async fn a_grandchild_that_holds_the_pipe_delays_the_end_by_two_seconds_at_most() {
    let keeper = Inside::new();
    let mut client = keeper.client().await;
    let began = Instant::now();
    let run = client.run(id(1), shell("sleep 60 & echo $!")).await;
    assert!(began.elapsed() >= Duration::from_millis(1_900));
    assert_eq!(run.ending().outcome, Outcome::Exited);
    assert!(run.ending().descendants_may_survive);
    let pid = run.stdout().trim().parse().unwrap();
    assert!(is_alive(pid), "it holds the pipe still");
    kill(pid);
}

#[tokio::test]
async fn a_grandchild_that_prints_for_ever_delays_the_end_no_longer() {
    let keeper = Inside::new();
    let mut client = keeper.client().await;
    client.keeps = false;
    client.run(id(1), shell("yes & exit 4")).await;
    let ending = client.runs[&id(1)].ending();
    assert_eq!(ending.status, Some(ExitStatus::Code(4)));
}

#[tokio::test]
async fn a_background_child_without_the_pipe_delays_nothing_and_lives_on() {
    let keeper = Inside::new();
    let mut client = keeper.client().await;
    let run = client
        .run(id(1), shell("sleep 60 >/dev/null 2>&1 & echo $!"))
        .await;
    assert!(run.ending().descendants_may_survive);
    let pid: u32 = run.stdout().trim().parse().unwrap();
    assert!(is_alive(pid));
    kill(pid);
}

#[tokio::test]
async fn children_that_escape_by_setsid_are_found_when_a_run_is_cancelled() {
    let keeper = Outside::start().await;
    let mut client = keeper.client().await;
    // One whose parent lives, one whose parent is gone, and one behind it that also ignores TERM.
    let line = "setsid sh -c 'echo $$; exec sleep 60' & \
                (setsid sh -c 'echo $$; trap \"\" TERM; (sleep 60 & echo $!; wait)' >&1 &) ; \
                sleep 60";
    client.start(id(1), shell(line)).await;
    // Another run's escaped child is not touched.
    client
        .start(
            id(2),
            shell("(setsid sleep 60 >/dev/null 2>&1 & echo $!); sleep 60"),
        )
        .await;
    client
        .until(id(1), |run| run.stdout().lines().count() == 3)
        .await;
    client
        .until(id(2), |run| run.stdout().lines().count() == 1)
        .await;
    client.cancel(id(1), 100).await;
    let run = client.finish(id(1)).await;
    assert_eq!(run.ending().outcome, Outcome::Cancelled);
    assert!(!run.ending().descendants_may_survive, "{:?}", run.ending());
    for pid in run.stdout().lines() {
        gone(pid.parse().unwrap()).await;
    }
    let other: u32 = client.runs[&id(2)].stdout().trim().parse().unwrap();
    assert!(is_alive(other));
    client.cancel(id(2), 100).await;
    client.finish(id(2)).await;
    gone(other).await;
}

/// Waits until a keeper has so many children, zombies among them.
async fn has_children(keeper: &Outside, count: usize) {
    let children = || {
        let threads = std::fs::read_dir(format!("/proc/{}/task", keeper.pid())).unwrap();
        let lists = threads
            .flatten()
            .map(|thread| std::fs::read_to_string(thread.path().join("children")).unwrap());
        let count = lists.map(|list| list.split_whitespace().count());
        count.sum::<usize>()
    };
    let began = Instant::now();
    while children() != count {
        assert!(began.elapsed() < Duration::from_secs(15), "{}", children());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn orphans_that_end_are_reaped() {
    let keeper = Outside::start().await;
    let mut client = keeper.client().await;
    client
        .run(id(1), shell("(setsid sleep 0.1 >/dev/null 2>&1 &); exit 0"))
        .await;
    has_children(&keeper, 0).await;
}

#[tokio::test]
async fn orphans_of_a_run_that_goes_on_are_reaped() {
    let keeper = Outside::start().await;
    let mut client = keeper.client().await;
    let line = "for n in 1 2 3; do (setsid true &); done; echo all; exec sleep 60";
    client.start(id(1), shell(line)).await;
    client.until(id(1), |run| run.next[0] > 0).await;
    has_children(&keeper, 4).await;
    has_children(&keeper, 1).await;
    client.cancel(id(1), 100).await;
    client.finish(id(1)).await;
}

/// A shell line that ends when a child of it has left its session, and so the run's group; the
/// child writes its number into `file`.
fn leaves_somebody(file: &std::path::Path) -> String {
    let file = file.display();
    format!(
        "setsid sh -c 'echo $$ > {file}; exec sleep 60' >/dev/null 2>&1 & \
         while [ ! -s {file} ]; do sleep 0.01; done"
    )
}

#[tokio::test]
async fn a_child_that_escaped_and_lives_on_is_told_of_with_the_ending() {
    let keeper = Outside::start().await;
    let mut client = keeper.client().await;
    let file = keeper.dir.path().join("pid");
    let run = client.run(id(1), shell(&leaves_somebody(&file))).await;
    assert_eq!(run.ending().outcome, Outcome::Exited);
    assert!(run.ending().descendants_may_survive);
    // It is nobody else's.
    let run = client.run(id(2), shell("true")).await;
    assert!(!run.ending().descendants_may_survive);
    let pid = std::fs::read_to_string(file).unwrap();
    kill(pid.trim().parse().unwrap());
}

#[tokio::test]
async fn a_run_that_had_ended_before_it_was_cancelled_keeps_its_ending() {
    let keeper = Outside::start().await;
    let mut client = keeper.client().await;
    // Which of the two a keeper hears first is chance; so it gets both at once, often.
    for number in 1..=20 {
        let mut spec = shell("echo ready; read line; exit 7");
        spec.stdin = moltis_proto::run::StdinMode::Open;
        client.start(id(number), spec).await;
        let run = client.until(id(number), |run| run.next[0] > 0).await;
        let pid = run.pid.unwrap();
        signal("-STOP", keeper.pid());
        signal("-KILL", pid);
        gone(pid).await;
        client.cancel(id(number), 1_000).await;
        signal("-CONT", keeper.pid());
        let ending = client.finish(id(number)).await.ending();
        assert_eq!(ending.outcome, Outcome::Signaled, "round {number}");
        assert_eq!(ending.status, Some(ExitStatus::Signal(9)));
    }
}

#[tokio::test]
async fn a_cancel_that_meets_the_end_of_a_run_loses_nothing_of_what_it_wrote() {
    let keeper = Inside::new();
    let mut client = keeper.client().await;
    let road = keeper.dir.path().join("road");
    let made = std::process::Command::new("mkfifo").arg(&road).status();
    assert!(made.unwrap().success());
    // A pipe holds 64 KiB, a terminal some 12.
    let on_pipes = (None, 60_000);
    let on_a_terminal = (Some(terminal()), 8_000);
    for number in 1..=200 {
        let (tty, bytes) = [&on_pipes, &on_a_terminal][usize::from(number) % 2].clone();
        let line = format!(
            "echo ready; read line < {}; printf '%{bytes}s' last; exit 0",
            road.display()
        );
        client
            .start(
                id(number),
                RunSpec {
                    tty,
                    ..shell(&line)
                },
            )
            .await;
        let run = client
            .until(id(number), |run| run.stdout().ends_with('\n'))
            .await;
        let (pid, before) = (run.pid.unwrap(), run.stdout().len());
        // The keeper lives on this thread. It sees the end when it hears of the cancel, and what was
        // printed together with its own clock, in an order that is chance.
        std::fs::write(&road, "go\n").unwrap();
        let began = Instant::now();
        while is_alive(pid) {
            assert!(began.elapsed() < PATIENCE, "it ends by itself");
            std::thread::yield_now();
        }
        client.cancel(id(number), 1_000).await;
        let run = client.finish(id(number)).await;
        assert_eq!(run.ending().outcome, Outcome::Exited, "round {number}");
        assert_eq!(run.stdout().len() - before, bytes, "round {number}");
        assert!(run.stdout().ends_with("last"), "round {number}");
    }
}

#[tokio::test]
async fn a_short_run_that_says_it_exited_has_said_all_whenever_it_is_cancelled() {
    let keeper = Outside::start().await;
    let mut client = keeper.client().await;
    let (mut exited, mut cancelled) = (0, 0);
    for number in 1..=240 {
        let line = "seq 1 2000 >&2; echo last; exit 0";
        let tty = (number % 3 == 0).then(terminal);
        client
            .start(id(number), RunSpec { tty, ..shell(line) })
            .await;
        client.until(id(number), |run| run.pid.is_some()).await;
        tokio::time::sleep(Duration::from_micros(100 * u64::from(number % 60))).await;
        client.cancel(id(number), 1_000).await;
        let run = client.finish(id(number)).await;
        if run.ending().outcome == Outcome::Cancelled {
            cancelled += 1;
            continue;
        }
        exited += 1;
        assert_eq!(run.ending().outcome, Outcome::Exited, "round {number}");
        assert_eq!(run.ending().status, Some(ExitStatus::Code(0)));
        assert!(run.stdout().trim_end().ends_with("last"), "round {number}");
        let lines = run.stdout().lines().count() + run.stderr().lines().count();
        assert_eq!(lines, 2001, "round {number}");
    }
    println!("{exited} had exited, {cancelled} were cancelled");
}

fn terminal() -> Tty {
    Tty {
        size: TtySize { cols: 80, rows: 24 },
        term: "dumb".to_owned(),
    }
}

fn signal(name: &str, pid: u32) {
    let sent = std::process::Command::new("kill")
        .args([name, &pid.to_string()])
        .status();
    assert!(sent.unwrap().success());
}

fn kill(pid: u32) {
    std::process::Command::new("kill")
        .arg(pid.to_string())
        .status()
        .unwrap();
}
