//! What `moltis node add` asks for, checked before anything is touched, and how it becomes
//! node.json and a key.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use moltis_identity::{Fingerprint, NodeIdentity};
use moltis_node::GatewayUrl;
use moltis_node::config::{ConfigFile, NodeConfig};
use moltis_node::tls::ExtraRoots;
use moltis_proto::{Labels, NodeId, NodeName};
use moltis_telemetry::API_KEY_VARIABLES;

use super::super::Context;
use super::super::node::{config_failure, load_config, random_node_id};
use crate::account::Account;
use crate::args::node::Add;
use crate::failure::{Failure, failure, usage};
use crate::paths::Home;
use crate::visible::quoted;

/// A checked `moltis node add`.
#[derive(Debug)]
pub(super) struct Request {
    url: GatewayUrl,
    name: Option<NodeName>,
    default_name: NodeName,
    node_id: Option<NodeId>,
    working_dir: Option<String>,
    default_dir: String,
    timeout_seconds: Option<u64>,
    labels: Option<Labels>,
    gateway_key: Option<Fingerprint>,
    repin: bool,
    tls_ca: Option<ExtraRoots>,
    path: String,
    api_key_variables: Vec<String>,
    ollama_host: Option<String>,
}

/// What was written.
#[derive(Debug)]
pub(super) struct Joined {
    /// The settings now.
    pub(super) config: NodeConfig,
    /// The key.
    pub(super) identity: NodeIdentity,
    /// What node.json held before.
    before: Option<NodeConfig>,
    /// The node id that the key file held before, where this command changed it.
    node_id_before: Option<NodeId>,
    /// What this command asked for.
    asked: Asked,
}

/// What a person approves, and what from then on only the gateway changes, where a flag said so.
#[derive(Debug)]
struct Asked {
    name: Option<NodeName>,
    labels: Option<Labels>,
}

impl Request {
    /// Checks the arguments against each other and against this machine. Writes nothing.
    ///
    /// # Errors
    /// Names the flag and what is wrong with its value; exit code 2.
    pub(super) fn check(context: &Context, args: &Add) -> Result<Self, Failure> {
        let account = Account::of_process(&context.settings);
        let settings = &context.settings;
        let url: GatewayUrl = args
            .host
            .parse()
            .map_err(|error| flag("--host", &error).hint("as --host ws://192.168.1.5:9090/ws"))?;
        if args.tls_ca.is_some() && !url.is_tls() {
            return Err(usage("--tls-ca goes with a gateway at wss:// only")
                .hint(format!("with TLS: --host {}", url.other_scheme())));
        }
        let name = args.name.as_ref().map(NodeName::new).transpose();
        let node_id = args.node_id.as_ref().map(NodeId::new).transpose();
        let key = args.gateway_key.as_deref().map(str::parse).transpose();
        let dir = args.working_dir.as_deref().map(working_dir).transpose()?;
        Ok(Self {
            url,
            name: name.map_err(|error| flag("--name", &error))?,
            default_name: host_name(),
            node_id: node_id.map_err(|error| flag("--node-id", &error))?,
            working_dir: dir,
            default_dir: account.home,
            timeout_seconds: args.timeout,
            labels: labels(&args.labels)?,
            gateway_key: key.map_err(|error| flag("--gateway-key", &error))?,
            repin: args.repin,
            tls_ca: roots(args)?,
            path: settings.path.clone().unwrap_or_default(),
            api_key_variables: API_KEY_VARIABLES
                .iter()
                .map(|(variable, _)| (*variable).to_owned())
                .filter(|variable| settings.names.contains(variable))
                .collect(),
            ollama_host: settings.ollama_host.clone(),
        })
    }

    /// Makes the key where there is none, and writes node.json: anew, or over the settings that are
    /// there.
    ///
    /// # Errors
    /// As [`Request::settings`].
    pub(super) fn write(&self, home: &Home) -> Result<Joined, anyhow::Error> {
        let (before, config) = self.settings(home)?;
        let mut identity = NodeIdentity::load_or_create(&home.node_key(), || {
            self.node_id.clone().unwrap_or_else(random_node_id)
        })?;
        let mut node_id_before = None;
        if let Some(wanted) = &self.node_id
            && *wanted != identity.node_id
        {
            node_id_before = Some(identity.node_id.clone());
            identity.change_node_id(&home.node_key(), wanted.clone())?;
        }
        let file = ConfigFile::new(home.node_config());
        file.save(&config).map_err(config_failure)?;
        Ok(Joined {
            config,
            identity,
            before,
            node_id_before,
            asked: Asked {
                name: self.name.clone(),
                labels: self.labels.clone(),
            },
        })
    }

