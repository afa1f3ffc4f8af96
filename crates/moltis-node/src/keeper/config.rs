//! What a keeper is told: where it lives, and what the owner of the machine lets it run.
//!
//! The rules are asked for at each `Start`, so that a change of `node.json` holds for the next run
//! without a restart. Nothing here reads a file or the environment.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use moltis_proto::BootId;
use moltis_proto::limits::SPOOLS_BYTES_MAX;

/// The owner's word on what may run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Policy {
    /// Nothing.
    Off,
    /// Only these argument vectors. The first word is looked up as the command's own is, and must
    /// lead to the same file; a last word `...` stands for any further arguments. A shell line
    /// matches nothing.
    AllowList(Vec<Vec<String>>),
    /// Everything.
    Full,
}

/// What the owner of this machine has settled about runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// What may run.
    pub policy: Policy,
    /// Names of variables that a request may set beside the standard list.
    pub env_allow: Vec<String>,
    /// The longest time that a request may ask for; `None` is no limit.
    pub timeout_max: Option<Duration>,
    /// The time of a run that asks for none and has no terminal; `None` is no limit.
    pub timeout_default: Option<Duration>,
    /// Where commands start that name no directory.
    pub working_dir: PathBuf,
    /// The environment that every child starts with: HOME, USER, LOGNAME, SHELL, TMPDIR, PATH.
    pub base_env: BTreeMap<String, String>,
}

/// Why the rules could not be read. No run starts until they can be.
#[derive(Debug, thiserror::Error)]
#[error("the rules for runs cannot be read from `{}`", path.display())]
pub struct RulesError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// Where a keeper gets its rules, at each `Start`.
pub trait RulesSource: Send {
    /// Returns the rules that hold now.
    ///
    /// # Errors
    /// [`RulesError`]; the run is then refused.
    fn current(&mut self) -> Result<Arc<Rules>, RulesError>;
}

/// Rules that never change.
impl RulesSource for Arc<Rules> {
    fn current(&mut self) -> Result<Arc<Rules>, RulesError> {
        Ok(Self::clone(self))
    }
}

/// What a keeper is.
pub struct KeeperConfig {
    /// The directory of its socket, journal and spools; made with mode 0700 where it is missing.
    pub dir: PathBuf,
    /// The owner's rules.
    pub rules: Box<dyn RulesSource>,
    /// This boot of the machine.
    pub boot_id: BootId,
    /// The version of this program: a link of a newer one starts a keeper of its own for new runs.
    pub version: String,
    /// How long the keeper stays when it holds no run and nobody is attached.
    pub leave_after: Duration,
    /// Bytes of all its spools; on a small disk they take less.
    pub spools_bytes: u64,
}

impl KeeperConfig {
    /// A keeper in `dir` with these rules, which leaves ten minutes after its last run.
    pub fn new(
        dir: impl Into<PathBuf>,
        rules: impl RulesSource + 'static,
        boot_id: BootId,
        version: impl Into<String>,
    ) -> Self {
        Self {
            dir: dir.into(),
            rules: Box::new(rules),
            boot_id,
            version: version.into(),
            leave_after: Duration::from_mins(10),
            spools_bytes: SPOOLS_BYTES_MAX,
        }
    }

    /// Returns the directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl std::fmt::Debug for KeeperConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeeperConfig")
            .field("dir", &self.dir)
            .field("boot_id", &self.boot_id)
            .field("version", &self.version)
            .field("leave_after", &self.leave_after)
            .field("spools_bytes", &self.spools_bytes)
            .finish_non_exhaustive()
    }
}
