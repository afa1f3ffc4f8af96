//! `moltis node …`: this machine as a node, and the nodes of a gateway.

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use moltis_gateway::exec::Selector;

use super::values::{self, LabelChange};
use super::{Format, Logs, Remote};

/// This machine as a node, and the nodes of a gateway
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Example:
  moltis node list
  moltis node exec \"Build Server\" -- make test")]
pub(crate) enum Node {
    Add(Add),
    Run(Run),
    Fingerprint(Fingerprint),
    Status(Status),
    /// Print the path of the service's log, or follow it
    #[command(after_help = "\
Example:
  moltis node logs -f
  tail -n 100 $(moltis node logs)")]
    Logs(Logs),
    Remove(Remove),
    Policy(PolicyCommand),
    List(List),
    Describe(Describe),
    Rename(Rename),
    Label(Label),
    Revoke(Revoke),
    Forget(Forget),
    /// Open, close or show the pairing window
    #[command(subcommand)]
    Pairing(Pairing),
    Pending(Pending),
    Approve(Approve),
    Reject(Reject),
    Exec(Box<Exec>),
    Shell(Shell),
}

/// Join this machine to a gateway
///
/// Shows the gateway's key, this node's key and a connection code, and waits until somebody
/// approves the request on the gateway, where the same code is shown. Then it installs a service
/// that connects whenever this machine runs. For the gateway that is joined already it updates
/// settings and service in place.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  moltis node add --host ws://192.168.1.5:9090/ws --name \"Build Server\"
  moltis node add --host ws://gw:9090/ws --label gpu=true --timeout 3600
  moltis node add --host wss://gw:9090/ws --tls-ca gateway_tls.pem
  moltis node add --host ws://gw:9090/ws --foreground")]
pub(crate) struct Add {
    /// Address of the gateway, as `ws://192.168.1.5:9090/ws`
    #[arg(
        long,
        value_name = "URL",
        env = "MOLTIS_GATEWAY_URL",
        hide_env_values = true
    )]
    pub(crate) host: String,
    /// Display name [default: the host name]; what is approved holds until `moltis node rename`
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Node id [default: a random UUID]
    #[arg(long, value_name = "ID")]
    pub(crate) node_id: Option<String>,
    /// Where commands start [default: your home directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) working_dir: Option<PathBuf>,
    /// Longest time of a command in seconds; 0 is no limit [default: 300]
    #[arg(long, value_name = "SECONDS", allow_hyphen_values = true, value_parser = values::node_timeout)]
    pub(crate) timeout: Option<u64>,
    /// A label for selectors; may be repeated; what is approved holds until `moltis node label`
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = values::key_value)]
    pub(crate) labels: Vec<(String, String)>,
    /// Pin the gateway's key before the first connection, as `moltis node pairing enable` prints it
    #[arg(long, value_name = "SHA256:…")]
    pub(crate) gateway_key: Option<String>,
    /// Trust the certificates in this file too, for a gateway at wss:// which made its own; they are
    /// copied into node.json
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_ca: Option<PathBuf>,
    /// Replace the pinned key of the gateway by --gateway-key
    #[arg(long, requires = "gateway_key")]
    pub(crate) repin: bool,
    /// Stay connected in this terminal instead of installing a service; Ctrl+C disconnects
    #[arg(long)]
    pub(crate) foreground: bool,
    /// Do not wait for approval: the service that is installed does
    #[arg(long, conflicts_with = "foreground")]
    pub(crate) no_wait: bool,
}

/// Connect as node.json says, for ever: what a service runs
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  moltis node run")]
pub(crate) struct Run {}

/// Print the fingerprint of this node's public key
///
/// The same text as `ssh-keygen -lf` prints of this key. The key is made when there is none yet.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  moltis node fingerprint")]
pub(crate) struct Fingerprint {
    #[command(flatten)]
    pub(crate) format: Format,
}

/// Show how this machine stands as a node
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  moltis node status --json")]
pub(crate) struct Status {
    #[command(flatten)]
    pub(crate) format: Format,
}

