//! Which language runtimes this machine has, by asking each for its version.

use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;

use moltis_proto::telemetry::Runtime;

use crate::ask::{Answer, Question, find};
use crate::text::clean;

/// How long a runtime may take to say its version. A cold Java on a small machine needs seconds.
const DEADLINE: Duration = Duration::from_secs(5);

/// One runtime: its name for us, its programs, the first that is found is asked, and how.
struct Kind {
    name: &'static str,
    programs: &'static [&'static str],
    args: &'static [&'static str],
}

const KINDS: [Kind; 6] = [
    Kind {
        name: "python",
        programs: &["python3", "python"],
        args: &["--version"],
    },
    Kind {
        name: "node",
        programs: &["node", "nodejs"],
        args: &["--version"],
    },
    Kind {
        name: "ruby",
        programs: &["ruby"],
        args: &["--version"],
    },
    Kind {
        name: "go",
        programs: &["go"],
        args: &["version"],
    },
    Kind {
        name: "rust",
        programs: &["rustc"],
        args: &["--version"],
    },
    Kind {
        name: "java",
        programs: &["java"],
        args: &["-version"],
    },
];

/// Asks all of them at once. What does not answer in time is left out.
pub(crate) async fn ask_all(path: &OsStr, home: Option<&Path>) -> Vec<Runtime> {
    let [python, node, ruby, go, rust, java] = KINDS.each_ref().map(|kind| kind.ask(path, home));
    let (python, node, ruby, go, rust, java) = tokio::join!(python, node, ruby, go, rust, java);
    [python, node, ruby, go, rust, java]
        .into_iter()
        .flatten()
        .collect()
}

impl Kind {
    async fn ask(&self, path: &OsStr, home: Option<&Path>) -> Option<Runtime> {
        let program = self
            .programs
            .iter()
            .find_map(|program| find(program, path))
            .filter(|program| !is_installer_stub(program))?;
        let mut env = vec![
            ("PATH", path),
            ("LC_ALL", OsStr::new("C")),
            // Asking for a version must not download another one.
            ("GOTOOLCHAIN", OsStr::new("local")),
            ("RUSTUP_AUTO_INSTALL", OsStr::new("0")),
        ];
        if let Some(home) = home {
            env.push(("HOME", home.as_os_str()));
        }
        let answer = Question {
            program: &program,
            args: self.args,
            env: &env,
            deadline: DEADLINE,
        }
        .ask()
        .await?;
        Some(Runtime {
            name: self.name.to_owned(),
            version: version(&answer)?,
        })
    }
}

/// macOS has programs in `/usr/bin` that open a window which offers to install the real ones.
fn is_installer_stub(program: &Path) -> bool {
    cfg!(target_os = "macos")
        && program.starts_with("/usr/bin")
        && !Path::new("/Library/Developer/CommandLineTools/usr/bin").exists()
}

/// Returns the first word that begins as a version does: `3.11.2` of `Python 3.11.2`, `1.22.1` of
/// `go version go1.22.1 linux/amd64`, `17.0.9` of `openjdk version "17.0.9" 2023-10-17`.
fn version(answer: &Answer) -> Option<String> {
    [&answer.stdout, &answer.stderr]
        .into_iter()
        .flat_map(|text| text.lines().take(8))
        .flat_map(str::split_whitespace)
        .find_map(version_word)
}

fn version_word(word: &str) -> Option<String> {
    let word = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    let word = word
        .strip_prefix("go")
        .or_else(|| word.strip_prefix('v'))
        .unwrap_or(word);
    let is_version = word.starts_with(|c: char| c.is_ascii_digit())
        && word.contains('.')
        && word
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '+'));
    is_version.then(|| clean(word)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ask::tests::Fakes;

    fn check(stdout: &str, stderr: &str, expected: Option<&str>) {
        let answer = Answer {
            stdout: stdout.to_owned(),
            stderr: stderr.to_owned(),
        };
        assert_eq!(version(&answer).as_deref(), expected, "{stdout}{stderr}");
    }

    #[test]
    fn every_runtimes_way_of_saying_it_is_understood() {
        check("Python 3.11.2\n", "", Some("3.11.2"));
        check("", "Python 2.7.18\n", Some("2.7.18"));
        check("v20.20.0\n", "", Some("20.20.0"));
        check(
            "ruby 3.1.2p20 (2022-04-12 revision 4491bb740a) [x86_64-linux-gnu]",
            "",
            Some("3.1.2p20"),
        );
        check("go version go1.22.1 linux/amd64", "", Some("1.22.1"));
        check("rustc 1.95.0 (59807616e 2026-04-14)", "", Some("1.95.0"));
        check(
            "",
            "openjdk version \"17.0.9\" 2023-10-17\nOpenJDK Runtime",
            Some("17.0.9"),
        );
        check("", "java version \"1.8.0_392\"", Some("1.8.0_392"));
        check(
            "Picked up JAVA_TOOL_OPTIONS\n",
            "openjdk version \"21.0.1\"",
            Some("21.0.1"),
        );
    }

    #[test]
    fn garbage_is_no_version() {
        check("", "", None);
        check("command not found", "", None);
        check("\u{1b}]0;title\u{7}", "\0\0", None);
        check("12", "", None);
        let long = format!("1.{}", "9".repeat(100_000));
        let answer = Answer {
            stdout: long,
            stderr: String::new(),
        };
        assert!(version(&answer).unwrap().len() <= 128);
    }

    #[tokio::test]
    async fn what_hangs_or_floods_costs_only_its_own_line() {
        let fakes = Fakes::new();
        fakes
            .add("python3", "echo Python 3.99.1")
            .add("node", "exec /bin/sleep 1000")
            .add("ruby", "while :; do echo ruby 9.9; done")
            .add("go", "printf '\\377\\001'; exit 0")
            .add("rustc", "exit 1")
            .add("java", "echo 'openjdk version \"42.0.1\"' >&2");
        let mut found = Vec::new();
        // A script that was written a moment ago may still be open in a child of another test.
        for _ in 0..5 {
            found = ask_all(&fakes.path(), None).await;
            if found.len() == 2 {
                break;
            }
        }
        let words: Vec<_> = found
            .iter()
            .map(|runtime| format!("{} {}", runtime.name, runtime.version))
            .collect();
        assert_eq!(words, ["python 3.99.1", "java 42.0.1"]);
    }

    #[tokio::test]
    async fn nothing_in_the_path_is_nothing_found() {
        assert!(ask_all(OsStr::new(""), None).await.is_empty());
    }
}
