//! How a keeper process is started: this binary, free of our terminal and of what our environment
//! keeps secret. It lives on when we end.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Stdio;

use moltis_identity::files;
use moltis_node::keeper::Starter;

use super::keeper;
use crate::failure::{Failure, OrFail as _};
use crate::logging;
use crate::open_files::OpenFiles;
use crate::paths::Home;
use crate::settings::Settings;

/// Where Linux keeps the program of a process that asks, also when its file is gone.
const OURSELVES: &str = "/proc/self/exe";

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
        files::make_dir(dir, 0o700)?;
        let log = logging::open_to_append(&dir.join(keeper::LOG))?;
        let mut command = tokio::process::Command::new(still_ours(&program));
        command
            .arg0(&program)
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

/// Returns the file to start so that a keeper is of our version: the one that we were started from,
/// or, where another stands at its path by now, what we run.
fn still_ours(program: &Path) -> &Path {
    let identity = |path: &Path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino()));
    let ours = Path::new(OURSELVES);
    match identity(ours) {
        Ok(here) if identity(program).ok() != Some(here) => ours,
        _ => program,
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_was_replaced_or_removed_starts_what_it_is() {
        let own = std::env::current_exe().unwrap();
        assert_eq!(still_ours(&own), own);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("moltis");
        fs::hard_link(&own, &path)
            .or_else(|_| std::os::unix::fs::symlink(&own, &path))
            .unwrap();
        assert_eq!(still_ours(&path), path);
        fs::remove_file(&path).unwrap();
        assert_eq!(still_ours(&path), Path::new(OURSELVES));
        fs::write(&path, "the next version").unwrap();
        assert_eq!(still_ours(&path), Path::new(OURSELVES));
    }
}