/// Leave the gateway: remove the service, delete node.json and end what runs
///
/// The key stays, so that `moltis node add` makes the same node again.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  moltis node remove
  moltis node remove --delete-key")]
pub(crate) struct Remove {
    /// Delete the key and what runs have left too: the next `node add` is another node and needs approval
    #[arg(long)]
    pub(crate) delete_key: bool,
    /// Nothing is asked; scripts may say it all the same
    #[arg(long, hide = true)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) format: Format,
}

/// Say what may run on this machine
///
/// The machine's owner decides; the gateway cannot change it.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  moltis node policy
  moltis node policy allow-list
  moltis node policy allow -- /usr/bin/uptime
  moltis node policy allow -- /usr/bin/systemctl status ...")]
pub(crate) struct PolicyCommand {
    #[command(subcommand)]
    pub(crate) policy: Option<Policy>,
    #[command(flatten)]
    pub(crate) format: Format,
}

/// What may run.
#[derive(Debug, Subcommand)]
pub(crate) enum Policy {
    /// Show the policy
    #[command(after_help = "Example:\n  moltis node policy show --json")]
    Show(Format),
    /// Everything may run
    #[command(after_help = "Example:\n  moltis node policy full")]
    Full(Format),
    /// Nothing may run
    #[command(after_help = "Example:\n  moltis node policy off")]
    Off(Format),
    /// What was allowed by `policy allow` may run
    #[command(after_help = "Example:\n  moltis node policy allow-list")]
    AllowList(Format),
    /// Add a command to the list of what may run
    #[command(after_help = "Example:\n  moltis node policy allow -- /usr/bin/systemctl status ...")]
    Allow(PolicyAllow),
}

/// Add a command to the list of what may run
///
/// The program is an absolute path, or a name that is looked up as a command's own is; a last
/// argument `...` stands for any further arguments.
#[derive(Debug, Args)]
pub(crate) struct PolicyAllow {
    #[command(flatten)]
    pub(crate) format: Format,
    /// Program and arguments
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ARGV"
    )]
    pub(crate) argv: Vec<OsString>,
}

/// List the gateway's nodes
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  moltis node list
  moltis node list --all --json
  moltis node list --select 'gpu=true,runtime=python'")]
pub(crate) struct List {
    /// Offline and revoked ones too
    #[arg(long)]
    pub(crate) all: bool,
    /// Only nodes that match, as for `moltis node exec`; no revoked one does
    #[arg(long, value_name = "SELECTOR")]
    pub(crate) select: Option<Selector>,
    #[command(flatten)]
    pub(crate) format: Format,
    #[command(flatten)]
    pub(crate) remote: Remote,
}

/// Show everything known of one node
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  moltis node describe \"Build Server\"")]
pub(crate) struct Describe {
    /// Id, unique prefix of an id, or display name
    pub(crate) node: String,
    #[command(flatten)]
    pub(crate) format: Format,
    #[command(flatten)]
    pub(crate) remote: Remote,
}

/// Give a node another display name
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  moltis node rename 3f9c \"Build Server\"")]
pub(crate) struct Rename {
    /// Id, unique prefix of an id, or display name
    pub(crate) node: String,
    /// The new display name
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) format: Format,
    #[command(flatten)]
    pub(crate) remote: Remote,
}

/// Set or take away labels of a node
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  moltis node label box gpu=true room=cellar
  moltis node label box gpu-")]
pub(crate) struct Label {
    /// Id, unique prefix of an id, or display name
    pub(crate) node: String,
    /// `key=value` sets a label, `key-` takes it away
    #[arg(required = true, value_name = "CHANGE", value_parser = values::label_change)]
    pub(crate) changes: Vec<LabelChange>,
    #[command(flatten)]
    pub(crate) format: Format,
    #[command(flatten)]
    pub(crate) remote: Remote,
}

