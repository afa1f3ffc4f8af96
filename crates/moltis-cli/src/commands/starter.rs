//! How a keeper process is started: this binary, free of our terminal and of what our environment
//! keeps secret. It lives on when we end.

use std::fs;
use std::os::unix::fs::{DirBuilderExt as _};
use std::path::Path;
use std::process::Stdio;

use moltis_node::keeper::Starter;

use super::keeper;
use crate::failure::{Failure, OrFail as _};
use crate::logging;
use crate::open_files::OpenFiles;
use crate::paths::Home;
use crate::settings::Settings;

/// What a keeper process is for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Keeps {
    /// Runs of a node.
    Node,
    /// Runs of the gateway's own machine. The gateway has raised its own soft limit of open files;
    /// commands get the one that it found.
    Local(OpenFiles),
}

/// Returns what starts a keeper process: this binary, detached.
pub(super) fn starter(
    home: &Home,
    settings: &Settings,
    keeps: Keeps,
) -> Result<impl Starter + 'static, Failure> {
    let program =
        std::env::current_exe().or_fail(|| "cannot find this program's file".to_owned())?;
    let home = home.dir().to_owned();
    let passed = settings.for_keeper.clone();
    Ok(move |dir: &Path| {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)?;
        let log = logging::open_to_append(&dir.join(keeper::LOG))?;
        let mut command = tokio::process::Command::new(&program);
        command
            .arg("keeper")
            .arg("--dir")
            .arg(dir)
            .env_clear()
            .envs(passed.iter().cloned())
            .env("MOLTIS_HOME", &home)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::from(log));
        if let Keeps::Local(files) = keeps {
            command.arg("--local");
            if let Some(soft) = files.found {
                command.arg("--open-files").arg(soft.to_string());
            }
        }
        // The runtime reaps it when it ends before us.
        command.spawn().map(drop)
    })
}
