//! The example node against a gateway that this file plays.
#![expect(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test's helpers fail like the test"
)]

#[expect(dead_code, reason = "its `main` is for people")]
#[path = "../examples/own_node.rs"]
mod own_node;

use futures_util::{SinkExt as _, StreamExt as _};
use moltis_identity::noise::{Channel, Responder};
use moltis_identity::{SecretKey, StrictVerifier, random};
use moltis_proto::code::GoodbyeReason;
use moltis_proto::handshake::gateway::{GatewayHandshake, VerifiedNode};
use moltis_proto::handshake::{Epoch, SessionLimits, Verdict};
use moltis_proto::key::Digest;
use moltis_proto::message::Windows;
use moltis_proto::run::{
    Command, ExitStatus, Outcome, Reason, RunSpec, StdinMode, Stream, Totals, Tty, TtySize,
};
use moltis_proto::subprotocol::Negotiated;
use moltis_proto::version::LedgerRange;
use moltis_proto::{
    FromKeeper, Nonce, Refusal, RequestId, RunId, RunRefusal, ToGateway, ToKeeper, ToNode,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::header::SEC_WEBSOCKET_PROTOCOL;
use tokio_tungstenite::{WebSocketStream, accept_hdr_async};

/// Room for little, so that a command has to wait for its acknowledgements.
const WINDOWS: Windows = Windows {
    run_bytes: 4000,
    connection_bytes: 8000,
    stdin_bytes: 1000,
    chunk_bytes_max: 1000,
};

struct Gateway {
    socket: WebSocketStream<TcpStream>,
    channel: Channel,
}

impl Gateway {
    async fn accept(listener: &TcpListener) -> Self {
        let (stream, _) = listener.accept().await.unwrap();
        let mut negotiated = None;
        #[expect(
            clippy::result_large_err,
            reason = "the callback's type is the library's"
        )]
        let choose =
            |request: &Request, mut response: Response| -> Result<Response, ErrorResponse> {
                let offers = request.headers().get_all(SEC_WEBSOCKET_PROTOCOL);
                let offers = offers.iter().map(|value| value.to_str().unwrap());
                let agreed = Negotiated::from_header_values(offers).unwrap();
                let chosen = agreed.chosen.name().parse().unwrap();
                response
                    .headers_mut()
                    .insert(SEC_WEBSOCKET_PROTOCOL, chosen);
                negotiated = Some(agreed);
                Ok(response)
            };
        let mut socket = accept_hdr_async(stream, choose).await.unwrap();
        let responder = Responder::new(&negotiated.unwrap()).unwrap();
        let message_1 = next(&mut socket).await;
        let (channel, message_2) = responder.respond(&message_1).unwrap();
        socket
            .send(Message::Binary(message_2.into()))
            .await
            .unwrap();
        Self { socket, channel }
    }

    async fn send(&mut self, message: &impl Serialize) {
        let codec = self.channel.binding.subprotocol.codec();
        let mut frame = Vec::new();
        let plaintext = codec.encode(message).unwrap();
        self.channel.sealer.seal(&plaintext, &mut frame).unwrap();
        self.socket
            .send(Message::Binary(frame.into()))
            .await
            .unwrap();
    }

    async fn receive<T: DeserializeOwned>(&mut self) -> T {
        let frame = next(&mut self.socket).await;
        let mut plaintext = Vec::new();
        self.channel.opener.open(&frame, &mut plaintext).unwrap();
        self.channel
            .binding
            .subprotocol
            .codec()
            .decode(&plaintext)
            .unwrap()
    }

    /// Steps 3 to 5.
    async fn verify(&mut self, key: &SecretKey) -> VerifiedNode {
        let nonce = || Nonce::from_bytes(random::bytes());
        let (mut handshake, proof) = GatewayHandshake::new(
            self.channel.binding,
            key,
            &StrictVerifier,
            LedgerRange::CURRENT,
            nonce(),
            nonce(),
        );
        self.send(&proof).await;
        handshake
            .handle_proof(self.receive().await, &StrictVerifier)
            .unwrap();
        handshake.handle_introduction(self.receive().await).unwrap()
    }

    /// Lets the node in after it has waited for a person; returns the runs that it lists.
    async fn admit(&mut self, key: &SecretKey) -> Vec<RunId> {
        let verified = self.verify(key).await;
        for left_ms in [2000, 1000] {
            self.send(&verified.pending(RequestId::from_bytes([1; 16]), left_ms))
                .await;
        }
        let epoch = Epoch {
            incarnation: 1,
            counter: 1,
        };
        self.send(&verified.accepted(epoch, WINDOWS, SessionLimits::STANDARD))
            .await;
        match self.run_message().await {
            FromKeeper::Runs {
                runs, last: true, ..
            } => runs.iter().map(|run| run.run_id).collect(),
            other => panic!("{other:?}"),
        }
    }

    /// Returns the next message but telemetry and clocks.
    async fn hear(&mut self) -> ToGateway {
        loop {
            match self.receive().await {
                ToGateway::Telemetry(_) | ToGateway::Clock { .. } => {}
                message => return message,
            }
        }
    }

    async fn run_message(&mut self) -> FromKeeper {
        match self.hear().await {
            ToGateway::Run(message) => message,
            other => panic!("{other:?}"),
        }
    }

    /// Runs one command, acknowledging what it prints, and returns everything that the node says.
    async fn run(&mut self, number: u8, spec: RunSpec) -> Vec<FromKeeper> {
        let run_id = RunId::from_bytes([number; 16]);
        let digest = Digest::from_bytes([0; 32]);
        let spec = Box::new(spec);
        self.send(&ToNode::Run(ToKeeper::Start {
            run_id,
            digest,
            spec,
        }))
        .await;
        let mut said = Vec::new();
        let mut got = Totals::default();
        loop {
            let message = self.run_message().await;
            assert_eq!(message.run_id(), Some(run_id));
            if let FromKeeper::Output { stream, bytes, .. } = &message {
                match stream {
                    Stream::Stdout => got.stdout += bytes.0.len() as u64,
                    Stream::Stderr => got.stderr += bytes.0.len() as u64,
                }
                let (stdout, stderr) = (got.stdout, got.stderr);
                self.send(&ToNode::Run(ToKeeper::Ack {
                    run_id,
                    stdout,
                    stderr,
                }))
                .await;
            }
            let over = matches!(
                message,
                FromKeeper::Ended { .. } | FromKeeper::Refused { .. }
            );
            said.push(message);
            if over {
                return said;
            }
        }
    }
}