    /// Returns the settings that are there and those that this command makes of them. Writes nothing.
    ///
    /// # Errors
    /// Another gateway is joined, or its key is pinned to another one; or a value cannot be used.
    pub(super) fn settings(
        &self,
        home: &Home,
    ) -> Result<(Option<NodeConfig>, NodeConfig), Failure> {
        let before = load_config(home)?;
        if let Some(before) = &before {
            self.check_before(before)?;
        }
        let config = self.config(before.clone());
        if let Err(error) = config.check() {
            return Err(failure("these settings cannot be used").because(error));
        }
        Ok((before, config))
    }

    /// Returns whether this command may make another node of this machine, or another gateway of its
    /// gateway: not something to try on a connection that stands.
    pub(super) fn risks_the_connection(&self) -> bool {
        self.repin || self.node_id.is_some()
    }

    fn check_before(&self, before: &NodeConfig) -> Result<(), Failure> {
        if before.gateway_url != self.url {
            // The pinned key says whether it is the same.
            if !before.is_joined() || before.gateway_url.differs_in_tls(&self.url) {
                return Ok(());
            }
            return Err(failure(format!(
                "this machine is a node of {} already, and you named {}",
                before.gateway_url, self.url
            ))
            .hint("leave that gateway first: moltis node remove"));
        }
        match (before.gateway_key, self.gateway_key) {
            (Some(pinned), Some(named)) if pinned != named && !self.repin => Err(failure(format!(
                "the gateway's key {pinned} is pinned, and you named {named}"
            ))
            .hint("if the gateway was really set up anew: the same line with --repin")),
            _ => Ok(()),
        }
    }

    fn config(&self, before: Option<NodeConfig>) -> NodeConfig {
        let mut config = before.unwrap_or_else(|| {
            let mut config = NodeConfig::new(
                self.url.clone(),
                self.default_name.clone(),
                self.default_dir.clone(),
                self.path.clone(),
            );
            config.pair = true;
            config
        });
        config.pair = !config.is_joined();
        if config.gateway_url != self.url {
            // What the owner said of this machine stays; what was said of another gateway does not.
            if !config.gateway_url.differs_in_tls(&self.url) {
                config.gateway_key = None;
                config.tls_ca = None;
            }
            config.gateway_url = self.url.clone();
        }
        if let Some(key) = self.gateway_key {
            config.gateway_key = Some(key);
        }
        if let Some(roots) = &self.tls_ca {
            config.tls_ca = Some(roots.clone());
        }
        if let Some(name) = &self.name {
            config.name = name.clone();
        }
        if let Some(labels) = &self.labels {
            config.labels = labels.clone();
        }
        if let Some(dir) = &self.working_dir {
            config.working_dir.clone_from(dir);
        }
        if let Some(seconds) = self.timeout_seconds {
            config.timeout_seconds = seconds;
        }
        config.path.clone_from(&self.path);
        config.api_key_variables.clone_from(&self.api_key_variables);
        config.ollama_host.clone_from(&self.ollama_host);
        config
    }
}

