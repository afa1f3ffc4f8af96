//! A gateway that does as a test says, on a real socket, made of the handshake's own machines.

use std::net::SocketAddr;

use futures_util::{SinkExt as _, StreamExt as _};
use moltis_identity::noise::{Opener, Responder, Sealer};
use moltis_identity::{Fingerprint, SecretKey, StrictVerifier, random};
use moltis_node::GatewayUrl;
use moltis_proto::handshake::gateway::{GatewayHandshake, VerifiedNode};
use moltis_proto::handshake::{Binding, Epoch, Introduction, NodeProof, SessionLimits, Verdict};
use moltis_proto::limits::{CONNECTION_WINDOW_BYTES, RUN_WINDOW_BYTES, STDIN_WINDOW_BYTES};
use moltis_proto::message::Windows;
use moltis_proto::subprotocol::Negotiated;
use moltis_proto::version::LedgerRange;
use moltis_proto::{Codec, Nonce, RequestId, ToGateway, ToNode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, accept_hdr_async};

pub(crate) struct TestGateway {
    listener: TcpListener,
    pub(crate) secret: SecretKey,
    pub(crate) ledgers: LedgerRange,
}

/// One connection, sealed.
pub(crate) struct Peer {
    pub(crate) socket: WebSocketStream<TcpStream>,
    pub(crate) sealer: Sealer,
    pub(crate) opener: Opener,
    pub(crate) binding: Binding,
    pub(crate) codec: Codec,
}

impl TestGateway {
    pub(crate) async fn bind() -> Self {
        Self {
            listener: TcpListener::bind("127.0.0.1:0").await.unwrap(),
            secret: SecretKey::generate(),
            ledgers: LedgerRange::CURRENT,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    pub(crate) fn url(&self) -> GatewayUrl {
        format!("ws://{}/ws", self.address()).parse().unwrap()
    }

    pub(crate) fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.secret.public_key())
    }

    pub(crate) async fn tcp(&self) -> TcpStream {
        let (stream, _) = self.listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// Takes one connection as far as Noise.
    pub(crate) async fn noise(&self) -> Peer {
        Peer::noise(self.tcp().await).await.unwrap()
    }

    /// Takes one connection as far as the node's introduction.
    pub(crate) async fn prove(&self) -> (Peer, VerifiedNode) {
        let mut peer = self.noise().await;
        let node = self.challenge(&mut peer).await.unwrap();
        (peer, node)
    }

    pub(crate) async fn challenge(&self, peer: &mut Peer) -> Result<VerifiedNode, Error> {
        let nonce = || Nonce::from_bytes(random::bytes());
        let (mut machine, proof) = GatewayHandshake::new(
            peer.binding,
            &self.secret,
            &StrictVerifier,
            self.ledgers,
            nonce(),
            nonce(),
        );
        peer.try_send(&proof).await?;
        let proof: NodeProof = peer.try_receive().await?;
        machine.handle_proof(proof, &StrictVerifier).unwrap();
        let introduction: Introduction = peer.try_receive().await?;
        Ok(machine.handle_introduction(introduction).unwrap())
    }

    /// Takes one connection and accepts the node.
    pub(crate) async fn admit(&self) -> Peer {
        let (mut peer, _) = self.prove().await;
        peer.send(&accepted(peer.codec)).await;
        peer
    }
}

pub(crate) fn accepted(codec: Codec) -> Verdict {
    accepted_with(codec, SessionLimits::STANDARD)
}

pub(crate) fn accepted_with(codec: Codec, limits: SessionLimits) -> Verdict {
    let chunk = match codec {
        Codec::Postcard => moltis_proto::limits::CHUNK_BYTES_MAX,
        Codec::Json => moltis_proto::limits::CHUNK_BYTES_MAX_JSON,
    };
    Verdict::Accepted {
        epoch: Epoch {
            incarnation: 7,
            counter: 1,
        },
        windows: Windows {
            run_bytes: RUN_WINDOW_BYTES,
            connection_bytes: CONNECTION_WINDOW_BYTES,
            stdin_bytes: STDIN_WINDOW_BYTES,
            chunk_bytes_max: u32::try_from(chunk).unwrap(),
        },
        limits,
        ledger: LedgerRange::CURRENT.max,
    }
}

pub(crate) fn pending(node: &VerifiedNode) -> Verdict {
    node.pending(RequestId::from_bytes([9; 16]), 3_600_000)
}

impl Peer {
    pub(crate) async fn noise(stream: TcpStream) -> Result<Self, Error> {
        let mut negotiated = None;
        #[expect(clippy::result_large_err, reason = "the shape that the library wants")]
        let choose = |request: &Request, mut response: Response| {
            let offers = request.headers().get_all("sec-websocket-protocol");
            let offers = offers.iter().filter_map(|value| value.to_str().ok());
            let found = Negotiated::from_header_values(offers).unwrap();
            let name = found.chosen.name().parse().unwrap();
            response
                .headers_mut()
                .insert("sec-websocket-protocol", name);
            negotiated = Some(found);
            Ok(response)
        };
        let mut socket = accept_hdr_async(stream, choose).await?;
        let negotiated = negotiated.unwrap();
        let message_1 = next_binary(&mut socket).await?;
        let responder = Responder::new(&negotiated).unwrap();
        let (channel, message_2) = responder.respond(&message_1).unwrap();
        socket.send(Message::Binary(message_2.into())).await?;
        Ok(Self {
            socket,
            sealer: channel.sealer,
            opener: channel.opener,
            binding: channel.binding,
            codec: negotiated.chosen.codec(),
        })
    }

