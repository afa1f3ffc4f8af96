//! Runs on a node and on this machine, each from its request to its ending.

use std::time::Duration;

use bytes::Bytes;
use moltis_gateway::exec::{RunError, RunRequest, StartError, StdinSource};
use moltis_gateway::principal::Principal;
use moltis_proto::run::{Command, ExitStatus, Outcome, Reason};

use crate::gateway::{PATIENCE, TestGateway, shell, told};

#[tokio::test(flavor = "multi_thread")]
async fn a_command_tells_both_outputs_and_its_code() {
    let gateway = TestGateway::start().await;
    let _node = gateway.node("box").await;
    for target in ["box", "node:box", "local"] {
        let told = gateway.run(target, "echo out; echo err >&2; exit 3").await;
        assert_eq!((told.out(), told.err()), ("out\n", "err\n"), "{target}");
        let ending = told.record.ending.as_ref().unwrap();
        assert_eq!(ending.outcome, Outcome::Exited);
        assert_eq!(ending.status, Some(ExitStatus::Code(3)));
        assert!(told.record.started_at.is_some());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_run_told_is_there_after_its_end() {
    let gateway = TestGateway::start().await;
    let handle = gateway
        .start_run(shell("seq 1 100000; seq 1 9 >&2").on("local"))
        .await;
    let first = told(&handle).await;
    let id = handle.id();
    drop(handle);
    gateway.forgotten(id).await;
    let again = gateway.gateway.runs().handle(id).await.unwrap();
    let second = told(&again).await;
    assert_eq!(first.stdout, second.stdout);
    assert_eq!(first.stderr, second.stderr);
    assert_eq!(second.record.totals.stdout, first.stdout.len() as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mebibyte_on_each_stream_arrives_whole() {
    let gateway = TestGateway::start().await;
    let _node = gateway.node("box").await;
    let line = "head -c 1048576 /dev/zero; head -c 1048576 /dev/zero | tr '\\0' x >&2";
    let told = gateway.run("box", line).await;
    assert_eq!((told.stdout.len(), told.stderr.len()), (1 << 20, 1 << 20));
    assert!(told.stderr.iter().all(|byte| *byte == b'x'));
    assert_eq!(told.gaps, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_mebibytes_arrive_whole() {
    let gateway = TestGateway::start().await;
    let _node = gateway.node("box").await;
    let told = gateway.run("box", "seq 1 8000000").await;
    let mut expected = Vec::new();
    for number in 1..=8_000_000 {
        expected.extend_from_slice(number.to_string().as_bytes());
        expected.push(b'\n');
    }
    assert!(told.stdout == expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_is_ended_at_its_timeout() {
    let gateway = TestGateway::start().await;
    let _node = gateway.node("box").await;
    let mut request = shell("echo begun; sleep 100").on("box");
    request.timeout = Some(Duration::from_millis(300));
    let told = told(&gateway.start_run(request).await).await;
    assert_eq!(
        told.record.ending.as_ref().unwrap().outcome,
        Outcome::TimedOut
    );
    assert_eq!(told.out(), "begun\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_time_than_the_node_grants_is_refused_before_anything_starts() {
    let gateway = TestGateway::start().await;
    let _node = gateway.node("box").await;
    let mut request = shell("true").on("box");
    request.timeout = Some(Duration::from_secs(301));
    let error = gateway
        .gateway
        .runs()
        .start(request, &Principal::Operator)
        .await
        .unwrap_err();
    assert!(matches!(error, StartError::Spec(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_run_ends_and_says_so() {
    let gateway = TestGateway::start().await;
    let _node = gateway.node("box").await;
    let mut handle = gateway.start_run(shell("sleep 100").on("box")).await;
    gateway
        .gateway
        .runs()
        .cancel(handle.id(), None, &Principal::Operator)
        .await
        .unwrap();
    let record = handle.wait().await;
    assert_eq!(record.ending.as_ref().unwrap().outcome, Outcome::Cancelled);
    assert!(record.cancel_requested_at.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn stdin_arrives_whole_or_piece_by_piece() {
    let gateway = TestGateway::start().await;
    let _node = gateway.node("box").await;
    let whole: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let mut request = shell("cat").on("box");
    request.stdin = StdinSource::Bytes(Bytes::from(whole.clone()));
    let first = told(&gateway.start_run(request).await).await;
    assert!(first.stdout == whole);

    let mut request = shell("cat").on("box");
    request.stdin = StdinSource::Open;
    let handle = gateway.start_run(request).await;
    let runs = gateway.gateway.runs();
    let feed = async {
        let mut offset = 0;
        for piece in whole.chunks(100_000) {
            let bytes = Bytes::copy_from_slice(piece);
            offset = runs.stdin(handle.id(), offset, bytes, false).await.unwrap();
        }
        runs.stdin(handle.id(), offset, Bytes::new(), true)
            .await
            .unwrap()
    };
    let (end, second) = tokio::join!(feed, told(&handle));
    assert_eq!(end, whole.len() as u64);
    assert!(second.stdout == whole);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_without_stdin_takes_none() {
    let gateway = TestGateway::start().await;
    let handle = gateway.start_run(shell("sleep 5").on("local")).await;
    let error = gateway
        .gateway
        .runs()
        .stdin(handle.id(), 0, Bytes::from_static(b"x"), false)
        .await
        .unwrap_err();
    assert!(matches!(error, RunError::Stdin(_)), "{error}");
    gateway
        .gateway
        .runs()
        .cancel(handle.id(), None, &Principal::Operator)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_reaches_the_group() {
    let gateway = TestGateway::start().await;
    let _node = gateway.node("box").await;
    let handle = gateway
        .start_run(
            shell("trap 'echo usr1; exit 7' USR1; echo ready; while :; do sleep 0.05; done")
                .on("box"),
        )
        .await;
    let mut follow = handle.follow(0, 0);
    follow.next().await.unwrap();
    gateway
        .gateway
        .runs()
        .signal(handle.id(), 10)
        .await
        .unwrap();
    let told = told(&handle).await;
    assert_eq!(told.out(), "ready\nusr1\n");
    assert_eq!(
        told.record.ending.as_ref().unwrap().status,
        Some(ExitStatus::Code(7))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_key_makes_one_run() {
    let gateway = TestGateway::start().await;
    let node = gateway.node("box").await;
    let mark = node.dir().join("mark");
    let mut request = shell(&format!("echo once >> {}", mark.display())).on("box");
    request.idempotency_key = Some("key".to_owned());
    let runs = gateway.gateway.runs();
    let start = || runs.start(request.clone(), &Principal::Operator);
    let (first, second, third) = tokio::join!(start(), start(), start());
    let (mut first, second, third) = (first.unwrap(), second.unwrap(), third.unwrap());
    assert_eq!(first.id(), second.id());
    assert_eq!(first.id(), third.id());
    first.wait().await;
    let late = start().await.unwrap();
    assert_eq!(late.id(), first.id());
    assert!(late.existed());
    assert_eq!(std::fs::read_to_string(&mark).unwrap(), "once\n");
    let mut other = shell("true").on("box");
    other.idempotency_key = Some("key".to_owned());
    let error = runs.start(other, &Principal::Operator).await.unwrap_err();
    assert!(matches!(error, StartError::Conflict { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_sleeps_go_on_side_by_side() {
    let gateway = TestGateway::start().await;
    let _node = gateway.node("box").await;
    let begun = std::time::Instant::now();
    let runs = (0..8).map(|_| gateway.run("box", "sleep 1"));
    futures_util::future::join_all(runs).await;
    assert!(
        begun.elapsed() < Duration::from_secs(3),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_runs_end_each_with_its_own_output() {
    let gateway = TestGateway::start().await;
    let _node = gateway.node("box").await;
    let runs = (0..100).map(async |number| {
        let told = gateway.run("box", &format!("echo {number}")).await;
        assert_eq!(told.out(), format!("{number}\n"));
    });
    futures_util::future::join_all(runs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_that_are_not_there_say_so() {
    let gateway = TestGateway::start().await;
    let _node = gateway.node("box").await;
    let argv = vec!["/no/such/program".to_owned()];
    let request = RunRequest::new(Command::Argv(argv)).on("box");
    let told = told(&gateway.start_run(request).await).await;
    let ending = told.record.ending.as_ref().unwrap();
    assert_eq!(ending.outcome, Outcome::FailedToStart);
    assert_eq!(ending.reason, Some(Reason::NotFound));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_not_here_is_named_and_no_run_is_made() {
    let gateway = TestGateway::start().await;
    let mut node = gateway.node("box").await;
    let device = gateway.device("box");
    node.hang_up().await;
    gateway.offline(device).await;
    let runs = gateway.gateway.runs();
    let error = runs
        .start(shell("true").on("box"), &Principal::Operator)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("`box` is offline"), "{error}");
    let error = runs
        .start(shell("true").on("bax"), &Principal::Operator)
        .await
        .unwrap_err();
    assert!(matches!(error, StartError::Route(_)), "{error}");
    let (list, _) = runs
        .list(&moltis_gateway::store::RunFilter::default(), 10)
        .await
        .unwrap();
    assert!(list.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_detached_run_goes_on_alone() {
    let gateway = TestGateway::start().await;
    let mut request = shell("echo done").on("local");
    request.detach = true;
    let id = gateway.start_run(request).await.id();
    let record = gateway.gateway.runs().wait(id).await.unwrap();
    assert_eq!(record.ending.as_ref().unwrap().outcome, Outcome::Exited);
    let listed = gateway
        .gateway
        .runs()
        .find(&id.to_string()[..8])
        .await
        .unwrap();
    assert_eq!(listed.record.id, id);
    assert!(listed.reachable);
}

#[tokio::test(flavor = "multi_thread")]
async fn output_past_its_total_is_let_go_oldest_first() {
    let gateway = TestGateway::start_with(|config| {
        config.runs.output.segment_bytes = 256 * 1024;
        config.runs.output.total_bytes_max = 1024 * 1024;
    })
    .await;
    let print = || shell("head -c 900000 /dev/zero").on("local");
    let first = gateway.start_run(print()).await;
    gateway.gateway.runs().wait(first.id()).await.unwrap();
    let second = gateway.start_run(print()).await;
    gateway.gateway.runs().wait(second.id()).await.unwrap();
    let freed = async {
        loop {
            let record = gateway.gateway.runs().record(first.id()).await.unwrap();
            if record.is_some_and(|record| record.output_freed_at.is_some()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, freed).await.unwrap();
    let kept = gateway.gateway.runs().record(second.id()).await.unwrap();
    assert_eq!(kept.unwrap().output_freed_at, None);
}
