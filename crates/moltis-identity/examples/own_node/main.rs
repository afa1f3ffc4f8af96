//! A whole node, on `moltis-proto` and `moltis-identity` alone.
//!
//! ```text
//! moltis node pairing enable
//! cargo run -p moltis-identity --example own_node -- ws://127.0.0.1:9090/ws own_node
//! ```
//!
//! It joins a gateway, shows the connection code, waits to be approved, and then runs what it is
//! asked. This page is the life of a node from its first dial to its last word; beside it stand the
//! [`road`] that its messages take, the [`runs`] that it holds, one [`child`] and its pipes, the
//! [`journal`] that survives its process, and what it tells of its [`machine`].
//!
//! `cargo xtask conformance` passes it. What it leaves out is what `moltis-node` is for: terminals,
//! an owner's policy, output that does not fit memory, commands that outlive the node's process.
#![expect(clippy::print_stdout, reason = "an example talks to its user")]

mod child;
mod journal;
mod machine;
mod road;
mod runs;

use std::error::Error;
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use moltis_identity::{Fingerprint, NodeIdentity, StrictVerifier, random};
use moltis_proto::code::CloseCode;
use moltis_proto::handshake::node::{Decision, NodeClaim, NodeHandshake, Pin};
use moltis_proto::handshake::{GatewayProof, Intent, SessionLimits, Verdict};
use moltis_proto::limits::{
    BACKOFF_MAX, BACKOFF_MIN, HANDSHAKE_TIME_MAX, HEALTHY_AFTER, SILENCE_MAX,
};
use moltis_proto::liveness::{Lifeless, Liveness, Moment};
use moltis_proto::message::Windows;
use moltis_proto::version::{Ledger, LedgerRange};
use moltis_proto::{BootId, InstanceId, NodeId, Nonce, PublicKey, Refusal, ToGateway, ToNode};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use road::Road;
use runs::Runs;

pub(crate) type Result<T = (), E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result {
    let mut args = std::env::args().skip(1);
    let (Some(url), Some(dir)) = (args.next(), args.next()) else {
        return Err("usage: own_node <ws://gateway:9090/ws> <directory>".into());
    };
    node(&url, Path::new(&dir)).await
}

/// Connects again and again, until dialling is of no use any more.
pub(crate) async fn node(url: &str, dir: &Path) -> Result {
    fs::create_dir_all(dir)?;
    let identity = NodeIdentity::load_or_create(&dir.join("node_key"), || {
        NodeId::new("own-node").expect("the name follows the rules")
    })?;
    println!("This node's key  {}", identity.fingerprint());
    let mut node = Node {
        url,
        pin: Pinned::load(dir.join("gateway_key"))?,
        identity,
        instance_id: InstanceId::from_bytes(random::bytes()),
        boot_id: machine::boot_id(),
    };
    let mut runs = Runs::open(&dir.join("journal"), node.boot_id)?;
    let mut full = BACKOFF_MIN;
    loop {
        let since = Instant::now();
        let left = node.visit(&mut runs).await;
        // Commands go on meanwhile; what they write waits.
        runs.handle_disconnected();
        if since.elapsed() > HEALTHY_AFTER {
            full = BACKOFF_MIN;
        }
        full = (full * 2).min(BACKOFF_MAX);
        let wait = match left {
            Leave::Later(wait) => wait.max(BACKOFF_MIN),
            // The upper half of it, by chance, so that many nodes do not come back at once.
            Leave::Passing(error) => {
                println!("No connection    {error}");
                full / 2 + full.mul_f64(f64::from(random::bytes::<1>()[0]) / 512.0)
            }
            Leave::ForGood(error) => return Err(error),
        };
        sleep(wait).await;
    }
}

/// Why a connection is over.
enum Leave {
    /// The gateway says when to come back.
    Later(Duration),
    /// It may be better next time.
    Passing(Box<dyn Error + Send + Sync>),
    /// It needs a person.
    ForGood(Box<dyn Error + Send + Sync>),
}

