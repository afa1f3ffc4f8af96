//! One row's world: a directory, a node, and an address at which a gateway listens that does as the
//! row says.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use moltis_identity::{SecretKey, StrictVerifier, random};
use moltis_proto::Nonce;
use moltis_proto::handshake::gateway::{GatewayHandshake, VerifiedNode};
use moltis_proto::handshake::{
    Epoch, GatewayProof, Introduction, NodeProof, SessionLimits, Verdict,
};
use moltis_proto::message::Windows;
use moltis_proto::subprotocol::Negotiated;
use moltis_proto::version::{Ledger, LedgerRange};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_tungstenite::accept_hdr_async;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::{HeaderMap, HeaderValue, StatusCode, header};

use super::line::{Asked, Line};
use super::peer::Peer;
use super::process::{NodeCommand, NodeProcess};
use super::trouble::{Played, Story, Trouble, failed, seconds};

/// How long this program waits before it starts a node anew that has ended (`--restart`).
const RESTART_AFTER: Duration = Duration::from_millis(500);

/// How nodes are started and waited for, in every row alike.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) command: NodeCommand,
    /// What to do when a node ends with its connection.
    pub(super) on_end: OnEnd,
    /// How long anything may take.
    pub(super) patience: Duration,
}

/// What to do with a node whose process has ended where it should dial again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnEnd {
    /// It failed.
    Fail,
    /// It is started again, as a supervisor would.
    Restart,
}

/// Which of the subprotocols offered the gateway takes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Choice {
    /// The first that it knows, as a gateway does.
    First,
    /// It knows this one only.
    Only(moltis_proto::Subprotocol),
}

/// What a row plays on.
#[derive(Debug)]
pub(super) struct Stage {
    plan: Plan,
    listener: Option<TcpListener>,
    address: SocketAddr,
    dir: PathBuf,
    node: Option<NodeProcess>,
    accepted: u32,
    /// The gateway's key.
    pub(super) key: SecretKey,
    pub(super) windows: Windows,
    pub(super) limits: SessionLimits,
    pub(super) ledgers: LedgerRange,
    pub(super) choice: Choice,
    pub(super) story: Story,
}

