//! `node.json`: what the owner of this machine decided about it as a node.
//!
//! Written by `moltis node add` and `moltis node policy`, and once by the link, which pins the
//! gateway's key on the first acceptance. Read by the link, which makes its connection anew when
//! the file changes, and by the keeper before each start. Where the file lies is the caller's
//! business.

mod file;
mod rules;
mod words;

use std::collections::BTreeSet;

use moltis_identity::Fingerprint;
use moltis_proto::handshake::PolicyMode;
use moltis_proto::limits::TEXT_BYTES_MAX;
use moltis_proto::name::is_deceptive;
use moltis_proto::{Labels, NodeName, env};
use serde::{Deserialize, Serialize};

pub use self::file::{ConfigFile, ConfigFileError, Stamp};
pub use self::rules::NodeRules;
use crate::tls::ExtraRoots;
use crate::url::GatewayUrl;

/// Longest time of a command where nothing else is said, in seconds.
pub const TIMEOUT_SECONDS: u64 = 300;

/// The longest time that can be asked for, in seconds: a year. Who wants more says 0, no limit.
pub const TIMEOUT_SECONDS_MAX: u64 = 365 * 24 * 3600;

/// Bytes of the directory where commands start: the gateway is told it before it knows this node,
/// and takes little from strangers.
const WORKING_DIR_BYTES_MAX: usize = 1024;

/// This machine as a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// Where the gateway is.
    pub gateway_url: GatewayUrl,
    /// The gateway's key: absent until the first acceptance, unless the person named it.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "words::fingerprint"
    )]
    pub gateway_key: Option<Fingerprint>,
    /// Certificates that are trusted beside the system's roots, where the gateway is dialled with
    /// TLS: text in PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_ca: Option<ExtraRoots>,
    /// No gateway has taken this node yet. The one whose key stands here is asked to pair until it
    /// does; without a key only `node add` asks, in front of a person.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pair: bool,
    /// The name that this machine asks for.
    pub name: NodeName,
    /// The labels that this machine asks for.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Absolute path of the directory where commands start.
    pub working_dir: String,
    /// Longest time of a command in seconds; 0 is no limit.
    #[serde(default = "standard_timeout")]
    pub timeout_seconds: u64,
    /// What may run.
    #[serde(default)]
    pub policy: Policy,
    /// Names of variables that a request may set, beside the standard ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env_allow: Vec<String>,
    /// The PATH of commands: that of the shell in which `node add` was typed.
    pub path: String,
    /// Names of variables that held a model provider's key at `node add`; never a value.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub api_key_variables: Vec<String>,
    /// Where Ollama listens, as `OLLAMA_HOST` said at `node add`; absent is 127.0.0.1:11434.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ollama_host: Option<String>,
}

/// What the owner of a machine lets run on it. Cannot be changed from the gateway.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// All, nothing, or what is on the list.
    #[serde(default)]
    pub mode: PolicyMode,
    /// Whole argument vectors; a last element `...` allows any further arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<Vec<String>>,
}

/// A value in `node.json` that cannot be used, with the key it stands behind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{key}` {problem}")]
pub struct ConfigError {
    /// The key.
    pub key: &'static str,
    /// What was found, and what is expected.
    pub problem: String,
}

impl NodeConfig {
    /// Returns a configuration with everything left at its default.
    pub fn new(
        gateway_url: GatewayUrl,
        name: NodeName,
        working_dir: impl Into<String>,
        path: impl Into<String>,
    ) -> Self {
        Self {
            gateway_url,
            gateway_key: None,
            tls_ca: None,
            pair: false,
            name,
            labels: Labels::default(),
            working_dir: working_dir.into(),
            timeout_seconds: TIMEOUT_SECONDS,
            policy: Policy::default(),
            env_allow: Vec::new(),
            path: path.into(),
            api_key_variables: Vec::new(),
            ollama_host: None,
        }
    }

    /// Returns whether a gateway has taken this node.
    pub fn is_joined(&self) -> bool {
        self.gateway_key.is_some() && !self.pair
    }

