//! Homes, processes and waiting. Whatever a test starts is ended when its guard is dropped, also
//! the keepers, which are meant to outlive those who started them.

mod processes;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use self::processes::end_all_that_name;
pub(crate) use self::processes::{keepers_of, processes_of};

/// How long anything may take: two cores, a debug build, and other tests beside.
pub(crate) const LONG: Duration = Duration::from_mins(1);

/// An empty home in a short path, and everything that was started on it.
#[derive(Debug)]
pub(crate) struct Home {
    dir: tempfile::TempDir,
    moltis_name: &'static str,
    user_name: &'static str,
    /// What holds a disk of its own under the home.
    disk: Option<Process>,
    /// What nsenter(1) is told so that everything runs in a network of its own.
    network: Option<String>,
}

/// What a command left behind.
#[derive(Debug, Clone)]
pub(crate) struct Done {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) stdout_bytes: Vec<u8>,
}

impl Home {
    pub(crate) fn new() -> Self {
        Self::named("m", "user")
    }

    /// As [`Home::new`], where the directories of `MOLTIS_HOME` and of the user have these names.
    pub(crate) fn named(moltis_name: &'static str, user_name: &'static str) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("mo")
            .tempdir_in("/tmp")
            .unwrap();
        fs::create_dir(dir.path().join(user_name)).unwrap();
        Self {
            dir,
            moltis_name,
            user_name,
            disk: None,
            network: None,
        }
    }

    /// The same home, whose processes run in the network that nsenter(1) finds by this flag.
    pub(crate) fn in_a_network(mut self, flag: String) -> Self {
        self.network = Some(flag);
        self
    }

    /// A home that is a file system of so many MiB, which its own processes alone see; `None` where
    /// none may be mounted.
    pub(crate) fn on_a_disk(mib: u32) -> Option<Self> {
        let mut home = Self::new();
        fs::create_dir(home.path()).unwrap();
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "sh", "-c"]).arg(format!(
            "mount -t tmpfs -o size={mib}m,mode=0700 tmpfs {} && echo mounted && exec cat",
            home.path().display()
        ));
        unshare.stdin(Stdio::piped());
        let mut holder = Process::start_if_there(unshare)?;
        holder.stdout.wait_for_line_or_end();
        if !holder.stdout.text().contains("mounted") {
            holder.wait();
            return None;
        }
        home.disk = Some(holder);
        Some(home)
    }

    /// A home on an ext4 in a file, which its own processes alone see and whose power can be cut;
    /// `None` where none may be mounted. Nothing but a sync brings anything onto it.
    pub(crate) fn on_a_disk_with_a_switch() -> Option<Self> {
        let mut home = Self::new();
        fs::create_dir(home.path()).unwrap();
        fs::File::create(home.platter(0))
            .and_then(|file| file.set_len(64 << 20))
            .unwrap();
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "sh", "-c"]).arg(format!(
            "mkfs.ext4 -q -F {platter} && {} && chmod 0700 {} && sync && echo mounted && exec cat",
            home.mount(0),
            home.path().display(),
            platter = home.platter(0).display(),
        ));
        unshare.stdin(Stdio::piped());
        let mut holder = Process::start_if_there(unshare)?;
        holder.stdout.wait_for_line_or_end();
        if !holder.stdout.text().contains("mounted") {
            holder.wait();
            return None;
        }
        home.disk = Some(holder);
        Some(home)
    }

    /// The file that is the disk, before and behind the power cut.
    fn platter(&self, boot: u8) -> PathBuf {
        self.dir.path().join(format!("platter{boot}"))
    }

    /// The words that mount it. The kernel writes what is old enough, by default every five seconds;
    /// a test is quicker, or sees less than what a power cut may take.
    fn mount(&self, boot: u8) -> String {
        format!(
            "mount -o loop,commit=600 {} {}",
            self.platter(boot).display(),
            self.path().display()
        )
    }

    /// The home as this process can look at it.
    pub(crate) fn seen(&self) -> PathBuf {
        let path = self.path();
        let Some(holder) = &self.disk else {
            return path;
        };
        let root = format!("/proc/{}/root", holder.pid().as_raw_pid());
        Path::new(&root).join(path.strip_prefix("/").unwrap())
    }

    /// The directory that `MOLTIS_HOME` names; it does not exist before a command makes it.
    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join(self.moltis_name)
    }

    /// The home directory of the user.
    pub(crate) fn user(&self) -> PathBuf {
        self.dir.path().join(self.user_name)
    }

    /// Makes the home with this file in it.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
        if !self.path().exists() {
            fs::DirBuilder::new()
                .mode(0o700)
                .create(self.path())
                .unwrap();
        }
        let path = self.path().join(name);
        let mut file = fs::File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .unwrap();
        file.write_all(text.as_bytes()).unwrap();
        path
    }

    /// The binary with these arguments, in an environment that holds nothing of ours.
    pub(crate) fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let binary = env!("CARGO_BIN_EXE_moltis");
        let disk = self.disk.as_ref().map(|holder| {
            let pid = holder.pid().as_raw_pid();
            format!("--mount=/proc/{pid}/ns/mnt")
        });
        let namespaces: Vec<_> = disk.into_iter().chain(self.network.clone()).collect();
        let mut command = Command::new(binary);
        if !namespaces.is_empty() {
            command = Command::new("nsenter");
            command.args(namespaces).args(["--", binary]);
        }
        command
            .args(args)
            .env_clear()
            .envs(self.environment())
            .current_dir(self.user())
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn environment(&self) -> Vec<(&'static str, OsString)> {
        vec![
            ("PATH", "/usr/local/bin:/usr/bin:/bin".into()),
            ("HOME", self.user().into()),
            ("SHELL", "/bin/sh".into()),
            ("MOLTIS_HOME", self.path().into()),
            // Nobody's service manager is there but one that a test starts.
            ("XDG_RUNTIME_DIR", self.dir.path().join("run").into()),
            ("NO_COLOR", "1".into()),
        ]
    }

    /// Runs a command to its end.
    pub(crate) fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Done {
        run(self.command(args))
    }

    /// Runs a command that has to succeed, and returns its stdout.
    pub(crate) fn ok<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> String {
        let args: Vec<_> = args
            .into_iter()
            .map(|arg| arg.as_ref().to_owned())
            .collect();
        let done = self.run(&args);
        assert_eq!(done.code, 0, "{args:?}: {done:?}");
        done.stdout
    }

    /// Runs a command that has to print one JSON document.
    pub(crate) fn json<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Value {
        let text = self.ok(args);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Starts a command and keeps what it prints.
    pub(crate) fn start<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Process {
        Process::start(self.command(args))
    }

    /// Starts a gateway on a free port of loopback and waits until it is ready.
    pub(crate) fn gateway(&self) -> Gateway<'_> {
        self.gateway_with(&["--listen", "127.0.0.1:0"])
    }

    pub(crate) fn gateway_with(&self, args: &[&str]) -> Gateway<'_> {
        let process = self.start(["gateway"].iter().chain(args));
        Gateway::ready(self, process)
    }
}