    pub(crate) async fn send(&mut self, message: &impl Serialize) {
        self.try_send(message).await.unwrap();
    }

    pub(crate) async fn say(&mut self, message: ToNode) {
        self.send(&message).await;
    }

    pub(crate) async fn try_send(&mut self, message: &impl Serialize) -> Result<(), Error> {
        let plain = self.codec.encode(message).unwrap();
        self.send_plain(&plain).await
    }

    pub(crate) async fn send_plain(&mut self, plain: &[u8]) -> Result<(), Error> {
        let mut frame = Vec::new();
        self.sealer.seal(plain, &mut frame).unwrap();
        self.socket.send(Message::Binary(frame.into())).await
    }

    pub(crate) async fn receive<T: DeserializeOwned>(&mut self) -> T {
        self.try_receive().await.unwrap()
    }

    pub(crate) async fn try_receive<T: DeserializeOwned>(&mut self) -> Result<T, Error> {
        let frame = next_binary(&mut self.socket).await?;
        let mut plain = Vec::new();
        self.opener.open(&frame, &mut plain).unwrap();
        Ok(self.codec.decode(&plain).unwrap())
    }

    /// Returns the next frame as it came.
    pub(crate) async fn frame(&mut self) -> bytes::Bytes {
        next_binary(&mut self.socket).await.unwrap()
    }

    /// Returns the next message that is no telemetry and tells no time.
    pub(crate) async fn hear(&mut self) -> ToGateway {
        loop {
            match self.receive().await {
                ToGateway::Telemetry(_) | ToGateway::Clock { .. } => {}
                message => return message,
            }
        }
    }

    /// Waits until the node has closed the connection.
    pub(crate) async fn closed(&mut self) {
        while self.try_receive::<ToGateway>().await.is_ok() {}
    }
}

async fn next_binary(socket: &mut WebSocketStream<TcpStream>) -> Result<bytes::Bytes, Error> {
    loop {
        match socket
            .next()
            .await
            .unwrap_or(Err(Error::ConnectionClosed))?
        {
            Message::Binary(frame) => return Ok(frame),
            Message::Close(_) => return Err(Error::ConnectionClosed),
            _ => {}
        }
    }
}
