//! This machine as a node: fingerprint, status, remove.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use moltis_identity::{Fingerprint, KeyFileError, NodeIdentity};
use moltis_node::config::{ConfigFile, ConfigFileError, NodeConfig};
use moltis_node::keeper::connect::{self, KeeperStream};
use moltis_node::keeper::wire::{FrameReader, FrameWriter};
use moltis_node::state::{self, Report};
use moltis_proto::message::Windows;
use moltis_proto::{NODE_ADD, NodeId, ToKeeper, limits};
use serde::Serialize;
use tokio::io::ReadHalf;
use tokio::time::{sleep, timeout};

use super::Context;
use crate::args::node::{Fingerprint as FingerprintArgs, Remove, Status};
use crate::exit::Exit;
use crate::failure::{Failure, OrFail as _, failure};
use crate::output::Output;
use crate::paths::Home;
use crate::service::{self, NODE, Owned, Standing, Word};

/// How long a node process may take to say goodbye.
const GOODBYE_TIME: Duration = Duration::from_secs(10);

/// How long a keeper may take to end its runs: the grace, and time to write down how they ended.
const LEAVE_TIME: Duration = Duration::from_secs(20);

/// Returns the gateway that this machine is a node of, where it is one.
pub(super) fn joined_gateway(home: &Home) -> Option<String> {
    let config = ConfigFile::new(home.node_config()).load().ok()?;
    Some(config.gateway_url.to_string())
}

/// Reads node.json; `None` where this machine is no node.
pub(super) fn load_config(home: &Home) -> Result<Option<NodeConfig>, Failure> {
    match ConfigFile::new(home.node_config()).load() {
        Ok(config) => Ok(Some(config)),
        Err(ConfigFileError::Missing { .. }) => Ok(None),
        Err(error) => Err(config_failure(error)),
    }
}

