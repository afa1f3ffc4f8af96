//! From a spec to a child process: checked against the owner's rules, then spawned in a group of
//! its own, with an environment that we built and three descriptors.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use moltis_proto::run::{Reason, RunSpec, StdinMode, Tty};
use moltis_proto::{RunRefusal, env};
use rustix::pipe::{PipeFlags, pipe_with};

use super::config::Rules;
use super::kernel::{Child, Eyes, Found, Kernel, Name, System};
use super::lookers::Place;
use super::pipes::{Sink, Source, Terminal};
use super::program::{Program, Search, StartFailure, is_allowed};
#[cfg(feature = "simulation")]
use crate::simulation;

/// Everything that is decided before a child is spawned.
#[derive(Debug)]
pub(super) struct Plan {
    program: Program,
    cwd: PathBuf,
    env: BTreeMap<String, String>,
    stdin: StdinMode,
    tty: Option<Tty>,
    /// The longest time that it gets.
    pub(super) timeout: Option<Duration>,
    /// Between TERM and KILL when that time is over.
    pub(super) grace: Duration,
}

/// How files are looked at, and where that has come to.
#[derive(Debug)]
pub(super) struct Look {
    eyes: Eyes,
    place: Place,
}

/// Why there is no plan.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoPlan {
    /// The owner, or the protocol, says no.
    Refused(RunRefusal),
    /// It may run, but cannot.
    Failed(StartFailure),
}

/// A child, and our ends of its descriptors.
#[derive(Debug)]
pub(super) struct Spawned {
    pub(super) child: Child,
    pub(super) stdin: Option<Sink>,
    pub(super) stdout: Source,
    pub(super) stderr: Option<Source>,
    pub(super) terminal: Option<Terminal>,
}

impl Look {
    pub(super) fn new(eyes: Eyes, place: Place) -> Self {
        Self { eyes, place }
    }

    /// Looks at a path, through links.
    pub(super) fn at(&self, path: &Path) -> io::Result<Found> {
        self.place.set(path);
        self.eyes.look_at(path)
    }

    /// Reads what the spawn will read: a program and its interpreter. From then on it is a matter of
    /// moments whether they still answer.
    fn through(&self, program: &Path) {
        self.place.set(program);
        let head = self.eyes.head_of(program);
        let words = head.strip_prefix(b"#!").map(String::from_utf8_lossy);
        let interpreter = words.as_deref().and_then(|words| {
            let line = words.lines().next()?;
            line.split_ascii_whitespace().next()
        });
        if let Some(interpreter) = interpreter {
            self.place.set(Path::new(interpreter));
            self.eyes.head_of(Path::new(interpreter));
        }
    }
}

impl Plan {
    /// Checks a spec against the rules of this machine, in the order in which a person would ask.
    /// Waits for the file systems on which its files are.
    pub(super) fn new(spec: &RunSpec, rules: &Rules, look: &Look) -> Result<Self, NoPlan> {
        if !spec.is_sound() {
            return Err(NoPlan::Refused(RunRefusal::Invalid));
        }
        let mut asked = spec.env.clone();
        if let Some(tty) = &spec.tty {
            asked.insert("TERM".to_owned(), tty.term.clone());
        }
        if env::check(&asked, &rules.env_allow).is_err() {
            return Err(NoPlan::Refused(RunRefusal::EnvNotAllowed));
        }
        let timeout = timeout_of(spec, rules).map_err(NoPlan::Refused)?;
        let mut env = rules.base_env.clone();
        env.extend(asked);
        let path = env.get("PATH").map_or("", String::as_str);
        let cwd = spec
            .cwd
            .as_ref()
            .map_or_else(|| rules.working_dir.clone(), PathBuf::from);
        let search = Search {
            look,
            path,
            cwd: &cwd,
        };
        let found = search.find(&spec.command);
        if !is_allowed(&rules.policy, &spec.command, found.as_ref().ok(), &search) {
            return Err(NoPlan::Refused(RunRefusal::Policy));
        }
        check_directory(&cwd, look).map_err(NoPlan::Failed)?;
        let program = found.map_err(NoPlan::Failed)?;
        look.through(&program.file);
        Ok(Self {
            program,
            cwd,
            env,
            stdin: spec.stdin,
            tty: spec.tty.clone(),
            timeout,
            grace: Duration::from_millis(spec.grace_ms),
        })
    }

