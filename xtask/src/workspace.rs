//! Where things are: the root of the repository, its target folder, the programs built into it.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::time::Duration;

use serde_json::Value;

use crate::process;

/// The root of the repository: the folder above this crate's.
pub(crate) static ROOT: LazyLock<PathBuf> = LazyLock::new(|| {
    let manifest = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    manifest.parent().map(Path::to_path_buf).unwrap_or(manifest)
});

/// The folder that cargo builds into, by its own word: a variable or any of its files may say it.
static TARGET: LazyLock<PathBuf> = LazyLock::new(|| {
    let mut metadata = cargo();
    metadata.args(["metadata", "--locked", "--no-deps", "--format-version", "1"]);
    let said = process::stdout_of(&mut metadata, Duration::from_mins(1)).unwrap_or_default();
    let said: Value = serde_json::from_str(&said).unwrap_or_default();
    said["target_directory"]
        .as_str()
        .map_or_else(|| ROOT.join("target"), PathBuf::from)
});

/// Returns the folder that cargo builds into.
pub(crate) fn target() -> PathBuf {
    TARGET.clone()
}

/// Returns where cargo puts the program `moltis` of a profile (`debug` or `release`).
pub(crate) fn binary(profile: &str) -> PathBuf {
    target().join(profile).join("moltis")
}

/// Returns the cargo that started us, at the root of the repository.
///
/// What `cargo run` told us about this package is taken out of its environment: it would reach the
/// build scripts and make cargo build again what is built already.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(&*ROOT);
    for (name, _) in env::vars_os() {
        let name_text = name.to_string_lossy();
        if name_text.starts_with("CARGO_PKG_") || name_text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command
}

/// Returns whether the strict rules of continuous integration hold.
pub(crate) fn is_ci() -> bool {
    env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "0" && value != "false")
}