    /// Checks what the types do not: bounds, absolute paths, names of variables.
    ///
    /// # Errors
    /// The first key whose value cannot be used.
    pub fn check(&self) -> Result<(), ConfigError> {
        let bad = |key, problem| Err(ConfigError { key, problem });
        if !self.working_dir.starts_with('/') {
            return bad(
                "working_dir",
                format!(
                    "is `{}`: expected an absolute path",
                    shown(&self.working_dir)
                ),
            );
        }
        if self.working_dir.len() > WORKING_DIR_BYTES_MAX
            || self.working_dir.chars().any(is_deceptive)
        {
            return bad(
                "working_dir",
                format!(
                    "is `{}`: expected at most {WORKING_DIR_BYTES_MAX} bytes without control characters",
                    shown(&self.working_dir)
                ),
            );
        }
        if self.path.len() > TEXT_BYTES_MAX || self.path.contains('\0') {
            return bad(
                "path",
                format!("holds a zero byte, or more than {TEXT_BYTES_MAX} bytes"),
            );
        }
        if self.timeout_seconds > TIMEOUT_SECONDS_MAX {
            return bad(
                "timeout_seconds",
                format!(
                    "is {}: expected 1 to {TIMEOUT_SECONDS_MAX}, or 0 for no limit",
                    self.timeout_seconds
                ),
            );
        }
        check_variables("env_allow", &self.env_allow)?;
        if let Some(name) = self
            .env_allow
            .iter()
            .find(|name| !env::may_be_allowed(name))
        {
            return bad(
                "env_allow",
                format!(
                    "holds `{}`: a request may never set a variable that loads code or looks like a secret, or that is no name",
                    shown(name)
                ),
            );
        }
        check_variables("api_key_variables", &self.api_key_variables)?;
        self.policy.check()
    }
}

impl Policy {
    /// Returns whether a list of more than this many commands is kept.
    const COMMANDS_MAX: usize = 1024;

    fn check(&self) -> Result<(), ConfigError> {
        let bad = |problem| {
            Err(ConfigError {
                key: "policy",
                problem,
            })
        };
        if self.allow.len() > Self::COMMANDS_MAX {
            return bad(format!(
                "allows {} commands: at most {}",
                self.allow.len(),
                Self::COMMANDS_MAX
            ));
        }
        if self
            .allow
            .iter()
            .any(|argv| argv.first().is_none_or(String::is_empty))
        {
            return bad("allows an empty command: expected a program and its arguments".to_owned());
        }
        match self.allow.iter().flatten().find(|word| word.contains('\0')) {
            Some(word) => bad(format!("allows `{}`, which holds a zero byte", shown(word))),
            None => Ok(()),
        }
    }
}

fn check_variables(key: &'static str, names: &[String]) -> Result<(), ConfigError> {
    let bad = |problem| Err(ConfigError { key, problem });
    if names.len() > env::VARIABLES_MAX {
        return bad(format!(
            "holds {} names: at most {}",
            names.len(),
            env::VARIABLES_MAX
        ));
    }
    let distinct: BTreeSet<&String> = names.iter().collect();
    if distinct.len() < names.len() {
        return bad("holds a name twice".to_owned());
    }
    let is_name = |name: &&String| {
        !name.is_empty()
            && name.len() <= 128
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    };
    match names.iter().find(|name| !is_name(name)) {
        Some(name) => bad(format!(
            "holds `{}`, which is no variable's name",
            shown(name)
        )),
        None => Ok(()),
    }
}

fn standard_timeout() -> u64 {
    TIMEOUT_SECONDS
}

/// Cut and escaped, so that it is safe to print.
fn shown(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> NodeConfig {
        NodeConfig::new(
            "ws://127.0.0.1:9090/ws".parse().unwrap(),
            NodeName::new("box").unwrap(),
            "/home/ada",
            "/usr/bin:/bin",
        )
    }

    fn bad_key(change: impl FnOnce(&mut NodeConfig)) -> &'static str {
        let mut config = config();
        change(&mut config);
        config.check().unwrap_err().key
    }

    #[test]
    fn values_that_cannot_be_used_are_named() {
        assert_eq!(config().check(), Ok(()));
        assert_eq!(bad_key(|c| c.working_dir = "src".to_owned()), "working_dir");
        assert_eq!(
            bad_key(|c| c.working_dir = "/a\0b".to_owned()),
            "working_dir"
        );
        assert_eq!(bad_key(|c| c.path = "p".repeat(5000)), "path");
        assert_eq!(
            bad_key(|c| c.timeout_seconds = 1_000_000_000_000),
            "timeout_seconds"
        );
        assert_eq!(
            bad_key(|c| c.env_allow = vec!["LD_PRELOAD".to_owned()]),
            "env_allow"
        );
        assert_eq!(
            bad_key(|c| c.env_allow = vec!["A".to_owned(), "A".to_owned()]),
            "env_allow"
        );
        assert_eq!(
            bad_key(|c| c.api_key_variables = vec!["A=B".to_owned()]),
            "api_key_variables"
        );
        assert_eq!(bad_key(|c| c.policy.allow = vec![vec![]]), "policy");
    }
}
