//! Who is attached: a client comes, is told what is here, and goes.

use moltis_proto::run::RunSummary;
use moltis_proto::{Codec, FromKeeper, limits};

use super::super::client::{self, Client};
use super::super::journal::Journal;
use super::super::ops::Attached;
use super::super::recover;
use super::super::run::Run;
use super::{Core, Going, mark_dirty, now};

impl Core {
    /// Makes this the client; an older one is let go.
    pub(super) fn attach(&mut self, attached: Attached) {
        if matches!(self.going, Going::Spilling(_)) {
            // What it would be sent and not acknowledge has no time any more to get to the disk. The
            // next keeper tells it everything.
            tracing::debug!("a client comes too late: this keeper is about to go");
            return;
        }
        if !client::are_sound(&attached.windows) {
            tracing::warn!("a client asks for windows that cannot work");
            return;
        }
        self.detach("a newer one has attached");
        self.take_over_the_dead();
        let mut client = Client::new(attached);
        for run in self.runs.values_mut() {
            run.take_windows(&client.windows);
        }
        self.list_runs(&mut client);
        self.client = Some(client);
        self.told_journals = self.journals.len().min(limits::JOURNALS_MAX);
    }

    /// A keeper may have died while this one lived: what it had is ours now.
    fn take_over_the_dead(&mut self) {
        match recover::take_over_all(
            &self.kernel,
            &self.disk,
            &self.dir,
            self.boot_id,
            &self.journals,
            None,
        ) {
            Ok(estate) => self.inherit(estate),
            Err(error) => {
                tracing::warn!(error = %error, "dead keepers' runs cannot be looked for");
            }
        }
    }

    /// Tells a client everything that is here, page by page.
    fn list_runs(&self, client: &mut Client) {
        let journals = self.journals.iter().map(Journal::id);
        let journals: Vec<_> = journals.take(limits::JOURNALS_MAX).collect();
        if journals.len() < self.journals.len() {
            tracing::error!("too many keepers died with runs that no gateway has fetched");
        }
        let summaries = self.runs.values().map(Run::summary);
        let is_told = |summary: &RunSummary| journals.contains(&summary.journal_id);
        let summaries: Vec<_> = summaries.filter(is_told).collect();
        for page in FromKeeper::list(self.boot_id, &journals, &summaries, Codec::Postcard) {
            client.tell(page);
        }
    }

    pub(super) fn detach(&mut self, why: &str) {
        drop(self.let_go(why));
    }

    fn let_go(&mut self, why: &str) -> Option<Client> {
        let client = self.client.take()?;
        // It hears from the next list that we have not taken these.
        self.starts.clear();
        tracing::debug!("the client is gone: {why}");
        let now = now();
        self.idle_since = now;
        for run in self.runs.values_mut() {
            run.outbox.handle_detached(now);
            mark_dirty(run, &mut self.dirty);
        }
        Some(client)
    }

    /// Lets a client go that broke a rule, and tells it so behind what it was sent before.
    pub(in crate::keeper) fn turn_away(&mut self, why: &str) {
        if let Some(client) = self.let_go(why) {
            self.ops.part(client);
        }
    }
}
