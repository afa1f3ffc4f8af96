//! `moltis token …`: API tokens.

use std::time::Duration;

use clap::{Args, Subcommand};
use moltis_gateway::api::tokens::Scope;

use super::{Format, Remote, values};

/// API tokens
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Example:
  moltis token create --name ci --scope runs:write --expires 90d")]
pub(crate) enum Token {
    Create(Create),
    List(List),
    Revoke(Revoke),
}

/// Make a token and print it once
///
/// The token stands alone on stdout and is never shown again.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  moltis token create --name ci --scope runs:read --scope runs:write --expires 90d")]
pub(crate) struct Create {
    /// What to call it
    #[arg(long)]
    pub(crate) name: String,
    /// What it may do; may be repeated
    #[arg(long = "scope", value_name = "SCOPE", required = true)]
    pub(crate) scopes: Vec<Scope>,
    /// How long it works
    #[arg(long, value_name = "TIME", default_value = "90d", allow_hyphen_values = true, value_parser = values::token_time)]
    pub(crate) expires: Duration,
    #[command(flatten)]
    pub(crate) format: Format,
    #[command(flatten)]
    pub(crate) remote: Remote,
}

/// List tokens, without their secrets
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  moltis token list --json")]
pub(crate) struct List {
    #[command(flatten)]
    pub(crate) format: Format,
    #[command(flatten)]
    pub(crate) remote: Remote,
}

/// Make a token worthless at once
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  moltis token revoke ci")]
pub(crate) struct Revoke {
    /// Id of the token, or its name
    pub(crate) token: String,
    /// Nothing is asked; scripts may say it all the same
    #[arg(long, hide = true)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) format: Format,
    #[command(flatten)]
    pub(crate) remote: Remote,
}