/// Refuse a node's key for good and close its connection
///
/// Its id and name are free at once. The key comes back only after `moltis node forget`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  moltis node revoke box")]
pub(crate) struct Revoke {
    /// Id, unique prefix of an id, or display name
    pub(crate) node: String,
    /// Nothing is asked; scripts may say it all the same
    #[arg(long, hide = true)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) format: Format,
    #[command(flatten)]
    pub(crate) remote: Remote,
}

/// Delete the record of a revoked or offline node
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  moltis node forget box")]
pub(crate) struct Forget {
    /// Id, unique prefix of an id, or display name
    pub(crate) node: String,
    /// Nothing is asked; scripts may say it all the same
    #[arg(long, hide = true)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) format: Format,
    #[command(flatten)]
    pub(crate) remote: Remote,
}

/// Open, close or show the pairing window
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Example:
  moltis node pairing enable --for 30m")]
pub(crate) enum Pairing {
    /// Show whether new nodes may ask to pair
    #[command(after_help = "Example:\n  moltis node pairing status --json")]
    Status(PairingStatus),
    /// Let new nodes ask to pair for a while
    #[command(after_help = "Example:\n  moltis node pairing enable --for 30m")]
    Enable(PairingEnable),
    /// Let no new node ask
    #[command(after_help = "Example:\n  moltis node pairing disable")]
    Disable(PairingDisable),
}

/// Show whether new nodes may ask to pair
#[derive(Debug, Args)]
pub(crate) struct PairingStatus {
    #[command(flatten)]
    pub(crate) format: Format,
    #[command(flatten)]
    pub(crate) remote: Remote,
}

/// Let new nodes ask to pair for a while
#[derive(Debug, Args)]
pub(crate) struct PairingEnable {
    /// How long: `1s` to `60m`
    #[arg(long = "for", value_name = "TIME", default_value = "10m", allow_hyphen_values = true, value_parser = values::window_time)]
    pub(crate) time: Duration,
    #[command(flatten)]
    pub(crate) format: Format,
    #[command(flatten)]
    pub(crate) remote: Remote,
}

/// Let no new node ask
#[derive(Debug, Args)]
pub(crate) struct PairingDisable {
    #[command(flatten)]
    pub(crate) format: Format,
    #[command(flatten)]
    pub(crate) remote: Remote,
}

/// List requests to pair
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  moltis node pending")]
pub(crate) struct Pending {
    #[command(flatten)]
    pub(crate) format: Format,
    #[command(flatten)]
    pub(crate) remote: Remote,
}

/// Approve a request to pair
///
/// Shows what is approved and asks. The fingerprint and the code that you see are what the gateway
/// approves: when they have changed in between, it refuses.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  moltis node approve 3f9c
  moltis node approve 3f9c --yes --fingerprint SHA256:…")]
pub(crate) struct Approve {
    /// Id of the request, or a unique prefix of it
    pub(crate) id: String,
    /// Do not ask
    #[arg(long)]
    pub(crate) yes: bool,
    /// Approve only a node with this fingerprint
    #[arg(long, value_name = "SHA256:…")]
    pub(crate) fingerprint: Option<String>,
    #[command(flatten)]
    pub(crate) format: Format,
    #[command(flatten)]
    pub(crate) remote: Remote,
}

/// Reject a request to pair
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  moltis node reject 3f9c")]
pub(crate) struct Reject {
    /// Id of the request, or a unique prefix of it
    pub(crate) id: String,
    /// Do not ask
    #[arg(long)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) format: Format,
    #[command(flatten)]
    pub(crate) remote: Remote,
}

/// Run a command on a node, or on all that match
///
/// Both outputs stream as they come, and the exit code is that of the command: 124 timed out,
/// 125 Moltis could not run it, 126 not executable, 127 not found, 128+n ended by signal n,
/// 130 cancelled by Ctrl+C, 255 the outcome is not known. The first Ctrl+C cancels the run and waits
/// for its end; the second leaves at once. The run goes on when a connection is cut; a cut that is
/// noticed is said once on stderr.
///
/// With --select it runs on every node that matches. Each line of output begins with the node's
/// name, and a summary on stderr says how many exited 0, and who did not. The exit code is 0 when
/// every node gave 0, else 1; 125 when no node matches. Nodes that match and are offline are named
/// and make it 1 too, but do not stop --fail-fast; add `state=online` to leave them out.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  moltis node exec box -- make -j8 test
  moltis node exec box --shell 'dmesg | tail'
  moltis node exec box --stdin -- tar xf - < backup.tar
  moltis node exec local -- uname -a
  moltis node exec --select 'gpu=true,platform=linux' -- nvidia-smi -L
  moltis node exec --select role=web --parallel 2 --fail-fast -- systemctl restart web
  moltis node exec --select 'role=web,room!=cellar' --dry-run

