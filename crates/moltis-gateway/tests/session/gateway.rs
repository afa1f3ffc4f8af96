//! A real gateway on port 0, in a temporary folder that outlives it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use moltis_gateway::audit::Actor;
use moltis_gateway::exec::{RunEvent, RunHandle, RunRequest};
use moltis_gateway::http::listen::Listener;
use moltis_gateway::local::{Connecting, KeeperStream};
use moltis_gateway::pairing::SeenRequest;
use moltis_gateway::principal::Principal;
use moltis_gateway::store::{NodeRecord, RunRecord};
use moltis_gateway::{Gateway, GatewayConfig};
use moltis_identity::Fingerprint;
use moltis_node::keeper::Keeper;
use moltis_proto::run::{Command, Stream};
use moltis_proto::{BootId, DeviceId, RequestId, RunId};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::node::{TestNode, keeper_in};

/// How long anything in a test may take before it is called stuck.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A gateway that serves.
pub(crate) struct TestGateway {
    pub(crate) gateway: Gateway,
    pub(crate) address: SocketAddr,
    stop: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
    home: Arc<Home>,
}

/// What outlives a gateway: its directory, and the keeper of its machine.
pub(crate) struct Home {
    pub(crate) dir: TempDir,
    keeper: Keeper,
}

impl TestGateway {
    /// Starts one in an empty home.
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// Starts one in an empty home, configured.
    pub(crate) async fn start_with(change: impl FnOnce(&mut GatewayConfig)) -> Self {
        let dir = TempDir::new().unwrap();
        let keeper = keeper_in(&dir.path().join("local"));
        let home = Arc::new(Home { dir, keeper });
        Self::start_in(home, "127.0.0.1:0".parse().unwrap(), change).await
    }

    async fn start_in(
        home: Arc<Home>,
        address: SocketAddr,
        change: impl FnOnce(&mut GatewayConfig),
    ) -> Self {
        let mut config = GatewayConfig::new(home.gateway_dir());
        change(&mut config);
        let keeper = Arc::clone(&home);
        let connector = move || -> Connecting {
            let home = Arc::clone(&keeper);
            Box::pin(async move {
                let stream = home.keeper.connect().await?;
                Ok(vec![Box::new(stream) as Box<dyn KeeperStream>])
            })
        };
        let gateway = Gateway::builder(config)
            .keeper(connector)
            .boot_id(BootId::from_bytes([6; 16]))
            .build()
            .await
            .unwrap();
        let listener = Listener::tcp(address).unwrap();
        let address = listener.address().unwrap();
        let stop = CancellationToken::new();
        let serving = {
            let (gateway, stop) = (gateway.clone(), stop.clone());
            tokio::spawn(async move { gateway.serve(listener, &stop).await })
        };
        Self {
            gateway,
            address,
            stop,
            serving,
            home,
        }
    }

    /// Ends it in good order and starts another in the same home, at the same address.
    pub(crate) async fn restart(self) -> Self {
        let (home, address) = (Arc::clone(&self.home), self.address);
        self.shut_down().await;
        Self::start_in(home, address, |_| {}).await
    }

    /// The same, with `between` done while none runs.
    pub(crate) async fn restart_after(self, between: impl AsyncFnOnce(PathBuf)) -> Self {
        let (home, address) = (Arc::clone(&self.home), self.address);
        self.shut_down().await;
        between(home.gateway_dir()).await;
        Self::start_in(home, address, |_| {}).await
    }

    /// Ends it in good order.
    pub(crate) async fn shut_down(self) {
        self.stop.cancel();
        self.gateway.shutdown().await;
        self.serving.await.unwrap();
    }

    pub(crate) fn home(&self) -> &Home {
        &self.home
    }

    pub(crate) fn url(&self) -> String {
        format!("ws://{}/ws", self.address)
    }

    /// Lets nodes ask to pair.
    pub(crate) async fn open_pairing(&self) {
        self.gateway
            .pairing()
            .enable(Duration::from_mins(10), Actor::operator())
            .await
            .unwrap();
    }

    /// Waits for a request to pair, and approves it as it is shown.
    pub(crate) async fn approve_next(&self) -> Arc<NodeRecord> {
        let pending = until("a request to pair", || {
            self.gateway.pairing().pending().into_iter().next()
        })
        .await;
        self.approve(pending.request.id).await
    }

