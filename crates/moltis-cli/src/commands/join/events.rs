//! What happens to a link, told: to the person who typed `node add`, or to the log of a service.

use std::sync::Arc;

use moltis_identity::Fingerprint;
use moltis_node::{LinkError, LinkEvent, Trust};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::meet::Until;
use super::request::Joined;
use crate::notify;
use crate::output::Output;
use crate::paths::Home;
use crate::units::span;

/// What is said of the key of a gateway that has not heard this node's request.
const NOT_PINNED: &str = "not pinned: it has not taken this node's request";

/// Tells a person at a terminal how the joining goes.
pub(super) struct Person<'a> {
    output: Output,
    joined: &'a Joined,
    home: &'a Home,
    own_key: Fingerprint,
    url: String,
    node_id: String,
    until: Until,
    enough: CancellationToken,
    untold_key: Option<Fingerprint>,
    shown_code: Option<String>,
    waited: bool,
    told: Told,
    last_error: Option<String>,
}

/// What a person was told, as far as it decides what comes next.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// The gateway has taken this node.
    pub(super) accepted: bool,
    /// A person approved it just now.
    pub(super) approved: bool,
    /// The gateway waits for a person's answer.
    pub(super) waiting: bool,
    /// The key that the gateway proved.
    pub(super) gateway: Option<Fingerprint>,
}

impl<'a> Person<'a> {
    /// Tells until `until` holds, and then cancels `enough`.
    pub(super) fn new(
        output: Output,
        joined: &'a Joined,
        home: &'a Home,
        until: Until,
        enough: CancellationToken,
    ) -> Self {
        Self {
            output,
            joined,
            home,
            own_key: joined.identity.fingerprint(),
            url: joined.config.gateway_url.to_string(),
            node_id: joined.identity.node_id.as_str().to_owned(),
            until,
            enough,
            untold_key: None,
            shown_code: None,
            waited: false,
            told: Told::default(),
            last_error: None,
        }
    }

    /// Tells everything until the link has ended.
    pub(super) async fn tell(mut self, mut events: mpsc::Receiver<LinkEvent>) -> Told {
        while let Some(event) = events.recv().await {
            // Where nobody reads, the node still works.
            self.tell_one(event).ok();
            let enough = match self.until {
                Until::Stopped => false,
                Until::Accepted => self.told.accepted,
                Until::Heard => self.told.accepted || self.told.waiting,
            };
            if enough {
                self.enough.cancel();
            }
        }
        self.tell_new_key(NOT_PINNED).ok(); // where nobody reads, nobody asks
        let was_left = self.until == Until::Stopped && self.enough.is_cancelled();
        if was_left && self.told.waiting {
            self.output.note(
                "the request waits on the gateway until its time is over; the same `moltis node add` takes it up again",
            );
        }
        self.told
    }

