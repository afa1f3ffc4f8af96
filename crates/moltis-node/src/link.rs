//! The link: dial, prove, pass frames, and again.
//!
//! One attempt is a straight line: [`dial`] gives an upgraded socket, [`handshake`] a verdict,
//! [`session`] works until something ends it. Around it stands this loop: what an error means for
//! the next attempt, and who is told.

mod attached;
mod dial;
mod flight;
mod handshake;
mod machine;
mod outgoing;
mod pace;
mod session;
mod settings;
mod share;
mod socket;
mod telemetry;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use moltis_identity::{Fingerprint, NodeIdentity, noise, random};
use moltis_proto::handshake::node::{NodeClaim, Pin};
use moltis_proto::handshake::{Intent, Introduction};
use moltis_proto::limits::{BACKOFF_MAX, BACKOFF_MIN};
use moltis_proto::node::Backoff;
use moltis_proto::node::backoff::{part_of, spread};
use moltis_proto::version::LedgerRange;
use moltis_proto::{BootId, InstanceId, PublicKey, Subprotocol};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::handshake::{Accepted, Claims, Progress};
pub(crate) use self::machine::Machine;
use self::session::{Stopped, Surroundings};
use self::settings::Watched;
use self::telemetry::Telemetry;
use crate::clock::Clock;
use crate::config::NodeConfig;
use crate::error::{LinkError, Outlook};
use crate::event::{LinkEvent, Trust};
use crate::keepers::Keepers;
use crate::node::{GiveUp, NodeBuilder};
use crate::state::{NodeState, StateError};

/// A gateway may ask to be left alone for this long; a longer time is a mistake or a trick.
const LATER_MAX: Duration = Duration::from_mins(15);

/// Everything that the connections of one node need.
#[derive(Debug)]
pub(crate) struct Link {
    identity: Arc<NodeIdentity>,
    keepers: Arc<dyn Keepers>,
    settings: Watched,
    give_up: GiveUp,
    leaves_once_accepted: bool,
    trusts_first_use: bool,
    user: String,
    version: String,
    offers: Vec<Subprotocol>,
    instance_id: InstanceId,
    clock: Clock,
    machine: Machine,
    telemetry: Option<Telemetry>,
    tell: Tell,
    /// What the next attempt asks for: to pair until a gateway has accepted this node once.
    intent: Intent,
    /// The first key seen where none is pinned. Another one is a hard stop.
    first_key: Option<PublicKey>,
    /// A gateway has answered, so its address is right.
    answered: bool,
    attempts: u32,
    backoff: Backoff,
}

impl Link {
    pub(crate) fn new(setup: NodeBuilder) -> Self {
        Self {
            identity: setup.identity,
            keepers: setup.keepers,
            settings: Watched::new(setup.settings),
            give_up: setup.give_up,
            leaves_once_accepted: setup.leaves_once_accepted,
            trusts_first_use: setup.trusts_first_use,
            user: setup.user,
            version: setup.version,
            offers: setup.offers.unwrap_or_else(noise::preferred_offers),
            instance_id: InstanceId::from_bytes(random::bytes()),
            clock: setup.clock,
            telemetry: setup.machine.telemetry(setup.collector),
            machine: setup.machine,
            tell: Tell {
                events: setup.events,
                state: setup.state,
                url: String::new(),
            },
            intent: setup.intent,
            first_key: None,
            answered: false,
            attempts: 0,
            backoff: Backoff::new(),
        }
    }

    /// Connects again and again until `stop` is cancelled, or until giving up is right.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> Result<(), LinkError> {
        let boot_id = self.machine.boot_id().map_err(LinkError::Machine)?;
        loop {
            let error = match self.connect_and_work(boot_id, &stop).await {
                Ok(Stopped) => return Ok(()),
                Err(error) => error,
            };
            let Some(wait) = self.wait_after(&error) else {
                self.tell.gave_up(&error);
                return Err(error);
            };
            self.tell.disconnected(error, wait);
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// One attempt, and the session that comes of it.
    async fn connect_and_work(
        &mut self,
        boot_id: BootId,
        stop: &CancellationToken,
    ) -> Result<Stopped, LinkError> {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(Stopped),
            accepted = Box::pin(self.connect(boot_id)) => accepted?,
        };
        if self.leaves_once_accepted {
            return Ok(Stopped);
        }
        let around = Surroundings {
            keepers: &*self.keepers,
            telemetry: self.telemetry.as_ref(),
            settings: &mut self.settings,
            clock: &self.clock,
            stop,
        };
        Box::pin(session::run(accepted, around)).await
    }

