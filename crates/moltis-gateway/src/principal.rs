//! Who asks, and what each may do: the one place where that is decided.
//!
//! A [`Principal`] is made by the front desk from a token or from a socket's peer, or by the
//! program that embeds the gateway: for a call in-process, or as a [`Vouched`] beside a request that
//! its own login has let through. It travels with the request to the row it makes.

use std::fmt;

use crate::api::tokens::Scope;

/// Who asks for something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Principal {
    /// The person whose gateway this is: at the Unix socket, or the program that embeds us.
    Operator,
    /// Somebody with a token.
    Token {
        /// The token's id.
        id: String,
        /// What its maker called it.
        name: String,
        /// What it may do.
        scopes: Vec<Scope>,
    },
    /// Somebody whom the program that embeds us knows by a login of its own.
    User(User),
}

/// A user of the program that embeds the gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    name: String,
    scopes: Vec<Scope>,
}

/// A text cannot be a user's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a user's name has 1 to {USER_NAME_CHARS_MAX} visible characters, without blanks around them"
)]
pub struct BadUserName;

/// Characters of a user's name: it stands in lists and in the audit log.
pub const USER_NAME_CHARS_MAX: usize = 64;

/// The embedder's own login says who sends a request: put into the request's extensions, by a
/// middleware around [`Gateway::router`](crate::Gateway::router).
///
/// Extensions are values inside of one process, and no header becomes one, so nobody can send it. A
/// request that has one needs no token, and a token that it may bring is not looked at.
///
/// ```
/// use axum::http::Request;
/// use moltis_gateway::api::tokens::Scope;
/// use moltis_gateway::principal::{BadUserName, Principal, User, Vouched};
///
/// let mut request = Request::new(());
/// let alice = User::new("alice", [Scope::NodesRead, Scope::RunsWrite])?;
/// request.extensions_mut().insert(Vouched(Principal::User(alice)));
/// # Ok::<(), BadUserName>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vouched(pub Principal);

/// What a route does, as far as rights go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Nothing that needs a name: health, the front page, and `/ws`, where nodes prove themselves.
    Public,
    /// See nodes.
    ReadNodes,
    /// Pair, approve, reject, rename, label, revoke, forget.
    AdminNodes,
    /// See runs and their output.
    ReadRuns,
    /// Start, feed, signal, cancel and claim runs.
    WriteRuns,
    /// Run something on the gateway's own machine, or feed, signal, end or claim what runs there. It runs as the user whose
    /// gateway this is, so whoever may do that is the operator.
    RunHere,
    /// See, make and revoke tokens.
    AdminTokens,
    /// See how the gateway's machine stands: paths, addresses, disks.
    Diagnose,
    /// See what is counted.
    ReadMetrics,
    /// Follow what happens, as far as it is about something that one may see.
    FollowEvents,
}

/// Why somebody may not do something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// Nobody knows who asks.
    Unauthenticated,
    /// The token has none of these scopes, any of which would do.
    ScopeMissing(&'static [Scope]),
}

impl Action {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Public,
        Self::ReadNodes,
        Self::AdminNodes,
        Self::ReadRuns,
        Self::WriteRuns,
        Self::RunHere,
        Self::AdminTokens,
        Self::Diagnose,
        Self::ReadMetrics,
        Self::FollowEvents,
    ];

    /// Returns the scopes of which a token needs any one for it; none where nobody needs one.
    pub fn scopes(self) -> &'static [Scope] {
        match self {
            Self::Public => &[],
            Self::ReadNodes => &[Scope::NodesRead],
            Self::AdminNodes => &[Scope::NodesAdmin],
            Self::ReadRuns => &[Scope::RunsRead],
            Self::WriteRuns => &[Scope::RunsWrite],
            Self::RunHere | Self::Diagnose => &[Scope::Admin],
            Self::AdminTokens => &[Scope::TokensAdmin],
            // Who has one of them is shown its part: each kind of event asks again.
            Self::FollowEvents => &[Scope::NodesRead, Scope::RunsRead, Scope::NodesAdmin],
            Self::ReadMetrics => &[Scope::Metrics],
        }
    }
}

