//! A whole gateway behind the address that the node dials, with a cable in between.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use moltis_gateway::audit::Actor;
use moltis_gateway::exec::{RunEvent, RunHandle, RunRequest};
use moltis_gateway::http::listen::Listener;
use moltis_gateway::pairing::{Pending, SeenRequest};
use moltis_gateway::principal::Principal;
use moltis_gateway::store::{NodeRecord, RunRecord};
use moltis_gateway::{Gateway, GatewayConfig};
use moltis_identity::Fingerprint;
use moltis_proto::run::{Command, Stream};
use moltis_proto::{DeviceId, RunId};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::relay::Relay;
use super::stage::Stage;
use super::trouble::{Played, failed, seconds};

/// How often something is looked at that tells nobody when it changes.
const LOOK: Duration = Duration::from_millis(20);

/// A gateway that serves, and the cable to it.
#[derive(Debug)]
pub(super) struct RealGateway {
    pub(super) gateway: Gateway,
    pub(super) relay: Relay,
    dir: PathBuf,
    stop: CancellationToken,
    serving: JoinSet<()>,
    patience: Duration,
}

/// What a run of a real gateway told.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) record: Arc<RunRecord>,
    pub(super) stdout: Vec<u8>,
    pub(super) gaps: usize,
}

impl RealGateway {
    /// Starts one that the node of this row dials.
    pub(super) async fn start(stage: &mut Stage) -> Played<Self> {
        let dir = stage.dir().join("gateway");
        let listener = stage.take_listener()?;
        let (gateway, stop, serving, address) = serve(dir.clone()).await?;
        Ok(Self {
            gateway,
            relay: Relay::start(listener, address),
            dir,
            stop,
            serving,
            patience: stage.patience(),
        })
    }

    /// Cuts the cable, ends the gateway, and starts another on what it kept.
    pub(super) async fn restart(self) -> Played<Self> {
        let Self {
            gateway,
            relay,
            dir,
            stop,
            mut serving,
            patience,
        } = self;
        relay.cut();
        stop.cancel();
        gateway.shutdown().await;
        while serving.join_next().await.is_some() {}
        // Its store is locked as long as anybody holds it.
        drop(gateway);
        let (gateway, stop, serving, address) = serve(dir.clone()).await?;
        relay.lead_to(address);
        Ok(Self {
            gateway,
            relay,
            dir,
            stop,
            serving,
            patience,
        })
    }

    /// Lets nodes ask to pair.
    pub(super) async fn open_pairing(&self) -> Played {
        let window = Duration::from_mins(10);
        let opened = self.gateway.pairing().enable(window, Actor::operator());
        opened.await.context("opening the pairing window")?;
        Ok(())
    }

    pub(super) async fn close_pairing(&self) -> Played {
        let closed = self.gateway.pairing().disable(Actor::operator()).await;
        closed.context("closing the pairing window")?;
        Ok(())
    }

    /// Waits for the node's request.
    pub(super) async fn request(&self, stage: &mut Stage) -> Played<Pending> {
        self.look(stage, "a request to pair on the gateway", |gateway| {
            gateway.pairing().pending().into_iter().next()
        })
        .await
    }

    /// Approves a request as it is shown.
    pub(super) async fn approve(&self, pending: &Pending) -> Played<Arc<NodeRecord>> {
        let seen = SeenRequest {
            fingerprint: Fingerprint::of(&pending.request.node_key),
            code: pending.request.code.clone(),
        };
        let id = pending.request.id;
        let approved = self.gateway.pairing().approve(id, seen, Actor::operator());
        Ok(approved.await.context("approving the request")?)
    }

    /// Pairs the node, and waits until it takes runs.
    pub(super) async fn pair(&self, stage: &mut Stage) -> Played<DeviceId> {
        self.open_pairing().await?;
        stage.start_node()?;
        let pending = self.request(stage).await?;
        let record = self.approve(&pending).await?;
        self.online(stage, record.device_id).await?;
        Ok(record.device_id)
    }

    pub(super) async fn online(&self, stage: &mut Stage, device: DeviceId) -> Played {
        self.look(stage, "the node is online at the gateway", |gateway| {
            gateway.roster().get(device)?.presence.map(drop)
        })
        .await
    }

    pub(super) async fn offline(&self, stage: &mut Stage, device: DeviceId) -> Played {
        self.look(stage, "the node's connection is over", |gateway| {
            let node = gateway.roster().get(device);
            node.is_none_or(|node| node.presence.is_none())
                .then_some(())
        })
        .await
    }

    /// Asks for a shell line on the node.
    pub(super) async fn run(&self, device: DeviceId, line: &str) -> Played<RunHandle> {
        let name = self.gateway.pairing().node(device);
        let name = name.context("the gateway has lost its node")?;
        let request =
            RunRequest::new(Command::Shell(line.to_owned())).on(name.node_id.as_str().to_owned());
        let started = self.gateway.runs().start(request, &Principal::Operator);
        Ok(started.await.context("starting a run")?)
    }

    /// Returns a run that an earlier process of the gateway has started.
    pub(super) async fn handle(&self, id: RunId) -> Played<RunHandle> {
        let handle = self.gateway.runs().handle(id).await;
        Ok(handle.context("finding a run")?)
    }

    /// Follows a run to its end.
    pub(super) async fn follow(&self, handle: &RunHandle) -> Played<Told> {
        let mut follow = handle.follow(0, 0);
        let (mut stdout, mut gaps) = (Vec::new(), 0);
        let until = Instant::now() + Duration::from_mins(2);
        loop {
            // A node that was cut off may wait a minute before it dials again.
            let event = timeout(Duration::from_mins(1) + self.patience, follow.next()).await;
            let event = event.ok().flatten();
            match event {
                Some(RunEvent::Output {
                    stream: Stream::Stdout,
                    bytes,
                    ..
                }) => {
                    stdout.extend_from_slice(&bytes);
                }
                Some(RunEvent::Gap { .. }) => gaps += 1,
                Some(RunEvent::Ended(record)) => {
                    return Ok(Told {
                        record,
                        stdout,
                        gaps,
                    });
                }
                Some(_) if Instant::now() < until => {}
                _ => {
                    let came = format!("{} bytes of stdout, and no end", stdout.len());
                    return Err(failed("the run's output and its ending", came));
                }
            }
        }
    }

    pub(super) async fn look<T>(
        &self,
        stage: &mut Stage,
        expected: &str,
        found: impl Fn(&Gateway) -> Option<T>,
    ) -> Played<T> {
        let limit = self.patience + Duration::from_mins(1);
        let until = Instant::now() + limit;
        loop {
            if let Some(found) = found(&self.gateway) {
                return Ok(found);
            }
            if Instant::now() > until {
                return Err(failed(expected, format!("not in {}", seconds(limit))));
            }
            stage.revive()?;
            sleep(LOOK).await;
        }
    }
}

async fn serve(
    dir: PathBuf,
) -> anyhow::Result<(Gateway, CancellationToken, JoinSet<()>, SocketAddr)> {
    let gateway = Gateway::builder(GatewayConfig::new(dir)).build().await?;
    let listener = Listener::tcp(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let address = listener.address().context("the gateway has no address")?;
    let stop = CancellationToken::new();
    let mut serving = JoinSet::new();
    let (server, token) = (gateway.clone(), stop.clone());
    serving.spawn(async move { server.serve(listener, &token).await });
    Ok((gateway, stop, serving, address))
}
