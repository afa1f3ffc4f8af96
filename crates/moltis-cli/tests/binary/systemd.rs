//! A real systemd user manager, in mount, process and cgroup namespaces of its own, as a machine
//! that can be restarted. Root only; where it cannot be had, that is told.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, geteuid, kill_process};

use crate::harness::{Done, Home, Process, eventually, not_tested, run};

/// The manager itself; systemctl is in everybody's PATH.
const SYSTEMD: &str = "/lib/systemd/systemd";

/// In the outer namespaces: a cgroup of our own, so that no other manager has the same root.
const OUTER: &str = r#"set -e
mount --make-rprivate /
mkdir -p "$1/cgroup"
mount -t cgroup2 none "$1/cgroup"
mkdir -p "$1/cgroup/$2"
echo $$ > "$1/cgroup/$2/cgroup.procs"
umount "$1/cgroup"
exec unshare --cgroup bash -c "$3" bash "$1" "$4"
"#;

/// In the inner ones: what systemd looks for, and the manager. It ends with whoever started it.
const INNER: &str = r#"set -e
umount -R /sys/fs/cgroup 2>/dev/null || true
mount -t cgroup2 none /sys/fs/cgroup
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system
mkdir -p /var/lib/systemd
mount -t tmpfs tmpfs /var/lib/systemd
if [ -e "$1/boot_id" ]; then mount --bind "$1/boot_id" /proc/sys/kernel/random/boot_id; fi
export HOME="$2" XDG_RUNTIME_DIR="$1/run"
rm -rf "$XDG_RUNTIME_DIR"
mkdir -m 700 "$XDG_RUNTIME_DIR"
/lib/systemd/systemd --user --log-target=console >>"$1/systemd.log" 2>&1 &
wait
"#;

/// The manager of one user of one machine, which is a [`Home`].
#[derive(Debug)]
pub(crate) struct UserManager<'a> {
    machine: &'a Home,
    outer: Child,
    /// The first process of its namespaces, as we see it.
    init: Pid,
    cgroup: String,
    /// The binary that [`UserManager::moltis`] starts.
    pub(crate) program: PathBuf,
}

impl<'a> UserManager<'a> {
    /// Switches the machine on; `None` where that is not possible here, which is told then.
    pub(crate) fn start(machine: &'a Home) -> Option<Self> {
        let why = if !geteuid().is_root() {
            "not root"
        } else if !Path::new(SYSTEMD).exists() {
            "systemd is not installed"
        } else if !unshare().arg("true").status().unwrap().success() {
            "namespaces cannot be made here"
        } else {
            return Some(Self::switch_on(machine));
        };
        not_tested("a systemd user manager", why);
        None
    }

    fn switch_on(machine: &'a Home) -> Self {
        let dir = machine.user().parent().unwrap().to_owned();
        let cgroup = format!("moltis-{}", dir.file_name().unwrap().to_str().unwrap());
        let mut outer = unshare()
            .args(["bash", "-c", OUTER, "bash"])
            .arg(&dir)
            .args([&cgroup, INNER])
            .arg(machine.user())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let children = format!("/proc/{0}/task/{0}/children", outer.id());
        let init = eventually("the first process of the namespaces", || {
            assert_eq!(outer.try_wait().unwrap(), None, "the namespaces came up");
            let children = fs::read_to_string(&children).ok()?;
            Pid::from_raw(children.split_whitespace().next()?.parse().ok()?)
        });
        let manager = Self {
            machine,
            outer,
            init,
            cgroup,
            program: env!("CARGO_BIN_EXE_moltis").into(),
        };
        eventually("the user manager", || {
            let state = run(manager.inside("systemctl", ["--user", "is-system-running"]));
            (state.stdout.trim() == "running").then_some(())
        });
        manager
    }

    /// Switches the machine off as it goes down in order: the manager ends its units.
    pub(crate) fn shut_down(mut self) {
        self.systemctl(["exit"]);
        eventually("the manager to end", || self.outer.try_wait().unwrap());
    }

    /// A program in these namespaces, with the environment of the home.
    pub(crate) fn inside<S: AsRef<OsStr>>(
        &self,
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = S>,
    ) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.init.as_raw_nonzero().to_string()])
            .args(["--mount", "--pid", "--cgroup", "--"])
            .arg(program)
            .args(args)
            .env_clear()
            .envs(self.machine.environment())
            .current_dir("/")
            .stdin(Stdio::null());
        command
    }

    /// The binary, as somebody types it who is logged in here.
    pub(crate) fn moltis<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        self.inside(&self.program, args)
    }

    /// Runs it to its end.
    pub(crate) fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Done {
        run(self.moltis(args))
    }

    /// Runs it to an end that has to be good, and returns its stdout.
    pub(crate) fn ok<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> String {
        let done = self.run(args);
        assert_eq!(done.code, 0, "{done:?}");
        done.stdout
    }

    /// Runs it to its end; it prints one JSON document.
    pub(crate) fn json<S: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
    ) -> serde_json::Value {
        serde_json::from_str(&self.ok(args)).unwrap()
    }

    /// Starts it.
    pub(crate) fn start_moltis<S: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
    ) -> Process {
        Process::start(self.moltis(args))
    }

    /// Runs `systemctl --user …`.
    pub(crate) fn systemctl<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Done {
        let args = args.into_iter().map(|arg| arg.as_ref().to_owned());
        let words: Vec<OsString> = [OsString::from("--user")].into_iter().chain(args).collect();
        run(self.inside("systemctl", words))
    }

    /// Returns a property of a unit.
    pub(crate) fn property(&self, unit: &str, name: &str) -> String {
        let done = self.systemctl(["show", "--property", name, "--value", unit]);
        done.stdout.trim().to_owned()
    }

    /// Runs a line of shell.
    pub(crate) fn shell(&self, line: &str) -> Done {
        run(self.inside("sh", ["-c", line]))
    }

    /// Where units lie.
    pub(crate) fn unit(&self, name: &str) -> PathBuf {
        self.machine.user().join(".config/systemd/user").join(name)
    }
}

impl Drop for UserManager<'_> {
    fn drop(&mut self) {
        // All that lives in its namespace ends with the first process.
        kill_process(self.init, Signal::KILL).ok();
        self.outer.wait().ok();
        let script =
            r#"mount -t cgroup2 none "$1" && find "$1/$2" -depth -type d -exec rmdir {} +"#;
        let dir = self.machine.user();
        Command::new("unshare")
            .args(["--mount", "bash", "-c", script, "bash"])
            .arg(dir.parent().unwrap().join("cgroup"))
            .arg(&self.cgroup)
            .stderr(Stdio::null())
            .status()
            .ok();
    }
}

fn unshare() -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]);
    command
}
