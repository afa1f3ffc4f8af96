//! A whole node in one file, on `moltis-proto` and `moltis-identity` alone.
//!
//! ```text
//! moltis node pairing enable
//! cargo run -p moltis-identity --example own_node -- ws://127.0.0.1:9090/ws own_node_key
//! ```
//!
//! It joins a gateway, shows the connection code, waits to be approved, and then runs what it is
//! asked, one command after the other, until the connection ends. What it leaves out is what
//! `moltis-node` is for: commands side by side, output while they run, stdin, terminals, time
//! limits, telemetry, reconnecting, and runs that outlive the connection.
#![expect(clippy::print_stdout, reason = "an example talks to its user")]

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use moltis_identity::noise::{self, Channel, Initiator};
use moltis_identity::{Fingerprint, NodeIdentity, StrictVerifier, random};
use moltis_proto::handshake::node::{Decision, NodeClaim, NodeHandshake, Pin};
use moltis_proto::handshake::{GatewayProof, Intent, Introduction, PolicyMode, Verdict};
use moltis_proto::message::Windows;
use moltis_proto::run::{
    Command, Ending, ExitStatus, GapReason, Outcome, Reason, RunSpec, StdinMode, Stream, Totals,
};
use moltis_proto::subprotocol::Negotiated;
use moltis_proto::telemetry::Platform;
use moltis_proto::version::LedgerRange;
use moltis_proto::{
    BootId, FromKeeper, InstanceId, JournalId, Labels, NodeId, NodeName, Nonce, Payload, RunId,
    RunRefusal, Subprotocol, ToGateway, ToKeeper, ToNode, env,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::header::SEC_WEBSOCKET_PROTOCOL;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let (Some(url), Some(key_file)) = (args.next(), args.next()) else {
        return Err("usage: own_node <ws://gateway:9090/ws> <key file>".into());
    };
    node(&url, Path::new(&key_file)).await
}

/// Joins the gateway and serves it until it goes.
pub(crate) async fn node(url: &str, key_file: &Path) -> Result<()> {
    let identity = NodeIdentity::load_or_create(key_file, || {
        NodeId::new("own-node").expect("the name follows the rules")
    })?;
    println!("This node's key  {}", identity.fingerprint());
    let boot_id = BootId::from_bytes(random::bytes());
    let mut road = Road::dial(url).await?;
    let windows = join(&mut road, &identity, boot_id).await?;
    println!("Approved.");
    serve(&mut road, windows, boot_id).await
}

/// Messages over a sealed channel over a WebSocket.
struct Road {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    channel: Channel,
}

impl Road {
    async fn dial(url: &str) -> Result<Self> {
        let offers: Vec<&str> = noise::preferred_offers()
            .into_iter()
            .map(Subprotocol::name)
            .collect();
        let offered = offers.join(",");
        let mut request = url.into_client_request()?;
        request
            .headers_mut()
            .insert(SEC_WEBSOCKET_PROTOCOL, offered.parse()?);
        let (mut socket, response) = connect_async(request).await?;
        let chosen = response
            .headers()
            .get(SEC_WEBSOCKET_PROTOCOL)
            .and_then(|name| Subprotocol::from_name(name.to_str().ok()?))
            .ok_or("this is not a gateway")?;

        let (initiator, message_1) = Initiator::new(&Negotiated { offered, chosen })?;
        socket.send(Message::Binary(message_1.into())).await?;
        let channel = initiator.finish(&next(&mut socket).await?)?;
        Ok(Self { socket, channel })
    }

    async fn send(&mut self, message: &impl Serialize) -> Result<()> {
        let codec = self.channel.binding.subprotocol.codec();
        let mut frame = Vec::new();
        self.channel
            .sealer
            .seal(&codec.encode(message)?, &mut frame)?;
        Ok(self.socket.send(Message::Binary(frame.into())).await?)
    }

    async fn receive<T: DeserializeOwned>(&mut self) -> Result<T> {
        let frame = next(&mut self.socket).await?;
        let mut plaintext = Vec::new();
        self.channel.opener.open(&frame, &mut plaintext)?;
        Ok(self
            .channel
            .binding
            .subprotocol
            .codec()
            .decode(&plaintext)?)
    }
}