impl Stage {
    /// Makes the world; no node runs yet.
    pub(super) async fn new(plan: Plan, dir: PathBuf, windows: Windows) -> anyhow::Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        let mut private = std::fs::DirBuilder::new();
        private.mode(0o700).recursive(true);
        for part in ["s", "work"] {
            let part = dir.join(part);
            private
                .create(&part)
                .with_context(|| format!("making {}", part.display()))?;
        }
        let listener = TcpListener::bind(("127.0.0.1", 0))
            .await
            .context("a port for the gateway")?;
        let address = listener.local_addr()?;
        Ok(Self {
            plan,
            listener: Some(listener),
            address,
            dir,
            node: None,
            accepted: 0,
            key: SecretKey::generate(),
            windows,
            limits: SessionLimits {
                // What a row does not ask for shall not come in between.
                telemetry_interval_ms: 3_600_000,
                ..SessionLimits::STANDARD
            },
            ledgers: LedgerRange::CURRENT,
            choice: Choice::First,
            story: Story::default(),
        })
    }

    /// Returns a directory for the effects of commands.
    pub(super) fn work(&self) -> PathBuf {
        self.dir.join("work")
    }

    /// Returns the loop of a command without an end, for a shell. It ends with the row's world, and
    /// names it, so that it outlives no row whose node has let it live.
    pub(super) fn endless(&self, step: &str) -> String {
        format!("while test -e '{}'; do {step}; done", self.work().display())
    }

    /// Returns the directory that is the node's.
    pub(super) fn state_dir(&self) -> PathBuf {
        self.dir.join("s")
    }

    pub(super) fn patience(&self) -> Duration {
        self.plan.patience
    }

    /// Returns the address that the node dials, for somebody else to listen at.
    pub(super) fn take_listener(&mut self) -> Played<TcpListener> {
        let listener = self.listener.take();
        Ok(listener.context("somebody else listens already")?)
    }

    /// Starts the node, as it is in its state directory.
    pub(super) fn start_node(&mut self) -> Played {
        let url = format!("ws://{}/ws", self.address);
        let state_dir = self.state_dir();
        let printed = self.dir.join("printed");
        let node = NodeProcess::start(&self.plan.command, &url, &state_dir, &printed)?;
        self.node = Some(node);
        self.story.did("the node is started");
        Ok(())
    }

    /// Ends the node without a word.
    pub(super) async fn kill_node(&mut self) {
        if let Some(mut node) = self.node.take() {
            node.kill().await;
            self.story.did("the node is killed");
        }
    }

    /// Returns what the node has printed so far.
    pub(super) fn printed(&self) -> String {
        let bytes = std::fs::read(self.dir.join("printed")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Starts a node anew that has ended, where the plan says so; else its end is a failure.
    pub(super) fn revive(&mut self) -> Played {
        let ended = self.node.as_mut().and_then(NodeProcess::has_ended);
        match (ended, self.plan.on_end) {
            (None, _) => Ok(()),
            (Some(_), OnEnd::Restart) => self.start_node(),
            (Some(how), OnEnd::Fail) => Err(failed(
                "the node goes on, or dials again",
                format!("its process ended: {how}"),
            )),
        }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Waits until the node dials; starts it first where none runs.
    pub(super) async fn dialled(&mut self) -> Played<TcpStream> {
        if self.node.is_none() {
            self.start_node()?;
        }
        // The longest wait of a node before it dials again is a minute.
        let until = Instant::now() + self.plan.patience + Duration::from_mins(1);
        loop {
            match self.dial_or_end(until).await? {
                Dialled::Stream(stream) => return Ok(stream),
                Dialled::Ended(how) if self.plan.on_end == OnEnd::Restart => {
                    self.story.did(format_args!("the node ended ({how})"));
                    sleep(RESTART_AFTER).await;
                    self.start_node()?;
                }
                Dialled::Ended(how) => {
                    let came = format!("its process ended: {how}");
                    return Err(failed("the node dials the gateway", came));
                }
                Dialled::Nothing => {
                    return Err(failed("the node dials the gateway", "it does not dial"));
                }
            }
        }
    }

    /// The node must not dial for a while; its process may end.
    pub(super) async fn does_not_dial(&mut self, time: Duration, why: &str) -> Played {
        let since = Instant::now();
        let until = since + time;
        let dialled = tokio::select! {
            biased;
            // A watcher that wakes late must not take a dial in good time for one too early.
            () = sleep_until(until) => return Ok(()),
            dialled = self.dial_or_end(until) => dialled?,
        };
        match dialled {
            Dialled::Nothing | Dialled::Ended(_) => Ok(()),
            Dialled::Stream(_) => {
                let came = format!("it dialled after {}", seconds(since.elapsed()));
                Err(failed(format!("the node does not dial again: {why}"), came))
            }
        }
    }

    async fn dial_or_end(&mut self, until: Instant) -> Played<Dialled> {
        let listener = self.listener.as_ref();
        let listener = listener.context("somebody else listens")?;
        let node = self.node.as_mut().context("no node runs")?;
        tokio::select! {
            biased;
            accepted = listener.accept() => {
                let (stream, _) = accepted.context("accepting a connection")?;
                stream.set_nodelay(true).context("setting TCP_NODELAY")?;
                self.story.did("the node dials");
                Ok(Dialled::Stream(stream))
            }
            status = node.ended() => {
                let how = status.map_or_else(|error| error.to_string(), |status| status.to_string());
                Ok(Dialled::Ended(how))
            }
            () = sleep_until(until) => Ok(Dialled::Nothing),
        }
    }

    /// A connection that is upgraded.
    pub(super) async fn upgraded(&mut self) -> Played<Line> {
        let stream = self.dialled().await?;
        self.upgrade(stream).await
    }

    pub(super) async fn upgrade(&self, stream: TcpStream) -> Played<Line> {
        let mut seen = None;
        let choice = self.choice;
        #[expect(
            clippy::result_large_err,
            reason = "the callback's type is the library's"
        )]
        let choose = |request: &Request, mut response: Response| {
            let asked = Asked {
                path: request.uri().path().to_owned(),
                headers: request.headers().clone(),
            };
            let negotiated = negotiate(&asked.headers, choice);
            if let Some(negotiated) = &negotiated {
                let chosen = HeaderValue::from_static(negotiated.chosen.name());
                response
                    .headers_mut()
                    .insert(header::SEC_WEBSOCKET_PROTOCOL, chosen);
            }
            let missing = negotiated.is_none();
            seen = Some((asked, negotiated));
            if missing {
                let mut refused = ErrorResponse::new(None);
                *refused.status_mut() = StatusCode::UPGRADE_REQUIRED;
                return Err(refused);
            }
            Ok(response)
        };
        let until = Instant::now() + self.plan.patience;
        let upgraded = timeout_at(until, accept_hdr_async(stream, choose)).await;
        let expected = "a WebSocket upgrade (RFC 6455)";
        let socket = upgraded
            .map_err(|_| failed(expected, format!("none in {}", seconds(self.plan.patience))))?;
        match (socket, seen) {
            (Ok(socket), Some((asked, Some(negotiated)))) => {
                let (patience, story) = (self.plan.patience, self.story.clone());
                Ok(Line::new(socket, asked, negotiated, patience, story))
            }
            (_, Some((asked, None))) => Err(failed(
                "an offer of `moltis.node.v1`, `moltis.node.v1+aes` or `moltis.node.v1+json`",
                format!(
                    "{:?}",
                    asked.headers.get_all(header::SEC_WEBSOCKET_PROTOCOL)
                ),
            )),
            (Err(error), _) => Err(failed(expected, error.to_string())),
            (Ok(_), None) => Err(Trouble::Stage(anyhow::anyhow!("the upgrade was not seen"))),
        }
    }

    /// Answers the upgrade with 503 and when to come back.
    pub(super) async fn busy(&mut self, retry_after_seconds: u64) -> Played {
        let stream = self.dialled().await?;
        #[expect(
            clippy::result_large_err,
            reason = "the callback's type is the library's"
        )]
        let refuse = |_: &Request, _: Response| {
            let mut refused = ErrorResponse::new(None);
            *refused.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            refused
                .headers_mut()
                .insert(header::RETRY_AFTER, retry_after_seconds.into());
            Err(refused)
        };
        self.story.sent(format_args!(
            "503 Service Unavailable, Retry-After: {retry_after_seconds}"
        ));
        let until = Instant::now() + self.plan.patience;
        // The answer is an error to whoever waits for a connection.
        timeout_at(until, accept_hdr_async(stream, refuse))
            .await
            .ok();
        Ok(())
    }

    /// A connection with a channel: steps 1 and 2.
    pub(super) async fn met(&mut self) -> Played<Line> {
        let mut line = self.upgraded().await?;
        line.noise().await?;
        Ok(line)
    }

    /// Begins a proof that is as it has to be.
    pub(super) fn challenge(&self, line: &Line) -> Played<(GatewayHandshake, GatewayProof)> {
        let nonce = || Nonce::from_bytes(random::bytes());
        Ok(GatewayHandshake::new(
            line.binding()?,
            &self.key,
            &StrictVerifier,
            self.ledgers,
            nonce(),
            nonce(),
        ))
    }

    /// Steps 3 to 5: returns a node that has proven itself and waits for a verdict.
    pub(super) async fn verified(&mut self) -> Played<(Line, VerifiedNode)> {
        let mut line = self.met().await?;
        let verified = self.verify(&mut line).await?;
        Ok((line, verified))
    }

    pub(super) async fn verify(&self, line: &mut Line) -> Played<VerifiedNode> {
        let (mut handshake, proof) = self.challenge(line)?;
        line.send(&proof).await?;
        let answer: NodeProof = line.receive("a `NodeProof`").await?;
        handshake
            .handle_proof(answer, &StrictVerifier)
            .map_err(|error| failed("a `NodeProof` that holds", error.to_string()))?;
        let said: Introduction = line.receive("an `Introduction`").await?;
        handshake
            .handle_introduction(said)
            .map_err(|error| failed("an `Introduction` within its bounds", error.to_string()))
    }

    /// Step 6: the node is let in.
    pub(super) async fn accepted(&mut self) -> Played<Peer> {
        let (line, node) = self.verified().await?;
        self.accept(line, node).await
    }

    pub(super) async fn accept(&mut self, line: Line, node: VerifiedNode) -> Played<Peer> {
        let ledger = node.ledger();
        self.accept_as(line, node, ledger).await
    }

    /// The same, whatever number was agreed on.
    pub(super) async fn accept_as(
        &mut self,
        mut line: Line,
        node: VerifiedNode,
        ledger: Ledger,
    ) -> Played<Peer> {
        self.accepted += 1;
        let epoch = Epoch {
            incarnation: 1,
            counter: self.accepted,
        };
        let windows = Windows {
            chunk_bytes_max: self
                .windows
                .chunk_bytes_max
                .min(u32::try_from(line.subprotocol().chunk_bytes_max()).unwrap_or(u32::MAX)),
            ..self.windows
        };
        let limits = self.limits;
        line.send(&Verdict::Accepted {
            epoch,
            windows,
            limits,
            ledger,
        })
        .await?;
        Ok(Peer::new(
            line,
            node,
            windows,
            self.plan.patience,
            self.story.clone(),
        ))
    }

    /// A node that was let in and has said what it holds.
    pub(super) async fn joined(&mut self) -> Played<Peer> {
        let mut peer = self.accepted().await?;
        peer.listed().await?;
        Ok(peer)
    }
}

