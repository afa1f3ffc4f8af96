//! The command line as types: every command, flag and help text.
//!
//! Values are parsed here into types that cannot be wrong ([`values`]); what needs a look at the
//! machine or the gateway is checked by the command itself. Secrets are never arguments.

pub(crate) mod doctor;
pub(crate) mod node;
pub(crate) mod pages;
pub(crate) mod runs;
pub(crate) mod tls;
pub(crate) mod token;
pub(crate) mod values;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory as _, Parser, Subcommand};

/// One place for all your machines: a gateway, its nodes, and commands that run on them.
#[derive(Debug, Parser)]
#[command(
    name = "moltis",
    version,
    arg_required_else_help = true,
    subcommand_required = true,
    after_help = "\
Example:
  gateway$ moltis gateway
  gateway$ moltis node pairing enable
  machine$ moltis node add --host ws://192.168.1.5:9090/ws --name box
  gateway$ moltis node approve 3f9c
  gateway$ moltis node exec box -- uname -a

Environment:
  MOLTIS_HOME        where everything is kept (default ~/.moltis)
  MOLTIS_GATEWAY     the gateway to administer, instead of the one on this machine
  MOLTIS_API_TOKEN   the token for it, made by `moltis token create`
  MOLTIS_TLS_CA      a file of certificates to trust too, when it is asked by https
  MOLTIS_LOG         a filter for the log, as `info` or `moltis_gateway=debug`
  NO_COLOR           no colours"
)]
pub(crate) struct Cli<C: Subcommand = Word> {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: C,
}

/// What may follow `moltis`.
#[derive(Debug, Subcommand)]
pub(crate) enum Word {
    /// What people type.
    #[command(flatten)]
    Command(Command),
    /// Own the runs of one directory (started by the gateway and by nodes)
    #[command(hide = true)]
    Keeper(Keeper),
}

/// The commands. Each is told at its own type, whose words are its help.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Gateway(Gateway),
    /// This machine as a node, and the nodes of a gateway
    #[command(subcommand)]
    Node(node::Node),
    /// Commands that run or ran, with their output
    #[command(subcommand)]
    Runs(runs::Runs),
    /// API tokens
    #[command(subcommand)]
    Token(token::Token),
    Doctor(doctor::Doctor),
    Completions(pages::Completions),
    Man(pages::Man),
}

/// Run the gateway in this terminal, or as a service
///
/// Nodes dial `/ws`, programs use `/api/v1`, and `gateway.sock` in the home directory is for the
/// owner of this machine. Ctrl+C stops it; commands that run go on.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "\
Example:
  moltis gateway
  moltis gateway --listen 0.0.0.0:9090
  moltis gateway install --listen 0.0.0.0:9090
  moltis gateway --listen 0.0.0.0:9090 --tls-generate
  moltis gateway --listen 127.0.0.1:0 --listen [::1]:0

When it is ready it prints `listening on http://127.0.0.1:9090`, a line for each address.
The file moltis.toml in the home directory may say the same and more:
  [gateway]
  listen = [\"0.0.0.0:9090\"]
  hosts = [\"gateway.lan\"]
  tls_cert = \"/etc/letsencrypt/live/gateway.lan/fullchain.pem\"
  tls_key = \"/etc/letsencrypt/live/gateway.lan/privkey.pem\"
  trusted_proxies = [\"127.0.0.1\"]")]
pub(crate) struct Gateway {
    /// The gateway as a service.
    #[command(subcommand)]
    pub(crate) service: Option<GatewayService>,
    #[command(flatten)]
    pub(crate) listen: Listen,
}

/// Where a gateway listens.
#[derive(Debug, Args)]
pub(crate) struct Listen {
    /// Address and port to listen on; may be repeated; port 0 picks a free one
    ///
    /// [default: 127.0.0.1:9090]
    #[arg(long = "listen", value_name = "ADDRESS:PORT", value_parser = values::listen_address)]
    pub(crate) addresses: Vec<SocketAddr>,
    #[command(flatten)]
    pub(crate) tls: tls::Https,
}

/// The gateway as a service of the operating system.
#[derive(Debug, Subcommand)]
pub(crate) enum GatewayService {
    /// Install the gateway as a service that starts with the machine
    #[command(after_help = "\
Example:
  moltis gateway install
  moltis gateway install --listen 0.0.0.0:9090")]
    Install(Listen),
    /// Stop the gateway's service and remove it; what the gateway knows stays
    #[command(after_help = "Example:\n  moltis gateway uninstall")]
    Uninstall(Format),
    /// Show whether the gateway runs, and where it listens
    #[command(after_help = "Example:\n  moltis gateway status --json")]
    Status(Format),
    /// Print the path of the service's log, or follow it
    #[command(after_help = "\
Example:
  moltis gateway logs -f
  tail -n 100 $(moltis gateway logs)")]
    Logs(Logs),
    Backup(Backup),
}

/// Copy what the gateway knows into one file, while it runs or not
///
/// The copy is `gateway.db` as it is at one moment: nodes, runs, tokens, the audit log. The
/// gateway's key and the output of commands are files of their own beside it.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  moltis gateway backup gateway-2026-01-31.db

Putting it back, with the gateway stopped: it becomes `gateway.db` in the home directory, and
`gateway.db-wal` and `gateway.db-shm` go. Keep a copy of `gateway_key` too, once: without it every
node refuses the gateway.")]
pub(crate) struct Backup {
    /// The file to make; one that exists is never replaced
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) format: Format,
}