/// Changes the gateway's database as no command does; the gateway is not running.
pub(crate) fn meddle(home: &Home, sql: String) {
    use sqlx::{ConnectOptions as _, Connection as _};
    let options =
        sqlx::sqlite::SqliteConnectOptions::new().filename(home.path().join("gateway.db"));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut database = options.connect().await.unwrap();
        let sql = sqlx::raw_sql(sqlx::AssertSqlSafe(sql));
        sql.execute(&mut database).await.unwrap();
        database.close().await.unwrap();
    });
}

impl Drop for Home {
    fn drop(&mut self) {
        // Keepers have this directory on their command line; what they run descends from them.
        end_all_that_name(self.dir.path());
    }
}

/// A gateway that runs.
#[derive(Debug)]
pub(crate) struct Gateway<'a> {
    pub(crate) home: &'a Home,
    pub(crate) process: Process,
    /// `127.0.0.1:41233`
    pub(crate) address: String,
}

impl<'a> Gateway<'a> {
    /// Waits until a process that was started as a gateway of this home is ready.
    pub(crate) fn ready(home: &'a Home, process: Process) -> Self {
        let line = process.stdout.wait_for("listening on http://");
        let address = line
            .lines()
            .find_map(|line| line.strip_prefix("listening on http://"))
            .unwrap()
            .trim()
            .to_owned();
        Self {
            home,
            process,
            address,
        }
    }

    /// Where nodes dial.
    pub(crate) fn ws(&self) -> String {
        format!("ws://{}/ws", self.address)
    }

