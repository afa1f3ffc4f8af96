//! What goes into commands: stdin, and terminals.

use moltis_proto::ToKeeper;
use moltis_proto::run::{Outcome, RunSpec, StdinMode, Tty, TtySize};

use crate::client::{Client, argv, id, shell};
use crate::fixture::Inside;

fn open(mut spec: RunSpec) -> RunSpec {
    spec.stdin = StdinMode::Open;
    spec
}

fn on_terminal(line: &str) -> RunSpec {
    let mut spec = open(shell(line));
    spec.tty = Some(Tty {
        size: TtySize { cols: 80, rows: 24 },
        term: "xterm-256color".to_owned(),
    });
    spec
}

#[tokio::test]
async fn stdin_is_empty_unless_it_is_open() {
    let keeper = Inside::new();
    let mut client = keeper.client().await;
    let run = client.run(id(1), argv(&["cat"])).await;
    assert_eq!(
        (run.stdout().as_str(), run.ending().outcome),
        ("", Outcome::Exited)
    );
}

#[tokio::test]
async fn what_is_sent_is_read_and_eof_ends_it() {
    let keeper = Inside::new();
    let mut client = keeper.client().await;
    client.start(id(1), open(argv(&["cat"]))).await;
    client.stdin(id(1), 0, b"one ", false).await;
    client.stdin(id(1), 2, b"e two", false).await;
    client.stdin(id(1), 7, b"!", true).await;
    let run = client.finish(id(1)).await;
    assert_eq!(run.stdout(), "one two!");
    assert_eq!(run.stdin, Some((8, true)));
}

#[tokio::test]
async fn ten_megabytes_go_through_a_window_of_256_kib() {
    let keeper = Inside::new();
    let mut client = keeper.client().await;
    client.start(id(1), open(argv(&["sha1sum"]))).await;
    let bytes: Vec<u8> = (0..10_000_000u32)
        .flat_map(|n| n.to_le_bytes().into_iter().take(1))
        .collect();
    let mut sent = 0;
    while sent < bytes.len() {
        let taken = client.runs[&id(1)].stdin.map_or(0, |(offset, _)| offset);
        let room = usize::try_from(taken).unwrap() + 256 * 1024 - sent;
        let chunk = room.min(60 * 1024).min(bytes.len() - sent);
        if chunk == 0 {
            client
                .until(id(1), |run| {
                    run.stdin.is_some_and(|(offset, _)| offset > taken)
                })
                .await;
            continue;
        }
        let last = sent + chunk == bytes.len();
        client
            .stdin(id(1), sent as u64, &bytes[sent..sent + chunk], last)
            .await;
        sent += chunk;
    }
    let expected = shasum(&bytes);
    assert!(client.finish(id(1)).await.stdout().starts_with(&expected));
}

/// What sha1sum says of these bytes when it reads them from a file.
fn shasum(bytes: &[u8]) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let output = std::process::Command::new("sha1sum")
        .arg(file.path())
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()[..40].to_owned()
}

#[tokio::test]
async fn a_child_that_never_reads_stops_nobody_beside_a_hundred_busy_runs() {
    let keeper = Inside::new();
    let mut client = keeper.client().await;
    client.start(id(200), open(argv(&["sleep", "60"]))).await;
    for n in 0..4 {
        client
            .stdin(id(200), n * 60 * 1024, &vec![7; 60 * 1024], false)
            .await;
    }
    for number in 1..=100 {
        client
            .start(id(number), shell("head -c 100000 /dev/zero; echo end >&2"))
            .await;
    }
    for number in 1..=100 {
        let run = client.finish(id(number)).await;
        assert_eq!(run.next, [100_000, 4]);
    }
    // Its pipe has taken 64 KiB, and the rest waits.
    let taken = client
        .until(id(200), |run| run.stdin.is_some())
        .await
        .stdin
        .unwrap();
    assert!(taken.0 <= 64 * 1024 && !taken.1, "{taken:?}");
    client.cancel(id(200), 1_000).await;
    assert_eq!(
        client.finish(id(200)).await.ending().outcome,
        Outcome::Cancelled
    );
}

