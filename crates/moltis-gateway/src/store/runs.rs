//! Runs: their rows, from the request to the ending.
//!
//! What a row says is only ever moved forward: starting, running, ended, each by a write whose
//! condition is the stage before. The ending is written once.

mod old;
mod record;

use std::time::Duration;

use jiff::Timestamp;
use moltis_proto::key::Digest;
use moltis_proto::run::{ExitStatus, RunSpec, TtySize};
use moltis_proto::{BootId, JournalId, RunId};
use serde_json::json;

use self::record::record;
pub use self::record::{
    BootMoment, Ended, Heads, NewRun, RunCreation, RunFilter, RunKey, RunPage, RunRecord, RunStage,
    Started, Target,
};
use super::row::{self, Columns, integer};
use super::writer::{Fold, Folded, fold_text};
use super::{Store, StoreError, Written};
use crate::audit::{Action, Actor, Entry};

impl Store {
    /// Writes a run's row, its key and its audit line in one transaction. Of two requests with one
    /// key the second finds the first's run.
    ///
    /// # Errors
    /// Where nothing can be written: then nothing may be started.
    pub async fn create_run(&self, run: NewRun, by: &Actor) -> Result<RunCreation, StoreError> {
        let (id, digest) = (run.id, run.digest);
        let claim = (
            run.spec.clone(),
            run.key.clone(),
            run.requested_by.clone(),
            run.created_at,
        );
        match self.fold(create(run, by)).await? {
            Folded::Changed(written) => return Ok(RunCreation::Created(written)),
            Folded::Unchanged => {}
        }
        let Some(existing) = self.run(id).await? else {
            return Ok(match self.fleet(id).await? {
                Some(_) => RunCreation::KeyOfFleet,
                None => RunCreation::NodeGone,
            });
        };
        if existing.digest != digest {
            return Ok(RunCreation::Conflict(Box::new(existing)));
        }
        if !existing.unclaimed {
            return Ok(RunCreation::Existing(Box::new(existing)));
        }
        let (spec, key, requested_by, at) = claim;
        self.claim(id, requested_by, key, Some(spec), at, by)
            .await?;
        let claimed = self.run(id).await?.unwrap_or(existing);
        Ok(RunCreation::Existing(Box::new(claimed)))
    }

    /// Writes a run that a node lists and nobody here has asked for; `None` where it is known.
    ///
    /// # Errors
    /// Where nothing can be written.
    #[expect(clippy::too_many_arguments, reason = "all that is known of such a run")]
    pub async fn add_unclaimed(
        &self,
        id: RunId,
        digest: Digest,
        target: &Target,
        shown: String,
        boot_id: BootId,
        journal_id: JournalId,
        incarnation: u32,
        at: Timestamp,
    ) -> Result<Option<Written>, StoreError> {
        let fold = Fold {
            doing: "write a run that a node brought",
            text: fold_text!(
                "INSERT INTO runs (id, digest, place, shown, requested_by, state, incarnation, \
                 boot_id, journal_id, created_at, started_at, unclaimed) \
                 VALUES (?, ?, ?, ?, 'nobody', 'running', ?, ?, ?, ?, ?, 1) ON CONFLICT DO NOTHING"
            ),
            values: vec![
                id.as_bytes().into(),
                digest.as_bytes().into(),
                target.to_string().into(),
                shown.into(),
                i64::from(incarnation).into(),
                boot_id.as_bytes().into(),
                journal_id.as_bytes().into(),
                at.into(),
                at.into(),
            ],
            audit: None,
            then: Vec::new(),
        };
        self.fold(fold).await.map(Folded::written)
    }

    /// Writes down to which boot and journal a run goes whose start has not left; `None` where it has
    /// begun.
    ///
    /// # Errors
    /// Where nothing can be written.
    pub async fn move_unsent(
        &self,
        id: RunId,
        boot_id: BootId,
        journal_id: JournalId,
    ) -> Result<Option<Written>, StoreError> {
        let fold = Fold {
            doing: "write down where a run goes",
            text: fold_text!(
                "UPDATE runs SET boot_id = ?, journal_id = ? WHERE id = ? AND state = 'starting'"
            ),
            values: vec![
                boot_id.as_bytes().into(),
                journal_id.as_bytes().into(),
                id.as_bytes().into(),
            ],
            audit: None,
            then: Vec::new(),
        };
        self.fold(fold).await.map(Folded::written)
    }

