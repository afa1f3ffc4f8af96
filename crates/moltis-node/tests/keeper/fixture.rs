//! Keepers for tests: inside this process, or as a process of their own.
//!
//! A keeper's process is this very test binary, which finds itself asked to be one by a variable.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use moltis_node::keeper::{self, Keeper, KeeperConfig, KeeperStream, Policy, Rules, connect};
use moltis_proto::BootId;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::client::{Client, Listed, PATIENCE};

/// The variable that makes this binary a keeper.
const ASKED: &str = "TEST_KEEPER_DIR";
/// Another one: the boot that it believes to be in.
const BOOT: &str = "TEST_KEEPER_BOOT";

/// The rules of a machine that lets everything run.
pub(crate) fn rules() -> Rules {
    let base = [
        ("HOME", "/"),
        ("USER", "tester"),
        ("LOGNAME", "tester"),
        ("SHELL", "/bin/sh"),
        ("TMPDIR", "/tmp"),
        ("PATH", "/usr/local/bin:/usr/bin:/bin"),
    ];
    Rules {
        policy: Policy::Full,
        env_allow: Vec::new(),
        timeout_max: None,
        timeout_default: None,
        working_dir: PathBuf::from("/"),
        base_env: base
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into_iter()
            .collect::<BTreeMap<_, _>>(),
    }
}

pub(crate) fn config(dir: &Path, rules: Rules, boot: u8) -> KeeperConfig {
    let boot_id = BootId::from_bytes([boot; 16]);
    KeeperConfig::new(dir, Arc::new(rules), boot_id, "1.0.0")
}

/// A keeper in this process.
pub(crate) struct Inside {
    pub(crate) keeper: Keeper,
    pub(crate) dir: Arc<TempDir>,
}

impl Inside {
    pub(crate) fn new() -> Self {
        Self::with(rules())
    }

    pub(crate) fn with(rules: Rules) -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let keeper = Keeper::spawn_in_process(config(dir.path(), rules, 1)).unwrap();
        Self { keeper, dir }
    }

    /// One whose spools may take so many bytes in all.
    pub(crate) fn limited(spools_bytes: u64) -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let config = KeeperConfig {
            spools_bytes,
            ..config(dir.path(), rules(), 1)
        };
        let keeper = Keeper::spawn_in_process(config).unwrap();
        Self { keeper, dir }
    }

    /// A connection that has said nothing yet.
    pub(crate) async fn stream(&self) -> KeeperStream {
        self.keeper.connect().await.unwrap()
    }

    pub(crate) async fn client(&self) -> Client {
        self.attach().await.0
    }

    pub(crate) async fn attach(&self) -> (Client, Listed) {
        Client::attach(self.keeper.connect().await.unwrap()).await
    }
}

/// A keeper that is a process, in a directory that outlives it.
pub(crate) struct Outside {
    child: Child,
    pub(crate) dir: Arc<TempDir>,
}

impl Outside {
    pub(crate) async fn start() -> Self {
        Self::start_in(Arc::new(tempfile::tempdir().unwrap()), 1).await
    }

    pub(crate) async fn start_in(dir: Arc<TempDir>, boot: u8) -> Self {
        let mut itself = Command::new(std::env::current_exe().unwrap());
        itself.stdin(Stdio::null());
        Self::start_as(itself, dir, boot).await
    }

    /// One that was started with this soft limit of descriptors.
    pub(crate) async fn start_with_descriptors(soft: u32) -> Self {
        let mut limited = Command::new("sh");
        limited
            .args(["-c", &format!("ulimit -S -n {soft}; exec \"$0\" \"$@\"")])
            .arg(std::env::current_exe().unwrap())
            .stdin(Stdio::null());
        Self::start_as(limited, Arc::new(tempfile::tempdir().unwrap()), 1).await
    }