    /// Spawns the child. Must be called inside a tokio runtime, which its pipes belong to.
    ///
    /// Our ends of its descriptors are made first: behind the spawn nothing can fail any more, so
    /// there is no child that nobody knows.
    pub(super) fn spawn(&self, kernel: &mut Kernel, run: Name) -> Result<Spawned, StartFailure> {
        let spawned = match self.spawn_file(&self.program, kernel, run) {
            // A script without a first line `#!…`: shells and execvp(3) run it as /bin/sh does.
            Err(error)
                if error.raw_os_error() == Some(rustix::io::Errno::NOEXEC.raw_os_error()) =>
            {
                self.spawn_file(&self.as_script(), kernel, run)
            }
            spawned => spawned,
        };
        spawned.map_err(|error| self.failure(&error))
    }

    fn spawn_file(&self, program: &Program, kernel: &mut Kernel, run: Name) -> io::Result<Spawned> {
        match (kernel, &self.tty) {
            (Kernel::System(system), Some(tty)) => {
                self.spawn_on_terminal(program, tty, system, run)
            }
            (Kernel::System(system), None) => self.spawn_on_pipes(program, system, run),
            #[cfg(feature = "simulation")]
            (Kernel::Simulated(kernel), _) => self.spawn_simulated(program, kernel, run),
        }
    }

    fn spawn_on_pipes(
        &self,
        program: &Program,
        system: &mut System,
        run: Name,
    ) -> io::Result<Spawned> {
        let (stdout, childs_stdout) = pipe_with(PipeFlags::CLOEXEC)?;
        let (stderr, childs_stderr) = pipe_with(PipeFlags::CLOEXEC)?;
        let (stdout, stderr) = (Source::pipe(stdout)?, Source::pipe(stderr)?);
        let (childs_stdin, stdin) = match self.stdin {
            StdinMode::Empty => (None, None),
            StdinMode::Open => {
                let (childs, ours) = pipe_with(PipeFlags::CLOEXEC)?;
                (Some(childs), Some(Sink::pipe(ours)?))
            }
        };
        let mut command = Command::new(&program.file);
        if let Some((word, arguments)) = program.argv.split_first() {
            command.arg0(word).args(arguments);
        }
        command
            .env_clear()
            .envs(&self.env)
            .current_dir(&self.cwd)
            .process_group(0);
        // The command keeps what it is given, so it ends in here.
        let mark = system.mark_of(run);
        let child = system.spawn(mark, move || {
            let childs_stdin = childs_stdin.as_ref().map(low).transpose()?;
            command
                .stdin(childs_stdin.unwrap_or_else(Stdio::null))
                .stdout(low(&childs_stdout)?)
                .stderr(low(&childs_stderr)?)
                .spawn()
        })?;
        Ok(Spawned {
            child: Child::spawned(child, mark),
            stdin,
            stdout,
            stderr: Some(stderr),
            terminal: None,
        })
    }

    /// The child leads a session, and so a group, whose terminal we hold the other end of.
    fn spawn_on_terminal(
        &self,
        program: &Program,
        tty: &Tty,
        system: &mut System,
        run: Name,
    ) -> io::Result<Spawned> {
        let (ours, childs) = pty_process::blocking::open().map_err(io::Error::other)?;
        let size = pty_process::Size::new(tty.size.rows, tty.size.cols);
        ours.resize(size).map_err(io::Error::other)?;
        let terminal = Terminal::new(OwnedFd::from(ours))?;
        let mut command = pty_process::blocking::Command::new(&program.file);
        if let Some((word, arguments)) = program.argv.split_first() {
            command = command.arg0(word).args(arguments);
        }
        if self.stdin == StdinMode::Empty {
            command = command.stdin(Stdio::null());
        }
        let command = command.env_clear().envs(&self.env).current_dir(&self.cwd);
        let mark = system.mark_of(run);
        let spawned = system.spawn(mark, || command.spawn(childs));
        let child = spawned.map_err(|error| match error {
            pty_process::Error::Io(error) => error,
            pty_process::Error::Rustix(error) => error.into(),
            other => io::Error::other(other),
        })?;
        let stdin = (self.stdin == StdinMode::Open).then(|| Sink::terminal(terminal.clone()));
        Ok(Spawned {
            child: Child::spawned(child, mark),
            stdin,
            stdout: Source::terminal(terminal.clone()),
            stderr: None,
            terminal: Some(terminal),
        })
    }

