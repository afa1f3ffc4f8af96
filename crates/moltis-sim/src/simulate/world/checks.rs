//! What is looked at behind each step, and when all faults are over.

mod audit;
mod memory;
mod pins;
mod thin;

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use moltis_gateway::api::nodes::{ListNodes, NodeState};
use moltis_gateway::api::runs::{Run, State};
use moltis_proto::limits::SPOOL_BYTES_MAX;

use super::World;
use super::callers::Caller;
use super::guests::machines as machines_of;
use super::link::Linked;
use super::machine::Machine;
use crate::simulate::model::{Happened, Model, Violation, tag_of, violation};
use crate::simulate::net::Place;

/// How long it takes until every node has a keeper again.
const NEXT_KEEPERS: Duration = Duration::from_mins(3);

/// Bytes of a spool beyond those of its stream: its header, and one piece more.
const SPOOL_MORE: u64 = 1024 * 1024;

impl World {
    /// Looks at what anybody has objected to, at a run, and at the spools.
    pub(super) async fn check_step(&mut self) -> Result<(), Violation> {
        if self.dice.percent(10) {
            self.check_spools()?;
            self.check_written_pins().await?;
        }
        self.check_pins()?;
        self.served.seats().check_told()?;
        let ids = self.witness.ask(Model::ids);
        if !ids.is_empty() {
            let id = self.dice.pick(&ids).clone();
            if let Some(api) = self.served.life().and_then(|life| life.api())
                && let Ok(run) = api.show_run(&id).await
            {
                self.check_memory(&run)?;
                if run.command.is_some() || run.unclaimed {
                    self.witness.see(Happened::Seen(Box::new(run)));
                }
            }
        }
        self.objected()
    }

    /// Looks at everything: behind a minute without faults there is an answer to every question.
    pub(super) async fn check_end(&mut self) -> Result<(), Violation> {
        self.objected()?;
        let caller = Caller {
            served: self.served.clone(),
            witness: self.witness.clone(),
        };
        let runs = caller.clone().list().await;
        for run in &runs {
            self.check_run(run)?;
            if let Some(tag) = tag_of(run)
                && run.state == State::Ended
            {
                caller.clone().follow(tag, run.id.clone()).await;
            }
        }
        self.objected()?;
        self.check_answered(&runs)?;
        self.check_alive(&runs)?;
        self.check_nodes().await?;
        // Whoever waits is told of an ending some milliseconds before it is written.
        tokio::time::sleep(Duration::from_secs(1)).await;
        self.check_audit(&caller.clone().list().await).await?;
        self.check_pins()?;
        self.check_written_pins().await?;
        if let Err((place, violation)) = self.check_forgotten(&runs) {
            // One that goes leaves to the next what it had no time to delete, and that one does it
            // where no other lives.
            if !self.witness.ask(|model| model.had_heirs(place)) {
                return Err(violation);
            }
            for machine in self.machines() {
                machine.kill_keepers();
            }
            // A link wants one at once, the gateway when something is asked of its own machine.
            self.local.iter().for_each(Machine::begin_keeper);
            tokio::time::sleep(NEXT_KEEPERS).await;
            let forgotten = self.check_forgotten(&caller.list().await);
            forgotten.map_err(|(_, violation)| violation)?;
        }
        self.objected()
    }

    fn machines(&self) -> impl Iterator<Item = &Machine> {
        self.nodes.iter().map(Linked::machine).chain(&self.local)
    }

    fn objected(&self) -> Result<(), Violation> {
        match self.witness.violation() {
            Some(violation) => Err(violation),
            None => Ok(()),
        }
    }

    /// I15: no spool is longer than it may be.
    fn check_spools(&self) -> Result<(), Violation> {
        for machine in self.machines().chain(machines_of(&self.guests)) {
            for entry in fs::read_dir(machine.runs()).into_iter().flatten().flatten() {
                let length = entry.metadata().map_or(0, |file| file.len());
                if length > SPOOL_BYTES_MAX + SPOOL_MORE {
                    let path = entry.path();
                    return Err(violation!("I15", "`{}` has {length} bytes", path.display()));
                }
            }
        }
        Ok(())
    }

