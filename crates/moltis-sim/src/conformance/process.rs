//! The node under test as a process: started by its author's command, ended by this program.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::{ExitStatus, Stdio};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::process::{Child, Command};

/// A variable that every node is started with, and that no command may see.
pub(super) const SECRET: &str = "MOLTIS_CONFORMANCE_SECRET";

/// The command that starts a node, with its placeholders.
#[derive(Debug, Clone)]
pub(super) struct NodeCommand {
    words: Vec<String>,
}

impl NodeCommand {
    pub(super) fn new(words: Vec<String>) -> Self {
        Self { words }
    }

    /// Returns the words for one row.
    fn filled(&self, url: &str, state_dir: &Path) -> Vec<String> {
        let dir = state_dir.display().to_string();
        let fill = |word: &String| {
            word.replace("{url}", url)
                .replace("{key}", &format!("{dir}/node_key"))
                .replace("{state_dir}", &dir)
        };
        self.words.iter().map(fill).collect()
    }
}

/// A node that runs.
#[derive(Debug)]
pub(super) struct NodeProcess {
    child: Child,
    group: Option<Pid>,
}

impl NodeProcess {
    /// Starts the node; what it prints is added to `printed`.
    pub(super) fn start(
        command: &NodeCommand,
        url: &str,
        state_dir: &Path,
        printed: &Path,
    ) -> anyhow::Result<Self> {
        let words = command.filled(url, state_dir);
        let (program, rest) = words.split_first().context("no command is given")?;
        let output = File::options().append(true).create(true).open(printed)?;
        let child = Command::new(program)
            .args(rest)
            .env("MOLTIS_GATEWAY_URL", url)
            .env("MOLTIS_HOME", state_dir)
            .env(SECRET, "must not be seen")
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start `{program}`"))?;
        let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        Ok(Self { child, group })
    }

    /// Waits for its end.
    pub(super) async fn ended(&mut self) -> std::io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Returns how it ended, if it has.
    pub(super) fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Ends it without a word, and what it started in its process group with it.
    pub(super) async fn kill(&mut self) {
        if let Some(group) = self.group {
            kill_process_group(group, Signal::KILL).ok(); // it has ended by itself
        }
        self.child.wait().await.ok(); // nothing to be done about a process that cannot be awaited
    }
}

/// Ends every process that has this directory on its command line: what outlives its node on
/// purpose is of no use once the row is over. Only where `/proc` tells.
pub(super) fn end_all_that_name(dir: &Path) {
    let Ok(processes) = fs::read_dir("/proc") else {
        return;
    };
    let ours = Pid::from_raw(std::process::id().cast_signed());
    // With the slash: `1` must not stand for `18` too.
    let wanted = [dir.as_os_str().as_bytes(), b"/"].concat();
    for process in processes.flatten() {
        let Some(pid) = pid_of(&process.file_name()) else {
            continue;
        };
        let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let names = line.windows(wanted.len()).any(|part| part == wanted);
        if names && Some(pid) != ours {
            kill_process(pid, Signal::KILL).ok(); // it has ended meanwhile
        }
    }
}

fn pid_of(name: &OsString) -> Option<Pid> {
    Pid::from_raw(name.to_str()?.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_placeholders_are_filled_wherever_they_stand() {
        let words = ["node", "--to={url}", "{state_dir}", "{key}", "{other}"];
        let command = NodeCommand::new(words.map(ToOwned::to_owned).to_vec());
        assert_eq!(
            command.filled("ws://h/ws", Path::new("/tmp/s")),
            [
                "node",
                "--to=ws://h/ws",
                "/tmp/s",
                "/tmp/s/node_key",
                "{other}"
            ]
        );
    }
}
