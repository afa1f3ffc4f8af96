//! Requests with a key that come again: while the first is under way, after its run has ended, after
//! the gateway has begun anew, and when the first asker left in the middle.

use std::path::Path;

use bytes::Bytes;
use moltis_gateway::exec::{RunEvent, RunHandle, RunRequest, StartError, StdinSource};
use moltis_gateway::principal::Principal;

use crate::gateway::{PATIENCE, TestGateway, shell, told};

/// A request that leaves a mark, and says something on both outputs.
fn marking(mark: &Path) -> RunRequest {
    let line = format!("echo once >> {}; echo out; echo err >&2", mark.display());
    keyed(&line, "key")
}

fn keyed(line: &str, key: &str) -> RunRequest {
    let mut request = shell(line).on("box");
    request.idempotency_key = Some(key.to_owned());
    request
}

/// Waits until the command has said something: it is on the node.
async fn begun(run: &RunHandle) {
    let mut follow = run.follow(0, 0);
    let first = tokio::time::timeout(PATIENCE, follow.next()).await.unwrap();
    assert!(matches!(first, Some(RunEvent::Output { .. })), "{first:?}");
}

fn marks(mark: &Path) -> String {
    std::fs::read_to_string(mark).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_comes_again_after_the_end_is_told_all_of_it() {
    let gateway = TestGateway::start().await;
    let node = gateway.node("box").await;
    let mark = node.dir().join("mark");
    let handle = gateway.start_run(marking(&mark)).await;
    let (id, first) = (handle.id(), told(&handle).await);
    assert_eq!((first.out(), first.err()), ("out\n", "err\n"));
    drop(handle);
    gateway.forgotten(id).await;
    // Once alone, and then several at once: each reads what is stored, and none hides it.
    for at_once in [1, 8] {
        let again = futures_util::future::join_all((0..at_once).map(async |_| {
            let again = gateway.start_run(marking(&mark)).await;
            assert!(again.existed());
            (again.id(), told(&again).await)
        }));
        for (again_id, again) in again.await {
            assert_eq!(again_id, id);
            assert_eq!((again.out(), again.err()), ("out\n", "err\n"));
            assert_eq!(again.record.ending, first.record.ending);
        }
    }
    assert_eq!(marks(&mark), "once\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_comes_again_while_its_run_goes_on_is_told_all_of_it() {
    let gateway = TestGateway::start().await;
    let node = gateway.node("box").await;
    let gate = node.dir().join("gate");
    let line = format!(
        "echo begun; while [ ! -e {} ]; do sleep 0.05; done; echo done",
        gate.display()
    );
    let all = (0..8).map(|_| gateway.start_run(keyed(&line, "key")));
    let all = futures_util::future::join_all(all).await;
    assert_eq!(all.iter().filter(|run| !run.existed()).count(), 1);
    std::fs::write(&gate, "").unwrap();
    for run in &all {
        assert_eq!(run.id(), all[0].id());
        assert_eq!(told(run).await.out(), "begun\ndone\n");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_comes_again_after_a_restart_meets_its_run() {
    let gateway = TestGateway::start().await;
    let node = gateway.node("box").await;
    let (mark, gate) = (node.dir().join("mark"), node.dir().join("gate"));
    let over = gateway.start_run(marking(&mark)).await;
    told(&over).await;
    let line = format!(
        "echo begun; while [ ! -e {} ]; do sleep 0.05; done; echo done",
        gate.display()
    );
    let going_on = gateway.start_run(keyed(&line, "other")).await;
    let ids = [over.id(), going_on.id()];
    begun(&going_on).await;
    let gateway = gateway.restart().await;
    let device = gateway.device("box");
    gateway.online(device).await;
    let over = gateway.start_run(marking(&mark)).await;
    let going_on = gateway.start_run(keyed(&line, "other")).await;
    assert_eq!([over.id(), going_on.id()], ids);
    assert_eq!(told(&over).await.out(), "out\n");
    std::fs::write(&gate, "").unwrap();
    assert_eq!(told(&going_on).await.out(), "begun\ndone\n");
    assert_eq!(marks(&mark), "once\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_asker_who_leaves_in_the_middle_leaves_no_run_that_never_starts() {
    let gateway = TestGateway::start().await;
    let node = gateway.node("box").await;
    for patience in 0..40 {
        let mark = node.dir().join(format!("mark{patience}"));
        let line = format!("echo once >> {}; echo out", mark.display());
        let request = keyed(&line, &patience.to_string());
        let runs = gateway.gateway.runs();
        tokio::select! {
            biased;
            started = runs.start(request.clone(), &Principal::Operator) => drop(started.unwrap()),
            () = turns(patience) => {}
        }
        let again = gateway.start_run(request).await;
        assert_eq!(
            told(&again).await.out(),
            "out\n",
            "left after {patience} turns"
        );
        assert_eq!(marks(&mark), "once\n");
    }
}

/// Lets other tasks run so many times.
async fn turns(count: u32) {
    for _ in 0..count {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_stdin_under_the_same_key_is_another_request() {
    let gateway = TestGateway::start().await;
    let _node = gateway.node("box").await;
    let with = |stdin| RunRequest {
        stdin,
        ..keyed("cat", "key")
    };
    let bytes = |text: &'static str| StdinSource::Bytes(Bytes::from_static(text.as_bytes()));
    let first = gateway.start_run(with(bytes("first"))).await;
    assert_eq!(told(&first).await.out(), "first");
    let again = gateway.start_run(with(bytes("first"))).await;
    assert_eq!(again.id(), first.id());
    for other in [bytes("second"), bytes(""), StdinSource::Open] {
        let runs = gateway.gateway.runs();
        let error = runs.start(with(other), &Principal::Operator).await;
        let error = error.unwrap_err();
        assert!(matches!(error, StartError::Conflict { .. }), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stdin_that_came_with_a_request_goes_on_when_it_comes_again_after_a_restart() {
    let gateway = TestGateway::start().await;
    let node = gateway.node("box").await;
    let gate = node.dir().join("gate");
    // More than the child's pipe and the window hold, so that the gateway has the rest.
    let whole: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
    let line = format!(
        "echo begun >&2; while [ ! -e {} ]; do sleep 0.05; done; cat",
        gate.display()
    );
    let request = RunRequest {
        stdin: StdinSource::Bytes(Bytes::from(whole.clone())),
        ..keyed(&line, "key")
    };
    begun(&gateway.start_run(request.clone()).await).await;
    let gateway = gateway.restart().await;
    let device = gateway.device("box");
    gateway.online(device).await;
    let again = gateway.start_run(request).await;
    std::fs::write(&gate, "").unwrap();
    let again = told(&again).await;
    assert!(again.stdout == whole, "{} bytes", again.stdout.len());
}