    /// Deletes a run that nobody has claimed and that is not over; `None` where there is none.
    ///
    /// # Errors
    /// Where nothing can be written.
    pub async fn delete_unclaimed(&self, id: RunId) -> Result<Option<Written>, StoreError> {
        let fold = Fold {
            doing: "delete a run that nobody claimed",
            text: fold_text!(
                "DELETE FROM runs WHERE id = ? AND unclaimed = 1 AND state <> 'ended'"
            ),
            values: vec![id.as_bytes().into()],
            audit: None,
            then: Vec::new(),
        };
        self.fold(fold).await.map(Folded::written)
    }

    /// Gives an unclaimed run an owner; `None` where it has one, or is not known.
    ///
    /// # Errors
    /// Where nothing can be written.
    pub async fn claim_run(
        &self,
        id: RunId,
        requested_by: String,
        at: Timestamp,
        by: &Actor,
    ) -> Result<Option<Written>, StoreError> {
        self.claim(id, requested_by, None, None, at, by).await
    }

    async fn claim(
        &self,
        id: RunId,
        requested_by: String,
        key: Option<RunKey>,
        spec: Option<RunSpec>,
        at: Timestamp,
        by: &Actor,
    ) -> Result<Option<Written>, StoreError> {
        let (principal, key) = split(key);
        let fold = Fold {
            doing: "claim the run",
            text: fold_text!(
                "UPDATE runs SET unclaimed = 0, requested_by = ?, principal = ?, key = ?, spec = ? \
                 WHERE id = ? AND unclaimed = 1",
                audited
            ),
            values: vec![
                requested_by.into(),
                principal.into(),
                key.into(),
                spec.as_ref().map(row::json).into(),
                id.as_bytes().into(),
            ],
            audit: Some(Entry::new(at, by, Action::RunClaim, &id, json!({}))),
            then: Vec::new(),
        };
        self.fold(fold).await.map(Folded::written)
    }

    /// Notes that a run waits no longer for approval; `None` where it did not.
    ///
    /// # Errors
    /// Where nothing can be written.
    pub async fn mark_approved(&self, id: RunId) -> Result<Option<Written>, StoreError> {
        let fold = Fold {
            doing: "note an approval",
            text: fold_text!(
                "UPDATE runs SET state = 'starting' WHERE id = ? AND state = 'waiting_approval'"
            ),
            values: vec![id.as_bytes().into()],
            audit: None,
            then: Vec::new(),
        };
        self.fold(fold).await.map(Folded::written)
    }

    /// Notes that a run's machine has started it; `None` where that is known, or the run is over.
    ///
    /// # Errors
    /// Where nothing can be written.
    pub async fn mark_started(
        &self,
        id: RunId,
        pid: u32,
        at: Timestamp,
    ) -> Result<Option<Written>, StoreError> {
        let fold = Fold {
            doing: "note a start",
            text: fold_text!(
                "UPDATE runs SET state = 'running', pid = ?, started_at = ? \
                 WHERE id = ? AND state = 'starting'"
            ),
            values: vec![i64::from(pid).into(), at.into(), id.as_bytes().into()],
            audit: None,
            then: Vec::new(),
        };
        self.fold(fold).await.map(Folded::written)
    }

    /// Notes that a run's end is asked for, so that a lost `Cancel` is sent again; `None` where it
    /// was asked for before, or the run is over.
    ///
    /// # Errors
    /// Where nothing can be written.
    pub async fn request_cancel(
        &self,
        id: RunId,
        grace: Duration,
        at: Timestamp,
        by: &Actor,
    ) -> Result<Option<Written>, StoreError> {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        let fold = Fold {
            doing: "note a cancel",
            text: fold_text!(
                "UPDATE runs SET cancel_requested_at = ?, cancel_grace_ms = ? \
                 WHERE id = ? AND state <> 'ended' AND cancel_requested_at IS NULL",
                audited
            ),
            values: vec![at.into(), integer(grace_ms).into(), id.as_bytes().into()],
            audit: Some(Entry::new(at, by, Action::RunCancel, &id, json!({}))),
            then: Vec::new(),
        };
        self.fold(fold).await.map(Folded::written)
    }

    /// Notes the last size of a run's terminal, so that a lost `Resize` is sent again; `None` where
    /// the run is over.
    ///
    /// # Errors
    /// Where nothing can be written.
    pub async fn set_tty_size(
        &self,
        id: RunId,
        size: TtySize,
    ) -> Result<Option<Written>, StoreError> {
        let fold = Fold {
            doing: "note the size of a terminal",
            text: fold_text!(
                "UPDATE runs SET tty_cols = ?, tty_rows = ? WHERE id = ? AND state <> 'ended'"
            ),
            values: vec![
                i64::from(size.cols).into(),
                i64::from(size.rows).into(),
                id.as_bytes().into(),
            ],
            audit: None,
            then: Vec::new(),
        };
        self.fold(fold).await.map(Folded::written)
    }