async fn next(socket: &mut WebSocketStream<MaybeTlsStream<TcpStream>>) -> Result<Vec<u8>> {
    loop {
        match socket.next().await.ok_or("the gateway has gone")?? {
            Message::Binary(frame) => return Ok(frame.into()),
            Message::Ping(_) | Message::Pong(_) => {}
            other => return Err(format!("the gateway sent {other:?}").into()),
        }
    }
}

/// Steps 3 to 6: who is who.
async fn join(road: &mut Road, identity: &NodeIdentity, boot_id: BootId) -> Result<Windows> {
    let claim = NodeClaim {
        device_id: identity.device_id,
        instance_id: InstanceId::from_bytes(random::bytes()),
        boot_id,
        intent: Intent::Pair,
        ledgers: LedgerRange::CURRENT,
    };
    // A real node keeps the gateway's key from the first time on: `Pin::Key`.
    let mut handshake = NodeHandshake::new(road.channel.binding, claim, Pin::FirstUse);
    let challenge: GatewayProof = road.receive().await?;
    println!(
        "Gateway key      {}",
        Fingerprint::of(&challenge.gateway_key)
    );
    let nonce = Nonce::from_bytes(random::bytes());
    let proof =
        handshake.handle_gateway_proof(challenge, &identity.secret, &StrictVerifier, nonce)?;
    road.send(&proof).await?;
    road.send(&introduction(identity)?).await?;
    let mut shown = false;
    loop {
        let verdict: Verdict = road.receive().await?;
        match handshake.handle_verdict(verdict, &StrictVerifier)? {
            Decision::Accepted { windows, .. } => return Ok(windows),
            // The gateway repeats it as a sign of life.
            Decision::Pending { code, .. } if !shown => {
                println!("Connection code  {code}");
                shown = true;
            }
            Decision::Pending { .. } => {}
            Decision::Refused(refusal) => return Err(format!("refused: {refusal:?}").into()),
        }
    }
}

fn introduction(identity: &NodeIdentity) -> Result<Introduction> {
    Ok(Introduction {
        node_id: identity.node_id.clone(),
        name: NodeName::new("Own node")?,
        labels: Labels::default(),
        platform: Platform {
            os: std::env::consts::OS.to_owned(),
            arch: std::env::consts::ARCH.to_owned(),
            ..Platform::default()
        },
        version: "own_node 1".to_owned(),
        user: "example".to_owned(),
        working_dir: "/".to_owned(),
        timeout_ms: 0,
        policy: PolicyMode::Full,
        env_allow: Vec::new(),
        capabilities: Vec::new(),
    })
}

/// Does what the gateway says until it goes.
async fn serve(road: &mut Road, windows: Windows, boot_id: BootId) -> Result<()> {
    // Before anything else a node says what it holds. This one begins with nothing.
    let runs = FromKeeper::Runs {
        boot_id,
        journals: vec![JournalId::from_bytes(random::bytes())],
        runs: Vec::new(),
        last: true,
    };
    road.send(&ToGateway::Run(runs)).await?;
    loop {
        match road.receive().await? {
            ToNode::Ping { number } => road.send(&ToGateway::Pong { number }).await?,
            ToNode::Run(ToKeeper::Start { run_id, spec, .. }) => {
                for message in run(run_id, *spec, windows).await {
                    road.send(&ToGateway::Run(message)).await?;
                }
            }
            ToNode::Goodbye { .. } | ToNode::Close { .. } => return Ok(()),
            // Nothing here needs the rest: a run is over before another message is read.
            ToNode::Run(_) | ToNode::Sample | ToNode::Pong { .. } => {}
        }
    }
}

