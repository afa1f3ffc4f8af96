//! Running commands through our own gateway, by its API as any program would.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use super::lanes::Runner;
use crate::http::Client;

/// The kinds of frame in which a followed run arrives.
const STDOUT: u8 = 1;
const ENDED: u8 = 4;

/// The gateway's API on its Unix socket.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    socket: PathBuf,
}

impl Api {
    pub(crate) fn new(gateway_home: &Path) -> Self {
        Self {
            socket: gateway_home.join("gateway.sock"),
        }
    }

    /// Returns whether the gateway answers at all.
    pub(crate) fn is_ready(&self) -> bool {
        let answer = || Client::connect(&self.socket)?.call("GET", "/readyz", &Value::Null);
        answer().is_ok_and(|(status, _)| status == 200)
    }

    /// Returns a runner on a connection of its own that stays open.
    pub(crate) fn runner(&self, node: &str, command: &str) -> anyhow::Result<Runner> {
        let mut client = Client::connect(&self.socket)?;
        let body = json!({ "node": node, "command": command });
        Ok(Box::new(move || {
            let (status, run) = client.call("POST", "/api/v1/runs?wait=true", &body)?;
            if !matches!(status, 200 | 201) || run["outcome"] != "exited" || run["exit_code"] != 0 {
                bail!("the run is answered with {status}: {run}");
            }
            Ok(())
        }))
    }

    /// Runs a command, follows its output to the end and returns how many bytes of it came.
    pub(crate) fn follow(&self, node: &str, command: &str) -> anyhow::Result<u64> {
        let mut client = Client::connect(&self.socket)?;
        let body = json!({ "node": node, "command": command });
        let path = "/api/v1/runs?follow=true";
        let mut frames = client.stream("POST", path, &body.to_string())?;
        count(&mut frames)
    }
}

/// Reads frames to the ending and returns how many bytes of stdout they held.
fn count(frames: &mut impl Read) -> anyhow::Result<u64> {
    let mut stdout = 0;
    let mut bytes = Vec::new();
    loop {
        let mut head = [0; 13];
        frames
            .read_exact(&mut head)
            .context("the followed run breaks off")?;
        let [kind, offset @ .., a, b, c, d] = head;
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        bytes.resize(bytes.len().max(length), 0);
        frames
            .read_exact(&mut bytes[..length])
            .context("the followed run breaks off")?;
        match kind {
            STDOUT if u64::from_be_bytes(offset) == stdout => stdout += length as u64,
            STDOUT => bail!(
                "expected offset {stdout}, got {}",
                u64::from_be_bytes(offset)
            ),
            ENDED => return Ok(stdout),
            2 | 5 => {}
            other => bail!(
                "frame of kind {other}: {}",
                String::from_utf8_lossy(&bytes[..length])
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, offset: u64, bytes: &[u8]) -> Vec<u8> {
        let mut frame = vec![kind];
        frame.extend(offset.to_be_bytes());
        frame.extend(u32::try_from(bytes.len()).unwrap().to_be_bytes());
        frame.extend(bytes);
        frame
    }

    #[test]
    fn frames_are_counted_to_the_ending() {
        let frames = [
            frame(1, 0, b"abc"),
            frame(5, 0, b""),
            frame(1, 3, b"de"),
            frame(4, 0, b"{}"),
        ];
        assert_eq!(count(&mut frames.concat().as_slice()).unwrap(), 5);
    }

    #[test]
    fn a_hole_is_an_error() {
        let frames = [frame(1, 0, b"abc"), frame(1, 4, b"de"), frame(4, 0, b"{}")];
        assert!(count(&mut frames.concat().as_slice()).is_err());
        assert!(count(&mut frame(3, 0, b"{\"from\":0}").as_slice()).is_err());
    }
}