    /// Writes a run's end, with the first bytes of its output; `None` where it has one: an ending
    /// never changes.
    ///
    /// # Errors
    /// Where nothing can be written. The node keeps the ending until it hears `Forget`.
    pub async fn end_run(&self, id: RunId, ended: Ended) -> Result<Option<Written>, StoreError> {
        self.fold(end(id, ended)).await.map(Folded::written)
    }

    /// As [`Store::end_run`], for an ending that everybody has been told: it lets other writes go
    /// first, for some milliseconds.
    ///
    /// # Errors
    /// As [`Store::end_run`].
    pub(crate) async fn end_run_later(
        &self,
        id: RunId,
        ended: Ended,
    ) -> Result<Option<Written>, StoreError> {
        self.fold_later(end(id, ended)).await.map(Folded::written)
    }

    /// Returns a run.
    ///
    /// # Errors
    /// Where the database cannot be read.
    pub async fn run(&self, id: RunId) -> Result<Option<RunRecord>, StoreError> {
        let mut reader = self.reader().await?;
        let row = sqlx::query("SELECT * FROM runs WHERE id = ?")
            .bind(id.as_bytes().to_vec())
            .fetch_optional(&mut reader)
            .await
            .map_err(|error| self.failed("read a run", error))?;
        row.as_ref().map(record).transpose()
    }

    /// Returns the runs whose id begins with these hexadecimal digits: the newest, at most `limit`.
    /// A text that is no beginning of an id finds none.
    ///
    /// # Errors
    /// Where the database cannot be read.
    pub async fn find_runs(&self, prefix: &str, limit: u32) -> Result<Vec<RunRecord>, StoreError> {
        let Some((first, last)) = prefix_bounds(prefix) else {
            return Ok(Vec::new());
        };
        let mut reader = self.reader().await?;
        let rows =
            sqlx::query("SELECT * FROM runs WHERE id BETWEEN ? AND ? ORDER BY seq DESC LIMIT ?")
                .bind(first.to_vec())
                .bind(last.to_vec())
                .bind(i64::from(limit))
                .fetch_all(&mut reader)
                .await
                .map_err(|error| self.failed("look up a run", error))?;
        rows.iter().map(record).collect()
    }

    /// Returns all runs of a machine that are not over, oldest first.
    ///
    /// # Errors
    /// Where the database cannot be read.
    pub async fn open_runs(&self, target: &Target) -> Result<Vec<RunRecord>, StoreError> {
        let mut reader = self.reader().await?;
        let rows =
            sqlx::query("SELECT * FROM runs WHERE place = ? AND state <> 'ended' ORDER BY seq")
                .bind(target.to_string())
                .fetch_all(&mut reader)
                .await
                .map_err(|error| self.failed("list the open runs", error))?;
        rows.iter().map(record).collect()
    }

    /// Returns all runs that are not over, oldest first.
    ///
    /// # Errors
    /// Where the database cannot be read.
    pub async fn all_open_runs(&self) -> Result<Vec<RunRecord>, StoreError> {
        let mut reader = self.reader().await?;
        let rows = sqlx::query("SELECT * FROM runs WHERE state <> 'ended' ORDER BY seq")
            .fetch_all(&mut reader)
            .await
            .map_err(|error| self.failed("list all open runs", error))?;
        rows.iter().map(record).collect()
    }

    /// Returns a page of runs, newest first. A row lags behind its run, so those that have not come
    /// to the wanted stage are in it too: who knows the runs themselves looks again.
    ///
    /// # Errors
    /// Where the database cannot be read.
    pub async fn list_runs(&self, filter: &RunFilter, limit: u32) -> Result<RunPage, StoreError> {
        let mut reader = self.reader().await?;
        let rows = sqlx::query(
            "SELECT * FROM runs WHERE seq < ?1 AND (?2 IS NULL OR place = ?2) \
             AND (?3 IS NULL OR state IN (SELECT value FROM json_each(?3))) \
             ORDER BY seq DESC LIMIT ?4",
        )
        .bind(filter.before.map_or(i64::MAX, integer))
        .bind(filter.target.as_ref().map(ToString::to_string))
        .bind(filter.stage.map(|stage| row::json(&stage.up_to())))
        .bind(i64::from(limit) + 1)
        .fetch_all(&mut reader)
        .await
        .map_err(|error| self.failed("list the runs", error))?;
        let mut items = rows.iter().map(record).collect::<Result<Vec<_>, _>>()?;
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let more = items.len() > limit;
        items.truncate(limit);
        let next = items.last().filter(|_| more).map(|last| last.seq);
        Ok(RunPage { items, next })
    }

