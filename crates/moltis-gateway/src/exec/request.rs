//! What an asker wants, and how it becomes the spec that a node is sent. Pure.
//!
//! Everything that can be refused without asking the node is refused here, with both figures named.
//! The node checks again: its owner's word is the last.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use moltis_proto::env::{self, EnvError};
use moltis_proto::key::Digest;
use moltis_proto::limits::{GRACE, TEXT_BYTES_MAX};
use moltis_proto::run::{Command, RunSpec, StdinMode, Tty};
use moltis_proto::{Codec, DeviceId, RunId, ToKeeper, ToNode};
use sha2::{Digest as _, Sha256};

use super::device_of;
use crate::store::{RunRecord, Target};

/// Bytes of an idempotency key, at the most.
pub const KEY_BYTES_MAX: usize = 255;

/// A request to run a command.
#[derive(Debug, Clone)]
pub struct RunRequest {
    /// Where: `local`, `node:<id or name>`, `ssh:<label>`, or just a node's id, unique prefix or
    /// name. `None` is the configured route.
    pub target: Option<String>,
    /// What.
    pub command: Command,
    /// Absolute path to start in; `None` is the node's own.
    pub cwd: Option<String>,
    /// Variables to set.
    pub env: BTreeMap<String, String>,
    /// When to end it; `None` is the node's longest time, or no limit with a terminal.
    pub timeout: Option<Duration>,
    /// Where its stdin comes from.
    pub stdin: StdinSource,
    /// A terminal for it.
    pub tty: Option<Tty>,
    /// The same key and request never make a second run.
    pub idempotency_key: Option<String>,
    /// Nobody will wait: the answer comes when the row would survive a power cut.
    pub detach: bool,
}

impl RunRequest {
    /// Asks for a command on the configured route, with nothing beside it.
    pub fn new(command: Command) -> Self {
        Self {
            target: None,
            command,
            cwd: None,
            env: BTreeMap::new(),
            timeout: None,
            stdin: StdinSource::Empty,
            tty: None,
            idempotency_key: None,
            detach: false,
        }
    }

    /// The same, on this route.
    #[must_use]
    pub fn on(mut self, target: impl Into<String>) -> Self {
        self.target = Some(target.into());
        self
    }
}

/// Where a command's stdin comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum StdinSource {
    /// Nothing.
    #[default]
    Empty,
    /// All of it is here.
    Bytes(Bytes),
    /// It comes later, piece by piece.
    Open,
}

/// Why a request cannot become a run, whatever node it is for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpecError {
    /// A value is out of its bounds.
    #[error("{0}")]
    Invalid(String),
    /// A variable may not cross.
    #[error(transparent)]
    Env(#[from] EnvError),
    /// More time than the node grants.
    #[error("{asked} s were asked for, but `{node}` runs a command for at most {longest} s", asked = .asked.as_secs(), longest = .longest.as_secs())]
    TimeoutTooLong {
        /// The node.
        node: String,
        /// What was asked for.
        asked: Duration,
        /// The longest.
        longest: Duration,
    },
    /// The command does not fit a frame.
    #[error(
        "the command is {found} bytes long with its variables, and at most {max} fit one message: give the rest by stdin"
    )]
    TooLarge {
        /// Its length.
        found: usize,
        /// The longest.
        max: usize,
    },
}

/// What the place of a run says about what may be asked of it.
#[derive(Debug, Clone)]
pub(crate) struct PlaceRules<'a> {
    /// Its name, for messages.
    pub(crate) name: &'a str,
    /// Longest time; `None` is no limit.
    pub(crate) timeout_max: Option<Duration>,
    /// The time of a request that names none and has no terminal; `None` leaves it to the node.
    pub(crate) timeout_default: Option<Duration>,
    /// Variables that its owner lets in.
    pub(crate) env_allow: &'a [String],
}

/// Makes the spec of a request.
pub(crate) fn spec_of(request: &RunRequest, rules: &PlaceRules<'_>) -> Result<RunSpec, SpecError> {
    check_command(&request.command)?;
    if let Some(cwd) = &request.cwd {
        check_cwd(cwd)?;
    }
    env::check(&request.env, rules.env_allow)?;
    check_tty(request.tty.as_ref())?;
    if let Some(key) = &request.idempotency_key
        && !(1..=KEY_BYTES_MAX).contains(&key.len())
    {
        return Err(SpecError::Invalid(format!(
            "an idempotency key has 1 to {KEY_BYTES_MAX} bytes, this one {}",
            key.len()
        )));
    }
    Ok(said(request, timeout_of(request, rules)?))
}

/// Returns whether a request with the same key as that of a run is the same one, unless they name
/// different places: whatever its place takes today.
pub(crate) fn is_of(
    request: &RunRequest,
    record: &RunRecord,
    timeout_default: Option<Duration>,
) -> bool {
    let default = match (&record.target, &record.spec) {
        _ if request.tty.is_some() => None,
        (Target::Local, Some(spec)) => spec.timeout_ms.map(Duration::from_millis),
        (Target::Local, None) => timeout_default,
        (Target::Node(_) | Target::Ssh(_), _) => None,
    };
    let spec = said(request, request.timeout.or(default));
    digest_of(device_of(&record.target), &spec, &request.stdin) == record.digest
}

