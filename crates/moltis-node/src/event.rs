//! What happens to a link, told to whoever shows it to a person.

use std::sync::Arc;
use std::time::Duration;

use moltis_identity::Fingerprint;
use moltis_proto::handshake::{ConnectionCode, Epoch};
use moltis_proto::{RequestId, Subprotocol};

use crate::error::LinkError;
use crate::url::GatewayUrl;

/// A step in the life of a link, in the order in which they happen.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum LinkEvent {
    /// An attempt begins.
    Dialing {
        /// Where to.
        url: GatewayUrl,
        /// Counts from 1 since the last acceptance.
        attempt: u32,
    },
    /// The gateway has proven to hold this key.
    GatewayKey {
        /// Its fingerprint.
        fingerprint: Fingerprint,
        /// How it came to be trusted.
        trust: Trust,
    },
    /// A person has to decide; the connection is held until then.
    Pending {
        /// The request.
        request_id: RequestId,
        /// The code that the person sees on the gateway's side as well.
        code: ConnectionCode,
        /// How long the request waits.
        expires_in: Duration,
    },
    /// The gateway takes this node.
    Accepted {
        /// The connection, as the gateway numbers it.
        epoch: Epoch,
        /// What is spoken on it.
        subprotocol: Subprotocol,
        /// Whether a person has decided just now.
        approved: bool,
    },
    /// There is no connection, or no connection any more; another attempt follows. An error that
    /// ends the node is what [`Node::run`](crate::Node::run) returns.
    Disconnected {
        /// Why.
        error: Arc<LinkError>,
        /// When the next attempt begins.
        retry_in: Duration,
    },
}

/// How a gateway's key came to be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// It was pinned before.
    Pinned,
    /// It is the first key that this node sees; it is pinned with the first acceptance.
    FirstUse,
}
