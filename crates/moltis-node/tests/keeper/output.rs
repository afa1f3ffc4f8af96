//! What commands print: all of it, in order, whatever it is and however much.

use crate::client::{argv, id, shell};
use crate::fixture::{Inside, Outside};

#[tokio::test]
async fn one_megabyte_of_each_output_comes_whole() {
    let keeper = Inside::new();
    let mut client = keeper.client().await;
    let line = "head -c 1000000 /dev/zero; head -c 1000000 /dev/zero >&2";
    let run = client.run(id(1), shell(line)).await;
    assert_eq!(run.bytes.each_ref().map(Vec::len), [1_000_000, 1_000_000]);
    assert!(run.gaps.is_empty());
}

#[tokio::test]
async fn output_without_a_newline_and_binary_output_come_as_they_are() {
    let keeper = Inside::new();
    let mut client = keeper.client().await;
    let run = client
        .run(id(1), argv(&["printf", "%s", "no newline"]))
        .await;
    assert_eq!(run.stdout(), "no newline");
    let run = client
        .run(id(2), argv(&["printf", r"\000\377\200\n\033[0m"]))
        .await;
    assert_eq!(run.bytes[0], b"\x00\xff\x80\n\x1b[0m");
}

#[tokio::test]
async fn one_gibibyte_comes_whole_through_the_socket() {
    let keeper = Outside::start().await;
    let mut client = keeper.client().await;
    client.keeps = false;
    client
        .run(id(1), shell("head -c 1073741824 /dev/zero"))
        .await;
    let run = &client.runs[&id(1)];
    assert_eq!(run.next[0], 1 << 30);
    assert!(run.gaps.is_empty());
    let grown = rss_kib(keeper.pid());
    assert!(grown < 32 * 1024, "the keeper takes {grown} KiB");
}

#[tokio::test]
async fn eight_runs_live_side_by_side() {
    let keeper = Inside::new();
    let mut client = keeper.client().await;
    let mut spec = argv(&["cat"]);
    spec.stdin = moltis_proto::run::StdinMode::Open;
    for number in 1..=8 {
        client.start(id(number), spec.clone()).await;
    }
    for number in 1..=8 {
        let run = client.until(id(number), |run| run.pid.is_some()).await;
        assert_eq!(run.ended, None, "it waits for its stdin");
    }
    for number in (1..=8).rev() {
        client.stdin(id(number), 0, b"heard", true).await;
        assert_eq!(client.finish(id(number)).await.stdout(), "heard");
    }
}

fn rss_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
