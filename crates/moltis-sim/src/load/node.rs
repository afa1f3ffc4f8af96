//! One node of the fleet: dials, proves itself, answers, and comes back when it is cut off.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use moltis_identity::{StrictVerifier, random};
use moltis_proto::handshake::node::{Decision, NodeClaim, NodeHandshake, Pin};
use moltis_proto::handshake::{GatewayProof, Intent, SessionLimits, Verdict};
use moltis_proto::liveness::{Liveness, Moment};
use moltis_proto::telemetry::{Provider, ProviderKind, Runtime, Sample};
use moltis_proto::version::LedgerRange;
use moltis_proto::{BootId, InstanceId, JournalId, Nonce, PublicKey, ToGateway, ToNode};
use rustix::time::{ClockId, clock_gettime};
use tokio::time::{Instant, sleep, sleep_until};

use super::comeback::{Comeback, Next};
use super::dial::{Failure, Road};
use super::keeper::Keeper;
use super::tally::Tally;
use super::{Who, seed};

/// What all nodes of a fleet share.
#[derive(Debug)]
pub(super) struct Fleet {
    pub(super) who: Who,
    pub(super) gateway: SocketAddr,
    pub(super) tally: Tally,
    /// The gateway's key, from the first time on.
    pub(super) pin: OnceLock<PublicKey>,
}

/// One node.
#[derive(Debug)]
pub(super) struct Node {
    fleet: Arc<Fleet>,
    number: u32,
    from: IpAddr,
    boot_id: BootId,
    instance_id: InstanceId,
    keeper: Keeper,
    comeback: Comeback,
}

/// Why a connection has ended.
enum End {
    /// The gateway goes away for so long.
    Goodbye(Duration),
    /// It wants this node no more, or not now.
    Closed,
    Lost,
}

impl Node {
    pub(super) fn new(fleet: Arc<Fleet>, number: u32, from: IpAddr) -> Self {
        let boot_id = BootId::from_bytes(random::bytes());
        let journal_id = JournalId::from_bytes(random::bytes());
        Self {
            fleet,
            number,
            from,
            boot_id,
            instance_id: InstanceId::from_bytes(random::bytes()),
            keeper: Keeper::new(boot_id, journal_id),
            comeback: Comeback::default(),
        }
    }

    /// Connects again and again.
    pub(super) async fn live(mut self) {
        let fleet = Arc::clone(&self.fleet);
        let tally = &fleet.tally;
        loop {
            tally.dialed.more();
            let next = match Box::pin(self.join()).await {
                Ok((road, limits)) => {
                    self.comeback.accepted(Instant::now());
                    tally.accepted.more();
                    tally.connected.more();
                    let end = self.work(road, limits).await;
                    tally.connected.less();
                    tally.lost.more();
                    match end {
                        End::Goodbye(wait) => {
                            tally.goodbyes.more();
                            tally.back_in_max_ms.at_least(wait);
                            Next::In(wait)
                        }
                        End::Closed => {
                            tally.closed.more();
                            Next::BackOff
                        }
                        End::Lost => Next::BackOff,
                    }
                }
                Err(Failure::Unanswered) => {
                    tally.unanswered.more();
                    Next::BackOff
                }
                Err(Failure::Later(wait)) => {
                    tally.told_later.more();
                    Next::In(wait)
                }
                Err(Failure::Broken(error)) => {
                    tally.broken.more();
                    note(&format!("node {}: {error:#}", self.number));
                    Next::BackOff
                }
            };
            let jitter = u32::from_ne_bytes(random::bytes());
            sleep(self.comeback.wait(next, jitter, Instant::now())).await;
        }
    }

    /// From a dial to an accepted connection.
    async fn join(&self) -> Result<(Road, SessionLimits), Failure> {
        let fleet = &*self.fleet;
        let mut road = Road::lay(self.from, fleet.gateway).await?;
        let claim = NodeClaim {
            device_id: seed::device(fleet.who, self.number),
            instance_id: self.instance_id,
            boot_id: self.boot_id,
            intent: Intent::Connect,
            ledgers: LedgerRange::CURRENT,
        };
        let pin = fleet.pin.get().copied().map_or(Pin::FirstUse, Pin::Key);
        let mut handshake = NodeHandshake::new(road.binding, claim, pin);
        let challenge: GatewayProof = road.receive_soon().await?;
        let key = seed::key(fleet.who, self.number);
        let nonce = Nonce::from_bytes(random::bytes());
        let proof = handshake.handle_gateway_proof(challenge, &key, &StrictVerifier, nonce)?;
        road.send(&proof).await?;
        road.send(&seed::introduction(self.number)?).await?;
        let verdict: Verdict = road.receive_soon().await?;
        match handshake.handle_verdict(verdict, &StrictVerifier)? {
            Decision::Accepted { limits, .. } => {
                if let Some(key) = handshake.gateway_key() {
                    fleet.pin.get_or_init(|| key);
                }
                Ok((road, limits))
            }
            other => {
                fleet.tally.refused.more();
                Err(anyhow::anyhow!("the verdict is {other:?}").into())
            }
        }
    }