    /// From the settings to an accepted connection.
    async fn connect(&mut self, boot_id: BootId) -> Result<Accepted, LinkError> {
        let config = self.settings.load().map_err(LinkError::Config)?;
        if config.gateway_key.is_none() && !self.trusts_first_use {
            return Err(LinkError::NotPinned {
                url: config.gateway_url,
            });
        }
        self.attempts = self.attempts.saturating_add(1);
        self.tell.dialing(&config, self.attempts);
        let introduction = self.introduction(&config);
        let (url, roots) = (&config.gateway_url, config.tls_ca.as_ref());
        let dialling = dial::dial(&self.machine, url, roots, &self.offers);
        let (socket, negotiated) = dialling.await?;
        let claims = Claims {
            url,
            identity: &self.identity,
            claim: NodeClaim {
                device_id: self.identity.device_id,
                instance_id: self.instance_id,
                boot_id,
                intent: self.intent_by(&config),
                ledgers: LedgerRange::CURRENT,
            },
            pin: self.pin(&config),
            introduction: &introduction,
            clock: &self.clock,
        };
        let trust = match config.gateway_key {
            Some(_) => Trust::Pinned,
            None => Trust::FirstUse,
        };
        let (first_key, answered, tell) = (&mut self.first_key, &mut self.answered, &mut self.tell);
        let accepted = handshake::run(socket, &negotiated, &claims, |progress| match progress {
            Progress::Key(key) => {
                *first_key = Some(key);
                tell.gateway_key(&key, trust);
            }
            Progress::Pending {
                request_id,
                code,
                expires_in,
            } => {
                *answered = true;
                tell.pending(LinkEvent::Pending {
                    request_id,
                    code,
                    expires_in,
                });
            }
        })
        .await?;
        self.accept(&accepted, negotiated.chosen)?;
        Ok(accepted)
    }

    /// The gateway takes this node: from now on it is this gateway and no other.
    fn accept(&mut self, accepted: &Accepted, chosen: Subprotocol) -> Result<(), LinkError> {
        self.settings
            .pin(Fingerprint::of(&accepted.gateway_key))
            .map_err(LinkError::Config)?;
        self.answered = true;
        self.attempts = 0;
        self.intent = Intent::Connect;
        self.backoff.handle_connected(self.clock.now().monotonic);
        self.tell.accepted(accepted, chosen);
        Ok(())
    }

    /// Settings let a node ask to pair only with the gateway whose key they hold: trust on first use
    /// needs a person who looks.
    fn intent_by(&self, config: &NodeConfig) -> Intent {
        if config.pair && config.gateway_key.is_some() {
            Intent::Pair
        } else {
            self.intent
        }
    }

    fn pin(&self, config: &NodeConfig) -> Pin {
        match (&config.gateway_key, self.first_key) {
            (Some(pinned), _) => Pin::Fingerprint(*pinned.as_digest()),
            (None, Some(first)) => Pin::Key(first),
            (None, None) => Pin::FirstUse,
        }
    }

    fn introduction(&self, config: &NodeConfig) -> Introduction {
        Introduction {
            node_id: self.identity.node_id.clone(),
            name: config.name.clone(),
            labels: config.labels.clone(),
            platform: self.machine.platform(),
            version: self.version.clone(),
            user: self.user.clone(),
            working_dir: config.working_dir.clone(),
            timeout_ms: config.timeout_seconds.saturating_mul(1000),
            policy: config.policy.mode,
            env_allow: config.env_allow.clone(),
            capabilities: Vec::new(),
        }
    }

    /// Returns how long to wait before the next attempt; `None` when there shall be none.
    fn wait_after(&mut self, error: &LinkError) -> Option<Duration> {
        let jitter = u32::from_ne_bytes(random::bytes());
        let now = self.clock.now().monotonic;
        let in_a_terminal = self.give_up == GiveUp::WhenTurnedAway;
        match error.outlook() {
            Outlook::Later(wait) => {
                self.backoff.handle_sent_away(now);
                Some(later(wait, jitter))
            }
            Outlook::NeedsPerson if in_a_terminal => None,
            Outlook::NeedsPerson => {
                self.backoff.handle_sent_away(now);
                Some(spread(BACKOFF_MAX, jitter))
            }
            Outlook::Passing if in_a_terminal && !self.answered => None,
            Outlook::Passing => Some(self.backoff.handle_lost(jitter, now)),
            Outlook::AtOnce => {
                let passing = self.backoff.handle_lost(jitter, now);
                // Whatever it is that changes all the time, the gateway is not dialled all the time.
                let at_once = self.backoff.is_at_first();
                Some(if at_once { Duration::ZERO } else { passing })
            }
        }
    }
}

