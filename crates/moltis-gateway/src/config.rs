//! Every knob of a gateway: what it is, its unit, its default.
//!
//! Whoever embeds a gateway fills a [`GatewayConfig`]; the command line makes it from flags and
//! `moltis.toml`. Nothing here reads a file's content or the environment.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use moltis_proto::handshake::SessionLimits;
use moltis_proto::limits;
use moltis_proto::message::Windows;

use crate::admission::AdmissionConfig;
use crate::output::OutputLimits;

/// How a gateway is to be.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct GatewayConfig {
    /// Directory of everything it keeps: `gateway.db`, `gateway_key`, `outputs/`. Made with mode
    /// 0700 where it is missing.
    pub dir: PathBuf,
    /// What the site may be asked for beside loopback and the addresses that it listens on.
    pub hosts: Vec<String>,
    /// Serve everything, not nodes alone, without TLS on addresses that are not loopback.
    pub insecure_http: bool,
    /// Where the certificate of HTTPS comes from; `None` is plain HTTP.
    pub tls: Option<TlsConfig>,
    /// Peers whose `X-Forwarded-…` headers are believed: addresses and networks, as `127.0.0.1` and
    /// `10.0.0.0/8`.
    pub trusted_proxies: Vec<String>,
    /// The file that these settings were read from, so that the doctor can say when it has changed;
    /// `None` where there is none.
    pub settings_file: Option<SettingsFile>,
    /// Runs and their output.
    pub runs: RunsConfig,
    /// Strangers at the door.
    pub admission: AdmissionConfig,
    /// How much may be under way from one node without an acknowledgement.
    pub windows: Windows,
    /// What is expected of a connected node.
    pub session: SessionLimits,
    /// How long [`Gateway::shutdown`](crate::Gateway::shutdown) may take: 10 s.
    pub shutdown_grace: Duration,
}

/// Where the certificate of HTTPS comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TlsConfig {
    /// Two files in PEM, which are read again when they change.
    Files {
        /// The certificate with its chain, the server's own first.
        certificate: PathBuf,
        /// Its private key.
        key: PathBuf,
    },
    /// The gateway makes a certificate in its directory, signed by itself, and renews it.
    Generated {
        /// Names and IP addresses that it is for, beside loopback and [`GatewayConfig::hosts`].
        names: Vec<String>,
    },
}

/// A file of settings, as it was when it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingsFile {
    /// Where it is.
    pub path: PathBuf,
    /// When it was last written; `None` where there was none.
    pub modified: Option<SystemTime>,
}

/// Runs and their output.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RunsConfig {
    /// The route of a request that names none: `local`, `node:<id or name>`, `ssh:<label>`. The
    /// default is `local`.
    pub default_route: String,
    /// The time of a run on `local` that names none and has no terminal: 300 s. `None` is no limit.
    pub local_timeout: Option<Duration>,
    /// Days that an ended run is kept: 30. Those count on which the machine was on.
    pub keep_days: u32,
    /// How much output is kept.
    pub output: OutputLimits,
}

impl GatewayConfig {
    /// A gateway that keeps everything in `dir`, and else is as by default.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            hosts: Vec::new(),
            insecure_http: false,
            tls: None,
            trusted_proxies: Vec::new(),
            settings_file: None,
            runs: RunsConfig::default(),
            admission: AdmissionConfig::default(),
            windows: STANDARD_WINDOWS,
            session: SessionLimits::STANDARD,
            shutdown_grace: Duration::from_secs(10),
        }
    }
}

impl SettingsFile {
    /// Notes how the file is now. Ask before it is read, so that no change is overlooked.
    pub fn stamp(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let found = std::fs::metadata(&path).ok();
        Self {
            modified: found.and_then(|file| file.modified().ok()),
            path,
        }
    }
}

impl Default for RunsConfig {
    fn default() -> Self {
        Self {
            default_route: "local".to_owned(),
            local_timeout: Some(Duration::from_mins(5)),
            keep_days: 30,
            output: OutputLimits::default(),
        }
    }
}

/// The windows of `moltis_proto::limits`, for postcard.
pub const STANDARD_WINDOWS: Windows = Windows {
    run_bytes: limits::RUN_WINDOW_BYTES,
    connection_bytes: limits::CONNECTION_WINDOW_BYTES,
    stdin_bytes: limits::STDIN_WINDOW_BYTES,
    #[expect(clippy::cast_possible_truncation, reason = "a chunk is 60 KiB")]
    chunk_bytes_max: limits::CHUNK_BYTES_MAX as u32,
};