    async fn work(&mut self, mut road: Road, limits: SessionLimits) -> End {
        match self.serve(&mut road, limits).await {
            Ok(end) => end,
            Err(_) => End::Lost,
        }
    }

    /// Answers until the connection ends.
    async fn serve(&mut self, road: &mut Road, limits: SessionLimits) -> anyhow::Result<End> {
        let every = Duration::from_millis(limits.telemetry_interval_ms.max(1000));
        let mut liveness = Liveness::new(&limits, now());
        road.send(&ToGateway::Run(self.keeper.list())).await?;
        let mut sample_due = Instant::now();
        loop {
            let due = sample_due.min(Instant::from_std(liveness.poll_timeout()));
            tokio::select! {
                biased;
                message = road.receive() => {
                    liveness.handle_frame(now())?;
                    if let Some(end) = self.handle(road, message?).await? {
                        return Ok(end);
                    }
                }
                () = sleep_until(due) => {
                    if let Some(number) = liveness.handle_timeout(now())? {
                        road.send(&ToGateway::Ping { number }).await?;
                    }
                    if sample_due <= Instant::now() {
                        sample_due += every;
                        self.tell(road).await?;
                    }
                }
            }
        }
    }

    async fn handle(&mut self, road: &mut Road, message: ToNode) -> anyhow::Result<Option<End>> {
        match message {
            ToNode::Run(message) => {
                for said in self.keeper.handle(message) {
                    if matches!(said, moltis_proto::FromKeeper::Started { .. }) {
                        self.fleet.tally.runs.more();
                    }
                    road.send(&ToGateway::Run(said)).await?;
                }
            }
            ToNode::Ping { number } => road.send(&ToGateway::Pong { number }).await?,
            ToNode::Sample => self.tell(road).await?,
            ToNode::Pong { .. } => {}
            ToNode::Goodbye { back_in_ms, .. } => {
                return Ok(Some(End::Goodbye(Duration::from_millis(back_in_ms))));
            }
            ToNode::Close { code } => {
                note(&format!("node {} was closed: {code:?}", self.number));
                return Ok(Some(End::Closed));
            }
        }
        Ok(None)
    }

    /// Says what the clock and the machine say.
    async fn tell(&self, road: &mut Road) -> anyhow::Result<()> {
        let unix_ms = jiff::Timestamp::now().as_millisecond();
        let unix_ms = u64::try_from(unix_ms).unwrap_or(0);
        road.send(&ToGateway::Clock { unix_ms }).await?;
        let sample = ToGateway::Telemetry(Box::new(sample(self.number)));
        road.send(&sample).await?;
        self.fleet.tally.samples.more();
        Ok(())
    }
}

/// Returns a sample as a machine with some runtimes and a model provider sends it.
fn sample(number: u32) -> Sample {
    let runtime = |name: &str, version: &str| Runtime {
        name: name.to_owned(),
        version: version.to_owned(),
    };
    let jitter: [u8; 2] = random::bytes();
    Sample {
        cpu_count: 8,
        cpu_usage_percent: Some(f32::from(jitter[0]) / 4.0),
        load_1m: f32::from(jitter[1]) / 32.0,
        memory_total_bytes: 16 << 30,
        memory_available_bytes: (4 << 30) + (u64::from(number) << 10),
        disk_total_bytes: 500 << 30,
        disk_available_bytes: 200 << 30,
        uptime_seconds: 86_400,
        gpus: Vec::new(),
        runtimes: vec![
            runtime("python", "3.11.2"),
            runtime("node", "22.11.0"),
            runtime("go", "1.23.3"),
        ],
        providers: vec![Provider {
            name: "ollama".to_owned(),
            kind: ProviderKind::Ollama,
            models: vec!["llama3.2:3b".to_owned(), "qwen2.5:7b".to_owned()],
            variable: None,
        }],
        cut: false,
    }
}

fn now() -> Moment {
    let clock = if cfg!(target_os = "linux") {
        ClockId::Boottime
    } else {
        ClockId::Monotonic
    };
    let boot = clock_gettime(clock);
    Moment {
        monotonic: Instant::now().into_std(),
        boottime: Duration::new(
            u64::try_from(boot.tv_sec).unwrap_or(0),
            u32::try_from(boot.tv_nsec).unwrap_or(0),
        ),
    }
}

/// Says on stderr what should not happen.
#[expect(clippy::print_stderr, reason = "stdout is for the counts")]
fn note(line: &str) {
    eprintln!("{line}");
}
