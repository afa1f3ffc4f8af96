//! How a run ends where several things happen in one moment.

use std::sync::Arc;
use std::time::Duration;

use moltis_proto::run::Outcome;

use crate::client::{argv, id};
use crate::machine::Machine;
use crate::story::Stage;

#[tokio::test(start_paused = true)]
async fn a_cancel_that_meets_the_end_of_a_run_loses_nothing_of_what_it_wrote() {
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage::new(Machine::new(None, Arc::default()), dir.path());
    let (mut client, _) = stage.client().await;
    // In which order a keeper comes to its end, its output and the cancel is chance.
    for run in 1..=50 {
        let words = ["/sim/said", &run.to_string(), "1000", "3"];
        client.start(id(run), argv(&words)).await;
        client.cancel(id(run), 0).await;
        let known = client.finish(id(run)).await;
        assert_eq!(known.ending().outcome, Outcome::Exited);
        assert_eq!(known.next, [1000, 0], "run {run}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_command_whose_output_waited_for_a_slow_disk_has_left_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage::new(Machine::new(None, Arc::default()), dir.path());
    let (mut client, _) = stage.client().await;
    client.acknowledges = false;
    stage.machine.disk.slow_down(Duration::from_mins(1));
    // More than memory holds: the rest waits in the pipe, which nobody reads.
    let bytes = (1 << 20) + 30_000;
    client
        .start(id(1), argv(&["/sim/print", "1", &bytes.to_string(), "0"]))
        .await;
    client.until(id(1), |run| run.next[0] == 1 << 20).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    client.acknowledges = true;
    client.resume(id(1), 1 << 20, 0).await;
    let run = client.finish(id(1)).await;
    assert_eq!(run.next, [bytes, 0]);
    assert_eq!(run.ending().outcome, Outcome::Exited);
    assert!(!run.ending().descendants_may_survive);
}