/// Runs one command to its end, and returns all there is to say about it.
async fn run(run_id: RunId, spec: RunSpec, windows: Windows) -> Vec<FromKeeper> {
    if spec.tty.is_some() || spec.stdin == StdinMode::Open {
        let code = RunRefusal::Invalid;
        return vec![FromKeeper::Refused { run_id, code }];
    }
    // The gateway has looked at them too; a node believes nobody.
    if env::check(&spec.env, &[]).is_err() {
        let code = RunRefusal::EnvNotAllowed;
        return vec![FromKeeper::Refused { run_id, code }];
    }
    let argv = match spec.command {
        Command::Argv(argv) => argv,
        Command::Shell(line) => vec!["/bin/sh".to_owned(), "-c".to_owned(), line],
    };
    let Some((program, arguments)) = argv.split_first() else {
        let code = RunRefusal::Invalid;
        return vec![FromKeeper::Refused { run_id, code }];
    };
    let started = Instant::now();
    let child = tokio::process::Command::new(program)
        .args(arguments)
        .current_dir(spec.cwd.as_deref().unwrap_or("/"))
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .envs(&spec.env)
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn();
    let child = match child {
        Ok(child) => child,
        Err(error) => {
            let ending = Ending {
                reason: reason_of(&error),
                ..ending(
                    Outcome::FailedToStart,
                    None,
                    error.to_string(),
                    started.elapsed(),
                )
            };
            return vec![ended(run_id, ending, Totals::default())];
        }
    };
    let pid = child.id().unwrap_or_default();
    let mut said = vec![FromKeeper::Started { run_id, pid }];
    let Ok(output) = child.wait_with_output().await else {
        let ending = ending(Outcome::Lost, None, String::new(), started.elapsed());
        said.push(ended(run_id, ending, Totals::default()));
        return said;
    };
    say(&mut said, run_id, Stream::Stdout, &output.stdout, windows);
    say(&mut said, run_id, Stream::Stderr, &output.stderr, windows);
    let totals = Totals {
        stdout: output.stdout.len() as u64,
        stderr: output.stderr.len() as u64,
    };
    let (outcome, status) = how(output.status);
    let ending = ending(outcome, status, String::new(), started.elapsed());
    said.push(ended(run_id, ending, totals));
    said
}

/// Cuts output into chunks. What does not fit the window without an acknowledgement is a gap: a
/// real node waits for the acknowledgement.
fn say(said: &mut Vec<FromKeeper>, run_id: RunId, stream: Stream, output: &[u8], windows: Windows) {
    let room = (windows.run_bytes / 2) as usize;
    let (kept, dropped) = output.split_at(room.min(output.len()));
    let mut offset = 0;
    for chunk in kept.chunks(windows.chunk_bytes_max.max(1) as usize) {
        let bytes = Payload(chunk.to_vec().into());
        said.push(FromKeeper::Output {
            run_id,
            stream,
            offset,
            bytes,
        });
        offset += chunk.len() as u64;
    }
    if !dropped.is_empty() {
        said.push(FromKeeper::Gap {
            run_id,
            stream,
            from: offset,
            to: output.len() as u64,
            reason: GapReason::Limit,
        });
    }
}

fn how(status: std::process::ExitStatus) -> (Outcome, Option<ExitStatus>) {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => (Outcome::Exited, Some(ExitStatus::Code(code))),
        (None, Some(signal)) => (Outcome::Signaled, Some(ExitStatus::Signal(signal))),
        (None, None) => (Outcome::Lost, None),
    }
}

fn ending(outcome: Outcome, status: Option<ExitStatus>, detail: String, took: Duration) -> Ending {
    Ending {
        outcome,
        reason: None,
        status,
        detail,
        duration_ms: took.as_millis().try_into().unwrap_or(u64::MAX),
        descendants_may_survive: false,
    }
}

/// Why a command did not start, where the system says it.
fn reason_of(error: &std::io::Error) -> Option<Reason> {
    match error.kind() {
        std::io::ErrorKind::NotFound => Some(Reason::NotFound),
        std::io::ErrorKind::PermissionDenied => Some(Reason::NotExecutable),
        _ => None,
    }
}

fn ended(run_id: RunId, ending: Ending, totals: Totals) -> FromKeeper {
    let ending = Box::new(ending);
    FromKeeper::Ended {
        run_id,
        ending,
        totals,
    }
}
