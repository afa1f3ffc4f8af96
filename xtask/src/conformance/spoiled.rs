//! Nodes that are wrong in one thing, and the rows that have to find it: a table that cannot fail
//! says nothing.
//!
//! Two of our nodes are spoiled from outside: the Rust page by the command that starts it, the node
//! in Python by words of its source, in a copy.

use std::ffi::OsString;
use std::path::Path;
use std::{fs, thread};

use anyhow::{Context as _, bail};
use serde_json::Value;

use super::{PYTHON_NODE, TABLE, program, python_words};
use crate::test::Untested;
use crate::workspace::{self, ROOT};
use crate::{needs, process, say};

/// Tables at a time: a row that has to pass must not be late because of the others.
const AT_ONCE: usize = 3;

/// How a node is spoiled.
enum Way {
    /// By this line of a shell, in which the Rust page stands for `$0`.
    Started(&'static str),
    /// The node in Python: in this file, these words become those.
    Written(&'static str, &'static str, &'static str),
}

use Way::{Started, Written};

/// A node that is wrong, the rows that it is judged by, and those of them that have to fail.
struct Spoiled {
    about: &'static str,
    way: Way,
    rows: &'static [&'static str],
    fails: &'static [&'static str],
}

const SPOILED: &[Spoiled] = &[
    Spoiled {
        about: "a node that forgets everything when it ends",
        way: Started(r#"rm -rf "$2"/*; exec "$0" "$1" "$2""#),
        rows: &["ping", "pin-mismatch", "killed-node"],
        fails: &["pin-mismatch", "killed-node"],
    },
    Spoiled {
        about: "a node whose commands have no PATH",
        way: Started(r#"exec env -u PATH "$0" "$1" "$2""#),
        rows: &["run-shell", "run-env"],
        fails: &["run-env"],
    },
    Spoiled {
        about: "a node whose clock is an hour ahead",
        way: Started(r#"exec faketime -f +1h "$0" "$1" "$2""#),
        rows: &["ping", "clock"],
        fails: &["clock"],
    },
    Spoiled {
        about: "a node that ends with its first connection",
        way: Started(r#"exec timeout 2 "$0" "$1" "$2""#),
        rows: &["run-argv", "silence"],
        fails: &["silence"],
    },
    Spoiled {
        about: "no node at all",
        way: Started("false"),
        rows: &["upgrade"],
        fails: &["upgrade"],
    },
    Spoiled {
        about: "a node that believes every signature",
        way: Written(
            "handshake.py",
            "if not verifies(gateway.gateway_key,",
            "if False and not verifies(gateway.gateway_key,",
        ),
        rows: &[
            "proof-signature",
            "proof-elsewhere",
            "proof-weak-key",
            "ledger-none",
        ],
        fails: &["proof-signature", "proof-elsewhere", "proof-weak-key"],
    },
    Spoiled {
        about: "a node that does not know its own key",
        way: Written(
            "handshake.py",
            "if gateway.gateway_key == caller.identity.public_key:",
            "if False:",
        ),
        rows: &["own-key", "proof-signature"],
        fails: &["own-key"],
    },
    Spoiled {
        about: "a node that does not look at what a code was committed to",
        way: Written(
            "handshake.py",
            "if hashlib.sha256(verdict.code_reveal).digest() != gateway.code_commit:",
            "if False:",
        ),
        rows: &["code-commitment", "code-shown"],
        fails: &["code-commitment"],
    },
    Spoiled {
        about: "a node that answers pings with a number of its own",
        way: Written(
            "link.py",
            "Pong(message.number)",
            "Pong(message.number + 1)",
        ),
        rows: &["ping", "websocket-ping"],
        fails: &["ping"],
    },
    Spoiled {
        about: "a node that starts what it has started",
        way: Written(
            "runs.py",
            "known = self._runs.get(message.run_id)\n",
            "known = None\n",
        ),
        rows: &["run-argv", "start-twice", "start-changed"],
        fails: &["start-twice", "start-changed"],
    },
    Spoiled {
        about: "a node that forgets no run",
        way: Written("link.py", "self._runs.forget(message.run_id)", "pass"),
        rows: &["ended-again", "start-forgotten", "forget"],
        fails: &["start-forgotten", "forget"],
    },
    Spoiled {
        about: "a node that sends all output again after a cut",
        way: Written(
            "link.py",
            "{Stream.STDOUT: message.stdout, Stream.STDERR: message.stderr})\n            run.",
            "{stream: 0 for stream in Stream})\n            run.",
        ),
        rows: &["output-whole", "cut-running", "cut-ended"],
        fails: &["cut-running", "cut-ended"],
    },
    Spoiled {
        about: "a node that heeds no run's window",
        way: Written(
            "link.py",
            "min(room, self._windows.run_bytes - cursor.under_way)",
            "room",
        ),
        rows: &["output-whole", "window-run"],
        fails: &["window-run"],
    },
    Spoiled {
        about: "a node that heeds no connection's window",
        way: Written(
            "link.py",
            "min(self._windows.connection_bytes, self._road.bytes_max())",
            "self._road.bytes_max()",
        ),
        rows: &["window-run", "window-connection"],
        fails: &["window-connection"],
    },
    Spoiled {
        about: "a node whose chunks are as long as it likes",
        way: Written("link.py", "self._windows.chunk_bytes_max, ", ""),
        rows: &["output-live", "output-chunks"],
        fails: &["output-chunks"],
    },
    Spoiled {
        about: "a node that cancels nothing",
        way: Written(
            "link.py",
            "run.stop(Outcome.CANCELLED, message.grace_ms / 1000)",
            "pass",
        ),
        rows: &["signal", "cancel", "cancel-kill", "timeout"],
        fails: &["cancel", "cancel-kill"],
    },
    Spoiled {
        about: "a node for which every command exits 0",
        way: Written("process.py", "ExitCode(returned)", "ExitCode(0)"),
        rows: &["run-argv", "run-codes"],
        fails: &["run-codes"],
    },
    Spoiled {
        about: "a node that comes back when it likes",
        way: Written("link.py", "message.back_in_ms / 1000", "0.0"),
        rows: &["reconnect", "goodbye"],
        fails: &["goodbye"],
    },
];

/// Judges each of them, and returns what could not be. `python` is an interpreter with the packages
/// of the node in Python, if there is one.
///
/// # Errors
///
/// When one passes a row that it has to fail, or fails another.
pub(super) fn check(python: Option<&Path>) -> anyhow::Result<Vec<Untested>> {
    let mut untested = Vec::new();
    let mut here = Vec::new();
    for spoiled in SPOILED {
        match spoiled.lacks(python) {
            Some(what) => untested.push(Untested::new(spoiled.about, what)),
            None => here.push(spoiled),
        }
    }
    let copies = tempfile::tempdir().context("making a directory for copies")?;
    let judged = |(number, spoiled): (usize, &Spoiled)| {
        spoiled.judge(python, &copies.path().join(number.to_string()))
    };
    let numbered: Vec<_> = here.into_iter().enumerate().collect();
    let mut wrong = Vec::new();
    for some in numbered.chunks(AT_ONCE) {
        thread::scope(|scope| {
            let threads = some
                .iter()
                .map(|&one| (one.1, scope.spawn(move || judged(one))));
            for (spoiled, thread) in threads.collect::<Vec<_>>() {
                let ended = thread
                    .join()
                    .unwrap_or_else(|_| bail!("its thread has panicked"));
                match ended.with_context(|| spoiled.about) {
                    Ok(()) => say::line(&format!(
                        "{}: fails {}, as it has to",
                        spoiled.about,
                        spoiled.fails.join(" and ")
                    )),
                    Err(error) => {
                        say::failure(&error);
                        wrong.push(spoiled.about);
                    }
                }
            }
        });
    }
    if !wrong.is_empty() {
        bail!(
            "the table does not find what is wrong with {}",
            wrong.join(", ")
        )
    }
    Ok(untested)
}

impl Spoiled {
    /// Returns what is not here that this one needs.
    fn lacks(&self, python: Option<&Path>) -> Option<&'static str> {
        match self.way {
            Started(line) if line.contains("faketime") && needs::find("faketime").is_none() => {
                Some("`faketime` is not installed")
            }
            Written(..) if python.is_none() => Some("the node in Python cannot be started"),
            Started(_) | Written(..) => None,
        }
    }

    /// Makes sure that it fails the rows that it has to fail, and no others.
    fn judge(&self, python: Option<&Path>, copy: &Path) -> anyhow::Result<()> {
        let mut table = program();
        table.args(["--json", "--patience", "10"]);
        table.args(self.rows.iter().flat_map(|row| ["--only", row]));
        table.arg("--");
        match (&self.way, python) {
            (Started(line), _) => {
                let page = workspace::target().join("debug/examples/own_node");
                let start = ["-c", line].map(OsString::from);
                table
                    .arg("sh")
                    .args(start)
                    .arg(page)
                    .args(["{url}", "{state_dir}"]);
            }
            (Written(file, good, bad), Some(python)) => {
                rewrite(&ROOT.join(PYTHON_NODE), copy, file, good, bad)?;
                table.args(python_words(python)).env("PYTHONPATH", copy);
                // Python looks first where it is started.
                table.current_dir(copy);
            }
            (Written(..), None) => bail!("there is no Python"),
        }
        let output = process::output(&mut table, TABLE)?;
        let said: Value = serde_json::from_str(&output.stdout)
            .with_context(|| output.stderr.trim_end().to_owned())?;
        let rows = said["rows"].as_array().into_iter().flatten();
        let failed = rows.filter(|row| row["result"] == "FAILED");
        let failed: Vec<_> = failed.filter_map(|row| row["row"].as_str()).collect();
        if failed != *self.fails || output.status.code() != Some(1) {
            bail!(
                "it has to fail {:?}, and fails {failed:?}: {said:#}",
                self.fails
            );
        }
        Ok(())
    }
}

/// Copies the package of the node in Python, with other words in one of its files.
fn rewrite(node: &Path, copy: &Path, file: &str, good: &str, bad: &str) -> anyhow::Result<()> {
    let (from, to) = (node.join("moltis_node"), copy.join("moltis_node"));
    fs::create_dir_all(&to).with_context(|| format!("making {}", to.display()))?;
    let sources = fs::read_dir(&from).with_context(|| format!("reading {}", from.display()))?;
    let mut found = 0;
    for source in sources {
        let source = source?.path();
        if source.extension().is_none_or(|extension| extension != "py") {
            continue;
        }
        let name = source.file_name().unwrap_or_default();
        let mut text =
            fs::read_to_string(&source).with_context(|| format!("reading {}", source.display()))?;
        if name == file {
            found = text.matches(good).count();
            text = text.replace(good, bad);
        }
        fs::write(to.join(name), text)?;
    }
    if found != 1 {
        bail!("`{good}` is {found} times in {file}: once is expected");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_spoiled_is_there_once_and_must_fail_something() {
        let copies = tempfile::tempdir().unwrap();
        for (number, spoiled) in SPOILED.iter().enumerate() {
            assert!(!spoiled.fails.is_empty(), "{}", spoiled.about);
            for row in spoiled.fails {
                assert!(spoiled.rows.contains(row), "{}: {row}", spoiled.about);
            }
            if let Written(file, good, bad) = spoiled.way {
                let copy = copies.path().join(number.to_string());
                rewrite(&ROOT.join(PYTHON_NODE), &copy, file, good, bad).unwrap();
            }
        }
    }
}
