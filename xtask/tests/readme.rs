//! The README's commands work, word for word, as somebody types them after cloning.
//!
//! The first command runs here out of the file, in an empty home, into a pipe and on a terminal. The
//! second one runs these very tests, so here it is only begun: that it starts, does its first parts,
//! and leaves by Ctrl+C with its summary. Its parts are what continuous integration runs, and that
//! this is nothing but the second command is checked as text. A shorter selection by a variable would
//! not be what a person types.

use std::env;
use std::fs;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

/// How long a command may take until it prints what is waited for: a build may be among it.
const LONG: Duration = Duration::from_mins(20);

/// How long a command may take to leave after Ctrl+C.
const LEAVE: Duration = Duration::from_mins(2);

/// Returns the commands in the README's blocks of shell.
fn commands() -> Vec<String> {
    let readme = fs::read_to_string(root().join("README.md")).expect("there is a README");
    let mut commands = Vec::new();
    for block in readme.split("```sh\n").skip(1) {
        let (block, _) = block.split_once("```").expect("a block of shell ends");
        commands.extend(block.lines().map(str::to_owned));
    }
    commands
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("a crate lies in a repository")
}

#[test]
fn the_two_commands_are_the_first_two() {
    assert_eq!(commands(), ["cargo xtask quickstart", "cargo xtask test"]);
}

#[test]
fn ci_runs_the_second_command() {
    let ci = fs::read_to_string(root().join(".ci/run")).expect("there is a .ci/run");
    let second = &commands()[1];
    assert!(
        ci.ends_with(&format!("\nexport CI=1\nexec {second}\n")),
        "{ci}"
    );
}

// `cargo xtask test` runs what is called "word for word" apart, one after the other, because it builds.

#[test]
fn the_first_command_works_word_for_word_in_an_empty_home() {
    let person = Person::new();
    let mut command = person.shell(&commands()[0]);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut typed = Typed::start(&mut command);
    let folder = typed.folder();
    let status = typed.wait(LONG);
    assert!(status.success(), "`{}` ended with {status}", commands()[0]);
    person.finds_nothing_of(&folder);
}

#[test]
fn the_first_command_word_for_word_stays_up_on_a_terminal_until_ctrl_c() {
    let person = Person::new();
    let (mut pty, pts) = pty_process::blocking::open().expect("there are terminals");
    let screen = fs::File::from(rustix::io::dup(&pty).expect("a terminal has one reader more"));
    let child = person.on(pts, &instead_of_the_shell(&commands()[0]));
    let mut typed = Typed::of(child, screen);
    let folder = typed.folder();
    let pasted = typed.wait_for("export MOLTIS_HOME=");
    typed.wait_for("moltis node shell");

    let line = format!("{pasted}; moltis node exec quickstart -- echo pasted");
    let output = person.shell(&line).output().expect("there is a shell");
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said, "pasted\n", "`{line}`: {output:?}");

    pty.write_all(b"\x03").expect("a terminal takes a key");
    let status = typed.wait(LEAVE);
    assert!(status.success(), "Ctrl+C ended it with {status}");
    person.finds_nothing_of(&folder);
}

#[test]
fn the_second_command_word_for_word_begins_and_leaves_by_ctrl_c_with_its_summary() {
    let person = Person::new();
    let mut command = person.shell(&instead_of_the_shell(&commands()[1]));
    // A process group of its own, so that the signal reaches all of it, as from a terminal.
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut typed = Typed::start(command.process_group(0));
    typed.wait_for("cargo fmt --check");
    let group = Pid::from_child(&typed.child);
    kill_process_group(group, Signal::INT).expect("it is still there");
    typed.wait_for("summary");
    typed.wait_for("in all");
    let status = typed.wait(LEAVE);
    assert_eq!(status.code(), Some(1), "stopped is not passed: {status}");
    assert!(
        kill_process_group(group, Signal::TERM).is_err(),
        "somebody is left in its group"
    );
    person.finds_nothing_of(person.folder.path());
}

/// Returns a line after which no shell is left to die of a Ctrl+C itself: the code is the command's.
fn instead_of_the_shell(command: &str) -> String {
    format!("exec {command}")
}

/// Somebody with an empty home and an empty folder for temporary files.
struct Person {
    folder: tempfile::TempDir,
}