    /// I18: a run is over, or it truly runs.
    fn check_run(&self, run: &Run) -> Result<(), Violation> {
        if run.state == State::Ended || run.unclaimed {
            return Ok(());
        }
        // One that was claimed has no words that say whose it is.
        let Some(tag) = tag_of(run) else {
            return Ok(());
        };
        let alive = self.witness.ask(Model::alive);
        let Some((_, place)) = alive.iter().find(|(alive, _)| *alive == tag) else {
            return Err(violation!(
                "I18",
                "{tag} is {:?}, and nothing of it lives",
                run.state
            ));
        };
        if run.state != State::Running {
            return Err(violation!("I18", "{tag} lives and is {:?}", run.state));
        }
        if self.revoked.contains(place) {
            return Ok(());
        }
        if !run.reachable {
            return Err(violation!(
                "I18",
                "{tag} runs at {place}, which is not reachable"
            ));
        }
        if let Some(why) = self.witness.ask(|model| model.should_be_over(tag)) {
            return Err(violation!("I18", "{tag} runs, and {why}"));
        }
        let mut machines = self.machines();
        if machines.any(|machine| machine.kernel().starves(tag))
            && !self.witness.ask(|model| model.may_lack_stdin(tag))
        {
            return Err(violation!(
                "stdin",
                "the child of {tag} waits for bytes that came with its request"
            ));
        }
        let (known, written) = (
            [run.stdout_bytes, run.stderr_bytes],
            self.witness.ask(|model| model.written(tag)),
        );
        if known != written {
            return Err(violation!(
                "I18",
                "{tag} has written {written:?}, and {known:?} is known"
            ));
        }
        Ok(())
    }

    /// I2, I18: a run that somebody was told of is there.
    fn check_answered(&self, runs: &[Run]) -> Result<(), Violation> {
        let ids = runs.iter().map(|run| run.id.as_str()).collect();
        match self.witness.ask(|model| model.missing(&ids)) {
            None => Ok(()),
            Some(tag) => Err(violation!("I18", "{tag} has a run, and nobody knows of it")),
        }
    }

    /// I18: whoever lives and has a keeper is known to live.
    fn check_alive(&self, runs: &[Run]) -> Result<(), Violation> {
        for (tag, place) in self.witness.ask(Model::alive) {
            let is_excused =
                self.revoked.contains(&place) || self.witness.ask(|model| model.is_orphan(tag));
            // Of one that nobody has claimed nobody here knows the words.
            let id = self.witness.ask(|model| model.executed_as(tag));
            let is_it = |run: &&Run| Some(&run.id) == id.as_ref();
            let known = runs.iter().find(is_it);
            match known {
                Some(run) if run.state == State::Ended && !is_excused => {
                    return Err(violation!(
                        "I18",
                        "{tag} lives, and is told {:?}",
                        run.outcome
                    ));
                }
                None if !is_excused => {
                    return Err(violation!("I18", "{tag} lives, and nobody knows of it"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// I18, I21: every node is here, unless it was revoked.
    async fn check_nodes(&self) -> Result<(), Violation> {
        let life = self.served.life();
        let Some(api) = life.and_then(|life| life.api()) else {
            return Err(violation!("I18", "the gateway does not answer"));
        };
        let nodes = api.list_nodes(&ListNodes::default()).await;
        let nodes = nodes.map_err(|problem| violation!("I18", "no list of nodes: {problem:?}"))?;
        for node in &self.nodes {
            let key = node.fingerprint();
            let found = nodes.items.iter().find(|found| found.fingerprint == key);
            let state = found.map(|found| found.state);
            if state != Some(NodeState::Online) && !self.revoked.contains(&node.place()) {
                let place = node.place();
                return Err(violation!("I18", "the node at {place} is {state:?}"));
            }
        }
        Ok(())
    }

    /// I6: what is over and stored leaves nothing at its node.
    fn check_forgotten(&self, runs: &[Run]) -> Result<(), (Place, Violation)> {
        let is_over = |run: &&Run| run.state == State::Ended && !run.unclaimed;
        let ended: BTreeSet<_> = runs.iter().filter(is_over).map(|run| &*run.id).collect();
        let machines = self.machines();
        for machine in machines.filter(|it| !self.revoked.contains(&it.place())) {
            for entry in fs::read_dir(machine.runs()).into_iter().flatten().flatten() {
                let path = entry.path();
                let id = path.file_stem().and_then(|stem| stem.to_str());
                if id.is_some_and(|id| ended.contains(id)) {
                    let violation =
                        violation!("I6", "`{}` is of a run that is over", path.display());
                    return Err((machine.place(), violation));
                }
            }
        }
        Ok(())
    }
}