impl<E: Into<Box<dyn Error + Send + Sync>>> From<E> for Leave {
    fn from(error: E) -> Self {
        Self::Passing(error.into())
    }
}

fn for_good(error: impl Into<Box<dyn Error + Send + Sync>>) -> Leave {
    Leave::ForGood(error.into())
}

/// What stays the same from one connection to the next.
struct Node<'a> {
    url: &'a str,
    identity: NodeIdentity,
    pin: Pinned,
    instance_id: InstanceId,
    boot_id: BootId,
}

/// What a gateway granted.
struct Accepted {
    windows: Windows,
    limits: SessionLimits,
    ledger: Ledger,
}

impl Node<'_> {
    /// One connection, from the dial to its end.
    async fn visit(&mut self, runs: &mut Runs) -> Leave {
        match self.try_visit(runs).await {
            Ok(leave) | Err(leave) => leave,
        }
    }

    async fn try_visit(&mut self, runs: &mut Runs) -> Result<Leave, Leave> {
        let mut road = match timeout(HANDSHAKE_TIME_MAX, Road::dial(self.url)).await? {
            Ok(road) => road,
            Err(error) => return Err(road::leave(error)),
        };
        let accepted = self.join(&mut road).await?;
        println!("Connected");
        let left = self.serve(&mut road, runs, &accepted).await;
        if let Err(Leave::Passing(error)) = &left {
            // A gateway that still listens may know why.
            let lifeless = error.downcast_ref::<Lifeless>();
            let code = lifeless.map_or(CloseCode::Protocol, |why| why.close_code());
            road.send(&ToGateway::Close { code }).await.ok();
        }
        left
    }

    /// Steps 3 to 6: who is who.
    async fn join(&mut self, road: &mut Road) -> Result<Accepted, Leave> {
        let claim = NodeClaim {
            device_id: self.identity.device_id,
            instance_id: self.instance_id,
            boot_id: self.boot_id,
            intent: self.pin.intent(),
            ledgers: LedgerRange::CURRENT,
        };
        let mut handshake = NodeHandshake::new(road.binding, claim, self.pin.expected());
        let proving = async {
            let challenge: GatewayProof = road.receive_first().await?;
            let key = challenge.gateway_key;
            let nonce = Nonce::from_bytes(random::bytes());
            let proof = handshake
                .handle_gateway_proof(challenge, &self.identity.secret, &StrictVerifier, nonce)
                .map_err(for_good)?;
            println!("Gateway key      {}", Fingerprint::of(&key));
            road.send(&proof).await?;
            road.send(&machine::introduction(&self.identity)?).await?;
            Ok::<_, Leave>(key)
        };
        let key = timeout(HANDSHAKE_TIME_MAX, proving).await??;
        self.pin.seen(key);
        let mut shown = false;
        loop {
            // A gateway repeats `pending` every 15 seconds, as a sign of life.
            let verdict: Verdict = timeout(SILENCE_MAX, road.receive_first()).await??;
            match handshake
                .handle_verdict(verdict, &StrictVerifier)
                .map_err(for_good)?
            {
                Decision::Accepted {
                    windows,
                    limits,
                    ledger,
                    ..
                } => {
                    self.pin.keep(key)?;
                    return Ok(Accepted {
                        windows,
                        limits,
                        ledger,
                    });
                }
                Decision::Pending { code, .. } if !shown => {
                    println!("Connection code  {code}");
                    shown = true;
                }
                Decision::Pending { .. } => {}
                Decision::Refused(Refusal::RateLimited { retry_ms }) => {
                    return Err(Leave::Later(Duration::from_millis(retry_ms)));
                }
                Decision::Refused(refusal) => {
                    return Err(for_good(format!(
                        "the gateway refuses this node: {refusal:?}"
                    )));
                }
            }
        }
    }

    /// Says what there is to say and does what it is told, until one of the two goes.
    async fn serve(
        &self,
        road: &mut Road,
        runs: &mut Runs,
        accepted: &Accepted,
    ) -> Result<Leave, Leave> {
        // Before anything else a node says what it holds.
        for page in runs.handle_connected(accepted.windows) {
            road.send(&ToGateway::Run(page)).await?;
        }
        let mut liveness = Liveness::new(&accepted.limits, moment());
        let interval = Duration::from_millis(accepted.limits.telemetry_interval_ms.max(100));
        let mut telemetry_due = Instant::now();
        let wake = runs.wake();
        loop {
            while let Some(message) = runs.poll() {
                road.send(&ToGateway::Run(message)).await?;
            }
            let heartbeat = Instant::from_std(liveness.poll_timeout());
            let message = tokio::select! {
                biased;
                message = road.receive() => {
                    liveness.handle_frame(moment())?;
                    message?
                }
                () = sleep_until(heartbeat) => {
                    if let Some(number) = liveness.handle_timeout(moment())? {
                        road.send(&ToGateway::Ping { number }).await?;
                    }
                    continue;
                }
                () = sleep_until(telemetry_due) => {
                    telemetry_due = Instant::now() + interval;
                    if accepted.ledger >= Ledger::CLOCK {
                        road.send(&ToGateway::Clock { unix_ms: unix_ms() }).await?;
                    }
                    road.send(&ToGateway::Telemetry(Box::new(machine::sample()))).await?;
                    continue;
                }
                () = wake.notified() => continue,
            };
            match message {
                ToNode::Run(message) => runs.handle(message)?,
                ToNode::Ping { number } => road.send(&ToGateway::Pong { number }).await?,
                ToNode::Pong { .. } => {}
                ToNode::Sample => {
                    road.send(&ToGateway::Telemetry(Box::new(machine::sample())))
                        .await?;
                }
                ToNode::Goodbye { back_in_ms, .. } => {
                    return Ok(Leave::Later(Duration::from_millis(back_in_ms)));
                }
                ToNode::Close {
                    code: CloseCode::Revoked,
                } => {
                    return Ok(for_good("this node was revoked"));
                }
                ToNode::Close { code } => {
                    let words = format!("the gateway has closed: {code:?}");
                    return Ok(Leave::Passing(words.into()));
                }
            }
        }
    }
}