impl Person {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder for the home");
        let person = Self { folder };
        for dir in [person.home(), person.temporary()] {
            fs::create_dir(dir).expect("a fresh folder takes another");
        }
        person
    }

    fn home(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    fn temporary(&self) -> PathBuf {
        self.folder.path().join("tmp")
    }

    /// Returns a shell with this line, at the root of the repository.
    fn shell(&self, line: &str) -> Command {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", line]).current_dir(root());
        shell.env_clear().envs(self.environment());
        shell
    }

    /// Starts a shell with this line on a terminal.
    fn on(&self, pts: pty_process::blocking::Pts, line: &str) -> Child {
        let shell = pty_process::blocking::Command::new("/bin/sh");
        let shell = shell.args(["-c", line]).current_dir(root());
        let shell = shell.env_clear().envs(self.environment());
        shell.spawn(pts).expect("there is a shell")
    }

    /// Returns the environment without what cargo told this test about itself, but with what tells
    /// cargo and rustup where they keep things.
    fn environment(&self) -> Vec<(std::ffi::OsString, std::ffi::OsString)> {
        let is_ours = |name: &str| {
            let ours = [
                "CARGO_PKG_",
                "CARGO_MANIFEST_",
                "CARGO_BIN_",
                "NEXTEST",
                "MOLTIS_",
            ];
            ours.iter().any(|prefix| name.starts_with(prefix)) || matches!(name, "CARGO" | "CI")
        };
        let mut variables: Vec<_> = env::vars_os()
            .filter(|(name, _)| !is_ours(&name.to_string_lossy()))
            .collect();
        for (name, value) in [
            ("HOME", self.home()),
            ("TMPDIR", self.temporary()),
            ("CARGO_HOME", kept("CARGO_HOME", ".cargo")),
            ("RUSTUP_HOME", kept("RUSTUP_HOME", ".rustup")),
        ] {
            variables.push((name.into(), value.into()));
        }
        variables
    }

    /// Nothing is left: neither in the home nor elsewhere, neither files nor processes.
    fn finds_nothing_of(&self, folder: &Path) {
        for dir in [self.home(), self.temporary()] {
            let left: Vec<_> = fs::read_dir(dir).expect("it is there").collect();
            assert!(left.is_empty(), "left behind: {left:?}");
        }
        assert_eq!(running_in(folder), Vec::<String>::new());
        assert_eq!(running_in(self.folder.path()), Vec::<String>::new());
        if folder != self.folder.path() {
            assert!(!folder.exists(), "{} is left", folder.display());
        }
    }
}

/// A command that was typed, and what it printed so far; shown to whoever watches the test as well.
struct Typed {
    child: Child,
    lines: Receiver<String>,
    heard: String,
}

impl Typed {
    fn start(command: &mut Command) -> Self {
        let mut child = command.spawn().expect("there is a shell");
        let stdout = child.stdout.take().expect("its output was asked for");
        Self::of(child, stdout)
    }

    fn of(child: Child, output: impl Read + Send + 'static) -> Self {
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            // A terminal whose last user is gone answers with an error: that is its end.
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                writeln!(std::io::stdout(), "    {line}").ok(); // nobody watches
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self {
            child,
            lines,
            heard: String::new(),
        }
    }

    /// Returns the first line from here on that holds these words.
    fn wait_for(&mut self, words: &str) -> String {
        let until = Instant::now() + LONG;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left);
            assert!(line.is_ok(), "no `{words}` in:\n{}", self.heard);
            let line = line.unwrap_or_default();
            self.heard.push_str(&line);
            self.heard.push('\n');
            if line.contains(words) {
                return line.trim().to_owned();
            }
        }
    }

    /// Returns the folder that a quickstart says it works in.
    fn folder(&mut self) -> PathBuf {
        let line = self.wait_for("all of it is in ");
        let (_, folder) = line.rsplit_once(" is in ").expect("it was waited for");
        let folder = PathBuf::from(folder.trim_end_matches('.'));
        assert!(folder.is_dir(), "{} is no folder", folder.display());
        folder
    }

    fn wait(&mut self, limit: Duration) -> ExitStatus {
        let since = Instant::now();
        loop {
            // Reads on, or a full pipe would hold the command.
            self.lines.try_iter().for_each(drop);
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                return status;
            }
            assert!(since.elapsed() < limit, "it does not end");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Typed {
    fn drop(&mut self) {
        self.child.kill().ok(); // it has ended
        self.child.wait().ok();
    }
}

/// Returns where cargo or rustup keeps its things, which an empty home would hide.
fn kept(variable: &str, folder: &str) -> PathBuf {
    env::var_os(variable).map_or_else(
        || PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(folder),
        PathBuf::from,
    )
}

/// Returns the command lines of the processes that name this folder, in their words or, where Linux
/// shows it, in their environment.
fn running_in(folder: &Path) -> Vec<String> {
    let folder = folder.display().to_string();
    let listed = Command::new("ps")
        .args(["-axww", "-o", "pid=,command="])
        .output();
    let listed = listed.expect("there is a `ps`").stdout;
    let lines = String::from_utf8_lossy(&listed).into_owned();
    let names_it = |line: &&str| {
        let pid = line.split_whitespace().next().unwrap_or_default();
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        line.contains(&folder) || String::from_utf8_lossy(&environment).contains(&folder)
    };
    lines.lines().filter(names_it).map(str::to_owned).collect()
}