    /// Returns the first bytes of both streams of an ended run; empty where they lie in files.
    ///
    /// # Errors
    /// Where the database cannot be read.
    pub async fn run_heads(&self, id: RunId) -> Result<Heads, StoreError> {
        let mut reader = self.reader().await?;
        let row = sqlx::query(
            "SELECT stdout, stderr FROM run_heads WHERE seq = (SELECT seq FROM runs WHERE id = ?)",
        )
        .bind(id.as_bytes().to_vec())
        .fetch_optional(&mut reader)
        .await
        .map_err(|error| self.failed("read the output of a run", error))?;
        let Some(row) = row else {
            return Ok(Heads::default());
        };
        let columns = Columns::of("run_heads", &row);
        Ok(Heads {
            stdout: columns.blob("stdout")?.into(),
            stderr: columns.blob("stderr")?.into(),
        })
    }
}

fn split(key: Option<RunKey>) -> (Option<String>, Option<String>) {
    key.map(|RunKey { principal, key }| (principal, key))
        .unzip()
}

fn create(run: NewRun, by: &Actor) -> Fold {
    let detail = json!({ "on": run.shown, "digest": hex(run.digest.as_bytes()) });
    let audit = Entry::new(run.created_at, by, Action::RunStart, &run.id, detail);
    let (principal, key) = split(run.key);
    let device_id = match &run.target {
        Target::Node(device_id) => Some(device_id.as_bytes()),
        Target::Local | Target::Ssh(_) => None,
    };
    Fold {
        doing: "write the run",
        text: fold_text!(
            "INSERT INTO runs (id, digest, place, shown, requested_by, principal, key, spec, state, \
             incarnation, boot_id, journal_id, created_at, asked_boot_id, asked_boottime_ms) \
             SELECT ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ? WHERE (? IS NULL OR EXISTS \
             (SELECT 1 FROM nodes WHERE device_id = ? AND revoked_at IS NULL)) \
             AND NOT EXISTS (SELECT 1 FROM fleets WHERE id = ?) \
             ON CONFLICT DO NOTHING",
            audited
        ),
        values: vec![
            run.id.as_bytes().into(),
            run.digest.as_bytes().into(),
            run.target.to_string().into(),
            run.shown.into(),
            run.requested_by.into(),
            principal.into(),
            key.into(),
            row::json(&run.spec).into(),
            row::word(&run.stage).into(),
            i64::from(run.incarnation).into(),
            run.boot_id.as_ref().map(BootId::as_bytes).into(),
            run.journal_id.as_ref().map(JournalId::as_bytes).into(),
            run.created_at.into(),
            run.asked.as_ref().map(|at| at.boot_id.as_bytes()).into(),
            run.asked.map(|at| row::millis(at.boottime)).into(),
            device_id.into(),
            device_id.into(),
            run.id.as_bytes().into(),
        ],
        audit: Some(audit),
        then: Vec::new(),
    }
}

fn end(id: RunId, ended: Ended) -> Fold {
    let Ended {
        ending,
        totals,
        heads,
        started,
        at,
    } = ended;
    let outcome = row::word(&ending.outcome);
    let (code, signal) = match ending.status {
        Some(ExitStatus::Code(code)) => (Some(code), None),
        Some(ExitStatus::Signal(signal)) => (None, Some(signal)),
        None => (None, None),
    };
    let detail =
        json!({ "outcome": outcome, "reason": ending.reason, "exit_code": code, "signal": signal });
    let values = vec![
        at.into(),
        outcome.into(),
        ending.reason.as_ref().map(row::word).into(),
        code.map(i64::from).into(),
        signal.map(i64::from).into(),
        ending.detail.into(),
        integer(ending.duration_ms).into(),
        ending.descendants_may_survive.into(),
        integer(totals.stdout).into(),
        integer(totals.stderr).into(),
        started.map(|started| started.at.as_millisecond()).into(),
        started
            .and_then(|started| started.pid)
            .map(i64::from)
            .into(),
        id.as_bytes().into(),
    ];
    let audit = Some(Entry::new(
        at,
        &Actor::gateway(),
        Action::RunEnd,
        &id,
        detail,
    ));
    let doing = "write the end of the run";
    if heads == Heads::default() {
        return Fold {
            doing,
            text: fold_text!(
                "UPDATE runs SET state = 'ended', ended_at = ?, \
             ended_lived_s = (SELECT seconds FROM lived), outcome = ?, reason = ?, \
                 exit_code = ?, signal = ?, detail = ?, duration_ms = ?, survivors = ?, \
                 stdout_bytes = ?, stderr_bytes = ?, started_at = coalesce(started_at, ?), \
             pid = coalesce(pid, ?) WHERE id = ? AND state <> 'ended'",
                audited
            ),
            values,
            audit,
            then: Vec::new(),
        };
    }
    Fold {
        doing,
        text: fold_text!(
            "UPDATE runs SET state = 'ended', ended_at = ?, \
             ended_lived_s = (SELECT seconds FROM lived), outcome = ?, reason = ?, \
             exit_code = ?, signal = ?, detail = ?, duration_ms = ?, survivors = ?, \
             stdout_bytes = ?, stderr_bytes = ?, started_at = coalesce(started_at, ?), \
             pid = coalesce(pid, ?) WHERE id = ? AND state <> 'ended'",
            audited,
            "INSERT INTO run_heads (seq, stdout, stderr) \
             SELECT seq, ?, ? FROM runs WHERE changes() > 0 AND id = ?;"
        ),
        values,
        audit,
        then: vec![
            heads.stdout.to_vec().into(),
            heads.stderr.to_vec().into(),
            id.as_bytes().into(),
        ],
    }
}

