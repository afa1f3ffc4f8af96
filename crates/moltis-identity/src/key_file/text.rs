//! The layout of a key file: lines of text, a checksum over all of them last.
//!
//! ```text
//! moltis node key 1
//! # Whoever can read this file can act as this node. It is made once; do not edit or copy it.
//! device_id = 0123456789abcdef0123456789abcdef
//! node_id = 3f9c0a1e-0000-4000-8000-000000000000
//! secret = <the 32 bytes of the Ed25519 seed in base64>
//! check = <SHA-256 of everything above, in hexadecimal digits>
//! ```
//!
//! Without the checksum one changed bit would silently be another identity.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::{KeyFileError, Kind, Record};
use crate::SecretKey;

/// What is wrong with a text, before the path is known.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Problem {
    WrongKind {
        found: &'static str,
        expected: &'static str,
    },
    Newer,
    Corrupt(&'static str),
}

impl Problem {
    pub(super) fn at(self, path: &Path) -> KeyFileError {
        let path = path.to_owned();
        match self {
            Self::WrongKind { found, expected } => KeyFileError::WrongKind {
                path,
                found,
                expected,
            },
            Self::Newer => KeyFileError::Newer { path },
            Self::Corrupt(problem) => KeyFileError::Corrupt { path, problem },
        }
    }
}

impl Kind {
    fn header(self) -> &'static str {
        match self {
            Self::Node => "moltis node key ",
            Self::Gateway => "moltis gateway key ",
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Node => "a node's key file",
            Self::Gateway => "a gateway's key file",
        }
    }
}

const VERSION: &str = "1";

pub(super) fn format(record: &Record) -> Zeroizing<String> {
    // Room for everything at once: a string that grows leaves copies of the secret behind.
    let mut text = Zeroizing::new(String::with_capacity(1024));
    let kind = match record.node {
        Some(_) => Kind::Node,
        None => Kind::Gateway,
    };
    let owner = match kind {
        Kind::Node => "node",
        Kind::Gateway => "gateway",
    };
    line(&mut text, &[kind.header(), VERSION]);
    line(
        &mut text,
        &[
            "# Whoever can read this file can act as this ",
            owner,
            ". It is made once; do not edit or copy it.",
        ],
    );
    if let Some((device_id, node_id)) = &record.node {
        line(&mut text, &["device_id = ", &device_id.to_string()]);
        line(&mut text, &["node_id = ", node_id.as_str()]);
    }
    let secret = Zeroizing::new(STANDARD.encode(*record.secret.seed()));
    line(&mut text, &["secret = ", &secret]);
    let check = check_of(text.as_bytes());
    line(&mut text, &["check = ", &check]);
    text
}

fn line(text: &mut String, parts: &[&str]) {
    text.extend(parts.iter().copied());
    text.push('\n');
}

pub(super) fn parse(content: &[u8], kind: Kind) -> Result<Record, Problem> {
    let text = str::from_utf8(content).map_err(|_| Problem::Corrupt("it is not text"))?;
    check_header(text, kind)?;
    let (body, check) = text
        .rsplit_once("check = ")
        .ok_or(Problem::Corrupt("its end is missing"))?;
    if check.strip_suffix('\n') != Some(check_of(body.as_bytes()).as_str()) {
        return Err(Problem::Corrupt("its checksum does not fit"));
    }
    let node = match kind {
        Kind::Node => Some((
            value(body, "device_id = ")?
                .parse()
                .map_err(|_| Problem::Corrupt("its `device_id` is no device id"))?,
            value(body, "node_id = ")?
                .parse()
                .map_err(|_| Problem::Corrupt("its `node_id` is no node id"))?,
        )),
        Kind::Gateway => None,
    };
    let secret = secret(value(body, "secret = ")?)?;
    Ok(Record { secret, node })
}

fn check_header(text: &str, expected: Kind) -> Result<(), Problem> {
    let first = text.lines().next().unwrap_or_default();
    let (found, version) = [Kind::Node, Kind::Gateway]
        .into_iter()
        .find_map(|kind| Some((kind, first.strip_prefix(kind.header())?)))
        .ok_or(Problem::Corrupt("it does not begin like a key file"))?;
    if found != expected {
        return Err(Problem::WrongKind {
            found: found.words(),
            expected: expected.words(),
        });
    }
    match version {
        VERSION => Ok(()),
        newer if newer.parse::<u32>().is_ok_and(|number| number > 1) => Err(Problem::Newer),
        _ => Err(Problem::Corrupt("its first line names no version")),
    }
}

fn value<'a>(body: &'a str, name: &str) -> Result<&'a str, Problem> {
    let mut values = body.lines().filter_map(|line| line.strip_prefix(name));
    match (values.next(), values.next()) {
        (Some(value), None) => Ok(value),
        _ => Err(Problem::Corrupt("a line is missing or there twice")),
    }
}

fn secret(text: &str) -> Result<SecretKey, Problem> {
    let mut seed = Zeroizing::new([0; 32]);
    // One byte more than it should be, so that a longer secret is noticed.
    let mut bytes = Zeroizing::new([0; 33]);
    match STANDARD.decode_slice(text, bytes.as_mut_slice()) {
        Ok(32) => {
            seed.copy_from_slice(&bytes[..32]);
            Ok(SecretKey::from_seed(*seed))
        }
        _ => Err(Problem::Corrupt("its `secret` is not 32 bytes of base64")),
    }
}

fn check_of(body: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut hex = String::with_capacity(64);
    for byte in Sha256::digest(body) {
        write!(hex, "{byte:02x}").expect("a string takes every character");
    }
    hex
}
