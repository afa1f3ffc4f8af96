//! What can go wrong between this machine and its gateway, told apart by what a person does next.

use std::io;
use std::time::Duration;

use moltis_identity::Fingerprint;
use moltis_identity::noise::NoiseError;
use moltis_proto::code::{CloseCode, Refusal};
use moltis_proto::handshake::HandshakeError;
use moltis_proto::liveness::Lifeless;
use moltis_proto::{CodecError, NODE_ADD};
use moltis_telemetry::PlatformError;

use crate::config::ConfigFileError;
use crate::tls::TlsError;
use crate::url::GatewayUrl;

/// The steps of one attempt to connect, each with a deadline of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// The host's name becomes addresses.
    Resolve,
    /// TCP.
    Connect,
    /// TLS and the WebSocket's upgrade.
    Upgrade,
    /// Noise and the proofs of both keys.
    Handshake,
    /// The keepers of this machine.
    Keeper,
    /// A frame that the gateway does not take.
    Write,
}

impl Step {
    fn words(self) -> &'static str {
        match self {
            Self::Resolve => "looking up the host",
            Self::Connect => "connecting",
            Self::Upgrade => "the WebSocket upgrade",
            Self::Handshake => "the handshake",
            Self::Keeper => "reaching this machine's keeper",
            Self::Write => "sending to the gateway",
        }
    }
}