/// The log of a service.
#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Print the last lines and everything that is added, until Ctrl+C
    #[arg(short, long, conflicts_with = "json")]
    pub(crate) follow: bool,
    #[command(flatten)]
    pub(crate) format: Format,
}

/// Own the runs of one directory
#[derive(Debug, Args)]
pub(crate) struct Keeper {
    /// The directory of its socket, journal and spools
    #[arg(long)]
    pub(crate) dir: PathBuf,
    /// The gateway machine's own keeper: policy `full`, no longest time, the home directory
    #[arg(long)]
    pub(crate) local: bool,
    /// The soft limit of open files for what it runs, where whoever starts it has raised its own
    #[arg(long, value_name = "N")]
    pub(crate) open_files: Option<u64>,
}

/// Which gateway a command talks to.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Remote {
    /// Administer this gateway instead of the one on this machine, as `https://gw:9090`; the token
    /// comes from `MOLTIS_API_TOKEN`
    #[arg(
        long,
        value_name = "URL",
        env = "MOLTIS_GATEWAY",
        hide_env_values = true
    )]
    pub(crate) gateway: Option<String>,
    /// Trust the certificates in this file too, as that of a gateway which made its own
    #[arg(
        long,
        value_name = "FILE",
        env = "MOLTIS_TLS_CA",
        hide_env_values = true
    )]
    pub(crate) tls_ca: Option<PathBuf>,
}

/// How a command prints its data.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(crate) struct Format {
    /// Print one JSON document and nothing else on stdout
    #[arg(long)]
    pub(crate) json: bool,
}

/// Returns the commands that people type, for pages about them.
pub(crate) fn typed() -> clap::Command {
    Cli::<Command>::command()
}

/// Parses the arguments of this process. Wrong ones end it with exit code 2.
pub(crate) fn parse() -> Cli {
    Cli::try_parse().unwrap_or_else(|error| helped(error).exit())
}

/// Commands that the documentation names and this release does not have yet.
const LATER: &[&str] = &[
    "approvals",
    "audit",
    "chat",
    "mcp",
    "models",
    "set-password",
    "setup-link",
    "ssh",
    "vault",
];

/// Adds what a person needs to hear who typed something that is not there yet, or left out the `--`
/// before a command.
fn helped(mut error: clap::Error) -> clap::Error {
    let word = match error.get(ContextKind::InvalidSubcommand) {
        Some(ContextValue::String(word)) => word.clone(),
        _ => String::new(),
    };
    let is_gateway = matches!(
        error.get(ContextKind::InvalidArg),
        Some(ContextValue::String(argument)) if argument == "--gateway"
    );
    let is_exec = std::env::args().any(|word| word == "exec");
    let tip = if LATER.contains(&&*word) {
        format!("`{word}` comes with a later release")
    } else if is_gateway && error.kind() == ErrorKind::UnknownArgument {
        "--gateway stands behind a command that asks a gateway: moltis node list --gateway <url>; \
         MOLTIS_GATEWAY names one for all of them"
            .to_owned()
    } else if is_exec && error.kind() == ErrorKind::UnknownArgument {
        "`--` goes before the command: moltis node exec <node> -- uname -a".to_owned()
    } else {
        return error;
    };
    error.remove(ContextKind::SuggestedSubcommand);
    let tips = ContextValue::StyledStrs(vec![tip.into()]);
    error.insert(ContextKind::Suggested, tips);
    error
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use clap::CommandFactory;

    use super::*;

    const REFERENCE_HEAD: &str = "\
# Every command

Written from the commands themselves; `moltis <command> --help` says the same, and `moltis man <dir>`
makes manual pages of it. What an operator does with them stands in [operating.md](operating.md).
";

    fn walk(command: &clap::Command, path: &str, seen: &mut Vec<(String, String)>) {
        let mut shown = command.clone().term_width(100).bin_name(path);
        seen.push((path.to_owned(), shown.render_long_help().to_string()));
        for sub in command.get_subcommands() {
            if sub.get_name() != "help" {
                walk(sub, &format!("{path} {}", sub.get_name()), seen);
            }
        }
    }

    fn every_help() -> Vec<(String, String)> {
        let mut seen = Vec::new();
        walk(&typed(), "moltis", &mut seen);
        seen
    }

    #[test]
    fn clap_finds_no_contradiction_in_the_commands() {
        <Cli as CommandFactory>::command().debug_assert();
    }

    #[test]
    fn every_command_has_an_example_in_its_help() {
        for (path, help) in every_help() {
            assert!(help.contains("Example:"), "`{path}` has none");
        }
    }

    /// Every help is a page of the documentation, and reviewed as such.
    #[test]
    fn the_reference_says_what_the_commands_say() {
        let mut page = String::from(REFERENCE_HEAD);
        for (path, help) in every_help() {
            writeln!(page, "\n## {path}\n\n```text\n{}\n```", help.trim_end()).unwrap();
        }
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/cli.md");
        if std::env::var_os("MOLTIS_BLESS").is_some() {
            std::fs::write(file, &page).unwrap();
        }
        let stored = std::fs::read_to_string(file).unwrap();
        assert!(
            stored == page,
            "docs/cli.md says something else than the commands: `cargo xtask bless` writes it anew; \
             what it says now:\n{page}"
        );
    }
}
