//! Those who mean no good: connections that say nothing, say it slowly, or know no key.
//!
//! They come from addresses of their own, 127.0.64.1 and on, at rates that one machine can reach
//! without taking the gateway's processor from it: what is measured beside them must suffer from
//! what they do to the gateway, not from what they cost themselves.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use moltis_identity::{SecretKey, StrictVerifier, random};
use moltis_proto::handshake::node::{NodeClaim, NodeHandshake, Pin};
use moltis_proto::handshake::{GatewayProof, Intent, Verdict};
use moltis_proto::version::LedgerRange;
use moltis_proto::{BootId, DeviceId, InstanceId, Nonce};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::dial::{self, Failure, Road};
use super::seed;
use super::tally::{Count, Tally};

/// Connections of all kinds together, at most.
pub(super) const SOCKETS_MAX: u64 = 4096;

/// Addresses that they come from.
const ADDRESSES: u32 = 64;

/// Connections that one of the patient kinds holds.
const HELD: usize = 400;

/// Attempts a second of one of the hasty kinds.
const HASTY_PER_SECOND: u32 = 200;

/// Attempts of a hasty kind that are under way, at most.
const UNDER_WAY: usize = 256;

/// How long a connection is held before it is given up and made anew.
const PATIENCE: Duration = Duration::from_mins(1);

/// What a stranger does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// Connects and says nothing.
    HalfOpen,
    /// Sends the head of a request a byte a second.
    SlowHead,
    /// Upgrades, and then says nothing.
    SlowHandshake,
    /// Goes through the whole handshake with a key that nobody knows.
    UnknownKey,
    /// Connects and hangs up.
    Flood,
}

impl Kind {
    const ALL: [Self; 5] = [
        Self::HalfOpen,
        Self::SlowHead,
        Self::SlowHandshake,
        Self::UnknownKey,
        Self::Flood,
    ];
}

#[derive(Debug)]
struct Crowd {
    gateway: SocketAddr,
    tally: Tally,
    next_address: AtomicU32,
}

/// Does this until nobody reads what is told.
pub(super) async fn run(gateway: SocketAddr, kinds: &[Kind]) -> anyhow::Result<()> {
    let crowd = Arc::new(Crowd {
        gateway,
        tally: Tally::default(),
        next_address: AtomicU32::new(0),
    });
    let kinds = if kinds.is_empty() { &Kind::ALL } else { kinds };
    let mut all = JoinSet::new();
    for kind in kinds {
        match kind {
            Kind::HalfOpen | Kind::SlowHead | Kind::SlowHandshake => {
                for _ in 0..HELD {
                    all.spawn(hold(Arc::clone(&crowd), *kind));
                }
            }
            Kind::UnknownKey | Kind::Flood => {
                all.spawn(hurry(Arc::clone(&crowd), *kind));
            }
        }
    }
    crowd.tally.tell().await;
    Ok(())
}

/// Holds one connection, and makes another when it is gone.
async fn hold(crowd: Arc<Crowd>, kind: Kind) {
    loop {
        // All at once would be a flood, which is another kind.
        sleep(Duration::from_millis(
            u64::from(u16::from_ne_bytes(random::bytes())) / 32,
        ))
        .await;
        let holding = crowd.attempt(kind);
        timeout(PATIENCE, Box::pin(holding)).await.ok(); // it begins anew either way
    }
}

/// Makes attempts at a steady rate.
async fn hurry(crowd: Arc<Crowd>, kind: Kind) {
    let mut ticks = interval(Duration::from_secs(1) / HASTY_PER_SECOND);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut under_way = JoinSet::new();
    loop {
        ticks.tick().await;
        while under_way.try_join_next().is_some() {}
        if under_way.len() < UNDER_WAY {
            let crowd = Arc::clone(&crowd);
            under_way.spawn(async move { crowd.attempt(kind).await });
        }
    }
}

impl Crowd {
    async fn attempt(&self, kind: Kind) {
        self.tally.dialed.more();
        match self.one(kind).await {
            Ok(()) => {}
            Err(Failure::Unanswered) => self.tally.unanswered.more(),
            Err(Failure::Later(_)) => self.tally.told_later.more(),
            Err(Failure::Broken(_)) => self.tally.broken.more(),
        }
    }

    /// Returns when the gateway has had enough of it.
    async fn one(&self, kind: Kind) -> Result<(), Failure> {
        let from = self.address();
        match kind {
            Kind::UnknownKey => return self.knock(from).await,
            Kind::Flood => return dial::connect(from, self.gateway).await.map(drop),
            Kind::HalfOpen | Kind::SlowHead | Kind::SlowHandshake => {}
        }
        let mut stream = dial::connect(from, self.gateway).await?;
        let _held = Held::of(&self.tally.strangers);
        match kind {
            Kind::SlowHead => dribble(&mut stream).await?,
            Kind::SlowHandshake => {
                let (socket, _) = dial::upgrade(stream, self.gateway).await?;
                stream = socket.into_inner();
            }
            Kind::HalfOpen | Kind::UnknownKey | Kind::Flood => {}
        }
        // Until the gateway hangs up.
        stream.read_to_end(&mut Vec::new()).await?;
        Ok(())
    }

    /// Proves to hold a key that nobody knows.
    async fn knock(&self, from: IpAddr) -> Result<(), Failure> {
        let mut road = Road::lay(from, self.gateway).await?;
        let claim = NodeClaim {
            device_id: DeviceId::from_bytes(random::bytes()),
            instance_id: InstanceId::from_bytes(random::bytes()),
            boot_id: BootId::from_bytes(random::bytes()),
            intent: Intent::Connect,
            ledgers: LedgerRange::CURRENT,
        };
        let mut handshake = NodeHandshake::new(road.binding, claim, Pin::FirstUse);
        let challenge: GatewayProof = road.receive_soon().await?;
        let (key, nonce) = (SecretKey::generate(), Nonce::from_bytes(random::bytes()));
        let proof = handshake.handle_gateway_proof(challenge, &key, &StrictVerifier, nonce)?;
        road.send(&proof).await?;
        road.send(&seed::introduction(0)?).await?;
        let verdict: Verdict = road.receive_soon().await?;
        handshake.handle_verdict(verdict, &StrictVerifier)?;
        self.tally.refused.more();
        Ok(())
    }

    fn address(&self) -> IpAddr {
        let first = u32::from(Ipv4Addr::new(127, 0, 64, 1));
        let next = self.next_address.fetch_add(1, Ordering::Relaxed) % ADDRESSES;
        Ipv4Addr::from(first + next).into()
    }
}

/// A connection that is counted while it stands.
struct Held<'a>(&'a Count);

impl<'a> Held<'a> {
    fn of(count: &'a Count) -> Self {
        count.more();
        Self(count)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.less();
    }
}

/// Sends a head that never ends, a byte a second.
async fn dribble(stream: &mut TcpStream) -> std::io::Result<()> {
    let head = b"GET /ws HTTP/1.1\r\nHost: gateway\r\nX-Words: ";
    for byte in head.iter().chain(std::iter::repeat(&b'x')) {
        stream.write_all(std::slice::from_ref(byte)).await?;
        sleep(Duration::from_secs(1)).await;
    }
    Ok(())
}