/// Says what is wrong with node.json, and what to do.
pub(super) fn config_failure(error: ConfigFileError) -> Failure {
    let hint = error.hint();
    let failure = match std::error::Error::source(&error) {
        Some(_) => failure("this machine's settings as a node cannot be used").because(error),
        None => failure(error.to_string()),
    };
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// Returns an id for a new node.
pub(super) fn random_node_id() -> NodeId {
    let id = uuid::Uuid::new_v4().to_string();
    NodeId::new(id).expect("a UUID is made of hexadecimal digits and dashes")
}

/// `moltis node fingerprint`.
pub(super) fn fingerprint(context: &Context, args: &FingerprintArgs) -> anyhow::Result<Exit> {
    #[derive(Serialize)]
    struct Document {
        fingerprint: String,
        node_id: String,
    }
    let home = context.home()?;
    home.prepare()?;
    let identity = NodeIdentity::load_or_create(&home.node_key(), random_node_id)?;
    let fingerprint = identity.fingerprint().to_string();
    if args.format.json {
        context.output.json(&Document {
            fingerprint,
            node_id: identity.node_id.as_str().to_owned(),
        })?;
    } else {
        context.output.text(&fingerprint)?;
    }
    Ok(Exit::SUCCESS)
}

#[derive(Debug, Serialize)]
struct StatusDocument {
    gateway_url: Option<String>,
    gateway_fingerprint: Option<String>,
    name: Option<String>,
    node_id: Option<String>,
    fingerprint: Option<String>,
    service: Word,
    connected: bool,
    connected_since: Option<jiff::Timestamp>,
    pid: Option<u32>,
    last_error: Option<String>,
    connection_code: Option<String>,
}

/// `moltis node status`.
pub(super) async fn status(context: &Context, args: Status) -> anyhow::Result<Exit> {
    let home = context.home()?;
    let manager = service::manager(&context.settings);
    let standing = service::standing_of(&manager, NODE, &home).await?;
    let (config, unusable) = match load_config(&home) {
        Ok(config) => (config, None),
        Err(failure) => (None, Some(failure)),
    };
    let identity = match NodeIdentity::load(&home.node_key()) {
        Ok(identity) => Some(identity),
        Err(KeyFileError::Missing { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let running = state::read_state(&home.node_state())?;
    let document = document(
        &standing,
        config.as_ref(),
        identity.as_ref(),
        running.as_ref(),
    );
    if args.format.json {
        context.output.json(&document)?;
    } else if unusable.is_some() {
        context.output.fields(&[
            ("Service", standing.words),
            ("Connected", connected(&document)),
        ])?;
    } else {
        print_status(context.output, &standing, config.as_ref(), &document)?;
    }
    match unusable {
        None => Ok(Exit::SUCCESS),
        Some(failure) => Err(failure.into()),
    }
}

fn document(
    standing: &Standing,
    config: Option<&NodeConfig>,
    identity: Option<&NodeIdentity>,
    running: Option<&Report>,
) -> StatusDocument {
    let since = running.and_then(|report| report.connected_since);
    StatusDocument {
        gateway_url: config.map(|config| config.gateway_url.to_string()),
        gateway_fingerprint: config
            .and_then(|config| config.gateway_key)
            .map(|key: Fingerprint| key.to_string()),
        name: config.map(|config| config.name.as_str().to_owned()),
        node_id: identity.map(|identity| identity.node_id.as_str().to_owned()),
        fingerprint: identity.map(|identity| identity.fingerprint().to_string()),
        service: standing.word,
        connected: since.is_some(),
        connected_since: since
            .and_then(|since| i64::try_from(since).ok())
            .and_then(|since| jiff::Timestamp::from_second(since).ok()),
        pid: running.map(|report| report.pid),
        last_error: running.and_then(|report| report.last_error.clone()),
        connection_code: running.and_then(|report| report.waiting_with_code.clone()),
    }
}

/// Tells the connection in words.
fn connected(status: &StatusDocument) -> String {
    match (status.pid, &status.connection_code, &status.last_error) {
        (None, ..) => "no: no node process runs here".to_owned(),
        (Some(pid), Some(code), _) => {
            format!("waiting for approval with the code {code} (process {pid})")
        }
        (Some(pid), _, _) if status.connected => format!("yes (process {pid})"),
        (Some(pid), _, Some(error)) => format!("no: {error} (process {pid})"),
        (Some(pid), _, None) => format!("not yet (process {pid})"),
    }
}

fn print_status(
    output: Output,
    standing: &Standing,
    config: Option<&NodeConfig>,
    status: &StatusDocument,
) -> anyhow::Result<()> {
    let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let Some(config) = config else {
        output.text("this machine is no node: it has not joined a gateway")?;
        if status.pid.is_some() {
            output.warn(&format!(
                "a node process runs here all the same, with the settings that it has read; connected: {}",
                connected(status)
            ));
        }
        if standing.word != Word::NotInstalled {
            output.warn(&format!(
                "there is a service all the same, and it is {}",
                standing.words
            ));
            output.hint("to take it away: moltis node remove");
        }
        output.hint(&format!("join one: {NODE_ADD} --host ws://<host>:9090/ws"));
        return Ok(());
    };
    let connected = connected(status);
    let policy = super::policy::words(&config.policy);
    let longest = match config.timeout_seconds {
        0 => "no limit".to_owned(),
        seconds => format!("{seconds} s"),
    };
    output.fields(&[
        ("Gateway", text(&status.gateway_url)),
        (
            "Gateway key",
            status
                .gateway_fingerprint
                .clone()
                .unwrap_or_else(|| "not pinned yet".to_owned()),
        ),
        ("Name", text(&status.name)),
        ("Node id", text(&status.node_id)),
        ("This node's key", text(&status.fingerprint)),
        ("Service", standing.words.clone()),
        ("Connected", connected),
        ("Working directory", config.working_dir.clone()),
        ("Longest time", longest),
        ("Policy", policy),
    ])
}

/// What `moltis node remove` took away.
#[derive(Debug, Serialize)]
struct Removal {
    service_removed: bool,
    config_removed: bool,
    key_removed: bool,
    /// What its keepers kept of runs.
    runs_removed: bool,
}

/// `moltis node remove`: end the service, the node process and what it runs, then delete the files.
pub(super) async fn remove(context: &Context, args: Remove) -> anyhow::Result<Exit> {
    let home = context.home()?;
    let output = context.output;
    let manager = service::manager(&context.settings);
    let service_removed = match service::owned(&manager, NODE, &home)? {
        Owned::Nobodys | Owned::Ours(_) => service::remove(output, &manager, NODE).await?,
        Owned::Anothers(other) => {
            output.note(&format!("left alone: {other}"));
            false
        }
    };
    stop_process(&home, output).await?;
    let is_ended = end_runs(&home, output).await;
    let config_removed = delete(&home.node_config(), &home)?;
    let key_removed = args.delete_key && delete(&home.node_key(), &home)?;
    // Only a node of this key could bring it to its gateway.
    let runs_removed = args.delete_key && is_ended && delete_runs(&home)?;
    delete(&home.node_state(), &home)?;
    delete_halves(&home);
    if args.format.json {
        output.json(&Removal {
            service_removed,
            config_removed,
            key_removed,
            runs_removed,
        })?;
        return Ok(Exit::SUCCESS);
    }
    if key_removed && !is_ended {
        output.note("removed, with the key; what runs have left stays in `runs`, as some may still run here");
        return Ok(Exit::SUCCESS);
    }
    match (
        service_removed || config_removed,
        key_removed || runs_removed,
    ) {
        (false, false) => output.note("there was nothing to remove: this machine is no node"),
        (true, false) => {
            output.note(&format!(
                "removed; the key stays, and `{NODE_ADD}` makes the same node again"
            ));
        }
        (_, true) => output.note("removed, with the key and what was left of its runs"),
    }
    Ok(Exit::SUCCESS)
}

/// Ends the node process of this home, if one runs: by its lock we know that it is one.
async fn stop_process(home: &Home, output: Output) -> anyhow::Result<()> {
    let path = home.node_state();
    let Some(running) = state::read_state(&path)? else {
        return Ok(());
    };
    let pid = i32::try_from(running.pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw)
        .context("a node process runs on this home and does not say which")?;
    output.note(&format!("ending the node process {}", running.pid));
    rustix::process::kill_process(pid, rustix::process::Signal::TERM)
        .map_err(std::io::Error::from)
        .or_fail(|| format!("cannot end the node process {}", running.pid))?;
    let gone = async {
        while matches!(state::read_state(&path), Ok(Some(_))) {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(GOODBYE_TIME, gone).await.map_err(|_| {
        failure(format!("the node process {} does not end", running.pid))
            .hint(format!("kill -9 {}, then again", running.pid))
    })?;
    Ok(())
}

/// Asks the keepers of this node to end their runs and leave: after an update there may be one of
/// each version. Returns whether none is left.
async fn end_runs(home: &Home, output: Output) -> bool {
    let keepers = match connect::find_all(&home.node_runs()).await {
        Ok(keepers) => keepers,
        Err(error) => {
            output.warn(&format!("commands may still run here: {error}"));
            return false;
        }
    };
    let mut is_ended = true;
    // All are asked before one is waited for, so that their graces run side by side.
    let mut leaving = Vec::new();
    for keeper in keepers {
        let problem = match timeout(LEAVE_TIME, ask_to_leave(keeper)).await {
            Ok(Ok(frames)) => {
                leaving.push(frames);
                continue;
            }
            Ok(Err(error)) => format!("{error:#}"),
            Err(_) => "their keeper does not answer".to_owned(),
        };
        output.warn(&format!("commands may still run here: {problem}"));
        is_ended = false;
    }
    let all_left = async {
        for mut frames in leaving {
            while let Ok(Some(_)) = frames.next().await {}
        }
    };
    if timeout(LEAVE_TIME, all_left).await.is_err() {
        output.warn("commands may still run here: their keeper does not leave");
        is_ended = false;
    }
    is_ended
}

/// Asks a keeper to end its runs and leave; what it still says ends when it has.
async fn ask_to_leave(keeper: KeeperStream) -> anyhow::Result<FrameReader<ReadHalf<KeeperStream>>> {
    let (read, write) = tokio::io::split(keeper);
    let mut write = FrameWriter::new(write);
    let windows = Windows {
        run_bytes: limits::RUN_WINDOW_BYTES,
        connection_bytes: limits::CONNECTION_WINDOW_BYTES,
        stdin_bytes: limits::STDIN_WINDOW_BYTES,
        chunk_bytes_max: u32::try_from(limits::CHUNK_BYTES_MAX)?,
    };
    write.send(&ToKeeper::Attach { windows }).await?;
    write.send(&ToKeeper::Leave).await?;
    Ok(FrameReader::new(read))
}

/// Deletes journals and spools; returns whether there were any.
fn delete_runs(home: &Home) -> Result<bool, Failure> {
    let dir = home.node_runs();
    match std::fs::remove_dir_all(&dir) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).or_fail(|| format!("cannot delete `{}`", home.show(&dir))),
    }
}

/// Deletes what a process left that was killed while it wrote node.json.
fn delete_halves(home: &Home) {
    let Ok(entries) = std::fs::read_dir(home.dir()) else {
        return;
    };
    for entry in entries.flatten() {
        if entry
            .file_name()
            .to_string_lossy()
            .starts_with("node.json.new.")
        {
            std::fs::remove_file(entry.path()).ok(); // nobody reads it
        }
    }
}

/// Deletes a file; returns whether there was one.
fn delete(path: &Path, home: &Home) -> Result<bool, Failure> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).or_fail(|| format!("cannot delete `{}`", home.show(path))),
    }
}
