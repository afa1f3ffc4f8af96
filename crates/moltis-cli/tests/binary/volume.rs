//! Much of everything: a long output, a slow reader, many runs beside one that hangs.

use std::io::Read as _;
use std::process::{Child, Command, Stdio};

use crate::harness::{Home, Process, eventually, keepers_of};

/// Bytes of the long output: enough that a process which keeps them is seen, and some seconds of a
/// debug build.
const LONG_OUTPUT: u64 = 256 << 20;

/// Bytes of the long output where nobody waits: `cargo xtask nightly`.
const NIGHTLY_OUTPUT: u64 = 1 << 30;

/// How many bytes of memory a process may hold at most meanwhile.
#[cfg(target_os = "linux")]
const MEMORY_MAX: u64 = 128 << 20;

#[test]
fn a_long_output_arrives_whole_and_nobody_keeps_it_in_memory() {
    arrives_whole(LONG_OUTPUT);
}

#[test]
#[ignore = "a minute and more: `cargo xtask nightly` runs it"]
fn a_gibibyte_arrives_whole_and_nobody_keeps_it_in_memory() {
    arrives_whole(NIGHTLY_OUTPUT);
}

fn arrives_whole(bytes: u64) {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    let node = gateway.join(&machine, "box");
    // Each line has its number, so a piece that is lost, doubled or moved is seen.
    let lines = bytes / 10;
    let script = format!("seq -f %09.0f 0 {}", lines - 1);
    let mut exec = spawn(home.command([
        "node",
        "exec",
        "box",
        "--timeout",
        "200",
        "--shell",
        &script,
    ]));
    let mut reader = std::io::BufReader::with_capacity(1 << 20, exec.stdout.take().unwrap());
    let mut line = [0; 10];
    let mut peak = [0; 3];
    for number in 0..lines {
        reader.read_exact(&mut line).unwrap();
        assert_eq!(digits(line), number, "{}", String::from_utf8_lossy(&line));
        if number % 1_000_000 == 0 {
            let keeper = keepers_of(&machine.path().join("runs"))[0];
            let pids = [gateway.process.pid(), node.pid(), keeper];
            for (peak, pid) in peak.iter_mut().zip(pids) {
                *peak = memory_of(pid).max(*peak);
            }
        }
    }
    assert_eq!(reader.read(&mut line).unwrap(), 0, "nothing more");
    assert!(exec.wait().unwrap().success());
    #[cfg(target_os = "linux")]
    assert!(
        peak.iter().all(|bytes| (1..MEMORY_MAX).contains(bytes)),
        "gateway, link and keeper held {peak:?} bytes"
    );
    let run = &home.json(["runs", "list", "--json"])[0];
    assert_eq!(run["stdout_bytes"], lines * 10);
}

/// Reads nine digits and the end of the line.
fn digits(line: [u8; 10]) -> u64 {
    let number = line[..9].iter().fold(0, |sum, digit| {
        sum * 10 + u64::from(digit.wrapping_sub(b'0'))
    });
    if line[9] == b'\n' { number } else { u64::MAX }
}

/// Returns how much memory of its own a process holds now.
#[cfg(target_os = "linux")]
pub(crate) fn memory_of(pid: rustix::process::Pid) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero()));
    let status = status.unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.unwrap().trim().trim_end_matches(" kB");
    kib.parse::<u64>().unwrap() * 1024
}

/// Memory is looked at where Linux shows it.
#[cfg(not(target_os = "linux"))]
pub(crate) fn memory_of(_pid: rustix::process::Pid) -> u64 {
    0
}

fn spawn(mut command: Command) -> Child {
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

#[test]
fn a_reader_who_sleeps_slows_nobody_else() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    let _node = gateway.join(&machine, "box");
    let gate = machine.user().join("gate");
    let script = format!(
        "yes | head -c 20000000; while [ ! -e {} ]; do sleep 0.05; done",
        gate.display()
    );
    let mut asleep = spawn(home.command(["node", "exec", "box", "--shell", &script]));
    let mut output = asleep.stdout.take().unwrap();
    output.read_exact(&mut [0; 1000]).unwrap();
    // Its pipe is full now. Another follower of the same run, and other runs, get all of theirs.
    let id = home.json(["runs", "list", "--json"])[0]["id"].clone();
    let attached = home.start(["runs", "attach", id.as_str().unwrap()]);
    for _ in 0..5 {
        let quick = home.run([
            "node",
            "exec",
            "box",
            "--",
            "head",
            "-c",
            "3000000",
            "/dev/zero",
        ]);
        assert_eq!((quick.code, quick.stdout_bytes.len()), (0, 3_000_000));
    }
    eventually("the other follower to have all", || {
        (attached.stdout.bytes().len() == 20_000_000).then_some(())
    });
    std::fs::write(&gate, "").unwrap();
    let mut rest = Vec::new();
    output.read_to_end(&mut rest).unwrap();
    assert_eq!(rest.len(), 20_000_000 - 1000);
    assert!(asleep.wait().unwrap().success());
}

#[test]
fn a_command_that_never_reads_its_stdin_holds_up_nobody() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    let _node = gateway.join(&machine, "box");
    let with_stdin = |script: &str| {
        let words = ["node", "exec", "box", "--stdin", "--shell", script];
        let mut command = home.command(words);
        command.stdin(Stdio::piped());
        Process::start(command)
    };
    let mut deaf = with_stdin("echo up; exec sleep 600");
    deaf.stdout.wait_for("up");
    let mut stdin = deaf.stdin();
    let writer = std::thread::spawn(move || {
        // More than all windows and queues on the way hold: it ends when the pipe is closed.
        std::io::copy(&mut std::io::repeat(7).take(64 << 20), &mut stdin).unwrap_err();
    });
    for _ in 0..10 {
        let mut busy: Vec<_> = (0..10)
            .map(|_| with_stdin("head -c 100000 /dev/zero; exec cat"))
            .collect();
        for run in &mut busy {
            std::io::Write::write_all(&mut run.stdin(), &vec![7; 100_000]).unwrap();
        }
        for mut run in busy {
            let done = run.wait();
            assert_eq!(
                (done.code, done.stdout_bytes.len()),
                (0, 200_000),
                "{}",
                done.stderr
            );
        }
    }
    assert!(deaf.is_running());
    deaf.signal(rustix::process::Signal::INT);
    assert_eq!(deaf.wait().code, 130);
    writer.join().unwrap();
}
