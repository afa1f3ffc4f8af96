//! Who sent the request that a handler works on: what the guard found out, ready for the record.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use super::auth::refuse;
use super::error::ApiError;
use super::hangup::Hangup;
use super::peer::{Peer, Proxied};
use crate::audit::Actor;
use crate::exec::Asker;
use crate::principal::{Action, Principal, authorize};

/// A caller that passed the guard.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    /// Who.
    pub(super) who: Principal,
    /// From where.
    pub(super) peer: Peer,
    /// The end of its connection, where that is in our hands.
    pub(super) hangup: Option<Hangup>,
}

impl Caller {
    /// Returns the caller as the audit log names it.
    pub(super) fn actor(&self) -> Actor {
        Actor {
            name: self.who.to_string(),
            source: self.source(),
        }
    }

    /// Returns the caller as the dispatcher takes it.
    pub(super) fn asker(&self) -> Asker {
        Asker {
            who: self.who.clone(),
            source: self.source(),
        }
    }

    /// Asks for a right that the route alone does not tell.
    pub(super) fn authorize(&self, action: Action) -> Result<(), ApiError> {
        authorize(Some(&self.who), action).map_err(|denied| refuse(denied, Some(&self.who)))
    }

    fn source(&self) -> Option<String> {
        match self.peer {
            Peer::Tcp { .. } | Peer::Tls { .. } | Peer::Remote(_) => {
                self.peer.ip().map(|ip| ip.to_string())
            }
            Peer::Proxied(Proxied { client, proxy, .. }) => Some(match client {
                Some(client) => client.to_string(),
                None => format!("behind {}", proxy.ip().to_canonical()),
            }),
            Peer::Unix { .. } => Some("socket".to_owned()),
            Peer::Unknown => None,
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        // Only a route that is public by mistake has none: then nobody is better than anybody.
        let who = parts
            .extensions
            .get::<Principal>()
            .cloned()
            .ok_or_else(|| {
                ApiError::internal("tell who asks", "a public route asks for its caller")
            })?;
        let peer = Peer::of(&parts.extensions);
        let hangup = Hangup::of(&parts.extensions);
        Ok(Self { who, peer, hangup })
    }
}