/// What a wait for a dial comes to.
#[derive(Debug)]
enum Dialled {
    Stream(TcpStream),
    Ended(String),
    Nothing,
}

fn negotiate(headers: &HeaderMap, choice: Choice) -> Option<Negotiated> {
    let offers = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL);
    let offers = offers.iter().filter_map(|value| value.to_str().ok());
    let negotiated = Negotiated::from_header_values(offers)?;
    match choice {
        Choice::First => Some(negotiated),
        Choice::Only(wanted) => negotiated
            .offered
            .split(',')
            .any(|offer| offer == wanted.name())
            .then_some(Negotiated {
                chosen: wanted,
                ..negotiated
            }),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use moltis_gateway::config::STANDARD_WINDOWS;

    use super::*;

    #[tokio::test]
    async fn a_command_without_an_end_lives_as_long_as_its_rows_world() {
        let dir = tempfile::tempdir().unwrap();
        let plan = Plan {
            command: NodeCommand::new(Vec::new()),
            on_end: OnEnd::Fail,
            patience: Duration::from_secs(1),
        };
        let world = dir.path().join("0");
        let stage = Stage::new(plan, world.clone(), STANDARD_WINDOWS).await;
        let endless = stage.unwrap().endless("sleep 0.05");
        assert!(endless.contains(&format!("{}/", world.display())));
        let mut command = Command::new("sh");
        let mut command = command.args(["-c", &endless]).spawn().unwrap();
        assert!(command.try_wait().unwrap().is_none());
        drop(dir);
        assert!(command.wait().unwrap().success());
    }
}
