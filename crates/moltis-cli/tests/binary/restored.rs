//! An older copy of the store and of its outputs is put back, while the node has moved on: nothing
//! starts a second time, and what the copy does not know is told.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{Home, eventually};

/// Lines that tell if one is missing, or comes twice; each has ten bytes.
fn lines(letter: char, from: u64, to: u64) -> String {
    let mut text = String::new();
    for number in from..=to {
        writeln!(text, "{letter}{number:08}").unwrap();
    }
    text
}

/// A command that notes its start, prints, and goes on when a file appears.
fn script(machine: &Home, letter: char, first: u64, last: u64) -> String {
    let dir = machine.user();
    let dir = dir.display();
    format!(
        "echo start >> {dir}/starts-{letter}; seq -f {letter}%08.0f 1 {first}; \
         while [ ! -e {dir}/more-{letter} ]; do sleep 0.02; done; \
         seq -f {letter}%08.0f {} {last}; \
         while [ ! -e {dir}/end-{letter} ]; do sleep 0.02; done; exit 5",
        first + 1
    )
}

fn touch(machine: &Home, name: &str, letter: char) {
    fs::write(machine.user().join(format!("{name}-{letter}")), "").unwrap();
}

fn starts(machine: &Home, letter: char) -> usize {
    let file = machine.user().join(format!("starts-{letter}"));
    fs::read_to_string(file).unwrap().lines().count()
}

fn detach(home: &Home, script: &str) -> String {
    let id = home.ok(["node", "exec", "box", "--detach", "--shell", script]);
    id.trim().to_owned()
}

fn shown(home: &Home, id: &str) -> Value {
    home.json(["runs", "show", id, "--json"])
}

fn has_written(home: &Home, id: &str, bytes: u64) {
    eventually("output to be there", || {
        (shown(home, id)["stdout_bytes"] == bytes).then_some(())
    });
}

fn is_over(home: &Home, id: &str) -> Value {
    eventually("the run to be over", || {
        Some(shown(home, id)).filter(|run| run["state"] == "ended")
    })
}

/// Returns the output, and the gaps that were told.
fn output(home: &Home, id: &str) -> (String, Vec<(usize, usize)>) {
    let done = home.run(["runs", "output", id]);
    assert_eq!(done.code, 0, "{done:?}");
    let gaps = done.stderr.lines().filter_map(|line| {
        let (from, rest) = line.split_once("bytes ")?.1.split_once(" to ")?;
        Some((from.parse().ok()?, rest.split_once(' ')?.0.parse().ok()?))
    });
    let gaps = gaps.collect();
    (done.stdout, gaps)
}

/// Everything that was printed is there, but for the gaps.
#[track_caller]
fn is_complete(home: &Home, id: &str, printed: &str) -> Vec<(usize, usize)> {
    let (kept, gaps) = output(home, id);
    let mut wanted = printed.to_owned();
    for (from, to) in gaps.iter().rev() {
        wanted.replace_range(from..to, "");
    }
    let lengths = (kept.len(), wanted.len(), printed.len());
    assert!(kept == wanted, "{lengths:?} bytes, gaps {gaps:?}");
    gaps
}

/// Copies what a gateway keeps of its runs: the database and the outputs.
fn copy(from: &Path, to: &Path) {
    for name in ["gateway.db", "gateway.db-wal", "outputs"] {
        let (from, to) = (from.join(name), to.join(name));
        let gone = fs::remove_dir_all(&to).or_else(|_| fs::remove_file(&to));
        gone.ok(); // it was not there
        if from.exists() {
            let copied = Command::new("cp").arg("-a").args([from, to]).status();
            assert!(copied.unwrap().success());
        }
    }
    fs::remove_file(to.join("gateway.db-shm")).ok(); // made anew
}

/// Starts or meets a run under a key, over the Unix socket.
fn keyed(home: &Home, script: &str) -> Value {
    crate::api::post(home, "runs?wait=true", &["idempotency-key: once"], &{
        serde_json::json!({"node": "box", "command": script})
    })
}

