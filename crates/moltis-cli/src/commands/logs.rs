//! `moltis node logs` and `moltis gateway logs`: where the log of a service is, and following it.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use moltis_identity::files;
use serde::Serialize;
use tokio::time::sleep;

use super::Context;
use crate::args::Logs;
use crate::exit::Exit;
use crate::failure::OrFail as _;
use crate::logging;
use crate::output::Output;
use crate::signals::stop_on_signal;

/// How often the log is looked at for more.
const LOOK: Duration = Duration::from_millis(100);

/// Lines from before that a follower is shown.
const LINES_BEFORE: usize = 10;

/// Bytes in which those lines are looked for.
const BYTES_BEFORE: u64 = 64 * 1024;

/// Bytes that are read at once.
const PIECE_BYTES: usize = 64 * 1024;

#[derive(Debug, Serialize)]
struct Document<'a> {
    path: &'a str,
}

/// Prints the path, or follows the file until Ctrl+C.
pub(super) async fn run(context: &Context, path: PathBuf, args: &Logs) -> anyhow::Result<Exit> {
    let output = context.output;
    if args.follow {
        return follow(output, &path).await;
    }
    let shown = path.to_string_lossy();
    if args.format.json {
        output.json(&Document { path: &shown })?;
    } else {
        output.text(&shown)?;
    }
    Ok(Exit::SUCCESS)
}

async fn follow(output: Output, path: &Path) -> anyhow::Result<Exit> {
    let stop = stop_on_signal()?;
    let mut follower = Follower::new(path);
    if !path.exists() {
        output.note("no line yet; what comes is shown");
    }
    loop {
        let lines = follower
            .more()
            .or_fail(|| format!("cannot read the log `{}`", path.display()))?;
        if let Some(lines) = lines {
            output.text(&lines)?;
        } else {
            tokio::select! {
                () = stop.cancelled() => return Ok(Exit::CANCELLED),
                () = sleep(LOOK) => {}
            }
        }
        if stop.is_cancelled() {
            return Ok(Exit::CANCELLED);
        }
    }
}

/// Reads a log to its end, again and again, also where it was turned over meanwhile.
#[derive(Debug)]
struct Follower<'a> {
    path: &'a Path,
    open: Option<File>,
    begun: bool,
    line: Vec<u8>,
}

impl<'a> Follower<'a> {
    fn new(path: &'a Path) -> Self {
        Self {
            path,
            open: None,
            begun: false,
            line: Vec::new(),
        }
    }

    /// Returns whole lines that came since the last call, some at a time; `None` when there are
    /// none now.
    fn more(&mut self) -> io::Result<Option<String>> {
        loop {
            if let Some(lines) = self.whole_lines() {
                return Ok(Some(lines));
            }
            if self.open.is_none() && !self.begin()? {
                return Ok(None);
            }
            if self.read_more()? || self.rewound()? {
                continue;
            }
            let Some(newer) = self.newer()? else {
                return Ok(None);
            };
            // Whoever writes has gone on to the newer file: what this one holds is all there is.
            if !self.read_more()? {
                self.open = Some(newer);
            }
        }
    }

    /// Opens the log for the first time, a few lines before its end; a log that comes only later
    /// is read from its beginning.
    fn begin(&mut self) -> io::Result<bool> {
        let first = !std::mem::replace(&mut self.begun, true);
        let Some(mut file) = open(self.path)? else {
            return Ok(false);
        };
        if first {
            let length = file.metadata()?.len();
            let from = length.saturating_sub(BYTES_BEFORE);
            file.seek(SeekFrom::Start(from))?;
            let mut bytes = Vec::new();
            (&file).take(BYTES_BEFORE).read_to_end(&mut bytes)?;
            let skipped = before_last_lines(&bytes, LINES_BEFORE);
            file.seek(SeekFrom::Start(from + skipped as u64))?;
        }
        self.open = Some(file);
        Ok(true)
    }

    /// Reads on in the open file; returns whether there was anything.
    fn read_more(&mut self) -> io::Result<bool> {
        let Some(file) = &mut self.open else {
            return Ok(false);
        };
        let mut piece = vec![0; PIECE_BYTES];
        let length = file.read(&mut piece)?;
        self.line.extend_from_slice(&piece[..length]);
        Ok(length > 0)
    }