/// Returns when to come back to a gateway that asked for this wait: never sooner, and never so soon
/// that it would be dialled all the time.
fn later(wait: Duration, jitter: u32) -> Duration {
    let wait = wait.clamp(BACKOFF_MIN, LATER_MAX);
    wait + part_of(wait / 4, jitter)
}

/// Who is told what happens: the channel of events, `node.state`, and the log in detail; whoever
/// takes the events writes the log's other lines.
#[derive(Debug)]
struct Tell {
    events: Option<mpsc::Sender<LinkEvent>>,
    state: Option<NodeState>,
    url: String,
}

impl Tell {
    fn dialing(&mut self, config: &NodeConfig, attempt: u32) {
        self.url = config.gateway_url.to_string();
        tracing::debug!(url = %self.url, attempt, "dialing the gateway");
        self.event(LinkEvent::Dialing {
            url: config.gateway_url.clone(),
            attempt,
        });
    }

    fn gateway_key(&mut self, key: &PublicKey, trust: Trust) {
        let fingerprint = Fingerprint::of(key);
        tracing::debug!(%fingerprint, ?trust, "the gateway has proven its key");
        self.event(LinkEvent::GatewayKey { fingerprint, trust });
    }

    fn pending(&mut self, event: LinkEvent) {
        if let LinkEvent::Pending { code, .. } = &event {
            tracing::debug!(%code, "waiting for approval on the gateway");
            let code = code.to_string();
            self.record(|state, url| state.waiting(url, &code));
        }
        self.event(event);
    }

    fn accepted(&mut self, accepted: &Accepted, subprotocol: Subprotocol) {
        tracing::debug!(url = %self.url, protocol = subprotocol.name(), "connected to the gateway");
        self.record(|state, url| state.connected(url, SystemTime::now()));
        self.event(LinkEvent::Accepted {
            epoch: accepted.epoch,
            subprotocol,
            approved: accepted.approved,
        });
    }

    fn disconnected(&mut self, error: LinkError, retry_in: Duration) {
        let words = chain(&error);
        tracing::debug!(url = %self.url, error = %words, retry_in_ms = retry_in.as_millis(), "no connection to the gateway");
        self.record(|state, url| state.disconnected(url, &words));
        self.event(LinkEvent::Disconnected {
            error: Arc::new(error),
            retry_in,
        });
    }

    fn gave_up(&mut self, error: &LinkError) {
        let words = chain(error);
        self.record(|state, url| state.disconnected(url, &words));
    }

    fn event(&self, event: LinkEvent) {
        if let Some(events) = &self.events {
            events.try_send(event).ok(); // Who does not listen misses it; the link never waits.
        }
    }

    fn record(&mut self, write: impl FnOnce(&mut NodeState, &str) -> Result<(), StateError>) {
        if let Some(state) = &mut self.state
            && let Err(error) = write(state, &self.url)
        {
            tracing::warn!(%error, "the node's state cannot be written");
        }
    }
}

/// The error and its causes on one line.
fn chain(error: &LinkError) -> String {
    use std::error::Error as _;
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        words.push_str(": ");
        words.push_str(&error.to_string());
        cause = error.source();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_that_asks_for_no_wait_gets_the_shortest() {
        assert_eq!(later(Duration::ZERO, 0), BACKOFF_MIN);
        assert_eq!(later(Duration::MAX, 0), LATER_MAX);
    }

    #[test]
    fn nodes_that_were_asked_for_the_same_wait_do_not_come_back_in_one_moment() {
        let wait = Duration::from_secs(8);
        assert_eq!(later(wait, 0), wait);
        assert_eq!(later(wait, u32::MAX), Duration::from_secs(10));
        assert_eq!(later(BACKOFF_MIN, u32::MAX), BACKOFF_MIN * 5 / 4);
    }
}
