//! What does not change while a machine runs: its system, and which boot this is.

use std::io;

use moltis_proto::BootId;
use moltis_proto::telemetry::Platform;
use sysinfo::System;

use crate::text::clean;

/// Why this boot cannot be told from another.
#[derive(Debug, thiserror::Error)]
#[error("this boot of the machine cannot be told from another: {what} cannot be read")]
pub struct PlatformError {
    what: &'static str,
    source: io::Error,
}

/// Returns what this machine is.
pub fn platform() -> Platform {
    let known = |text: Result<String, sysinfo::Error>| {
        text.ok().and_then(|text| clean(&text)).unwrap_or_default()
    };
    Platform {
        os: std::env::consts::OS.to_owned(),
        arch: std::env::consts::ARCH.to_owned(),
        version: version(&known(System::name()), &known(System::os_version())),
        kernel: known(System::kernel_version()),
        hostname: known(System::host_name()),
    }
}

/// Returns `Debian 12` from `Debian GNU/Linux` and `12`.
fn version(name: &str, number: &str) -> String {
    let name = name.strip_suffix(" GNU/Linux").unwrap_or(name);
    let name = if name == "Darwin" { "macOS" } else { name };
    format!("{name} {number}").trim().to_owned()
}

/// Returns the id that the kernel gave this boot (random(4)).
///
/// # Errors
/// `/proc` is not there. An id that was made up instead would make every run of a restarted node
/// look as if the machine had been started anew.
#[cfg(target_os = "linux")]
pub fn boot_id() -> Result<BootId, PlatformError> {
    let what = "/proc/sys/kernel/random/boot_id";
    std::fs::read_to_string(what)
        .and_then(|text| parse_uuid(&text))
        .map_err(|source| PlatformError { what, source })
}

/// Returns the id that the kernel gave this boot.
///
/// # Errors
/// `sysctl` does not tell it.
#[cfg(target_os = "macos")]
pub fn boot_id() -> Result<BootId, PlatformError> {
    let what = "kern.bootsessionuuid";
    std::process::Command::new("/usr/sbin/sysctl")
        .args(["-n", what])
        .env_clear()
        .stdin(std::process::Stdio::null())
        .output()
        .and_then(|output| parse_uuid(&String::from_utf8_lossy(&output.stdout)))
        .map_err(|source| PlatformError { what, source })
}

fn parse_uuid(text: &str) -> io::Result<BootId> {
    let digits: String = text.trim().to_ascii_lowercase().replace('-', "");
    digits
        .parse()
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_boot_has_one_id() {
        assert_eq!(boot_id().unwrap(), boot_id().unwrap());
        let id = parse_uuid("3F9C0A1E-0000-4000-8000-00000000000A\n").unwrap();
        assert_eq!(id.to_string(), "3f9c0a1e00004000800000000000000a");
        assert!(parse_uuid("soon").is_err());
    }

    #[test]
    fn systems_are_named_shortly() {
        assert_eq!(version("Debian GNU/Linux", "12"), "Debian 12");
        assert_eq!(version("Darwin", "15.1"), "macOS 15.1");
        assert_eq!(version("Arch Linux", ""), "Arch Linux");
        assert_eq!(version("", ""), "");
        let here = platform();
        assert_eq!(here.os, std::env::consts::OS);
        assert!(!here.kernel.is_empty());
    }
}
