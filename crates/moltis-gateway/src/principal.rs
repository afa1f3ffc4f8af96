//! Who asks, and what each may do: the one place where that is decided.
//!
//! A [`Principal`] is made by the front desk from a token or from a socket's peer, or by the
//! embedder who calls in-process, and travels with the request to the row it makes.

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
}

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
    /// Run something on the gateway's own machine, or feed what runs there. It runs as the user whose
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
            Self::Token { scopes, .. } => scopes.contains(&scope) || scopes.contains(&Scope::Admin),
        }
    }
}

impl fmt::Display for Principal {
    /// Writes what stands as `requested_by`: `operator`, `token:<name>`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operator => f.write_str("operator"),
            Self::Token { name, .. } => write!(f, "token:{name}"),
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
    fn a_token_may_do_what_its_scopes_name_and_nothing_else() {
        for action in Action::ALL {
            for scope in Scope::ALL {
                let may = action == Action::Public
                    || action.scopes().contains(scope)
                    || *scope == Scope::Admin;
                let said = authorize(Some(&token(&[*scope])), action);
                assert_eq!(said.is_ok(), may, "{scope} for {action:?}");
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