/// Why there is no connection, or no connection any more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The settings name no gateway's key, and nobody looks who could trust one on first use.
    #[error("no gateway's key is pinned: {url} would have to be taken at its word")]
    NotPinned {
        /// The address that is not dialled.
        url: GatewayUrl,
    },
    /// The host's name has no address.
    #[error("the host `{host}` cannot be found")]
    Resolve {
        /// The host.
        host: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// Nothing listens there.
    #[error("nothing listens at {url}")]
    ConnectionRefused {
        /// The address dialled.
        url: GatewayUrl,
    },
    /// TCP failed otherwise.
    #[error("{url} cannot be reached")]
    Unreachable {
        /// The address dialled.
        url: GatewayUrl,
        /// What the system said.
        source: io::Error,
    },
    /// A step took too long.
    #[error("{} took longer than {} seconds", .step.words(), .after.as_secs())]
    TimedOut {
        /// The step.
        step: Step,
        /// Its deadline.
        after: Duration,
    },
    /// TLS failed, or the other side does not speak it.
    #[error("no TLS connection to {url}")]
    Tls {
        /// The address dialled.
        url: GatewayUrl,
        /// What was wrong.
        source: TlsError,
    },
    /// What answers without TLS is only there to lead to TLS.
    #[error("{url} is answered by TLS alone")]
    TlsExpected {
        /// The address dialled.
        url: GatewayUrl,
    },
    /// A web server that knows no such page.
    #[error("{url} answers HTTP {status}: there is a web server, but no gateway at this path")]
    NotFound {
        /// The address dialled.
        url: GatewayUrl,
        /// The status.
        status: u16,
    },
    /// A web server that answers with a page.
    #[error(
        "{url} answers with a web page (HTTP {status}): this is not where a gateway takes nodes"
    )]
    WebPage {
        /// The address dialled.
        url: GatewayUrl,
        /// The status.
        status: u16,
    },
    /// The gateway's own words for a request without upgrade: a proxy between has dropped it.
    #[error(
        "the gateway behind {url} was asked without an upgrade: a proxy between does not pass WebSockets on"
    )]
    ProxyWithoutUpgrade {
        /// The address dialled.
        url: GatewayUrl,
    },
    /// 502 or 504: a proxy answers, the gateway behind it does not.
    #[error("a proxy answers at {url} (HTTP {status}), but the gateway behind it does not")]
    ProxyWithoutGateway {
        /// The address dialled.
        url: GatewayUrl,
        /// The status.
        status: u16,
    },
    /// Any other answer but an upgrade.
    #[error("{url} answers HTTP {status} instead of an upgrade")]
    Answer {
        /// The address dialled.
        url: GatewayUrl,
        /// The status.
        status: u16,
    },
    /// The gateway is busy and says when to come back.
    #[error("the gateway at {url} is busy and asks to come back in {} s", .retry_after.as_secs())]
    Busy {
        /// The address dialled.
        url: GatewayUrl,
        /// When.
        retry_after: Duration,
    },
    /// A WebSocket, but not one of ours; or no HTTP at all.
    #[error("what answers at {url} is not a Moltis gateway: {found}")]
    NotAGateway {
        /// The address dialled.
        url: GatewayUrl,
        /// What gave it away.
        found: String,
    },
    /// Node and gateway are too far apart.
    #[error("this node and the gateway have no protocol version in common")]
    Version(#[source] Option<Box<HandshakeError>>),
    /// The gateway shows another key than the pinned one.
    #[error("the gateway's key has changed: it is {found}, but {pinned} is pinned")]
    GatewayKeyChanged {
        /// What is pinned.
        pinned: Fingerprint,
        /// What the gateway proved.
        found: Fingerprint,
        /// The address dialled.
        url: GatewayUrl,
    },
    /// The proofs failed in another way.
    #[error("the handshake with {url} failed")]
    Handshake {
        /// The address dialled.
        url: GatewayUrl,
        /// What was wrong.
        source: Box<HandshakeError>,
    },
    /// The gateway turned this node away.
    #[error("{}", refusal_words(*.0))]
    Refused(Refusal),
    /// The gateway ended the connection in words.
    #[error("{}", close_words(*.0))]
    Closed(CloseCode),
    /// The gateway goes away for a while.
    #[error("the gateway goes away and expects to be back in {} s", .back_in.as_secs())]
    Goodbye {
        /// When to dial again.
        back_in: Duration,
    },
    /// The connection broke.
    #[error("the connection to the gateway broke")]
    Broken(#[source] io::Error),
    /// The connection ended without a word.
    #[error("the gateway closed the connection{}", .during.map_or_else(String::new, |step| format!(" during {}", step.words())))]
    Hangup {
        /// The step in which it did; `None` once the node was accepted.
        during: Option<Step>,
    },
    /// Silence, or a suspend.
    #[error(transparent)]
    Lifeless(Lifeless),
    /// A frame did not open: it was changed on the way, repeated or left out.
    #[error("a frame of the gateway does not open")]
    Noise(#[source] NoiseError),
    /// A frame is not a message.
    #[error("the gateway sent something that is not a message")]
    Codec(#[source] CodecError),
    /// The gateway broke a rule.
    #[error("the gateway broke the protocol: {0}")]
    Protocol(&'static str),
    /// The keeper cannot be reached or started, or went away.
    #[error("this machine's keeper {problem}")]
    Keeper {
        /// What is wrong with it.
        problem: &'static str,
        /// What it, or the system, said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The keeper for new runs takes no more: the next connection is made to another one.
    #[error("this machine's keeper leaves, and the next one is looked for")]
    KeeperLeaves,
    /// This machine does not tell what a node needs to know of it.
    #[error("this machine cannot be a node")]
    Machine(#[source] PlatformError),
    /// `node.json` says something else now.
    #[error("the settings in node.json have changed")]
    SettingsChanged,
    /// `node.json` cannot be read or written.
    #[error("this node's settings cannot be used")]
    Config(#[source] ConfigFileError),
    /// What this node would say of itself is not allowed.
    #[error("this node cannot introduce itself: {0}")]
    Introduction(String),
}

/// What becomes of a node after an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outlook {
    /// It passes by itself: dial again.
    Passing,
    /// Nothing is wrong, and the next connection will differ: dial again now.
    AtOnce,
    /// The gateway says when to dial again.
    Later(Duration),
    /// Only a person can mend it.
    NeedsPerson,
}

impl LinkError {
    /// Returns whether waiting helps.
    pub fn outlook(&self) -> Outlook {
        match self {
            Self::Busy { retry_after, .. } => Outlook::Later(*retry_after),
            Self::Goodbye { back_in } => Outlook::Later(*back_in),
            Self::Refused(Refusal::RateLimited { retry_ms }) => {
                Outlook::Later(Duration::from_millis(*retry_ms))
            }
            Self::SettingsChanged | Self::KeeperLeaves => Outlook::AtOnce,
            Self::NotFound { .. }
            | Self::WebPage { .. }
            | Self::TlsExpected { .. }
            | Self::ProxyWithoutUpgrade { .. }
            | Self::NotAGateway { .. }
            | Self::Version(_)
            | Self::GatewayKeyChanged { .. }
            | Self::Handshake { .. }
            | Self::Refused(_)
            | Self::Closed(CloseCode::Revoked)
            | Self::Config(_)
            | Self::Machine(_)
            | Self::NotPinned { .. }
            | Self::Introduction(_) => Outlook::NeedsPerson,
            Self::Resolve { .. }
            | Self::ConnectionRefused { .. }
            | Self::Unreachable { .. }
            | Self::TimedOut { .. }
            | Self::Tls { .. }
            | Self::ProxyWithoutGateway { .. }
            | Self::Answer { .. }
            | Self::Closed(_)
            | Self::Broken(_)
            | Self::Hangup { .. }
            | Self::Lifeless(_)
            | Self::Noise(_)
            | Self::Codec(_)
            | Self::Protocol(_)
            | Self::Keeper { .. } => Outlook::Passing,
        }
    }

    /// Returns what to type or to look at next, where that is known.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::NotPinned { url } => {
                format!("join in front of a screen, where the key is shown: {NODE_ADD} --host {url}")
            }
            Self::Resolve { .. } => "check the host's name, or use its IP address".to_owned(),
            Self::ConnectionRefused { url } => format!(
                "is the gateway running, and does it listen on an address that this machine reaches? there: moltis gateway --listen 0.0.0.0:{}",
                url.port()
            ),
            Self::Unreachable { .. } | Self::TimedOut { step: Step::Connect, .. } => {
                "check the address, the network and the firewall between".to_owned()
            }
            Self::Tls { url, source } => return source.hint(&url.other_scheme().to_string()),
            Self::TlsExpected { url } => format!("with TLS: {}", url.other_scheme()),
            Self::NotFound { url, .. } | Self::WebPage { url, .. } => format!(
                "the gateway prints its address when it starts; the path is /ws, and you dialled {}",
                url.path()
            ),
            Self::ProxyWithoutUpgrade { .. } => {
                "let the proxy pass `Upgrade` and `Connection` on for this path (nginx: proxy_http_version 1.1)".to_owned()
            }
            Self::NotAGateway { url, .. } if !url.is_tls() => format!(
                "check host and port; if TLS is spoken there: {}",
                url.other_scheme()
            ),
            Self::NotAGateway { .. } => "check host and port".to_owned(),
            Self::Version(_) => "bring the older of the two to the other's version: moltis --version".to_owned(),
            Self::GatewayKeyChanged { found, url, .. } => format!(
                "if the gateway was set up anew and `moltis node pairing enable` there prints this key: {NODE_ADD} --host {url} --gateway-key {found} --repin"
            ),
            Self::Refused(refusal) => return refusal_hint(*refusal),
            Self::Closed(CloseCode::Revoked) => return refusal_hint(Refusal::Revoked),
            Self::Config(error) => return error.hint(),
            _ => return None,
        };
        Some(hint)
    }
}

fn refusal_words(refusal: Refusal) -> String {
    match refusal {
        Refusal::PairingOff => {
            "the gateway takes no new nodes now: pairing is off, and it does not know this key"
                .to_owned()
        }
        Refusal::PendingFull => {
            "too many nodes wait for approval on the gateway already".to_owned()
        }
        Refusal::Rejected => "the request of this node was rejected".to_owned(),
        Refusal::Revoked => "this node was revoked".to_owned(),
        Refusal::KeyMismatch => {
            "the gateway knows this device with another key, or this key with another device"
                .to_owned()
        }
        Refusal::Unknown => "the gateway does not know this node".to_owned(),
        Refusal::Version => {
            "this node and the gateway have no protocol version in common".to_owned()
        }
        Refusal::NodeIdInUse => "another node of this gateway has this node id".to_owned(),
        Refusal::RateLimited { retry_ms } => format!(
            "the gateway heard too many attempts and asks to come back in {} s",
            retry_ms.div_ceil(1000)
        ),
        Refusal::OwnKey => "this node shows the gateway's own key".to_owned(),
        Refusal::Expired => "nobody answered the request of this node in time".to_owned(),
    }
}

fn refusal_hint(refusal: Refusal) -> Option<String> {
    let hint = match refusal {
        Refusal::PairingOff => "on the gateway: moltis node pairing enable".to_owned(),
        Refusal::PendingFull => {
            "on the gateway: moltis node pending, then approve or reject".to_owned()
        }
        Refusal::Rejected => {
            format!("ask the gateway's operator, then join again: {NODE_ADD} --host <url>")
        }
        Refusal::Revoked => format!(
            "on the gateway: moltis node forget <node>, then here: {NODE_ADD} --host <url>; or with a new key: moltis node remove --delete-key first"
        ),
        Refusal::KeyMismatch => {
            "on the gateway: moltis node list --all, then moltis node forget <node> for the old record"
                .to_owned()
        }
        Refusal::Unknown => format!("join again: {NODE_ADD} --host <url>"),
        Refusal::Version => {
            "bring the older of the two to the other's version: moltis --version".to_owned()
        }
        Refusal::NodeIdInUse => {
            format!("choose another one: {NODE_ADD} --host <url> --node-id <id>")
        }
        Refusal::OwnKey => format!(
            "a copied key file? on this machine: moltis node remove --delete-key, then {NODE_ADD} --host <url>"
        ),
        Refusal::Expired => {
            format!("on the gateway: moltis node pairing enable; then here: {NODE_ADD} --host <url>")
        }
        Refusal::RateLimited { .. } => return None,
    };
    Some(hint)
}

fn close_words(code: CloseCode) -> &'static str {
    match code {
        CloseCode::Superseded => {
            "a newer connection of this node has taken over: does another machine use a copy of its key?"
        }
        CloseCode::Revoked => "this node was revoked",
        CloseCode::Protocol => "the gateway says that this node broke the protocol",
        CloseCode::Silence => "the gateway heard nothing from this node for too long",
        CloseCode::Slept => "the gateway's machine slept",
        CloseCode::Settings => "the gateway makes the connection anew: its settings changed",
    }
}