/// Returns the lowest and the highest id that begin with these digits.
fn prefix_bounds(prefix: &str) -> Option<([u8; 16], [u8; 16])> {
    let bound = |fill: char| {
        let mut text = prefix.to_ascii_lowercase();
        if text.is_empty() || text.len() > 32 || !text.is_ascii() {
            return None;
        }
        text.extend(std::iter::repeat_n(fill, 32 - prefix.len()));
        text.parse::<RunId>().ok().map(|id| *id.as_bytes())
    };
    bound('0').zip(bound('f'))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes all that is written to it");
        text
    })
}

#[cfg(test)]
mod tests {
    use moltis_proto::DeviceId;
    use moltis_proto::run::{Command, Totals};

    use bytes::Bytes;

    use super::*;
    use crate::store::pairings::tests::pin;
    use crate::store::testing::{TestStore, at, ending, live, node, operator, run, store};

    fn ended(stdout: &'static [u8]) -> Ended {
        Ended {
            ending: ending(),
            totals: Totals {
                stdout: stdout.len() as u64,
                stderr: 0,
            },
            heads: Heads {
                stdout: Bytes::from_static(stdout),
                stderr: Bytes::new(),
            },
            started: None,
            at: at(100),
        }
    }

    async fn create(store: &TestStore, run: NewRun) -> RunCreation {
        store.create_run(run, &operator()).await.unwrap()
    }

    fn keyed(number: u8, key: &str) -> NewRun {
        let key = RunKey {
            principal: "operator".to_owned(),
            key: key.to_owned(),
        };
        NewRun {
            id: key.run_id(),
            key: Some(key),
            ..run(number)
        }
    }