    /// Joins a machine of its own home to this gateway, whole story.
    pub(crate) fn join(&self, home: &'a Home, name: &str) -> Process {
        self.join_with(home, &["--name", name])
    }

    pub(crate) fn join_with(&self, home: &Home, args: &[&str]) -> Process {
        self.home.ok(["node", "pairing", "enable"]);
        let ws = self.ws();
        let mut line = vec!["node", "add", "--foreground", "--host", &ws];
        line.extend(args);
        let node = home.start(line);
        let code = code_of(&node.stdout.wait_for("Connection code"));
        let id = self.request_with(&code);
        self.home.ok(["node", "approve", &id, "--yes"]);
        node.stdout.wait_for("Approved.");
        node
    }

    /// Returns the id of the request that shows this code.
    pub(crate) fn request_with(&self, code: &str) -> String {
        let pending = self.home.json(["node", "pending", "--json"]);
        let request = pending
            .as_array()
            .unwrap()
            .iter()
            .find(|request| request["connection_code"].as_str() == Some(code));
        let request = request.unwrap_or_else(|| panic!("no request shows {code}: {pending}"));
        request["id"].as_str().unwrap().to_owned()
    }

    /// Ends it without a word and starts it again on the same port.
    pub(crate) fn crash_and_restart(&mut self) {
        self.crash();
        self.restart();
    }

    /// Ends it without a word.
    pub(crate) fn crash(&mut self) {
        self.process.signal(Signal::KILL);
        self.process.wait();
    }

    /// Ends it and its keepers at once, and leaves on the disk of its home, which has a switch, what
    /// was synced. What is started from then on finds itself on another boot.
    pub(crate) fn cut_power(&mut self) {
        let home = self.home;
        let mut all = processes_of(home.dir.path());
        all.insert(self.process.pid().as_raw_pid());
        let signal_all = |signal| {
            for pid in all.iter().filter_map(|pid| Pid::from_raw(*pid)) {
                kill_process(pid, signal).ok(); // some have ended by themselves
            }
        };
        signal_all(Signal::STOP);
        fs::copy(home.platter(0), home.platter(1)).unwrap();
        signal_all(Signal::KILL);
        self.process.wait();
        let boot = home.user().join("boot");
        fs::write(&boot, "00000001-2222-4333-8444-555555555555\n").unwrap();
        let script = format!(
            "umount {} && {} && mount --bind {} /proc/sys/kernel/random/boot_id",
            home.path().display(),
            home.mount(1),
            boot.display()
        );
        let holder = home.disk.as_ref().unwrap().pid().as_raw_pid();
        let mut nsenter = Command::new("nsenter");
        nsenter.arg(format!("--mount=/proc/{holder}/ns/mnt"));
        nsenter.args(["--", "sh", "-c", &script]);
        eventually("the last process to let go of the disk", || {
            let done = nsenter.output().unwrap();
            done.status.success().then_some(())
        });
    }

    /// Starts it again on the same port.
    pub(crate) fn restart(&mut self) {
        let address = self.address.clone();
        self.process = self.home.start(["gateway", "--listen", &address]);
        self.process.stdout.wait_for("listening on http://");
    }
}

/// Returns the connection code that `node add` printed last.
pub(crate) fn code_of(printed: &str) -> String {
    let line = printed
        .lines()
        .rfind(|line| line.starts_with("Connection code"))
        .unwrap_or_else(|| panic!("no code in {printed}"));
    line.split_whitespace().nth(2).unwrap().to_owned()
}

/// A child process; ended when it is dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    pub(crate) stdout: Printed,
    pub(crate) stderr: Printed,
}

impl Process {
    pub(crate) fn start(command: Command) -> Self {
        Self::spawn(command).unwrap()
    }

    /// Starts a program that this machine may not have.
    pub(crate) fn start_if_there(command: Command) -> Option<Self> {
        Self::spawn(command).ok()
    }

    fn spawn(mut command: Command) -> std::io::Result<Self> {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let stdout = Printed::of(child.stdout.take().unwrap());
        let stderr = Printed::of(child.stderr.take().unwrap());
        Ok(Self {
            child,
            stdout,
            stderr,
        })
    }

    /// Starts a command whose outputs go elsewhere.
    pub(crate) fn unread(command: &mut Command) -> Self {
        Self {
            child: command.spawn().unwrap(),
            stdout: Printed::of(std::io::empty()),
            stderr: Printed::of(std::io::empty()),
        }
    }