fn said(request: &RunRequest, timeout: Option<Duration>) -> RunSpec {
    let stdin = match (&request.stdin, &request.tty) {
        (StdinSource::Empty, None) => StdinMode::Empty,
        _ => StdinMode::Open,
    };
    RunSpec {
        command: request.command.clone(),
        cwd: request.cwd.clone(),
        env: request.env.clone(),
        timeout_ms: timeout.map(millis),
        grace_ms: millis(GRACE),
        stdin,
        tty: request.tty.clone(),
    }
}

fn timeout_of(request: &RunRequest, rules: &PlaceRules<'_>) -> Result<Option<Duration>, SpecError> {
    let Some(asked) = request.timeout else {
        let default = rules.timeout_default.filter(|_| request.tty.is_none());
        return Ok(default);
    };
    if asked.is_zero() {
        return Err(SpecError::Invalid(
            "a timeout of 0 s would end the command before it begins: leave it out for the node's longest time".to_owned(),
        ));
    }
    match rules.timeout_max {
        Some(longest) if asked > longest => Err(SpecError::TimeoutTooLong {
            node: rules.name.to_owned(),
            asked,
            longest,
        }),
        _ => Ok(Some(asked)),
    }
}

fn check_command(command: &Command) -> Result<(), SpecError> {
    let invalid = |text: &str| Err(SpecError::Invalid(text.to_owned()));
    match command {
        Command::Argv(argv) => {
            if argv.first().is_none_or(String::is_empty) {
                return invalid("a command needs a program as its first word");
            }
            if argv.iter().any(|word| word.contains('\0')) {
                return invalid("an argument must not hold a NUL character");
            }
        }
        Command::Shell(line) => {
            if line.trim().is_empty() {
                return invalid("the shell line is empty");
            }
            if line.contains('\0') {
                return invalid("a shell line must not hold a NUL character");
            }
        }
    }
    Ok(())
}

fn check_cwd(cwd: &str) -> Result<(), SpecError> {
    if !cwd.starts_with('/') {
        return Err(SpecError::Invalid(format!(
            "the working directory `{}` is not an absolute path",
            cwd.chars()
                .take(64)
                .flat_map(char::escape_debug)
                .collect::<String>()
        )));
    }
    if cwd.contains('\0') || cwd.len() > TEXT_BYTES_MAX {
        return Err(SpecError::Invalid(format!(
            "a working directory has at most {TEXT_BYTES_MAX} bytes and no NUL character"
        )));
    }
    Ok(())
}

fn check_tty(tty: Option<&Tty>) -> Result<(), SpecError> {
    let Some(tty) = tty else { return Ok(()) };
    check_size(tty.size)?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+');
    if !(1..=64).contains(&tty.term.len()) || !tty.term.chars().all(plain) {
        return Err(SpecError::Invalid(
            "the type of a terminal has 1 to 64 letters, digits, `-`, `_`, `.` and `+`".to_owned(),
        ));
    }
    Ok(())
}

/// Checks the size of a terminal.
pub(crate) fn check_size(size: moltis_proto::run::TtySize) -> Result<(), SpecError> {
    if (1..=4096).contains(&size.cols) && (1..=4096).contains(&size.rows) {
        return Ok(());
    }
    Err(SpecError::Invalid(format!(
        "a terminal has 1 to 4096 columns and rows, not {} and {}",
        size.cols, size.rows
    )))
}

/// Checks that a `Start` fits one frame.
pub(crate) fn check_fits(
    codec: Codec,
    run_id: RunId,
    digest: Digest,
    spec: &RunSpec,
) -> Result<(), SpecError> {
    let start = ToNode::Run(ToKeeper::Start {
        run_id,
        digest,
        spec: Box::new(spec.clone()),
    });
    match codec.encode(&start) {
        Ok(_) => Ok(()),
        Err(moltis_proto::CodecError::TooLong { found, max }) => {
            Err(SpecError::TooLarge { found, max })
        }
        Err(error) => Err(SpecError::Invalid(format!(
            "the command cannot be written: {error}"
        ))),
    }
}

/// Returns what one id stands for: a device, a spec, and the stdin that came with the request.
/// `None` is this machine. Stdin that comes later is not part of it (ADR 20).
pub(crate) fn digest_of(device: Option<DeviceId>, spec: &RunSpec, stdin: &StdinSource) -> Digest {
    let mut hash = Sha256::new();
    hash.update(label(b"moltis run digest 1"));
    hash.update(device.map_or([0; 16], |device| *device.as_bytes()));
    // A spec that cannot be written is refused by `check_fits`, which comes with every use.
    hash.update(postcard_of(spec));
    match stdin {
        // The spec tells these two apart.
        StdinSource::Empty | StdinSource::Open => {}
        StdinSource::Bytes(bytes) => hash.update(Sha256::digest(bytes)),
    }
    Digest::from_bytes(hash.finalize().into())
}