    fn tell_one(&mut self, event: LinkEvent) -> anyhow::Result<()> {
        match &event {
            LinkEvent::Pending { .. } | LinkEvent::Accepted { .. } => {
                self.tell_new_key("pinned on this first connection")?;
            }
            LinkEvent::Disconnected { .. } => self.tell_new_key(NOT_PINNED)?,
            _ => {}
        }
        match event {
            LinkEvent::GatewayKey { fingerprint, trust } => self.keys(fingerprint, trust),
            LinkEvent::Pending {
                code, expires_in, ..
            } => {
                let code = code.to_string();
                // The service that waits in our place has a code of its own.
                if self.until != Until::Heard && self.shown_code.as_ref() != Some(&code) {
                    self.output.text(&format!(
                        "Connection code  {code}    (the same code is shown where you approve)"
                    ))?;
                    self.output.note("Waiting for approval …");
                    if !self.waited {
                        self.output.note(&format!(
                            "on the gateway: moltis node pending, then moltis node approve <id>; the request waits for {}",
                            span(expires_in)
                        ));
                    }
                }
                self.waited = true;
                self.told.waiting = true;
                self.shown_code = Some(code);
                self.last_error = None;
                Ok(())
            }
            LinkEvent::Accepted { approved, .. } => {
                let first = !std::mem::replace(&mut self.told.accepted, true);
                self.told.approved |= approved;
                self.told.waiting = false;
                self.last_error = None;
                let (url, id) = (&self.url, &self.node_id);
                match (approved, first) {
                    (false, true) if self.until != Until::Stopped => {
                        self.tell_what_holds();
                        Ok(())
                    }
                    _ if self.until != Until::Stopped => Ok(()),
                    (true, _) => self.output.text(&format!(
                        "Approved. Connected to {url} as node {id}; Ctrl+C disconnects."
                    )),
                    (false, true) => {
                        self.tell_what_holds();
                        self.output.text(&format!(
                            "Connected to {url} as node {id}; Ctrl+C disconnects."
                        ))
                    }
                    (false, false) => {
                        self.output.note("connected again");
                        Ok(())
                    }
                }
            }
            LinkEvent::Disconnected { error, retry_in } => {
                let words = words(&error);
                // A repeated error was told before; the last one is told by whoever ends.
                if self.last_error.as_ref() != Some(&words) {
                    let pause = span(retry_in);
                    self.output
                        .note(&format!("{words}; trying again, first in {pause}"));
                    self.last_error = Some(words);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn tell_what_holds(&self) {
        match self.joined.keep_approved(self.home) {
            Ok(Some(words)) => self.output.note(&words),
            Ok(None) => {}
            Err(failure) => self
                .output
                .warn(&format!("{:#}", anyhow::Error::from(failure))),
        }
    }

    fn keys(&mut self, fingerprint: Fingerprint, trust: Trust) -> anyhow::Result<()> {
        if self.told.gateway.replace(fingerprint) == Some(fingerprint) {
            return Ok(());
        }
        match trust {
            // Whether it is kept is seen by what comes next.
            Trust::FirstUse => {
                self.untold_key = Some(fingerprint);
                Ok(())
            }
            Trust::Pinned => self.tell_keys(fingerprint, "as pinned"),
        }
    }

    /// Tells the key that was seen for the first time, where it was not told yet.
    fn tell_new_key(&mut self, how: &str) -> anyhow::Result<()> {
        match self.untold_key.take() {
            Some(fingerprint) => self.tell_keys(fingerprint, how),
            None => Ok(()),
        }
    }

    fn tell_keys(&self, fingerprint: Fingerprint, how: &str) -> anyhow::Result<()> {
        self.output.text(&format!(
            "Gateway key      {fingerprint}    ({how})\nThis node's key  {}",
            self.own_key
        ))
    }
}

/// Tells the log, and the service manager where there is one.
pub(super) async fn log(mut events: mpsc::Receiver<LinkEvent>) {
    while let Some(event) = events.recv().await {
        match event {
            LinkEvent::Dialing { url, attempt } => {
                if attempt == 1 {
                    notify::status(&format!("connecting to {url}"));
                }
                tracing::debug!(gateway.url = %url, attempt, "dialling");
            }
            LinkEvent::GatewayKey { fingerprint, .. } => {
                tracing::debug!(gateway.key = %fingerprint, "the gateway has proven its key");
            }
            LinkEvent::Pending { code, .. } => {
                notify::status(&format!("waiting for approval with the code {code}"));
                tracing::warn!(connection.code = %code, "waiting for approval on the gateway");
            }
            LinkEvent::Accepted { .. } => {
                notify::status("connected");
                tracing::info!("connected");
            }
            LinkEvent::Disconnected { error, retry_in } => {
                let hint = error.hint().unwrap_or_default();
                let error = words(&error);
                notify::status(&format!("not connected: {error}"));
                let pause_ms = u64::try_from(retry_in.as_millis()).unwrap_or(u64::MAX);
                tracing::warn!(error, hint, retry_in_ms = pause_ms, "not connected");
            }
            _ => {}
        }
    }
}

/// Returns an error with its causes.
fn words(error: &Arc<LinkError>) -> String {
    let mut words = error.to_string();
    let mut cause = std::error::Error::source(&**error);
    while let Some(next) = cause {
        let text = next.to_string();
        if !words.contains(&text) {
            words = format!("{words}: {text}");
        }
        cause = next.source();
    }
    words
}
