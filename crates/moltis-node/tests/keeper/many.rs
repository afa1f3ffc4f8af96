//! Many runs at once, and what there is no more room for.

use moltis_proto::run::{RunSpec, Tty, TtySize};
use moltis_proto::{RunRefusal, ToKeeper, limits};

use crate::client::{argv, id, shell};
use crate::fixture::{Inside, Outside};

/// A command that ends when its keeper leaves, on a terminal or not.
fn waits(on_terminal: bool) -> RunSpec {
    let mut spec = argv(&["sleep", "60"]);
    spec.tty = on_terminal.then(|| Tty {
        size: TtySize { cols: 80, rows: 24 },
        term: "dumb".to_owned(),
    });
    spec
}

#[tokio::test]
async fn more_runs_than_the_limit_of_descriptors_that_children_inherit() {
    let keeper = Outside::start_with_descriptors(64).await;
    let mut client = keeper.client().await;
    for number in 1..=60 {
        client.start(id(number), waits(number % 3 == 0)).await;
        let run = client
            .until(id(number), |run| run.pid.is_some() || run.ended.is_some())
            .await;
        assert_eq!(run.ended, None, "run {number}");
    }
    let run = client.run(id(100), shell("ulimit -n")).await;
    assert_eq!(
        run.stdout(),
        "64\n",
        "children find the limit of the keeper's starter"
    );
    let mut open = shell("cat; ulimit -n");
    open.stdin = moltis_proto::run::StdinMode::Open;
    client.start(id(101), open).await;
    client.stdin(id(101), 0, b"heard ", true).await;
    assert_eq!(client.finish(id(101)).await.stdout(), "heard 64\n");
    client.say(ToKeeper::Leave).await;
    while client.poll().await.is_some() {}
    keeper.wait();
}

#[tokio::test]
async fn one_run_too_many_is_refused_until_one_is_forgotten() {
    let keeper = Inside::new();
    let mut client = keeper.client().await;
    let mut bytes = [0; 16];
    let mut run = |number: usize| {
        bytes[..8].copy_from_slice(&(number as u64).to_be_bytes());
        moltis_proto::RunId::from_bytes(bytes)
    };
    // Runs that end at once count as long as they are not forgotten.
    for number in 0..limits::RUNS_MAX {
        client.run(run(number), argv(&["no-such-program"])).await;
    }
    let next = run(limits::RUNS_MAX);
    let refused = client.run(next, argv(&["no-such-program"])).await.refused;
    assert_eq!(refused, Some(RunRefusal::TooMany));
    client.say(ToKeeper::Forget { run_id: run(7) }).await;
    let next = run(limits::RUNS_MAX + 1);
    client.run(next, argv(&["no-such-program"])).await;
    let (_, listed) = keeper.attach().await;
    assert_eq!(listed.runs.len(), limits::RUNS_MAX, "in several pages");
}
