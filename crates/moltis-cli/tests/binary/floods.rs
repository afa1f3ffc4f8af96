//! Commands that never stop printing: disks and memory stay within their bounds, the beginning and
//! the newest are kept, and what lies between is marked.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::harness::{Home, eventually, keepers_of};
use crate::volume::memory_of;

/// How much is kept of one run: more than its first segment, of 64 MiB, and its newest ones.
const KEPT: u64 = 200 << 20;

/// What a gateway may have beyond that: the segment that is being written.
const SEGMENT: u64 = 64 << 20;

/// What the spool of one stream may have.
const SPOOL: u64 = 64 << 20;

/// How much is kept of the beginning of a stream whose spool is full.
const SPOOL_HEAD: u64 = 1 << 20;

/// How much memory of its own each process may hold meanwhile.
const MEMORY_MAX: u64 = 128 << 20;

/// What `yes` is told to say, with the end of its line.
const LINE: &[u8] = b"moltis!\n";

/// Bytes of a flood where nobody waits, and the seconds of one where somebody does: `cargo xtask nightly`.
const BYTES: u64 = 600 << 20;
const SECONDS: u64 = 60;

#[test]
fn a_flood_keeps_its_beginning_and_its_newest_within_the_bounds() {
    flood(&format!("yes 'moltis!' | head -c {BYTES}"));
}

#[test]
#[ignore = "a minute and more: `cargo xtask nightly` runs it"]
fn a_minute_of_yes_keeps_its_beginning_and_its_newest_within_the_bounds() {
    flood(&format!("timeout {SECONDS} yes 'moltis!'; true"));
}

fn flood(script: &str) {
    let (home, machine) = (Home::new(), Home::new());
    home.write(
        "moltis.toml",
        &format!("[runs]\noutput_bytes_max = {KEPT}\n"),
    );
    let gateway = home.gateway();
    let node = gateway.join(&machine, "box");
    let id = home.ok(["node", "exec", "box", "--detach", "--shell", script]);
    let id = id.trim();
    let (outputs, runs) = (home.path().join("outputs"), machine.path().join("runs"));
    let mut seen = Seen::default();
    let run = eventually("the flood to be over", || {
        if let [keeper] = keepers_of(&runs)[..] {
            let pids = [gateway.process.pid(), node.pid(), keeper];
            seen.memory = seen
                .memory
                .max(pids.map(memory_of).into_iter().max().unwrap());
        }
        seen.outputs = seen.outputs.max(size_of(&outputs));
        seen.spools = seen.spools.max(size_of(&runs));
        Some(home.json(["runs", "show", id, "--json"])).filter(|run| run["state"] == "ended")
    });
    assert_eq!(
        (&run["outcome"], &run["exit_code"]),
        (&"exited".into(), &0.into()),
        "{run}"
    );
    seen.is_within_bounds();
    let gap = one_gap(&home, id, &run);
    assert!(gap.0 >= SEGMENT, "its first segment is kept: {gap:?}");
    let total = run["stdout_bytes"].as_u64().unwrap();
    assert!(
        total - gap.1 >= SEGMENT,
        "its newest segment is kept: {gap:?} of {total}"
    );
}

#[test]
fn a_flood_that_nobody_takes_stays_within_the_spool_and_the_command_goes_on() {
    let (home, machine) = (Home::new(), Home::new());
    let mut gateway = home.gateway();
    let node = gateway.join(&machine, "box");
    let done = machine.user().join("done");
    let script = format!(
        "yes 'moltis!' | head -c {}; echo > {}",
        BYTES / 2,
        done.display()
    );
    let gate = machine.user().join("gate");
    let script = format!(
        "while [ ! -e {} ]; do sleep 0.02; done; {script}",
        gate.display()
    );
    let id = home.ok(["node", "exec", "box", "--detach", "--shell", &script]);
    let id = id.trim();
    eventually("the command to run", || {
        let run = home.json(["runs", "show", id, "--json"]);
        (run["state"] == "running").then_some(())
    });
    gateway.crash();
    fs::write(&gate, "").unwrap();
    let runs = machine.path().join("runs");
    let mut seen = Seen::default();
    eventually("the command to be through", || {
        if let [keeper] = keepers_of(&runs)[..] {
            seen.memory = seen
                .memory
                .max(memory_of(node.pid()))
                .max(memory_of(keeper));
        }
        seen.spools = seen.spools.max(size_of(&runs));
        done.exists().then_some(())
    });
    seen.is_within_bounds();
    gateway.restart();
    let run = eventually("the run to be over", || {
        Some(home.json(["runs", "show", id, "--json"])).filter(|run| run["state"] == "ended")
    });
    assert_eq!(
        (&run["outcome"], &run["exit_code"]),
        (&"exited".into(), &0.into()),
        "{run}"
    );
    assert_eq!(run["stdout_bytes"], BYTES / 2, "{run}");
    let gap = one_gap(&home, id, &run);
    assert!(gap.0 >= SPOOL_HEAD, "its beginning is kept: {gap:?}");
    assert!(BYTES / 2 - gap.1 > SPOOL / 2, "its newest is kept: {gap:?}");
}

/// The most that was seen of anything.
#[derive(Debug, Default)]
struct Seen {
    memory: u64,
    outputs: u64,
    spools: u64,
}

impl Seen {
    #[track_caller]
    fn is_within_bounds(&self) {
        assert!(self.memory < MEMORY_MAX, "{self:?}");
        assert!(self.outputs <= KEPT + SEGMENT, "{self:?}");
        // Room for the journal, and for what is written anew.
        assert!(self.spools <= SPOOL + SPOOL / 8, "{self:?}");
        #[cfg(target_os = "linux")]
        assert!(self.memory > 0, "{self:?}");
    }
}

/// Returns the bytes of all files below a directory that may change meanwhile.
fn size_of(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(found) if found.is_dir() => size_of(&entry.path()),
        Ok(found) => found.len(),
        Err(_) => 0,
    });
    sizes.sum()
}

/// Reads all that is kept, byte for byte, and returns the one gap in it.
fn one_gap(home: &Home, id: &str, run: &Value) -> (u64, u64) {
    let done = home.run(["runs", "output", id]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let gaps: Vec<(u64, u64)> = done
        .stderr
        .lines()
        .filter_map(|line| {
            let (from, rest) = line.split_once("bytes ")?.1.split_once(" to ")?;
            Some((from.parse().ok()?, rest.split_once(' ')?.0.parse().ok()?))
        })
        .collect();
    let [gap] = gaps[..] else {
        panic!("expected one gap: {}", done.stderr);
    };
    let kept = &done.stdout_bytes;
    let before = usize::try_from(gap.0).unwrap();
    let (first, newest) = kept.split_at(before);
    let is_yes = |bytes: &[u8], offset: u64| {
        let phase = usize::try_from(offset).unwrap() % LINE.len();
        let turned = [&LINE[phase..], &LINE[..phase]].concat();
        bytes
            .chunks(LINE.len())
            .all(|piece| turned.starts_with(piece))
    };
    assert!(is_yes(first, 0) && is_yes(newest, gap.1), "other bytes");
    assert_eq!(run["stdout_bytes"], gap.1 + newest.len() as u64);
    gap
}