A selector is one or more of these, joined by commas, and all of them hold:
  key=value   the label is this
  key!=value  the label is another, or missing
  key         the label is there
  all         every node
The keys platform, arch, runtime, provider, state (online, offline) and name are facts of the
machine: platform=linux, runtime=python, provider=ollama. A label of such a name is label:platform.")]
pub(crate) struct Exec {
    /// Id, unique prefix of an id, or display name; `local` is the gateway's own machine
    #[arg(required_unless_present = "select")]
    pub(crate) node: Option<String>,
    #[command(flatten)]
    pub(crate) many: Many,
    #[command(flatten)]
    pub(crate) how: ExecHow,
    /// Print the run's id and leave; `moltis runs attach` follows it
    #[arg(long, conflicts_with_all = ["stdin", "tty"])]
    pub(crate) detach: bool,
    #[command(flatten)]
    pub(crate) format: Format,
    #[command(flatten)]
    pub(crate) remote: Remote,
    /// A line for `/bin/sh -c`, instead of a program and its arguments
    #[arg(
        long,
        value_name = "LINE",
        conflicts_with = "argv",
        allow_hyphen_values = true
    )]
    pub(crate) shell: Option<OsString>,
    /// Program and arguments, after `--`
    #[arg(last = true, value_name = "ARGV")]
    pub(crate) argv: Vec<OsString>,
}

/// On which nodes a command runs, where it is not one.
#[derive(Debug, Args)]
pub(crate) struct Many {
    /// Run it on every node that matches
    #[arg(long, value_name = "SELECTOR", conflicts_with_all = ["node", "tty"])]
    pub(crate) select: Option<Selector>,
    /// At most so many nodes at a time [default: all]
    #[arg(long, value_name = "N", requires = "select", conflicts_with_all = ["node", "detach"], allow_hyphen_values = true, value_parser = values::parallel)]
    pub(crate) parallel: Option<NonZeroUsize>,
    /// Start no more behind one that did not exit 0; without --parallel one node at a time
    #[arg(long, requires = "select", conflicts_with_all = ["node", "detach"])]
    pub(crate) fail_fast: bool,
    /// List the nodes that match, and run nothing
    #[arg(long, requires = "select", conflicts_with_all = ["node", "detach"])]
    pub(crate) dry_run: bool,
}

/// How a command runs.
#[derive(Debug, Args)]
pub(crate) struct ExecHow {
    /// Absolute path to start in [default: the node's own]
    #[arg(long, value_name = "DIR")]
    pub(crate) cwd: Option<OsString>,
    /// A variable to set; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = values::key_value)]
    pub(crate) env: Vec<(String, String)>,
    /// Seconds until the run is timed out [default: the node's own]
    #[arg(long, value_name = "SECONDS", allow_hyphen_values = true, value_parser = values::run_timeout)]
    pub(crate) timeout: Option<u64>,
    /// Pass our stdin to the command
    #[arg(long)]
    pub(crate) stdin: bool,
    /// Give the command a terminal
    #[arg(long, conflicts_with = "json")]
    pub(crate) tty: bool,
}

/// Open a login shell on a node
///
/// A terminal on the node with the login shell of its account.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  moltis node shell box")]
pub(crate) struct Shell {
    /// Id, unique prefix of an id, or display name; `local` is the gateway's own machine
    pub(crate) node: String,
    #[command(flatten)]
    pub(crate) remote: Remote,
}
