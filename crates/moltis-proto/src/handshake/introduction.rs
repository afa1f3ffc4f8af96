//! The shortest introduction, and what the gateway asks of one beyond its types: bounded, visible
//! words.
//!
//! The whole of it fits a handshake frame already. These bounds keep what is stored and shown for
//! each node small, and keep control characters out of everything that a person is shown.

use super::{HandshakeError, Introduction, PolicyMode};
use crate::name::is_deceptive;
use crate::telemetry::Platform;
use crate::{Labels, NodeId, NodeName};

/// Bytes of one short text: version, user, a field of the platform, the name of a variable.
const SHORT_BYTES_MAX: usize = 256;
/// Entries of one list.
const LIST_MAX: usize = 64;

impl Introduction {
    /// The introduction of a node that says its name and nothing more: it works in `/`, runs whatever
    /// it is asked to, and sets no limit to its time.
    pub fn new(node_id: NodeId, name: NodeName) -> Self {
        Self {
            node_id,
            name,
            labels: Labels::default(),
            platform: Platform::default(),
            version: String::new(),
            user: String::new(),
            working_dir: "/".to_owned(),
            timeout_ms: 0,
            policy: PolicyMode::Full,
            env_allow: Vec::new(),
            capabilities: Vec::new(),
        }
    }

    pub(super) fn check(&self) -> Result<(), HandshakeError> {
        let platform = &self.platform;
        for (field, text) in [
            ("platform.os", &platform.os),
            ("platform.arch", &platform.arch),
            ("platform.version", &platform.version),
            ("platform.kernel", &platform.kernel),
            ("platform.hostname", &platform.hostname),
            ("version", &self.version),
            ("user", &self.user),
        ] {
            check_short(field, text)?;
        }
        check_list("env_allow", &self.env_allow)?;
        check_list("capabilities", &self.capabilities)?;
        if !self.working_dir.starts_with('/') {
            return wrong("working_dir", "is not an absolute path");
        }
        check_visible("working_dir", &self.working_dir)
    }
}

fn check_list(field: &'static str, list: &[String]) -> Result<(), HandshakeError> {
    if list.len() > LIST_MAX {
        return wrong(field, "has more than 64 entries");
    }
    list.iter().try_for_each(|text| check_short(field, text))
}

fn check_short(field: &'static str, text: &str) -> Result<(), HandshakeError> {
    if text.len() > SHORT_BYTES_MAX {
        return wrong(field, "is longer than 256 bytes");
    }
    check_visible(field, text)
}

fn check_visible(field: &'static str, text: &str) -> Result<(), HandshakeError> {
    if text.chars().any(is_deceptive) {
        return wrong(field, "holds a control or direction-changing character");
    }
    Ok(())
}

fn wrong(field: &'static str, problem: &'static str) -> Result<(), HandshakeError> {
    Err(HandshakeError::Introduction { field, problem })
}