fn postcard_of(spec: &RunSpec) -> Vec<u8> {
    Codec::Postcard.encode(spec).unwrap_or_default()
}

fn label(text: &[u8]) -> [u8; 32] {
    let mut label = [0; 32];
    label[..text.len()].copy_from_slice(text);
    label
}

pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use moltis_proto::run::TtySize;

    const RULES: PlaceRules<'_> = PlaceRules {
        name: "box",
        timeout_max: Some(Duration::from_mins(5)),
        timeout_default: None,
        env_allow: &[],
    };

    fn argv(words: &[&str]) -> RunRequest {
        RunRequest::new(Command::Argv(
            words.iter().map(|&word| word.to_owned()).collect(),
        ))
    }

    fn refused(request: &RunRequest) -> String {
        spec_of(request, &RULES).unwrap_err().to_string()
    }

    #[test]
    fn a_plain_request_becomes_a_plain_spec() {
        let spec = spec_of(&argv(&["uname", "-a"]), &RULES).unwrap();
        assert_eq!(spec.timeout_ms, None);
        assert_eq!(spec.stdin, StdinMode::Empty);
        assert_eq!(spec.grace_ms, 5000);
    }

    #[test]
    fn commands_that_cannot_be_are_refused() {
        for words in [&[][..], &[""], &["a", "b\0c"]] {
            refused(&argv(words));
        }
        for line in ["", "  \n", "echo \0"] {
            refused(&RunRequest::new(Command::Shell(line.to_owned())));
        }
        let mut request = argv(&["true"]);
        for cwd in ["", "tmp", "~/x", "/a\0b", &format!("/{}", "x".repeat(5000))] {
            request.cwd = Some(cwd.to_owned());
            refused(&request);
        }
    }

    #[test]
    fn more_time_than_the_node_grants_is_refused_with_both_figures() {
        let mut request = argv(&["true"]);
        request.timeout = Some(Duration::from_secs(301));
        let words = refused(&request);
        assert!(words.contains("301") && words.contains("300"), "{words}");
        request.timeout = Some(Duration::from_mins(5));
        let spec = spec_of(&request, &RULES).unwrap();
        assert_eq!(spec.timeout_ms, Some(300_000));
        request.timeout = Some(Duration::ZERO);
        refused(&request);
    }

    #[test]
    fn a_terminal_has_no_time_of_its_own_and_an_open_stdin() {
        let rules = PlaceRules {
            timeout_default: Some(Duration::from_mins(5)),
            ..RULES
        };
        let mut request = argv(&["sh"]);
        assert_eq!(spec_of(&request, &rules).unwrap().timeout_ms, Some(300_000));
        let size = |cols| Tty {
            size: TtySize { cols, rows: 24 },
            term: "xterm".to_owned(),
        };
        request.tty = Some(size(80));
        let spec = spec_of(&request, &rules).unwrap();
        assert_eq!((spec.timeout_ms, spec.stdin), (None, StdinMode::Open));
        request.tty = Some(size(0));
        refused(&request);
    }

    #[test]
    fn a_command_that_does_not_fit_a_frame_is_told_its_size() {
        let (id, digest) = (RunId::from_bytes([1; 16]), Digest::from_bytes([1; 32]));
        let long = |len| {
            let request = argv(&["echo", &"x".repeat(len)]);
            let spec = spec_of(&request, &RULES).unwrap();
            check_fits(Codec::Postcard, id, digest, &spec)
        };
        assert_eq!(long(65_000), Ok(()));
        assert!(matches!(
            long(2 * 1024 * 1024),
            Err(SpecError::TooLarge { found, .. }) if found > 2 * 1024 * 1024
        ));
    }

    #[test]
    fn a_digest_stands_for_one_device_and_spec() {
        let spec = spec_of(&argv(&["true"]), &RULES).unwrap();
        let other = spec_of(&argv(&["false"]), &RULES).unwrap();
        let device = Some(DeviceId::from_bytes([1; 16]));
        let digest_of = |device, spec| digest_of(device, spec, &StdinSource::Empty);
        assert_eq!(digest_of(device, &spec), digest_of(device, &spec));
        assert_ne!(digest_of(device, &spec), digest_of(None, &spec));
        assert_ne!(digest_of(device, &spec), digest_of(device, &other));
    }

    #[test]
    fn a_digest_stands_for_the_stdin_that_came_with_the_request() {
        let digest = |stdin: StdinSource| {
            let request = RunRequest {
                stdin,
                ..argv(&["cat"])
            };
            let spec = spec_of(&request, &RULES).unwrap();
            digest_of(None, &spec, &request.stdin)
        };
        let bytes = |text: &'static str| digest(StdinSource::Bytes(text.into()));
        assert_eq!(bytes("a"), bytes("a"));
        assert_ne!(bytes("a"), bytes("b"));
        assert_ne!(bytes(""), digest(StdinSource::Open));
        assert_ne!(bytes(""), digest(StdinSource::Empty));
    }
}
