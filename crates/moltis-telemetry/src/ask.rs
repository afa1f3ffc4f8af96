//! Asks a program a short question: start it, read a little, and never wait long.
//!
//! The program may hang, print without end, print garbage, or leave children behind that hold its
//! pipes. It runs in a process group of its own, and the whole group is ended with the question.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};

/// Bytes of each output that are read. Who prints more is ended.
const OUTPUT_BYTES_MAX: usize = 64 * 1024;

/// What a program said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A question: which program, with which arguments, and how long it may take.
#[derive(Debug, Clone)]
pub(crate) struct Question<'a> {
    /// Absolute path.
    pub(crate) program: &'a Path,
    pub(crate) args: &'a [&'a str],
    pub(crate) env: &'a [(&'a str, &'a OsStr)],
    pub(crate) deadline: Duration,
}

impl Question<'_> {
    /// Returns what the program printed; `None` when it cannot be started, fails, prints more than
    /// it may, or does not end in time.
    ///
    /// # Cancel safety
    /// Dropping the future ends the program.
    pub(crate) async fn ask(&self) -> Option<Answer> {
        let mut child = Command::new(self.program)
            .args(self.args)
            .env_clear()
            .envs(self.env.iter().copied())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .ok()?;
        let group = Group::of(&child);
        let answer = tokio::time::timeout(self.deadline, hear(&mut child)).await;
        drop(group);
        if answer.is_err() {
            child.wait().await.ok(); // It was killed a moment ago.
        }
        answer.ok().flatten()
    }
}

/// Kills a process group when dropped.
#[derive(Debug)]
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        Self(pid.and_then(Pid::from_raw))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            kill_process_group(group, Signal::KILL).ok(); // Most often nobody is left in it.
        }
    }
}

async fn hear(child: &mut Child) -> Option<Answer> {
    let (mut stdout, mut stderr) = (child.stdout.take()?, child.stderr.take()?);
    let (stdout, stderr) = tokio::try_join!(read(&mut stdout), read(&mut stderr)).ok()?;
    let status = child.wait().await.ok()?;
    status.success().then_some(Answer { stdout, stderr })
}

/// Too much output ends the question; what is not UTF-8 is replaced.
async fn read(pipe: &mut (impl AsyncRead + Unpin)) -> Result<String, ()> {
    let mut bytes = Vec::new();
    let mut limited = pipe.take(OUTPUT_BYTES_MAX as u64 + 1);
    limited.read_to_end(&mut bytes).await.map_err(drop)?;
    if bytes.len() > OUTPUT_BYTES_MAX {
        return Err(());
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Returns the first executable file of this name in the directories of `path`.
pub(crate) fn find(name: &str, path: &OsStr) -> Option<PathBuf> {
    std::env::split_paths(&OsString::from(path))
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(name))
        .find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(file)
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// A directory with fake programs, to be handed in as a PATH.
    pub(crate) struct Fakes(tempfile::TempDir);

    impl Fakes {
        pub(crate) fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        pub(crate) fn add(&self, name: &str, script: &str) -> &Self {
            let file = self.0.path().join(name);
            std::fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
            self
        }

        pub(crate) fn dir(&self) -> &Path {
            self.0.path()
        }

        pub(crate) fn path(&self) -> OsString {
            self.0.path().as_os_str().to_owned()
        }
    }

    async fn ask(script: &str, deadline: Duration) -> Option<Answer> {
        let fakes = Fakes::new();
        fakes.add("fake", script);
        let program = find("fake", &fakes.path()).unwrap();
        let path = OsStr::new("/usr/bin:/bin");
        let question = Question {
            program: &program,
            args: &["--version"],
            env: &[("PATH", path)],
            deadline,
        };
        // Another test that forks in this moment may hold the script open for writing.
        for _ in 0..50 {
            if let Some(answer) = question.ask().await {
                return Some(answer);
            }
            if deadline < LONG {
                break;
            }
        }
        None
    }

    const LONG: Duration = Duration::from_secs(20);
    const SHORT: Duration = Duration::from_millis(300);

    #[tokio::test]
    async fn a_program_is_heard_on_both_outputs() {
        let answer = ask("echo out \"$1\"; echo err >&2", LONG).await.unwrap();
        assert_eq!(answer.stdout, "out --version\n");
        assert_eq!(answer.stderr, "err\n");
    }

    #[tokio::test]
    async fn programs_that_misbehave_are_no_answer() {
        for script in [
            "exit 3",
            "while :; do echo flood; done",
            "sleep 1000",
            "sleep 1000 & echo out",
            "kill -9 $$",
        ] {
            assert_eq!(ask(script, SHORT).await, None, "{script}");
        }
    }

    #[tokio::test]
    async fn a_grandchild_that_holds_the_pipe_is_ended_too() {
        let fakes = Fakes::new();
        let mark = fakes.dir().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; wait", mark.display());
        assert_eq!(ask(&script, Duration::from_secs(2)).await, None);
        let pid: i32 = std::fs::read_to_string(&mark)
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        let gone = || {
            // A killed process may stay as a zombie until its new parent looks.
            std::fs::read_to_string(format!("/proc/{pid}/stat"))
                .map_or(true, |stat| stat.contains(") Z "))
        };
        let deadline = tokio::time::Instant::now() + LONG;
        while !gone() && tokio::time::Instant::now() < deadline {
            tokio::task::yield_now().await;
        }
        assert!(gone());
    }

    #[tokio::test]
    async fn bytes_that_are_no_text_do_no_harm() {
        let answer = ask("printf '\\377\\376v1\\n'", LONG).await.unwrap();
        assert!(answer.stdout.ends_with("v1\n"));
    }

    #[test]
    fn only_executable_files_in_absolute_directories_are_found() {
        let fakes = Fakes::new();
        fakes.add("tool", "true");
        std::fs::create_dir(fakes.dir().join("folder")).unwrap();
        std::fs::write(fakes.dir().join("plain"), "").unwrap();
        let path = fakes.path();
        assert!(find("tool", &path).is_some());
        assert_eq!(find("folder", &path), None);
        assert_eq!(find("plain", &path), None);
        assert_eq!(find("tool", OsStr::new(".:relative")), None);
        assert_eq!(find("tool", OsStr::new("")), None);
    }
}