/// The gateway's key: what is on disk from the first `accepted` on, and what was seen before.
struct Pinned {
    file: std::path::PathBuf,
    kept: Option<Fingerprint>,
    seen: Option<PublicKey>,
}

impl Pinned {
    fn load(file: std::path::PathBuf) -> Result<Self> {
        let kept = match fs::read_to_string(&file) {
            Ok(text) => Some(text.trim().parse()?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(error.into()),
        };
        Ok(Self {
            file,
            kept,
            seen: None,
        })
    }

    /// To pair until a gateway has taken this node once.
    fn intent(&self) -> Intent {
        match self.kept {
            Some(_) => Intent::Connect,
            None => Intent::Pair,
        }
    }

    fn expected(&self) -> Pin {
        match (&self.kept, self.seen) {
            (Some(kept), _) => Pin::Fingerprint(*kept.as_digest()),
            (None, Some(seen)) => Pin::Key(seen),
            (None, None) => Pin::FirstUse,
        }
    }

    /// While a person decides, no other key may take the first one's place.
    fn seen(&mut self, key: PublicKey) {
        self.seen = Some(key);
    }

    fn keep(&mut self, key: PublicKey) -> Result {
        let fingerprint = Fingerprint::of(&key);
        if self.kept != Some(fingerprint) {
            journal::write_whole(&self.file, &format!("{fingerprint}\n"))?;
            self.kept = Some(fingerprint);
        }
        Ok(())
    }
}

/// Now, by a clock that stops while the machine sleeps and by one that does not. Somebody who sets
/// the time of day costs a connection at worst.
fn moment() -> Moment {
    Moment {
        monotonic: Instant::now().into_std(),
        boottime: Duration::from_millis(unix_ms()),
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis().try_into().unwrap_or(u64::MAX))
}
