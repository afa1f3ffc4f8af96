//! I19: the audit log is whole, and says once what was done: a start and an ending for each row, with the
//! same outcome, and each pairing and revocation of a node.
//!
//! A row and its line are one transaction, so this holds whatever the gateway has lost of both.

use std::collections::BTreeMap;

use moltis_gateway::api::runs::{Run, State};
use moltis_gateway::audit::Line;
use moltis_gateway::store::{Store, StoreError};

use crate::simulate::model::{Violation, violation};
use crate::simulate::world::World;

/// Lines that are read at once.
const PAGE: u32 = 1000;

/// Actions that are done to a subject once.
const ONCE: [&str; 7] = [
    "run.start",
    "run.cancel",
    "run.claim",
    "run.end",
    "pairing.approve",
    "pairing.reject",
    "node.revoke",
];

impl World {
    /// Looks at the whole log. `runs` are all that there are.
    pub(super) async fn check_audit(&self, runs: &[Run]) -> Result<(), Violation> {
        let life = self.served.life();
        let Some(gateway) = life.as_ref().and_then(|life| life.gateway()) else {
            return Ok(());
        };
        let unreadable = |error: StoreError| violation!("I19", "it cannot be read: {error}");
        let store = gateway.store();
        let verdict = store.verify_audit().await.map_err(unreadable)?;
        if let Some(row) = verdict.first_bad {
            let entries = verdict.entries;
            return Err(violation!("I19", "row {row} of {entries} is wrong"));
        }
        let lines = all_lines(store).await.map_err(unreadable)?;
        let log = Log::of(&lines)?;
        for run in runs {
            log.check_run(run)?;
        }
        for node in &self.nodes {
            let key = node.fingerprint();
            let approvals = lines.iter().filter(|line| line.action == "pairing.approve");
            let times = approvals.filter(|line| line.detail.contains(&key)).count();
            if times != 1 {
                let place = node.place();
                return Err(violation!(
                    "I19",
                    "that the node at {place} was approved stands there {times} times"
                ));
            }
        }
        for record in gateway.pairing().nodes() {
            let device = record.device_id.to_string();
            let times = log.times("node.revoke", &device);
            if times != usize::from(record.revoked_at.is_some()) {
                return Err(violation!(
                    "I19",
                    "that {device} is revoked stands there {times} times"
                ));
            }
        }
        Ok(())
    }
}

/// The lines of each action and subject.
struct Log<'a>(BTreeMap<(&'a str, &'a str), Vec<&'a Line>>);

impl<'a> Log<'a> {
    fn of(lines: &'a [Line]) -> Result<Self, Violation> {
        let mut log: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for line in lines {
            let key = (line.action.as_str(), line.subject.as_str());
            log.entry(key).or_default().push(line);
        }
        let mut twice = log.iter().filter(|(_, lines)| lines.len() > 1);
        match twice.find(|((action, _), _)| ONCE.contains(action)) {
            None => Ok(Self(log)),
            Some(((action, subject), lines)) => {
                let times = lines.len();
                Err(violation!(
                    "I19",
                    "{action} of {subject} stands there {times} times"
                ))
            }
        }
    }

    fn times(&self, action: &str, subject: &str) -> usize {
        self.0.get(&(action, subject)).map_or(0, Vec::len)
    }

    fn check_run(&self, run: &Run) -> Result<(), Violation> {
        let id = run.id.as_str();
        let begins = self.times("run.start", id) + self.times("run.claim", id);
        if begins != usize::from(!run.unclaimed) {
            return Err(violation!("I19", "{id} is begun {begins} times"));
        }
        let ends = self.0.get(&("run.end", id)).map_or(&[][..], Vec::as_slice);
        // One that nobody has claimed is over by its node's word alone, until something ends it here.
        let is_over = run.state == State::Ended;
        if ends.len() != usize::from(is_over) && !(run.unclaimed && ends.is_empty()) {
            let state = run.state;
            return Err(violation!(
                "I19",
                "{id} is {state:?}, and ends {} times",
                ends.len()
            ));
        }
        let told = run
            .outcome
            .and_then(|outcome| serde_json::to_string(&outcome).ok());
        match (ends.first(), told) {
            (Some(line), Some(told)) if !line.detail.contains(&told) => Err(violation!(
                "I19",
                "{id} has ended {told}, and there stands {}",
                line.detail
            )),
            _ => Ok(()),
        }
    }
}

async fn all_lines(store: &Store) -> Result<Vec<Line>, StoreError> {
    let mut lines: Vec<Line> = Vec::new();
    loop {
        let before = lines.last().map(|line| line.seq);
        let page = store.audit_lines(before, PAGE).await?;
        if page.is_empty() {
            return Ok(lines);
        }
        lines.extend(page);
    }
}