    pub(crate) async fn approve(&self, id: RequestId) -> Arc<NodeRecord> {
        let pending = self.gateway.pairing().pending();
        let request = &pending
            .iter()
            .find(|pending| pending.request.id == id)
            .unwrap()
            .request;
        let seen = SeenRequest {
            fingerprint: Fingerprint::of(&request.node_key),
            code: request.code.clone(),
        };
        self.gateway
            .pairing()
            .approve(id, seen, Actor::operator())
            .await
            .unwrap()
    }

    /// Pairs a new node and waits until it takes runs.
    pub(crate) async fn node(&self, name: &str) -> TestNode {
        self.node_at(name, &self.url()).await
    }

    /// The same, through another address.
    pub(crate) async fn node_at(&self, name: &str, url: &str) -> TestNode {
        self.open_pairing().await;
        let node = TestNode::add(name, url);
        let record = self.approve_next().await;
        self.online(record.device_id).await;
        node
    }

    pub(crate) async fn online(&self, device: DeviceId) {
        until("the node to be online", || {
            self.gateway.roster().get(device)?.presence
        })
        .await;
    }

    pub(crate) async fn offline(&self, device: DeviceId) {
        until("the node to be offline", || {
            let node = self.gateway.roster().get(device);
            node.is_none_or(|node| node.presence.is_none())
                .then_some(())
        })
        .await;
    }

    pub(crate) fn device(&self, name: &str) -> DeviceId {
        self.gateway.roster().find(name).unwrap().record.device_id
    }

    pub(crate) async fn start_run(&self, request: RunRequest) -> RunHandle {
        self.gateway
            .runs()
            .start(request, &Principal::Operator)
            .await
            .unwrap()
    }

    /// Waits until a run is let go of: its keeper was told to forget it, and only the store has it.
    pub(crate) async fn forgotten(&self, id: RunId) {
        let wait = async {
            loop {
                let first = self.gateway.runs().handle(id).await.unwrap();
                let second = self.gateway.runs().handle(id).await.unwrap();
                // What is under way is one value; what is read from the store is read for each.
                if !Arc::ptr_eq(first.output(), second.output()) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait)
            .await
            .expect("the run is not forgotten");
    }

    /// Runs a shell line to its end.
    pub(crate) async fn run(&self, target: &str, line: &str) -> Told {
        told(&self.start_run(shell(line).on(target)).await).await
    }
}

impl Home {
    pub(crate) fn gateway_dir(&self) -> PathBuf {
        self.dir.path().join("gateway")
    }
}

/// All that a run told.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) record: Arc<RunRecord>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) gaps: usize,
}

impl Told {
    pub(crate) fn out(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }

    pub(crate) fn err(&self) -> &str {
        std::str::from_utf8(&self.stderr).unwrap()
    }
}

/// Follows a run from the beginning to its end, checking that offsets continue.
pub(crate) async fn told(handle: &RunHandle) -> Told {
    let mut follow = handle.follow(0, 0);
    let (mut stdout, mut stderr, mut gaps) = (Vec::new(), Vec::new(), 0);
    loop {
        let event = tokio::time::timeout(PATIENCE, follow.next());
        match event.await.expect("a run told nothing").unwrap() {
            RunEvent::Output {
                stream,
                offset,
                bytes,
            } => {
                let out = match stream {
                    Stream::Stdout => &mut stdout,
                    Stream::Stderr => &mut stderr,
                };
                assert_eq!(offset, out.len() as u64, "an offset does not continue");
                out.extend_from_slice(&bytes);
            }
            RunEvent::Gap { .. } => gaps += 1,
            RunEvent::Ended(record) => {
                return Told {
                    record,
                    stdout,
                    stderr,
                    gaps,
                };
            }
            RunEvent::KeepAlive => {}
        }
    }
}

/// Asks for a shell line.
pub(crate) fn shell(line: &str) -> RunRequest {
    RunRequest::new(Command::Shell(line.to_owned()))
}

/// Waits until a look that has to wait itself finds something.
pub(crate) async fn until_asked<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let asked = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asked)
        .await
        .unwrap_or_else(|_| panic!("{what} did not come"))
}

/// Waits until `look` finds something.
pub(crate) async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "{what} did not come"
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