impl Joined {
    /// Called when the gateway took this node as one that it knew: its name and labels hold as they
    /// were approved. Returns what to tell a person who asked for others, and puts into node.json
    /// again what stood there.
    pub(super) fn keep_approved(&self, home: &Home) -> Result<Option<String>, Failure> {
        let before = self.before.as_ref().filter(|before| before.is_joined());
        let name = self.asked.name.as_ref();
        let name = name.filter(|name| before.is_none_or(|before| before.name != **name));
        let labels = self.asked.labels.as_ref();
        let labels = labels.filter(|labels| before.is_none_or(|before| before.labels != **labels));
        let id = self.identity.node_id.as_str();
        let mut ways = Vec::new();
        if let Some(name) = name {
            ways.push(format!("moltis node rename {id} {}", quoted(name.as_str())));
        }
        if let Some(labels) = labels {
            let pairs: Vec<_> = labels
                .iter()
                .map(|(key, value)| quoted(&format!("{key}={value}")))
                .collect();
            ways.push(format!("moltis node label {id} {}", pairs.join(" ")));
        }
        if ways.is_empty() {
            return Ok(None);
        }
        if let Some(before) = before {
            let file = ConfigFile::new(home.node_config());
            let mut config = file.load().map_err(config_failure)?;
            config.name = before.name.clone();
            config.labels = before.labels.clone();
            file.save(&config).map_err(config_failure)?;
        }
        let flags = match (name, labels) {
            (Some(_), Some(_)) => "--name and --label hold",
            (Some(_), None) => "--name holds",
            _ => "--label holds",
        };
        Ok(Some(format!(
            "{flags} no more: the gateway knew this node, as it was approved; there: {}",
            ways.join(" && ")
        )))
    }

    /// Returns whether a gateway had taken this node before.
    pub(super) fn was_joined(&self) -> bool {
        self.before.as_ref().is_some_and(NodeConfig::is_joined)
    }

    /// Puts everything back as it was. A key that was made stays.
    pub(super) fn undo(&self, home: &Home) {
        let path = home.node_config();
        // What cannot be put back is only updated the next time.
        match &self.before {
            Some(before) => ConfigFile::new(path).save(before).ok(),
            None => std::fs::remove_file(path).ok(),
        };
        if let Some(before) = &self.node_id_before {
            let mut identity = self.identity.clone();
            identity
                .change_node_id(&home.node_key(), before.clone())
                .ok(); // as above
        }
    }
}

/// Lets whoever connects by node.json from now on ask to pair with the gateway whose key was
/// shown, until it is answered.
pub(super) fn leave_waiting(home: &Home, gateway: Fingerprint) -> Result<(), Failure> {
    let file = ConfigFile::new(home.node_config());
    let mut config = file.load().map_err(config_failure)?;
    config.pair = true;
    config.gateway_key.get_or_insert(gateway);
    file.save(&config).map_err(config_failure)
}

fn flag(flag: &str, problem: &impl std::fmt::Display) -> Failure {
    usage(format!("{flag}: {problem}"))
}

/// Reads the file of `--tls-ca`, whose content goes into node.json: a service needs it as long as it
/// lives, and the file may have come by a stick.
fn roots(args: &Add) -> Result<Option<ExtraRoots>, Failure> {
    let Some(path) = &args.tls_ca else {
        return Ok(None);
    };
    let roots = ExtraRoots::read(path).map_err(|error| {
        let failure = usage("--tls-ca cannot be used").because(error);
        failure.hint("copy the gateway's certificate to this machine: it says at start where it is")
    })?;
    Ok(Some(roots))
}

fn labels(pairs: &[(String, String)]) -> Result<Option<Labels>, Failure> {
    if pairs.is_empty() {
        return Ok(None);
    }
    let mut labels = BTreeMap::new();
    for (key, value) in pairs {
        if labels.insert(key.clone(), value.clone()).is_some() {
            return Err(usage(format!("--label: `{key}` is given twice")));
        }
    }
    let labels = Labels::new(labels).map_err(|error| flag("--label", &error))?;
    Ok(Some(labels))
}

fn working_dir(path: &Path) -> Result<String, Failure> {
    let wrong = |problem: &str| {
        usage(format!(
            "--working-dir: `{}` {problem}",
            crate::visible::inline(&path.to_string_lossy())
        ))
    };
    let absolute: PathBuf = std::path::absolute(path).map_err(|_| wrong("is no path"))?;
    let found = std::fs::metadata(&absolute).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => wrong("is not there"),
        _ => wrong(&format!("cannot be looked at: {error}")),
    })?;
    if !found.is_dir() {
        return Err(wrong("is not a directory"));
    }
    let text = absolute.into_os_string().into_string();
    text.map_err(|_| wrong("is not UTF-8"))
}

/// The name of this machine, as far as it can be a display name.
fn host_name() -> NodeName {
    let uname = rustix::system::uname();
    let name = uname.nodename().to_string_lossy();
    let short: String = name.chars().take(64).collect();
    NodeName::new(&short)
        .or_else(|_| NodeName::new("node"))
        .expect("`node` is a name")
}