#[test]
fn an_older_copy_of_store_and_outputs_starts_nothing_and_tells_what_it_does_not_know() {
    let (home, machine) = (Home::new(), Home::new());
    let mut gateway = home.gateway();
    let node = gateway.join(&machine, "box");
    let over = detach(&home, &script(&machine, 'a', 20_000, 30_000));
    touch(&machine, "more", 'a');
    touch(&machine, "end", 'a');
    is_over(&home, &over);
    let going = detach(&home, &script(&machine, 'b', 20_000, 60_000));
    has_written(&home, &going, 200_000);

    // The copy is made in a moment in which the start of a run is on its way.
    node.signal(Signal::STOP);
    let starting = detach(&home, &script(&machine, 'f', 10, 20));
    assert_eq!(shown(&home, &starting)["state"], "starting");
    let older: PathBuf = home.user().join("older");
    fs::create_dir(&older).unwrap();
    gateway.process.signal(Signal::STOP);
    copy(&home.path(), &older);
    gateway.process.signal(Signal::CONT);
    node.signal(Signal::CONT);
    touch(&machine, "more", 'f');
    touch(&machine, "end", 'f');
    assert_eq!(is_over(&home, &starting)["outcome"], "exited");
    let is_back = || {
        eventually("the node to be back", || {
            let nodes = home.json(["node", "list", "--json"]);
            (nodes[0]["state"] == "online").then_some(())
        });
    };
    // The node moves on: a run goes on, one begins, one is over and forgotten, one has a key.
    touch(&machine, "more", 'b');
    has_written(&home, &going, 600_000);
    let unknown = detach(&home, &script(&machine, 'c', 30_000, 40_000));
    has_written(&home, &unknown, 300_000);
    let forgotten = detach(&home, &script(&machine, 'd', 10, 20));
    touch(&machine, "more", 'd');
    touch(&machine, "end", 'd');
    is_over(&home, &forgotten);
    let once = format!("echo start >> {}/starts-e", machine.user().display());
    assert_eq!(keyed(&home, &once)["outcome"], "exited");

    gateway.crash();
    copy(&older, &home.path());
    gateway.restart();
    is_back();
    let run = eventually("the node to tell of it", || {
        let runs = home.json(["runs", "list", "--json"]);
        let runs = runs.as_array().unwrap().clone();
        runs.into_iter().find(|run| run["id"] == *unknown)
    });
    assert_eq!(
        (&run["unclaimed"], &run["state"]),
        (&true.into(), &"running".into()),
        "{run}"
    );
    home.ok(["runs", "claim", &unknown]);
    for (letter, id) in [('b', &going), ('c', &unknown)] {
        touch(&machine, "more", letter);
        touch(&machine, "end", letter);
        let run = is_over(&home, id);
        assert_eq!(
            (&run["outcome"], &run["exit_code"]),
            (&"exited".into(), &5.into()),
            "{run}"
        );
    }
    // What was acknowledged to the store that is gone is marked, and everything else is there.
    assert!(is_complete(&home, &over, &lines('a', 1, 30_000)).is_empty());
    let gaps = is_complete(&home, &going, &lines('b', 1, 60_000));
    assert!(matches!(gaps[..], [(200_000, 500_000..)]), "{gaps:?}");
    let gaps = is_complete(&home, &unknown, &lines('c', 1, 40_000));
    assert!(matches!(gaps[..], [(0, 200_000..=300_000)]), "{gaps:?}");
    // The id of a key is used up on the node, whatever the store knows: the run is met there, or was
    // forgotten, and nobody can tell any more how it ended.
    let again = keyed(&home, &once);
    let outcome = again["outcome"].as_str().unwrap();
    assert!(["exited", "lost"].contains(&outcome), "{again}");
    // A start that an earlier process has sent is never sent again. Its node has the run, or was told
    // to forget it, and says so.
    let run = is_over(&home, &starting);
    let told = (run["exit_code"].as_i64(), run["outcome_reason"].as_str());
    assert!(
        [(Some(5), None), (None, Some("node_forgot"))].contains(&told),
        "{run}"
    );
    for letter in ['a', 'b', 'c', 'd', 'e', 'f'] {
        assert_eq!(starts(&machine, letter), 1, "starts of {letter}");
    }
    let doctor = home.run(["doctor", "--json"]);
    assert!(!doctor.stdout.contains("\"error\""), "{doctor:?}");
}