/// Decides whether `who` may do `action`. What is not allowed here is denied.
///
/// # Errors
/// Why not.
pub fn authorize(who: Option<&Principal>, action: Action) -> Result<(), Denied> {
    let any_of = action.scopes();
    if action == Action::Public {
        return Ok(());
    }
    match who {
        None => Err(Denied::Unauthenticated),
        Some(principal) if any_of.iter().any(|scope| principal.has(*scope)) => Ok(()),
        Some(_) => Err(Denied::ScopeMissing(any_of)),
    }
}

impl Principal {
    /// Returns whether it may do what `scope` stands for.
    pub fn has(&self, scope: Scope) -> bool {
        match self {
            Self::Operator => true,
            Self::Token { scopes, .. } | Self::User(User { scopes, .. }) => {
                scopes.contains(&scope) || scopes.contains(&Scope::Admin)
            }
        }
    }
}

impl User {
    /// Names somebody, and says what they may do.
    ///
    /// # Errors
    /// [`BadUserName`]. Two users of one name are one: their runs and idempotency keys are shared.
    pub fn new(
        name: impl Into<String>,
        scopes: impl IntoIterator<Item = Scope>,
    ) -> Result<Self, BadUserName> {
        let name = name.into();
        let length = name.chars().count();
        let visible = !name.chars().any(moltis_proto::name::is_deceptive) && name.trim() == name;
        if !visible || !(1..=USER_NAME_CHARS_MAX).contains(&length) {
            return Err(BadUserName);
        }
        let scopes = scopes.into_iter().collect();
        Ok(Self { name, scopes })
    }

    /// Returns the name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns what this user may do.
    pub fn scopes(&self) -> &[Scope] {
        &self.scopes
    }
}

impl fmt::Display for Principal {
    /// Writes what stands as `requested_by`: `operator`, `token:<name>`, `user:<name>`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operator => f.write_str("operator"),
            Self::Token { name, .. } => write!(f, "token:{name}"),
            Self::User(user) => write!(f, "user:{}", user.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(scopes: &[Scope]) -> Principal {
        Principal::Token {
            id: "t".to_owned(),
            name: "ci".to_owned(),
            scopes: scopes.to_vec(),
        }
    }

    #[test]
    fn a_users_name_deceives_nobody() {
        for good in ["alice", "alice@example.org", "Ана", "Alice Doe"] {
            let user = User::new(good, []).unwrap();
            assert_eq!(Principal::User(user).to_string(), format!("user:{good}"));
        }
        let long = "x".repeat(USER_NAME_CHARS_MAX + 1);
        for bad in ["", " ", " alice", "alice ", "al\u{202e}ice", "a\nb", &long] {
            assert_eq!(User::new(bad, []), Err(BadUserName), "{bad:?}");
        }
    }

    #[test]
    fn a_token_may_do_what_its_scopes_name_and_nothing_else() {
        for action in Action::ALL {
            for scope in Scope::ALL {
                let may = action == Action::Public
                    || action.scopes().contains(scope)
                    || *scope == Scope::Admin;
                let user = Principal::User(User::new("alice", [*scope]).unwrap());
                for who in [token(&[*scope]), user] {
                    let said = authorize(Some(&who), action);
                    assert_eq!(said.is_ok(), may, "{who} with {scope} for {action:?}");
                }
            }
        }
    }

    #[test]
    fn the_operator_may_do_everything_and_a_stranger_nothing_but_the_public() {
        for action in Action::ALL {
            assert_eq!(authorize(Some(&Principal::Operator), action), Ok(()));
            let stranger = authorize(None, action);
            assert_eq!(stranger.is_ok(), action == Action::Public, "{action:?}");
            let empty = authorize(Some(&token(&[])), action);
            assert_eq!(empty.is_ok(), action == Action::Public, "{action:?}");
        }
    }
}
