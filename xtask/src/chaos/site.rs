//! A gateway as its callers see it: an address, and answers that may be cut off at any moment.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::http::Client;
use crate::stage::{self, STEP};
use crate::{process, stop};

/// How long an answer may let a caller wait; it asks again then.
const PATIENCE: Duration = Duration::from_secs(20);

/// Between two attempts.
pub(crate) const PAUSE: Duration = Duration::from_millis(50);

/// Runs in one page of the list.
const PAGE: &str = "/api/v1/runs?limit=500";

/// Where a gateway is.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    pub(crate) binary: PathBuf,
    /// Its `MOLTIS_HOME`.
    pub(crate) home: PathBuf,
    /// Where each command has a directory of its own.
    pub(crate) work: PathBuf,
}

/// The bytes of one stream, as far as they are there.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Kept {
    /// Pieces with their offsets, in order.
    pub(crate) pieces: Vec<(u64, Vec<u8>)>,
    /// Marked gaps, from and to.
    pub(crate) gaps: Vec<(u64, u64)>,
}

impl Kept {
    /// Returns what is wrong with it, beside what was printed.
    pub(crate) fn differs_from(&self, printed: &[u8]) -> Option<String> {
        for (offset, bytes) in &self.pieces {
            let from = usize::try_from(*offset).ok()?;
            if printed.get(from..from + bytes.len()) != Some(bytes) {
                let length = bytes.len();
                return Some(format!("{length} bytes at {offset} were never printed"));
            }
        }
        None
    }

    /// Returns how many bytes there are.
    pub(crate) fn bytes(&self) -> u64 {
        let pieces = self.pieces.iter();
        pieces.map(|(_, bytes)| bytes.len() as u64).sum()
    }
}

impl Site {
    pub(crate) fn connect(&self) -> anyhow::Result<Client> {
        Client::connect(&self.home.join("gateway.sock"))?.with_patience(PATIENCE)
    }

    /// Returns `moltis` with these words, as the gateway's administrator.
    pub(crate) fn moltis(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(words);
        stage::in_home(&mut command, &self.home);
        command
    }

    /// Asks until an answer comes, whatever is killed meanwhile.
    ///
    /// # Errors
    ///
    /// When none comes until then.
    pub(crate) fn ask(
        &self,
        until: Instant,
        mut ask: impl FnMut(&mut Client) -> anyhow::Result<(u16, Value)>,
    ) -> anyhow::Result<(u16, Value)> {
        loop {
            let answer = self.connect().and_then(|mut client| ask(&mut client));
            match answer {
                // It is stopping, is full, or its store has just gone: asked for again.
                Ok((429 | 503, _)) | Err(_) if Instant::now() < until && !stop::asked() => {
                    thread::sleep(PAUSE);
                }
                answer => return answer,
            }
        }
    }

    /// Returns the newest word about a run.
    ///
    /// # Errors
    ///
    /// When the gateway does not know it, or does not answer until then.
    pub(crate) fn run(&self, id: &str, until: Instant) -> anyhow::Result<Value> {
        let path = format!("/api/v1/runs/{id}");
        let (status, run) = self.ask(until, |client| client.call("GET", &path, &Value::Null))?;
        if status != 200 {
            bail!("run {id} is answered with {status}: {run}");
        }
        Ok(run)
    }

    /// Returns all runs, newest first.
    ///
    /// # Errors
    ///
    /// When a page is not answered.
    pub(crate) fn runs(&self) -> anyhow::Result<Vec<Value>> {
        let mut client = self.connect()?;
        let (mut runs, mut path) = (Vec::new(), PAGE.to_owned());
        loop {
            let (status, mut page) = client.call("GET", &path, &Value::Null)?;
            let Some(items) = page["items"].as_array_mut() else {
                bail!("GET {path} is answered with {status}: {page}");
            };
            runs.append(items);
            match page["next"].as_str() {
                Some(next) => path = format!("{PAGE}&cursor={next}"),
                None => return Ok(runs),
            }
        }
    }

    /// Returns what is kept of one stream of a run.
    ///
    /// # Errors
    ///
    /// When it is neither there nor marked as a gap.
    pub(crate) fn kept(&self, run: &Value, stream: &str) -> anyhow::Result<Kept> {
        let id = run["id"].as_str().context("a run has an id")?;
        let total = run[format!("{stream}_bytes")].as_u64().unwrap_or_default();
        let mut client = self.connect()?;
        let (mut kept, mut at) = (Kept::default(), 0);
        while at < total {
            let path = format!("/api/v1/runs/{id}/output?stream={stream}&offset={at}");
            let (status, bytes) = client.fetch(&path)?;
            match status {
                200 if !bytes.is_empty() => {
                    let from = at;
                    at += bytes.len() as u64;
                    kept.pieces.push((from, bytes));
                }
                409 => {
                    let problem: Value = serde_json::from_slice(&bytes)?;
                    let gap = (problem["from"].as_u64(), problem["to"].as_u64());
                    let (Some(from), Some(to)) = gap else {
                        bail!("{path} is answered with {problem}");
                    };
                    if from > at || to <= at {
                        bail!("a gap from {from} to {to} is told at {at}: {path}");
                    }
                    kept.gaps.push((at, to));
                    at = to;
                }
                status => bail!("{path} is answered with {status} and {} bytes", bytes.len()),
            }
        }
        Ok(kept)
    }

    /// Returns what the doctor calls an error.
    ///
    /// # Errors
    ///
    /// When it prints no list.
    pub(crate) fn errors_of_the_doctor(&self) -> anyhow::Result<Vec<String>> {
        let said = process::output(&mut self.moltis(&["doctor", "--json"]), STEP)?;
        let findings: Value = serde_json::from_str(&said.stdout).context(said.stderr)?;
        let findings = findings.as_array().context("the doctor prints a list")?;
        let wrong = findings.iter().filter(|one| one["level"] == "error");
        Ok(wrong.map(|one| format!("doctor: {one}")).collect())
    }

    /// Returns how often the command in this directory has begun.
    pub(crate) fn starts(&self, key: &str, file: &str) -> usize {
        let text = fs::read_to_string(self.work.join(key).join(file));
        text.map_or(0, |text| text.lines().count())
    }
}

/// Returns the processes whose working directory is below this one, each with that directory.
#[cfg(target_os = "linux")]
pub(crate) fn working_below(folder: &Path) -> Vec<(u32, PathBuf)> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let lived =
        pids.filter_map(|pid: u32| Some((pid, fs::read_link(format!("/proc/{pid}/cwd")).ok()?)));
    lived.filter(|(_, dir)| dir.starts_with(folder)).collect()
}

/// Nobody's working directory is known here.
#[cfg(not(target_os = "linux"))]
pub(crate) fn working_below(_folder: &Path) -> Vec<(u32, PathBuf)> {
    Vec::new()
}
