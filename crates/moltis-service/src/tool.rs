//! Runs a tool of the system and turns its answer into a value, or an error that names it.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;
use tokio::time::timeout;

use crate::error::ServiceError;
use crate::user::User;

/// Bytes of each output that are kept; the rest is read and dropped.
const OUTPUT_BYTES_MAX: u64 = 64 * 1024;

/// How long a question may take. A manager that does not answer in this time does not answer.
pub(crate) const QUESTION: Duration = Duration::from_secs(15);

/// How long a restart may take: longer than the managers' own patience, 90 s for each half of it.
pub(crate) const CHANGE: Duration = Duration::from_secs(200);

/// What a tool said and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Absent where a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Why a tool gave no answer.
#[derive(Debug)]
pub(crate) enum NoAnswer {
    Missing,
    Slow,
    Io(io::Error),
}

impl Answer {
    pub(crate) fn is_success(&self) -> bool {
        self.code == Some(0)
    }

    /// Returns what was said, on one line.
    pub(crate) fn said(&self) -> String {
        let text = match (self.stderr.trim(), self.stdout.trim()) {
            ("", "") => {
                return self.code.map_or_else(
                    || "it was ended by a signal".to_owned(),
                    |code| format!("exit code {code}"),
                );
            }
            ("", out) => out,
            (err, _) => err,
        };
        text.lines().map(str::trim).collect::<Vec<_>>().join("; ")
    }
}

impl std::fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing => f.write_str("it is not installed"),
            Self::Slow => f.write_str("it does not answer"),
            Self::Io(error) => write!(f, "{error}"),
        }
    }
}

/// Runs a tool with nothing of our environment but what it needs.
///
/// # Cancel safety
/// Dropping the future ends the tool; what it asked its manager for may happen all the same.
pub(crate) async fn ask(
    user: &User,
    program: &str,
    arguments: &[&str],
    limit: Duration,
) -> Result<Answer, NoAnswer> {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", &user.path)
        .env("HOME", &user.home)
        .env("XDG_RUNTIME_DIR", &user.runtime_dir)
        .env("LC_ALL", "C")
        .env("SYSTEMD_COLORS", "0")
        .env("SYSTEMD_PAGER", "")
        .envs(
            user.bus_address
                .iter()
                .map(|address| ("DBUS_SESSION_BUS_ADDRESS", address)),
        )
        // Ctrl+C is for us to hear; a tool that is half done is not ended by it.
        .process_group(0)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => NoAnswer::Missing,
        _ => NoAnswer::Io(error),
    })?;
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let hear = async {
        let (stdout, stderr) = tokio::try_join!(read(out), read(err))?;
        let status = child.wait().await?;
        Ok(Answer {
            code: status.code(),
            stdout,
            stderr,
        })
    };
    match timeout(limit, hear).await {
        Ok(answer) => answer.map_err(NoAnswer::Io),
        Err(_) => Err(NoAnswer::Slow),
    }
}

/// As [`ask`], where anything but success is an error that names the command.
pub(crate) async fn must(
    user: &User,
    program: &str,
    arguments: &[&str],
    limit: Duration,
) -> Result<Answer, ServiceError> {
    let said = match ask(user, program, arguments, limit).await {
        Ok(answer) if answer.is_success() => return Ok(answer),
        Ok(answer) => answer.said(),
        Err(no_answer) => no_answer.to_string(),
    };
    Err(ServiceError::Tool {
        command: format!("{program} {}", arguments.join(" ")),
        said,
    })
}

async fn read(pipe: Option<impl AsyncRead + Unpin>) -> io::Result<String> {
    let Some(mut pipe) = pipe else {
        return Ok(String::new());
    };
    let mut bytes = Vec::new();
    (&mut pipe)
        .take(OUTPUT_BYTES_MAX)
        .read_to_end(&mut bytes)
        .await?;
    tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user() -> User {
        User::new("ada", 1000, "/nonexistent", "/usr/bin:/bin")
    }

    #[tokio::test]
    async fn a_tool_is_given_nothing_but_what_it_needs() {
        let answer = ask(&user(), "env", &[], QUESTION).await.unwrap();
        let mut names: Vec<_> = answer
            .stdout
            .lines()
            .filter_map(|line| Some(line.split_once('=')?.0))
            .collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "HOME",
                "LC_ALL",
                "PATH",
                "SYSTEMD_COLORS",
                "SYSTEMD_PAGER",
                "XDG_RUNTIME_DIR"
            ]
        );
    }

    #[tokio::test]
    async fn a_failure_names_the_command_and_what_it_said() {
        let failed = must(&user(), "sh", &["-c", "echo so >&2; exit 3"], QUESTION).await;
        assert_eq!(
            failed.unwrap_err().to_string(),
            "`sh -c echo so >&2; exit 3` failed: so"
        );
        let missing = must(&user(), "no-such-tool", &[], QUESTION).await;
        assert_eq!(
            missing.unwrap_err().to_string(),
            "`no-such-tool ` failed: it is not installed"
        );
    }

    #[tokio::test]
    async fn a_tool_that_hangs_or_prints_without_end_is_ended() {
        let hangs = ask(&user(), "sleep", &["60"], Duration::from_millis(50)).await;
        assert!(matches!(hangs, Err(NoAnswer::Slow)));
        let prints = ask(&user(), "yes", &[], Duration::from_millis(300)).await;
        assert!(matches!(prints, Err(NoAnswer::Slow)));
        let much = ask(&user(), "head", &["-c", "300000", "/dev/zero"], QUESTION).await;
        assert_eq!(much.unwrap().stdout.len() as u64, OUTPUT_BYTES_MAX);
    }
}