#[tokio::test]
async fn a_child_that_closes_its_stdin_is_told_of() {
    let keeper = Inside::new();
    let mut client = keeper.client().await;
    client
        .start(id(1), open(shell("exec <&-; echo closed; sleep 60")))
        .await;
    client.until(id(1), |run| !run.bytes[0].is_empty()).await;
    client.stdin(id(1), 0, b"into the void", false).await;
    client
        .until(id(1), |run| run.stdin == Some((0, true)))
        .await;
    client.stdin(id(1), 13, b"more", true).await;
    client.cancel(id(1), 1_000).await;
    client.finish(id(1)).await;
}

#[tokio::test]
async fn stdin_is_taken_up_again_at_its_offset() {
    let keeper = Inside::new();
    let mut client = keeper.client().await;
    client.start(id(1), open(argv(&["cat"]))).await;
    client.stdin(id(1), 0, b"before ", false).await;
    client.until(id(1), |run| run.next[0] == 7).await;
    drop(client);
    let (mut client, listed) = keeper.attach().await;
    assert_eq!(listed.runs[0].stdin, 7);
    client.resume(id(1), 0, 0).await;
    client.stdin(id(1), 0, b"before and after", true).await;
    assert_eq!(client.finish(id(1)).await.stdout(), "before and after");
}

#[tokio::test]
async fn a_terminal_is_one_with_its_size_and_name() {
    let keeper = Inside::new();
    let mut client = keeper.client().await;
    let run = client
        .run(
            id(1),
            on_terminal("test -t 0 && test -t 1 && test -t 2 && stty size && echo $TERM"),
        )
        .await;
    assert_eq!(run.stdout(), "24 80\r\nxterm-256color\r\n");
    assert_eq!(run.stderr(), "");
    assert_eq!(run.ending().outcome, Outcome::Exited);
}

#[tokio::test]
async fn a_terminal_takes_keys_and_another_size() {
    let keeper = Inside::new();
    let mut client = keeper.client().await;
    client
        .start(
            id(1),
            on_terminal(
                "stty -echo; echo ready; read line; echo got $line; stty size; read x || echo end",
            ),
        )
        .await;
    saw(&mut client, "ready").await;
    let size = TtySize {
        cols: 100,
        rows: 40,
    };
    client
        .say(ToKeeper::Resize {
            run_id: id(1),
            size,
        })
        .await;
    client.stdin(id(1), 0, b"a line\n", false).await;
    saw(&mut client, "got a line\r\n40 100").await;
    client.stdin(id(1), 7, b"", true).await;
    saw(&mut client, "end").await;
    assert_eq!(client.finish(id(1)).await.ending().outcome, Outcome::Exited);
}

#[tokio::test]
async fn the_interrupt_key_interrupts_and_cancel_ends_an_interactive_shell() {
    let keeper = Inside::new();
    let mut client = keeper.client().await;
    client
        .start(
            id(1),
            on_terminal(
                "trap 'echo interrupted; exit 9' INT; echo ready; while :; do sleep 0.01; done",
            ),
        )
        .await;
    saw(&mut client, "ready").await;
    client.stdin(id(1), 0, b"\x03", false).await;
    saw(&mut client, "interrupted").await;
    let run = client.finish(id(1)).await;
    assert_eq!(
        run.ending().status,
        Some(moltis_proto::run::ExitStatus::Code(9))
    );

    let mut spec = on_terminal("");
    spec.command =
        moltis_proto::run::Command::Argv(vec!["bash".into(), "--norc".into(), "-i".into()]);
    client.start(id(2), spec).await;
    client.until(id(2), |run| run.next[0] > 0).await;
    client.cancel(id(2), 20_000).await;
    let ending = client.finish(id(2)).await.ending();
    assert_eq!(ending.outcome, Outcome::Cancelled);
    assert!(ending.duration_ms < 10_000, "the shell is not waited for");
}

async fn saw(client: &mut Client, text: &str) {
    client.until(id(1), |run| run.stdout().contains(text)).await;
}