    /// Goes back to the beginning of a file that somebody has emptied in place.
    fn rewound(&mut self) -> io::Result<bool> {
        let Some(file) = &mut self.open else {
            return Ok(false);
        };
        if file.stream_position()? <= file.metadata()?.len() {
            return Ok(false);
        }
        file.rewind()?;
        Ok(true)
    }

    /// Returns the file that follows the open one; `None` while that is the newest. Where the open
    /// one was turned over so often that it is gone, the oldest of those that are left follows.
    fn newer(&self) -> io::Result<Option<File>> {
        let Some(file) = &self.open else {
            return Ok(None);
        };
        let here = identity(file)?;
        let mut newer = None;
        for path in logging::files(self.path) {
            let Some(found) = open(&path)? else {
                continue;
            };
            if identity(&found)? == here {
                break;
            }
            newer = Some(found);
        }
        Ok(newer)
    }

    fn whole_lines(&mut self) -> Option<String> {
        let end = self.line.iter().rposition(|byte| *byte == b'\n')?;
        let rest = self.line.split_off(end + 1);
        let mut lines = std::mem::replace(&mut self.line, rest);
        lines.pop();
        Some(String::from_utf8_lossy(&lines).into_owned())
    }
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match files::open(path, File::options().read(true)) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn identity(file: &File) -> io::Result<(u64, u64)> {
    let meta = file.metadata()?;
    Ok((meta.dev(), meta.ino()))
}

/// Returns where the last lines of a text begin.
fn before_last_lines(text: &[u8], lines: usize) -> usize {
    let ends = text.iter().enumerate().rev();
    let mut ends = ends.filter(|(at, byte)| **byte == b'\n' && at + 1 < text.len());
    ends.nth(lines - 1).map_or(0, |(at, _)| at + 1)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn append(path: &Path, text: &str) {
        let mut file = File::options()
            .append(true)
            .create(true)
            .open(path)
            .unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    fn turn_over(path: &Path) {
        for age in (1..5).rev() {
            std::fs::rename(logging::older(path, age - 1), logging::older(path, age)).ok();
        }
    }

    fn all(follower: &mut Follower<'_>) -> String {
        let mut text = String::new();
        while let Some(lines) = follower.more().unwrap() {
            text.push_str(&lines);
            text.push('\n');
        }
        text
    }

    #[test]
    fn a_follower_sees_the_last_lines_and_then_every_line_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.log");
        for line in 0..30 {
            append(&path, &format!("{line}\n"));
        }
        let mut follower = Follower::new(&path);
        assert_eq!(
            all(&mut follower),
            "20\n21\n22\n23\n24\n25\n26\n27\n28\n29\n"
        );
        append(&path, "half");
        assert_eq!(all(&mut follower), "");
        append(&path, " and half\n");
        assert_eq!(all(&mut follower), "half and half\n");
    }

    #[test]
    fn a_log_that_is_turned_over_is_followed_through_every_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.log");
        append(&path, "one\n");
        let mut follower = Follower::new(&path);
        assert_eq!(all(&mut follower), "one\n");
        append(&path, "two\n");
        turn_over(&path);
        append(&path, "three\n");
        turn_over(&path);
        append(&path, "four\n");
        assert_eq!(all(&mut follower), "two\nthree\nfour\n");
        // Renamed, and the new one is not there yet.
        turn_over(&path);
        assert_eq!(all(&mut follower), "");
        append(&path, "five\n");
        assert_eq!(all(&mut follower), "five\n");
    }

    #[test]
    fn a_line_that_comes_right_before_the_turning_over_is_not_lost() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.log");
        append(&path, "one\n");
        let mut follower = Follower::new(&path);
        assert_eq!(all(&mut follower), "one\n");
        // At the end of the file, between two looks.
        assert!(!follower.read_more().unwrap());
        append(&path, "two\n");
        turn_over(&path);
        append(&path, "three\n");
        assert_eq!(all(&mut follower), "two\nthree\n");
    }

    #[test]
    fn a_log_that_is_not_there_yet_is_read_from_its_beginning() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.log");
        let mut follower = Follower::new(&path);
        assert_eq!(follower.more().unwrap(), None);
        append(&path, &"line\n".repeat(20));
        assert_eq!(all(&mut follower), "line\n".repeat(20));
    }

    #[test]
    fn a_log_that_somebody_emptied_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.log");
        append(&path, "old and long\n");
        let mut follower = Follower::new(&path);
        all(&mut follower);
        std::fs::write(&path, "new\n").unwrap();
        assert_eq!(all(&mut follower), "new\n");
    }
}
