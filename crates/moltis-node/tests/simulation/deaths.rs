//! A keeper that is killed at every boundary of every step, and what the next one says.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use moltis_node::simulation::{Edge, STEPS};
use moltis_proto::RunRefusal;
use moltis_proto::run::{Outcome, Reason};

use crate::client::id;
use crate::machine::{Boundary, Machine, Processes};
use crate::story::{Stage, Told};

fn boundaries() -> BTreeSet<Boundary> {
    let edges = [Edge::Before, Edge::After];
    let both = |what| edges.map(|edge| (what, edge));
    STEPS.into_iter().flat_map(both).collect()
}

#[tokio::test(start_paused = true)]
async fn one_story_takes_every_step_on_both_its_boundaries() {
    let dir = tempfile::tempdir().unwrap();
    let machine = Machine::new(None, Arc::default());
    let began = tokio::time::Instant::now();
    let mut stage = Stage::new(machine.clone(), dir.path());
    stage.tell().await;
    assert_eq!(*machine.disk.seen.lock().unwrap(), boundaries());
    assert!(began.elapsed() > Duration::from_secs(10), "time is made up");
}

#[tokio::test(start_paused = true)]
async fn a_keeper_that_dies_anywhere_is_taken_over_by_one_that_tells_the_truth() {
    for boundary in boundaries() {
        let dir = tempfile::tempdir().unwrap();
        let processes = Arc::<Processes>::default();
        let machine = Machine::new(Some(boundary), Arc::clone(&processes));
        let mut stage = Stage::new(machine.clone(), dir.path());
        tokio::select! {
            biased;
            () = machine.disk.died.notified() => {}
            () = stage.tell() => panic!("{boundary:?} is not met"),
        }
        stage.kill().await;
        let left = machine.disk.left.lock().unwrap().take().unwrap();
        let next = Machine::new(None, processes);
        let mut after = Stage::new(next, left.path());
        after.told = stage.told;
        check(boundary, &after).await;
    }
}

/// Asks the next keeper for every run that anybody knows of.
async fn check(boundary: Boundary, stage: &Stage) {
    let (mut client, listed) = stage.client().await;
    for (run, told) in &stage.told {
        let (run, why) = (*run, format!("{boundary:?}: run {run}"));
        if listed.contains(&id(run)) {
            let Told { next, ended, .. } = told;
            client.resume(id(run), next[0], next[1]).await;
            let known = client.finish(id(run)).await;
            assert!(known.bytes[0].iter().all(|byte| *byte == b'x'), "{why}");
            let ending = known.ending().clone();
            match ended {
                Some(told) => assert_eq!(ending, *told, "{why}"),
                None if ending.outcome == Outcome::Lost => {
                    assert_eq!(ending.reason, Some(Reason::KeeperDied), "{why}");
                }
                None => {}
            }
            continue;
        }
        let was_to_stay = (told.started || told.ended.is_some()) && !told.forgotten;
        assert!(!was_to_stay, "{why} is lost without a word: {told:?}");
        // A keeper that leaves by itself takes along what it knows of forgotten runs.
        if boundary.0 == "journal.delete" {
            continue;
        }
        let again = client.run(id(run), stage.spec_of(run)).await;
        if told.forgotten {
            assert_eq!(again.refused, Some(RunRefusal::Forgotten), "{why}");
        } else {
            assert!(again.ended.is_some(), "{why} begins now");
        }
    }
    assert!(
        !stage.machine.processes.is_any_alive(),
        "{boundary:?}: nobody knows of a process"
    );
    let spawned = stage.machine.processes.spawned.lock().unwrap();
    assert!(spawned.values().all(|times| *times <= 1), "{spawned:?}");
}