async fn next(socket: &mut WebSocketStream<TcpStream>) -> Vec<u8> {
    match socket.next().await.unwrap().unwrap() {
        Message::Binary(frame) => frame.into(),
        other => panic!("{other:?}"),
    }
}

fn shell(line: &str) -> RunSpec {
    RunSpec {
        command: Command::Shell(line.to_owned()),
        cwd: None,
        env: [("LANG".to_owned(), "C".to_owned())].into(),
        timeout_ms: None,
        grace_ms: 0,
        stdin: StdinMode::Empty,
        tty: None,
    }
}

/// Returns the bytes of one output.
fn output(said: &[FromKeeper], of: Stream) -> Vec<u8> {
    let mut all = Vec::new();
    for message in said {
        if let FromKeeper::Output {
            stream,
            offset,
            bytes,
            ..
        } = message
            && *stream == of
        {
            assert_eq!(*offset, all.len() as u64);
            assert!(bytes.0.len() <= WINDOWS.chunk_bytes_max as usize);
            all.extend_from_slice(&bytes.0);
        }
    }
    all
}

fn ended(said: &[FromKeeper]) -> (Outcome, Option<ExitStatus>) {
    match said.last().unwrap() {
        FromKeeper::Ended { ending, .. } => (ending.outcome, ending.status),
        other => panic!("{other:?}"),
    }
}

async fn play(listener: TcpListener) {
    let key = SecretKey::generate();
    let mut gateway = Gateway::accept(&listener).await;
    assert!(gateway.admit(&key).await.is_empty());

    gateway.send(&ToNode::Ping { number: 7 }).await;
    assert_eq!(gateway.hear().await, ToGateway::Pong { number: 7 });

    let said = gateway
        .run(1, shell("echo out; echo err >&2; echo $LANG; exit 3"))
        .await;
    assert!(matches!(said[0], FromKeeper::Started { .. }));
    assert_eq!(output(&said, Stream::Stdout), b"out\nC\n");
    assert_eq!(output(&said, Stream::Stderr), b"err\n");
    assert_eq!(ended(&said), (Outcome::Exited, Some(ExitStatus::Code(3))));

    let said = gateway.run(2, shell("kill -9 $$")).await;
    assert_eq!(
        ended(&said),
        (Outcome::Signaled, Some(ExitStatus::Signal(9)))
    );

    let said = gateway.run(3, shell("head -c 50000 /dev/zero")).await;
    assert_eq!(output(&said, Stream::Stdout), vec![0; 50_000]);

    let mut missing = shell("");
    missing.command = Command::Argv(vec!["/no/such/program".to_owned()]);
    assert_eq!(
        ended(&gateway.run(4, missing).await),
        (Outcome::FailedToStart, None)
    );

    let mut terminal = shell("true");
    let size = TtySize { cols: 80, rows: 24 };
    terminal.tty = Some(Tty {
        size,
        term: "xterm".to_owned(),
    });
    assert_eq!(
        ended(&gateway.run(5, terminal).await),
        (Outcome::FailedToStart, None)
    );

    let mut loader = shell("true");
    loader
        .env
        .insert("LD_PRELOAD".to_owned(), "evil".to_owned());
    assert!(matches!(
        gateway.run(6, loader).await[..],
        [FromKeeper::Refused {
            code: RunRefusal::EnvNotAllowed,
            ..
        }]
    ));

    let mut flat = shell("");
    flat.command = Command::Argv(vec!["/etc/passwd".to_owned()]);
    let said = gateway.run(7, flat).await;
    let [FromKeeper::Ended { ending, .. }] = &said[..] else {
        panic!("{said:?}");
    };
    assert_eq!(ending.reason, Some(Reason::NotExecutable));

    let reason = GoodbyeReason::Shutdown;
    gateway
        .send(&ToNode::Goodbye {
            reason,
            back_in_ms: 0,
        })
        .await;
    drop(gateway);

    // It comes back, still holds what nobody let it forget, and goes when it is told for good.
    let mut gateway = Gateway::accept(&listener).await;
    let listed = gateway.admit(&key).await;
    assert_eq!(
        listed,
        [1, 2, 3, 4, 5, 7].map(|number| RunId::from_bytes([number; 16]))
    );
    drop(gateway);
    let mut gateway = Gateway::accept(&listener).await;
    gateway.verify(&key).await;
    let code = Refusal::Revoked;
    gateway.send(&Verdict::Refused { code }).await;
}

#[tokio::test]
async fn the_example_node_joins_runs_commands_comes_back_and_leaves() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}/ws", listener.local_addr().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let (left, ()) = tokio::join!(own_node::node(&url, dir.path()), play(listener));
    let why = left.unwrap_err().to_string();
    assert!(why.contains("Revoked"), "{why}");
    assert!(dir.path().join("node_key").exists());
}