    #[tokio::test]
    async fn a_run_is_written_and_read_back() {
        let store = store().await;
        let new = keyed(1, "k");
        assert!(matches!(
            create(&store, new.clone()).await,
            RunCreation::Created(_)
        ));
        let found = store.run(new.id).await.unwrap().unwrap();
        assert_eq!(found.seq, 1);
        assert_eq!(found.digest, new.digest);
        assert_eq!(found.target, Target::Local);
        assert_eq!(found.key, new.key);
        assert_eq!(found.spec, Some(new.spec));
        assert_eq!(found.stage, RunStage::Starting);
        assert_eq!(found.incarnation, 7);
        assert_eq!(
            (found.boot_id, found.journal_id),
            (new.boot_id, new.journal_id)
        );
        assert_eq!(found.created_at, new.created_at);
        assert_eq!((found.ending, found.unclaimed), (None, false));
        assert_eq!(store.run(RunId::from_bytes([9; 16])).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_repeated_request_finds_the_first_ones_run() {
        let store = store().await;
        create(&store, keyed(1, "k")).await;
        let RunCreation::Existing(found) = create(&store, keyed(1, "k")).await else {
            panic!("it must find the first");
        };
        assert_eq!(found.id, keyed(1, "k").id);
        let other = NewRun {
            digest: Digest::from_bytes([9; 32]),
            ..keyed(1, "k")
        };
        assert!(matches!(
            create(&store, other).await,
            RunCreation::Conflict(_)
        ));
        assert!(matches!(
            create(&store, keyed(1, "l")).await,
            RunCreation::Created(_)
        ));
        // What changed nothing is not in the log.
        let verdict = store.verify_audit().await.unwrap();
        assert_eq!((verdict.entries, verdict.first_bad), (2, None));
    }

    #[tokio::test]
    async fn of_many_requests_with_one_key_at_once_one_makes_the_run() {
        let store = store().await;
        let by = operator();
        let all = (0..50).map(|_| store.create_run(keyed(1, "same"), &by));
        let all = futures_util::future::join_all(all).await;
        let created =
            |c: &&Result<RunCreation, StoreError>| matches!(c, Ok(RunCreation::Created(_)));
        let existing =
            |c: &&Result<RunCreation, StoreError>| matches!(c, Ok(RunCreation::Existing(_)));
        assert_eq!(all.iter().filter(created).count(), 1);
        assert_eq!(all.iter().filter(existing).count(), 49);
        assert_eq!(store.verify_audit().await.unwrap().entries, 1);
    }

    #[tokio::test]
    async fn many_runs_at_once_are_written_in_batches_and_the_chain_holds() {
        let store = store().await;
        let by = operator();
        let all = (0..200).map(|n| store.create_run(run(n), &by));
        for creation in futures_util::future::join_all(all).await {
            assert!(matches!(creation.unwrap(), RunCreation::Created(_)));
        }
        let verdict = store.verify_audit().await.unwrap();
        assert_eq!((verdict.entries, verdict.first_bad), (200, None));
    }

    #[tokio::test]
    async fn a_key_of_one_principal_is_not_anothers() {
        let key = |principal: &str, key: &str| RunKey {
            principal: principal.to_owned(),
            key: key.to_owned(),
        };
        assert_ne!(key("a", "k").run_id(), key("b", "k").run_id());
        assert_ne!(key("ab", "c").run_id(), key("a", "bc").run_id());
        assert_eq!(key("a", "k").run_id(), key("a", "k").run_id());
    }

    #[tokio::test]
    async fn no_run_is_written_for_a_node_that_is_revoked_or_unknown() {
        let store = store().await;
        let node = node(1);
        let on_node = |number| NewRun {
            target: Target::Node(node.device_id),
            ..run(number)
        };
        assert!(matches!(
            create(&store, on_node(1)).await,
            RunCreation::NodeGone
        ));
        pin(&store, node.clone()).await;
        assert!(matches!(
            create(&store, on_node(2)).await,
            RunCreation::Created(_)
        ));
        let revoked = store.revoke_node(node.device_id, at(1), &operator()).await;
        assert!(revoked.unwrap().is_some());
        assert!(matches!(
            create(&store, on_node(3)).await,
            RunCreation::NodeGone
        ));
    }

    #[tokio::test]
    async fn a_run_moves_forward_only() {
        let store = store().await;
        create(&store, run(1)).await;
        let id = run(1).id;
        assert!(store.mark_started(id, 42, at(5)).await.unwrap().is_some());
        assert!(store.mark_started(id, 43, at(6)).await.unwrap().is_none());
        assert!(store.end_run(id, ended(b"hello")).await.unwrap().is_some());
        assert!(store.end_run(id, ended(b"again")).await.unwrap().is_none());
        assert!(store.mark_started(id, 44, at(7)).await.unwrap().is_none());
        let found = store.run(id).await.unwrap().unwrap();
        assert_eq!(found.stage, RunStage::Ended);
        assert_eq!((found.pid, found.started_at), (Some(42), Some(at(5))));
        assert_eq!(found.ending, Some(ending()));
        assert_eq!(found.totals.stdout, 5);
        assert_eq!(found.ended_at, Some(at(100)));
        let heads = store.run_heads(id).await.unwrap();
        assert_eq!(
            (&heads.stdout[..], &heads.stderr[..]),
            (&b"hello"[..], &b""[..])
        );
        // Asked for, and ended: once each.
        assert_eq!(store.verify_audit().await.unwrap().entries, 2);
    }

    #[tokio::test]
    async fn endings_at_once_in_one_batch_leave_one_and_a_sound_chain() {
        let store = store().await;
        for number in 0..20 {
            create(&store, run(number)).await;
        }
        let ids = (0..20).flat_map(|n| [run(n).id; 3]);
        let all = ids.map(|id| store.end_run(id, ended(b"x")));
        let all = futures_util::future::join_all(all).await;
        let changed = all.iter().filter(|end| matches!(end, Ok(Some(_)))).count();
        assert_eq!(changed, 20);
        let verdict = store.verify_audit().await.unwrap();
        assert_eq!((verdict.entries, verdict.first_bad), (40, None));
    }

    #[tokio::test]
    async fn an_ending_that_brings_the_start_along_writes_it_where_none_is_known() {
        let store = store().await;
        for number in [1, 2] {
            create(&store, run(number)).await;
        }
        assert_eq!(store.all_open_runs().await.unwrap().len(), 2);
        let noted = store.mark_started(run(2).id, 42, at(5)).await.unwrap();
        assert!(noted.is_some());
        for (number, expected) in [(1, (Some(7), at(9))), (2, (Some(42), at(5)))] {
            let started = Some(Started {
                at: at(9),
                pid: Some(7),
            });
            let end = Ended {
                started,
                ..ended(b"x")
            };
            store.end_run(run(number).id, end).await.unwrap().unwrap();
            let found = store.run(run(number).id).await.unwrap().unwrap();
            assert_eq!(
                (found.pid, found.started_at),
                (expected.0, Some(expected.1))
            );
        }
        assert!(store.all_open_runs().await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_run_without_output_has_no_head() {
        let store = store().await;
        create(&store, run(1)).await;
        store.end_run(run(1).id, ended(b"")).await.unwrap().unwrap();
        assert_eq!(store.run_heads(run(1).id).await.unwrap(), Heads::default());
    }

    #[tokio::test]
    async fn an_approval_lets_a_waiting_run_start_once() {
        let store = store().await;
        let new = NewRun {
            stage: RunStage::WaitingApproval,
            ..run(1)
        };
        create(&store, new).await;
        assert!(
            store
                .mark_started(run(1).id, 1, at(1))
                .await
                .unwrap()
                .is_none()
        );
        assert!(store.mark_approved(run(1).id).await.unwrap().is_some());
        assert!(store.mark_approved(run(1).id).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_cancel_and_a_size_are_kept_for_a_connection_to_come() {
        let store = store().await;
        create(&store, run(1)).await;
        let id = run(1).id;
        let grace = Duration::from_millis(1500);
        let by = operator();
        assert!(
            store
                .request_cancel(id, grace, at(3), &by)
                .await
                .unwrap()
                .is_some()
        );
        assert!(
            store
                .request_cancel(id, grace, at(4), &by)
                .await
                .unwrap()
                .is_none()
        );
        let size = TtySize { cols: 80, rows: 24 };
        assert!(store.set_tty_size(id, size).await.unwrap().is_some());
        let found = store.run(id).await.unwrap().unwrap();
        assert_eq!(found.cancel_requested_at, Some(at(3)));
        assert_eq!(found.cancel_grace, Some(grace));
        assert_eq!(found.tty_size, Some(size));
        store.end_run(id, ended(b"")).await.unwrap();
        assert!(store.set_tty_size(id, size).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_run_that_a_node_brought_is_kept_until_somebody_claims_it() {
        let store = store().await;
        let key = keyed(5, "lost");
        let place = Target::Node(DeviceId::from_bytes([1; 16]));
        let bring = || {
            store.add_unclaimed(
                key.id,
                key.digest,
                &place,
                "box-1".to_owned(),
                BootId::from_bytes([2; 16]),
                JournalId::from_bytes([3; 16]),
                7,
                at(0),
            )
        };
        assert!(bring().await.unwrap().is_some());
        assert!(bring().await.unwrap().is_none());
        // The node has lost it before anybody wanted it; then it brings it again.
        assert!(store.delete_unclaimed(key.id).await.unwrap().is_some());
        assert!(store.run(key.id).await.unwrap().is_none());
        assert!(bring().await.unwrap().is_some());
        let found = store.run(key.id).await.unwrap().unwrap();
        assert!(found.unclaimed && found.spec.is_none());
        // The repeated request, whose row a power cut had eaten, takes it.
        let RunCreation::Existing(found) = create(&store, key.clone()).await else {
            panic!("it must find the run");
        };
        assert!(!found.unclaimed);
        assert_eq!((found.spec, found.key), (Some(key.spec), key.key));
        let by = operator();
        let again = store.claim_run(key.id, "operator".to_owned(), at(1), &by);
        assert!(again.await.unwrap().is_none());
        // What has an owner stays.
        assert!(store.delete_unclaimed(key.id).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_run_is_found_by_the_beginning_of_its_id() {
        let store = store().await;
        for (number, first) in [(1, 0xab), (2, 0xac), (3, 0x0b)] {
            let mut id = [number; 16];
            id[0] = first;
            let new = NewRun {
                id: RunId::from_bytes(id),
                ..run(number)
            };
            create(&store, new).await;
        }
        let count = async |prefix: &str| store.find_runs(prefix, 10).await.unwrap().len();
        assert_eq!(count("a").await, 2);
        assert_eq!(count("AB").await, 1);
        assert_eq!(count("ab01").await, 1);
        assert_eq!(count("0").await, 1);
        for none in ["", "ff", "xyz", "é", &"a".repeat(33)] {
            assert_eq!(count(none).await, 0, "{none}");
        }
    }

    #[tokio::test]
    async fn lists_are_filtered_and_paged_newest_first() {
        let store = store().await;
        pin(&store, node(9)).await;
        for number in 0..10 {
            let target = match number % 2 {
                0 => Target::Local,
                _ => Target::Node(node(9).device_id),
            };
            create(
                &store,
                NewRun {
                    target,
                    ..run(number)
                },
            )
            .await;
        }
        store.end_run(run(4).id, ended(b"")).await.unwrap();
        let first = store.list_runs(&RunFilter::default(), 4).await.unwrap();
        let numbers = |page: &RunPage| {
            page.items
                .iter()
                .map(|run| run.id.as_bytes()[0])
                .collect::<Vec<_>>()
        };
        assert_eq!(numbers(&first), [9, 8, 7, 6]);
        let filter = RunFilter {
            target: Some(Target::Local),
            before: first.next,
            ..RunFilter::default()
        };
        let second = store.list_runs(&filter, 4).await.unwrap();
        assert_eq!((numbers(&second), second.next), (vec![4, 2, 0], None));
        let filter = RunFilter {
            stage: Some(RunStage::Running),
            ..RunFilter::default()
        };
        store.mark_started(run(6).id, 1, at(1)).await.unwrap();
        let open = store.list_runs(&filter, 10).await.unwrap();
        assert_eq!(numbers(&open), [9, 8, 7, 6, 5, 3, 2, 1, 0]);
        let filter = RunFilter {
            stage: Some(RunStage::Starting),
            ..RunFilter::default()
        };
        let starting = store.list_runs(&filter, 10).await.unwrap();
        assert_eq!(numbers(&starting), [9, 8, 7, 5, 3, 2, 1, 0]);
        let open = store.open_runs(&Target::Local).await.unwrap();
        assert_eq!(open.len(), 4);
        assert!(open.is_sorted_by_key(|run| run.seq));
    }

    #[tokio::test]
    async fn old_runs_give_up_their_output_and_then_their_rows() {
        let store = store().await;
        for number in 0..4 {
            create(&store, run(number)).await;
            let end = Ended {
                at: at(i64::from(number)),
                ..ended(b"hello")
            };
            live(&store, u64::from(number)).await;
            if number != 1 {
                store.end_run(run(number).id, end).await.unwrap();
            }
        }
        let id = |number| run(number).id;
        let oldest = async |before, after| {
            let found = store.oldest_ended(before, after, 2).await.unwrap();
            found.into_iter().map(|(_, id)| id).collect::<Vec<_>>()
        };
        assert_eq!(oldest(None, 0).await, [id(0), id(2)]);
        assert_eq!(oldest(Some(Duration::from_secs(1)), 0).await, [id(0)]);
        assert_eq!(oldest(None, 1).await, [id(2), id(3)]);
        store.free_output(vec![id(0)], at(50)).await.unwrap();
        assert_eq!(oldest(None, 0).await, [id(2), id(3)]);
        assert_eq!(store.run_heads(id(0)).await.unwrap(), Heads::default());
        let found = store.run(id(0)).await.unwrap().unwrap();
        assert_eq!(
            (found.output_freed_at, found.totals.stdout),
            (Some(at(50)), 5)
        );
        store.delete_runs(vec![id(1), id(2)]).await.unwrap();
        assert!(store.run(id(1)).await.unwrap().is_some(), "it still runs");
        assert!(store.run(id(2)).await.unwrap().is_none());
    }

    #[test]
    fn a_place_survives_its_text_form() {
        for target in [
            Target::Local,
            Target::Node(DeviceId::from_bytes([7; 16])),
            Target::Ssh("box:1".to_owned()),
        ] {
            assert_eq!(target.to_string().parse(), Ok(target));
        }
        assert!("node:x".parse::<Target>().is_err());
        assert!("elsewhere".parse::<Target>().is_err());
    }

    #[tokio::test]
    async fn strange_specs_survive() {
        let store = store().await;
        let mut new = run(1);
        new.spec.command = Command::Shell("echo \"\u{0}'\n\u{1f600}\"".to_owned());
        new.spec.env.insert("A B".to_owned(), "\"".to_owned());
        create(&store, new.clone()).await;
        assert_eq!(
            store.run(new.id).await.unwrap().unwrap().spec,
            Some(new.spec)
        );
    }
}