    /// One that sees a directory on which nothing answers, as long as the file is open that is
    /// returned; or why there can be none here.
    pub(crate) async fn start_beside_dead(dead: &Path) -> Result<(Self, File), String> {
        let fuse = File::options().read(true).write(true).open("/dev/fuse");
        let fuse = fuse.map_err(|error| format!("no /dev/fuse: {error}"))?;
        // Nobody ever reads what the kernel asks there.
        let mount = "mount -i -t fuse -o fd=0,rootmode=40000,user_id=0,group_id=0 dead";
        let in_namespace = |then: &str| {
            let mut command = Command::new("unshare");
            command
                .args(["-m", "sh", "-c", &format!("{mount} \"$DEAD\" {then}")])
                .arg(std::env::current_exe().unwrap())
                .env("DEAD", dead)
                .stdin(fuse.try_clone().unwrap());
            command
        };
        let tried = in_namespace("").output();
        let tried = tried.map_err(|error| format!("no unshare: {error}"))?;
        if !tried.status.success() {
            return Err(String::from_utf8_lossy(&tried.stderr).into_owned());
        }
        // A descriptor of it mounts once.
        let fuse = File::options()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .unwrap();
        let mut command = in_namespace("&& exec \"$0\" \"$@\" </dev/null");
        command.stdin(fuse.try_clone().unwrap());
        let dir = Arc::new(tempfile::tempdir().unwrap());
        Ok((Self::start_as(command, dir, 1).await, fuse))
    }

    /// One that was started by somebody who ignores SIGCHLD.
    pub(crate) async fn start_deaf() -> Self {
        // Not every shell lets a trap ignore it.
        let mut deaf = Command::new("perl");
        deaf.args(["-e", "$SIG{CHLD} = 'IGNORE'; exec @ARGV"])
            .arg(std::env::current_exe().unwrap())
            .stdin(Stdio::null());
        Self::start_as(deaf, Arc::new(tempfile::tempdir().unwrap()), 1).await
    }

    async fn start_as(mut command: Command, dir: Arc<TempDir>, boot: u8) -> Self {
        let child = command
            .args(["--exact", "fixture::a_keeper_when_asked", "--nocapture"])
            .env(ASKED, dir.path())
            .env(BOOT, boot.to_string())
            .env("OPENAI_API_KEY", "a-secret-of-the-keeper")
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let keeper = Self { child, dir };
        keeper.stream().await;
        keeper
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) async fn stream(&self) -> KeeperStream {
        let found = async {
            loop {
                if let Some(stream) = connect::find(self.dir.path()).await.unwrap() {
                    return stream;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(PATIENCE, found)
            .await
            .expect("a keeper answers")
    }

    pub(crate) async fn client(&self) -> Client {
        self.attach().await.0
    }

    pub(crate) async fn attach(&self) -> (Client, Listed) {
        Client::attach(self.stream().await).await
    }

    /// Ends it as a crash would, and returns its directory.
    pub(crate) fn kill(mut self) -> Arc<TempDir> {
        self.child.kill().unwrap();
        let status = self.child.wait().unwrap();
        assert_eq!(status.signal(), Some(9));
        Arc::clone(&self.dir)
    }

    /// Waits until it has gone by itself.
    pub(crate) fn wait(mut self) -> Arc<TempDir> {
        assert!(self.child.wait().unwrap().success());
        Arc::clone(&self.dir)
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Not a test: the process of [`Outside`].
#[test]
fn a_keeper_when_asked() {
    let Some(dir) = std::env::var_os(ASKED) else {
        return;
    };
    let boot = std::env::var_os(BOOT).unwrap();
    let boot = boot.to_str().unwrap().parse().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let config = config(Path::new(&dir), rules(), boot);
    runtime
        .block_on(keeper::serve(config, CancellationToken::new()))
        .unwrap();
}

/// Tells `cargo xtask test` what could not be done here; it decides whether that is a failure.
pub(crate) fn not_tested(name: &str, why: &str) {
    use std::io::Write as _;
    let Some(list) = std::env::var_os("MOLTIS_NOT_TESTED") else {
        return;
    };
    let mut list = File::options().append(true).open(list).unwrap();
    writeln!(list, "{name}: {why}").unwrap();
}

/// Returns whether a process is there and no zombie.
pub(crate) fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// Waits until a process is gone.
pub(crate) async fn gone(pid: u32) {
    let gone = async {
        while is_alive(pid) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone)
        .await
        .expect("the process goes");
}
