//! A real OpenSSH server on loopback, with keys, a port and an account of its own, and masters on it.
//!
//! The account matters: sshd runs the login shell, so it must be `/bin/sh` without start-up files, or
//! the comparison flatters us. As root an account is made for the time of the bench; without root it
//! is our own, and the figures say so. Everything is removed when this is dropped.

use std::env;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{self as std_process, Command};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::getuid;
use tempfile::TempDir;

use crate::process::{self, Background, TICK};
use crate::{needs, stop};

/// How long a step of the preparation may take.
const STEP: Duration = Duration::from_secs(30);

/// Where sshd, when root starts it, wants an empty folder.
const SEPARATION: &str = "/run/sshd";

/// A server, and a master connection for each cipher.
#[derive(Debug)]
pub(super) struct Ssh {
    masters: Vec<(&'static str, Background)>,
    /// Lives as long as the masters need it.
    _server: Background,
    account: Account,
    _separation: Separation,
    port: u16,
    folder: TempDir,
}

impl Ssh {
    /// Starts the server and connects a master for each cipher.
    ///
    /// # Errors
    ///
    /// When OpenSSH is not there or does not come up.
    pub(super) fn start(ciphers: &[&'static str]) -> anyhow::Result<Self> {
        let sshd = needs::find("sshd").context("there is no `sshd`: install openssh-server")?;
        // Not under `target/`: the account must be able to walk to its keys.
        let folder = tempfile::Builder::new().prefix("moltis-bench-").tempdir()?;
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
        let account = Account::make(folder.path())?;
        for name in ["host", "person"] {
            let mut keygen = Command::new("ssh-keygen");
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", "bench", "-f"]);
            process::stdout_of(keygen.arg(folder.path().join(name)), STEP)?;
        }
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
            .local_addr()?
            .port();
        let separation = Separation::make()?;
        let server = serve(&sshd, folder.path(), port, &account)?;
        let mut ssh = Self {
            masters: Vec::new(),
            _server: server,
            account,
            _separation: separation,
            port,
            folder,
        };
        for cipher in ciphers {
            let master = ssh.connect(cipher)?;
            ssh.masters.push((cipher, master));
        }
        Ok(ssh)
    }

    /// Connects a master and waits until its socket answers.
    fn connect(&self, cipher: &'static str) -> anyhow::Result<Background> {
        let mut command = self.ssh(cipher);
        command.args(["-N", "-M", "-o", "ControlPersist=no", "-c", cipher]);
        let mut master = Background::start(command.arg(self.destination()))?;
        let since = Instant::now();
        while UnixStream::connect(self.socket(cipher)).is_err() {
            master.check_alive()?;
            if since.elapsed() > STEP || stop::asked() {
                bail!("ssh's master does not come up{}", master.said());
            }
            thread::sleep(TICK);
        }
        Ok(master)
    }

    /// Returns `ssh` with all it needs to reach our server and nobody's configuration.
    fn ssh(&self, cipher: &str) -> Command {
        let file = |name: &str| self.folder.path().join(name).display().to_string();
        let known = format!("UserKnownHostsFile={}", file("known_hosts"));
        let mut ssh = Command::new("ssh");
        ssh.args([
            "-F",
            "none",
            "-o",
            "BatchMode=yes",
            "-o",
            "IdentitiesOnly=yes",
        ]);
        ssh.args([
            "-o",
            "StrictHostKeyChecking=yes",
            "-o",
            "GlobalKnownHostsFile=none",
        ]);
        ssh.args([
            "-o",
            "Compression=no",
            "-o",
            "IdentityAgent=none",
            "-o",
            &known,
        ]);
        ssh.args(["-i", &file("person"), "-p", &self.port.to_string(), "-S"]);
        ssh.arg(self.socket(cipher));
        ssh.env_remove("SSH_AUTH_SOCK");
        ssh
    }

    fn destination(&self) -> String {
        format!("{}@127.0.0.1", self.account.name)
    }

    /// Returns the socket of the master with that cipher.
    pub(super) fn socket(&self, cipher: &str) -> PathBuf {
        self.folder.path().join(format!(
            "mux-{}",
            cipher.split('@').next().unwrap_or(cipher)
        ))
    }

    /// Returns the `ssh` program running a command through the master with that cipher.
    pub(super) fn command(&self, cipher: &str, command: &str) -> Command {
        let mut ssh = self.ssh(cipher);
        ssh.args([&self.destination(), "--", command]);
        ssh
    }

    /// Returns why the comparison is not quite fair, if so.
    pub(super) fn doubt(&self) -> Option<&str> {
        self.account.doubt.as_deref()
    }
}

impl Drop for Ssh {
    fn drop(&mut self) {
        for (_, master) in &mut self.masters {
            master.end();
        }
    }
}

/// Starts sshd and writes what a client must know of it.
fn serve(sshd: &Path, folder: &Path, port: u16, account: &Account) -> anyhow::Result<Background> {
    let dir = folder.display();
    let config = format!(
        "Port {port}\nListenAddress 127.0.0.1\nHostKey {dir}/host\nPidFile none\n\
         AuthorizedKeysFile {dir}/person.pub\nAllowUsers {}\nPubkeyAuthentication yes\n\
         PasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\nStrictModes no\n\
         PrintMotd no\nPrintLastLog no\nX11Forwarding no\nMaxSessions 256\nMaxStartups 256\n\
         LogLevel ERROR\n",
        account.name
    );
    let file = folder.join("sshd_config");
    fs::write(&file, config).with_context(|| format!("writing {}", file.display()))?;
    let host = fs::read_to_string(folder.join("host.pub"))?;
    fs::write(
        folder.join("known_hosts"),
        format!("[127.0.0.1]:{port} {host}"),
    )?;
    let mut command = Command::new(sshd); // by its full path, or it refuses
    let mut server = Background::start(command.args(["-D", "-e", "-f"]).arg(&file))?;
    let since = Instant::now();
    while std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        server.check_alive()?;
        if since.elapsed() > STEP || stop::asked() {
            bail!("sshd does not come up{}", server.said());
        }
        thread::sleep(TICK);
    }
    Ok(server)
}

/// The empty folder that sshd wants, gone again where it was made here.
#[derive(Debug)]
struct Separation {
    is_ours: bool,
}

impl Separation {
    fn make() -> anyhow::Result<Self> {
        if !getuid().is_root() || Path::new(SEPARATION).exists() {
            return Ok(Self { is_ours: false });
        }
        fs::create_dir(SEPARATION).with_context(|| format!("making {SEPARATION}"))?;
        Ok(Self { is_ours: true })
    }
}

impl Drop for Separation {
    fn drop(&mut self) {
        if self.is_ours {
            fs::remove_dir(SEPARATION).ok(); // somebody else uses it by now
        }
    }
}

/// The account that sshd logs in.
#[derive(Debug)]
struct Account {
    name: String,
    is_ours: bool,
    doubt: Option<String>,
}

impl Account {
    /// Makes an account as root, else takes the one we run as.
    fn make(folder: &Path) -> anyhow::Result<Self> {
        if !getuid().is_root() {
            let name = process::stdout_of(Command::new("id").arg("-un"), STEP)?;
            let shell = env::var("SHELL").unwrap_or_default();
            let doubt = format!("sshd logs in this account, whose shell is `{shell}`");
            return Ok(Self {
                name: name.trim().to_owned(),
                is_ours: false,
                doubt: Some(doubt),
            });
        }
        let name = format!("moltis-bench-{}", std_process::id());
        let home = folder.join("home");
        fs::create_dir(&home)?;
        let useradd = needs::find("useradd").context("there is no `useradd`")?;
        let mut command = Command::new(useradd);
        command.args([
            "--system",
            "--no-create-home",
            "--shell",
            "/bin/sh",
            "--password",
            "*",
        ]);
        command.arg("--home-dir").arg(&home).arg(&name);
        process::stdout_of(&mut command, STEP)?;
        Ok(Self {
            name,
            is_ours: true,
            doubt: None,
        })
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        if self.is_ours {
            let userdel = needs::find("userdel").unwrap_or_else(|| "userdel".into());
            // sshd's last child may hold the account for a moment.
            process::stdout_of(Command::new(userdel).args(["--force", &self.name]), STEP).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;
    use crate::bench::mux;

    /// Against the real thing: OpenSSH's own master and server.
    #[test]
    fn the_mux_client_runs_commands_on_a_real_server() {
        if needs::find("sshd").is_none() {
            crate::test::not_tested("sshd", "the bench's client met no real server");
            return;
        }
        let cipher = "aes128-gcm@openssh.com";
        let ssh = Ssh::start(&[cipher]).unwrap();
        let mut output = String::new();
        // Words that every login shell knows: without root it is the person's own.
        let code = mux::run(&ssh.socket(cipher), "echo out; exit 7", |mut out| {
            out.read_to_string(&mut output).map(drop)
        });
        assert_eq!((code.unwrap(), output.as_str()), (7, "out\n"));

        let mut bytes = 0;
        let command = "head -c 3000000 /dev/zero";
        let code = mux::run(&ssh.socket(cipher), command, |mut out| {
            bytes = std::io::copy(&mut out, &mut std::io::sink())?;
            Ok(())
        });
        assert_eq!((code.unwrap(), bytes), (0, 3_000_000));

        let said = process::stdout_of(&mut ssh.command(cipher, "echo by the program"), STEP);
        assert_eq!(said.unwrap(), "by the program\n");
    }
}