    #[cfg(feature = "simulation")]
    fn spawn_simulated(
        &self,
        program: &Program,
        kernel: &std::sync::Arc<dyn simulation::Kernel>,
        run: Name,
    ) -> io::Result<Spawned> {
        let simulation::Child { pid, ends } = kernel.spawn(&simulation::Order {
            run: (run.run, run.journal),
            file: &program.file,
            argv: &program.argv,
            env: &self.env,
            cwd: &self.cwd,
            stdin: self.stdin,
            tty: self.tty.as_ref(),
        })?;
        let pid = rustix::process::Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
        let child = Child::simulated(pid, std::sync::Arc::clone(kernel));
        Ok(match ends {
            simulation::Ends::Pipes {
                stdin,
                stdout,
                stderr,
            } => Spawned {
                child,
                stdin: stdin.map(Sink::simulated),
                stdout: Source::simulated(stdout),
                stderr: Some(Source::simulated(stderr)),
                terminal: None,
            },
            simulation::Ends::Terminal(terminal) => {
                let terminal = Terminal::Simulated(terminal);
                let stdin = self.stdin == StdinMode::Open;
                Spawned {
                    child,
                    stdin: stdin.then(|| Sink::terminal(terminal.clone())),
                    stdout: Source::terminal(terminal.clone()),
                    stderr: None,
                    terminal: Some(terminal),
                }
            }
        })
    }

    fn as_script(&self) -> Program {
        let mut argv = vec!["sh".to_owned(), self.program.file.display().to_string()];
        argv.extend(self.program.argv.iter().skip(1).cloned());
        Program {
            file: PathBuf::from("/bin/sh"),
            argv,
        }
    }

    /// Tells apart what the system says about a file that was there a moment ago.
    fn failure(&self, error: &io::Error) -> StartFailure {
        let file = self.program.file.display();
        match error.kind() {
            io::ErrorKind::NotFound => StartFailure::new(
                Reason::NotExecutable,
                format!("`{file}` names an interpreter that does not exist"),
            ),
            io::ErrorKind::PermissionDenied => StartFailure::new(
                Reason::NotExecutable,
                format!("`{file}` may not be executed: {error}"),
            ),
            _ => StartFailure::in_words(format!("`{file}` could not be started: {error}")),
        }
    }
}

/// Returns the same end under the lowest number that is free: glibc's `posix_spawn` takes none at or
/// above the limit, which is the child's while it is spawned.
fn low(end: &OwnedFd) -> io::Result<Stdio> {
    Ok(end.try_clone()?.into())
}

/// Returns the time of a run, or the refusal that names the longest.
fn timeout_of(spec: &RunSpec, rules: &Rules) -> Result<Option<Duration>, RunRefusal> {
    let Some(asked_ms) = spec.timeout_ms else {
        let has_none = spec.tty.is_some();
        return Ok(rules.timeout_default.filter(|_| !has_none));
    };
    let asked = Duration::from_millis(asked_ms);
    match rules.timeout_max {
        Some(longest) if asked > longest => Err(RunRefusal::TimeoutTooLong {
            longest_ms: u64::try_from(longest.as_millis()).unwrap_or(u64::MAX),
        }),
        _ => Ok(Some(asked)),
    }
}

fn check_directory(cwd: &Path, look: &Look) -> Result<(), StartFailure> {
    let wrong = |why: &str| {
        Err(StartFailure::new(
            Reason::WorkingDir,
            format!("the working directory `{}` {why}", cwd.display()),
        ))
    };
    match look.at(cwd) {
        Ok(found) if !found.is_dir => wrong("is not a directory"),
        Ok(found) if !found.may_execute => wrong("may not be entered"),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => wrong("does not exist"),
        Err(error) => wrong(&format!("cannot be entered: {error}")),
    }
}