    pub(crate) fn stdin(&mut self) -> std::process::ChildStdin {
        self.child.stdin.take().unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Waits for the end, and returns everything.
    pub(crate) fn wait(&mut self) -> Done {
        let status = wait_for_exit(&mut self.child);
        self.stdout.wait_for_end();
        self.stderr.wait_for_end();
        Done {
            code: code(status),
            stdout: self.stdout.text(),
            stderr: self.stderr.text(),
            stdout_bytes: self.stdout.bytes(),
        }
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// What a process printed so far, read by a thread.
#[derive(Debug, Clone)]
pub(crate) struct Printed(Arc<(Mutex<Text>, Condvar)>);

#[derive(Debug, Default)]
struct Text {
    bytes: Vec<u8>,
    ended: bool,
}

impl Printed {
    pub(crate) fn of(source: impl Read + Send + 'static) -> Self {
        let printed = Self(Arc::default());
        let writer = printed.clone();
        std::thread::spawn(move || {
            let mut source = BufReader::with_capacity(64 * 1024, source);
            loop {
                // A terminal whose last user is gone answers with an error: that is its end.
                let read = source.fill_buf().map(<[u8]>::to_vec).unwrap_or_default();
                source.consume(read.len());
                let mut text = writer.lock();
                text.bytes.extend_from_slice(&read);
                text.ended = read.is_empty();
                writer.0.1.notify_all();
                if text.ended {
                    return;
                }
            }
        });
        printed
    }

    fn lock(&self) -> MutexGuard<'_, Text> {
        self.0.0.lock().unwrap()
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.lock().bytes.clone()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }

    /// Waits until `condition` holds of what was printed.
    pub(crate) fn wait_until(&self, what: &str, condition: impl Fn(&str) -> bool) -> String {
        let mut text = self.lock();
        let deadline = std::time::SystemTime::now() + LONG;
        loop {
            let printed = String::from_utf8_lossy(&text.bytes).into_owned();
            if condition(&printed) {
                return printed;
            }
            let left = deadline.duration_since(std::time::SystemTime::now());
            match left {
                Ok(left) if !text.ended => {
                    text = self.0.1.wait_timeout(text, left).unwrap().0;
                }
                _ => panic!("waited for {what} and found: {printed}"),
            }
        }
    }

    /// Waits until this was printed, as far as the end of its line.
    pub(crate) fn wait_for(&self, wanted: &str) -> String {
        self.wait_until(wanted, |printed| {
            printed
                .find(wanted)
                .is_some_and(|at| printed[at..].contains('\n'))
        })
    }

    /// Waits until a line was printed, or nothing will be.
    pub(crate) fn wait_for_line_or_end(&self) {
        eventually("a line, or the end", || {
            let text = self.lock();
            (text.ended || text.bytes.contains(&b'\n')).then_some(())
        });
    }

    pub(crate) fn wait_for_end(&self) {
        let mut text = self.lock();
        let deadline = std::time::SystemTime::now() + LONG;
        while !text.ended {
            let left = deadline.duration_since(std::time::SystemTime::now());
            let left = left.expect("the output ends with the process");
            text = self.0.1.wait_timeout(text, left).unwrap().0;
        }
    }
}

/// Tells `cargo xtask test` what could not be done here; it decides whether that is a failure.
pub(crate) fn not_tested(name: &str, why: &str) {
    let Some(list) = std::env::var_os("MOLTIS_NOT_TESTED") else {
        return;
    };
    let mut list = fs::File::options().append(true).open(list).unwrap();
    list.write_all(format!("{name}: {why}\n").as_bytes())
        .unwrap();
}

/// Runs a command to its end.
pub(crate) fn run(command: Command) -> Done {
    Process::start(command).wait()
}

/// Asks again and again until the answer is there.
pub(crate) fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = std::time::SystemTime::now() + LONG;
    while std::time::SystemTime::now() < deadline {
        if let Some(answer) = ask() {
            return answer;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("waited for {what} in vain");
}

fn wait_for_exit(child: &mut Child) -> ExitStatus {
    eventually("the end of a process", || child.try_wait().unwrap())
}

fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt as _;
    status
        .code()
        .unwrap_or_else(|| -status.signal().unwrap_or_default())
}
