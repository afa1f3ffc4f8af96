//! What the tests need beside Rust and a C compiler, and how to get it.
//!
//! As root on Debian what is missing is installed with apt-get; elsewhere the one line to type is
//! printed, and the parts that need it are NOT TESTED.

use std::env;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::getuid;

use crate::{process, say};

/// What a test may lack.
#[derive(Debug, Clone, Copy)]
enum Thing {
    /// A program that it starts.
    Program(&'static str),
    /// A module of `python3`, which Debian takes apart into packages.
    Module(&'static str),
}

impl Thing {
    fn is_here(self) -> bool {
        match self {
            Self::Program(name) => find(name).is_some(),
            Self::Module(name) => {
                let mut python = Command::new("python3");
                let import = format!("import {name}");
                process::stdout_of(python.args(["-c", &import]), ASK).is_ok()
            }
        }
    }
}

impl fmt::Display for Thing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Program(name) => write!(f, "`{name}`"),
            Self::Module(name) => write!(f, "`{name}` of python3"),
        }
    }
}

/// Something that the tests need.
#[derive(Debug)]
struct Need {
    thing: Thing,
    /// Debian's package of it.
    package: &'static str,
    why: &'static str,
}

const NEEDS: &[Need] = &[
    Need {
        thing: Thing::Program("ssh-keygen"),
        package: "openssh-client",
        why: "our fingerprints are compared with its own",
    },
    Need {
        thing: Thing::Program("ssh"),
        package: "openssh-client",
        why: "the bench measures beside it",
    },
    Need {
        thing: Thing::Program("sshd"),
        package: "openssh-server",
        why: "the bench's client of OpenSSH's mux socket is proved against a real server",
    },
    Need {
        thing: Thing::Program("ps"),
        package: "procps",
        why: "what a quickstart leaves running is looked for",
    },
    Need {
        thing: Thing::Program("systemctl"),
        package: "systemd",
        why: "services are installed into a real user manager",
    },
    Need {
        thing: Thing::Program("unshare"),
        package: "util-linux",
        why: "that manager runs in namespaces of its own",
    },
    Need {
        thing: Thing::Program("python3"),
        package: "python3",
        why: "its parser of property lists is not ours",
    },
    Need {
        thing: Thing::Module("ensurepip"),
        package: "python3-venv",
        why: "the packages of the node in Python and of Schemathesis have a place of their own",
    },
    Need {
        thing: Thing::Program("faketime"),
        package: "faketime",
        why: "the clock of a gateway and of a node is made to jump",
    },
    Need {
        thing: Thing::Program("strace"),
        package: "strace",
        why: "the programs are killed before each of their writes",
    },
    Need {
        thing: Thing::Program("ip"),
        package: "iproute2",
        why: "a node is put into a network of its own",
    },
    Need {
        thing: Thing::Program("groff"),
        package: "groff-base",
        why: "it reads our manual pages",
    },
    Need {
        thing: Thing::Program("bash"),
        package: "bash",
        why: "it completes our commands",
    },
    Need {
        thing: Thing::Program("git"),
        package: "git",
        why: "cargo-deny fetches its advisories with it",
    },
];

/// The only file in which Debian looks for permission before an installed service is started.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// How long apt-get may take.
const APT: Duration = Duration::from_mins(10);

/// How long Python may take to find a module.
const ASK: Duration = Duration::from_mins(1);

/// Installs what is missing where we may, and returns a line for each need that stays unmet.
pub(crate) fn meet() -> Vec<String> {
    let mut missing = missing();
    if missing.is_empty() {
        return Vec::new();
    }
    let packages = packages(&missing);
    let typed = format!("apt-get install --no-install-recommends {packages}");
    if getuid().is_root() && Path::new("/etc/debian_version").exists() {
        say::line(&format!("missing: {packages}; installing with apt-get"));
        if let Err(error) = install(&packages) {
            say::failure(&error);
        }
        missing = self::missing();
    } else if Path::new("/etc/debian_version").exists() {
        say::line(&format!("missing; type: sudo {typed}"));
    } else {
        say::line(&format!(
            "missing: install these with your package manager: {packages}"
        ));
    }
    let unmet = |need: &Need| format!("{}: {}", need.thing, need.why);
    missing.into_iter().map(unmet).collect()
}

fn missing() -> Vec<&'static Need> {
    let is_missing = |need: &&Need| !need.thing.is_here();
    NEEDS.iter().filter(is_missing).collect()
}

fn packages(needs: &[&Need]) -> String {
    let mut names: Vec<_> = needs.iter().map(|need| need.package).collect();
    names.sort_unstable();
    names.dedup();
    names.join(" ")
}

/// Returns where a program is: in PATH, or where servers lie that are not in everybody's PATH.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// Installs packages without a question and without starting what they bring.
fn install(packages: &str) -> anyhow::Result<()> {
    let apt = |words: &[&str]| {
        let mut command = Command::new("apt-get");
        command
            .args(["-q", "-o", "DPkg::Lock::Timeout=120"])
            .args(words)
            .env("DEBIAN_FRONTEND", "noninteractive");
        process::stdout_of(&mut command, APT)
    };
    let _quiet = KeepServicesDown::set()?;
    apt(&["update"])?;
    let mut words = vec!["install", "--yes", "--no-install-recommends"];
    words.extend(packages.split(' '));
    apt(&words)?;
    Ok(())
}

/// While this lives, no installed package starts its service: a test that wants `sshd` on a port of
/// its own must not open port 22.
#[derive(Debug)]
struct KeepServicesDown {
    is_ours: bool,
}

impl KeepServicesDown {
    fn set() -> anyhow::Result<Self> {
        if Path::new(POLICY).exists() {
            return Ok(Self { is_ours: false });
        }
        fs::write(POLICY, "#!/bin/sh\nexit 101\n").with_context(|| format!("writing {POLICY}"))?;
        let mut chmod = Command::new("chmod");
        process::stdout_of(chmod.args(["755", POLICY]), APT)?;
        Ok(Self { is_ours: true })
    }
}

impl Drop for KeepServicesDown {
    fn drop(&mut self) {
        if self.is_ours {
            fs::remove_file(POLICY).ok(); // somebody else took it away
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_package_is_named_once() {
        assert_eq!(
            packages(&[&NEEDS[0], &NEEDS[1], &NEEDS[2]]),
            "openssh-client openssh-server"
        );
    }

    #[test]
    fn a_module_of_python_is_no_program() {
        assert!(!Thing::Module("no_such_module").is_here());
        // Every Python has it.
        assert_eq!(Thing::Module("json").is_here(), find("python3").is_some());
        let shown = Thing::Module("ensurepip").to_string();
        assert_eq!(shown, "`ensurepip` of python3");
    }

    #[test]
    fn a_shell_is_found_and_nonsense_is_not() {
        assert!(find("sh").is_some());
        assert!(find("no-such-program").is_none());
    }
}
