//! How a run ends where several things happen in one moment.

use std::sync::Arc;

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
