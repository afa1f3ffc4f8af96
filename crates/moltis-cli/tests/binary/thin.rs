//! A line that carries 64 kbit/s, with a hundred megabytes waiting behind it, on either side.

#![expect(clippy::print_stdout, reason = "it prints figures")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use rustix::process::{Pid, Signal, test_kill_process};

use crate::harness::{Gateway, Home, Process, eventually};

/// Bytes that the line carries in a second, each way.
const RATE: u64 = 8_000;

/// Bytes that wait for it, half of them in each output: a spool holds 64 MiB of one.
const WAITING: u64 = 100_000_000;

/// How long a cancel may take until the command is gone.
const CANCELLED: Duration = Duration::from_secs(5);

/// How long another command may take, from the question to its answer: what is under way is at most five
/// seconds of the line and a frame, which is two more.
const ANSWERED: Duration = Duration::from_secs(15);

/// When the second of two other commands is asked for.
const SECOND_ASKS: Duration = Duration::from_secs(5);

/// How long output may stay away: what is under way is 64 KiB at least, eight seconds of the line.
const SILENT: Duration = Duration::from_secs(20);

/// How long the line is watched, and how long where nobody waits: `cargo xtask nightly`.
const WATCHED: Duration = Duration::from_secs(25);
const WATCHED_LONG: Duration = Duration::from_mins(10);

/// A way to one address: as wide as loopback, until it is made thin.
struct Line {
    address: String,
    /// Bytes a second; 0 where there is no limit.
    rate: Arc<AtomicU64>,
    joined: Arc<AtomicUsize>,
}

impl Line {
    fn to(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let line = Self {
            address: listener.local_addr().unwrap().to_string(),
            rate: Arc::default(),
            joined: Arc::default(),
        };
        let (target, rate, joined) = (target.to_owned(), line.rate.clone(), line.joined.clone());
        std::thread::spawn(move || {
            for near in listener.incoming() {
                let near = near.unwrap();
                let far = TcpStream::connect(&target).unwrap();
                joined.fetch_add(1, Ordering::SeqCst);
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let rate = Arc::clone(&rate);
                    std::thread::spawn(move || carry(&from, &to, &rate));
                }
            }
        });
        line
    }

    fn joined(&self) -> usize {
        self.joined.load(Ordering::SeqCst)
    }
}

fn carry(mut from: &TcpStream, mut to: &TcpStream, rate: &AtomicU64) {
    let mut bytes = [0; 1000];
    while let Ok(length @ 1..) = from.read(&mut bytes) {
        if let Some(micros) = (length as u64 * 1_000_000).checked_div(rate.load(Ordering::SeqCst)) {
            std::thread::sleep(Duration::from_micros(micros));
        }
        if to.write_all(&bytes[..length]).is_err() {
            break;
        }
    }
    for end in [from, to] {
        end.shutdown(std::net::Shutdown::Both).ok(); // the other way may have done so
    }
}

#[test]
fn a_thin_line_with_much_waiting_stays_and_others_are_answered_and_a_cancel_acts_at_once() {
    watch(WATCHED);
}

#[test]
#[ignore = "ten minutes: `cargo xtask nightly` runs it"]
fn a_thin_line_with_much_waiting_stays_for_ten_minutes_and_others_are_answered() {
    watch(WATCHED_LONG);
}

#[test]
fn a_thin_line_with_much_stdin_stays_and_others_are_answered_and_a_cancel_acts_at_once() {
    upload(WATCHED);
}

#[test]
#[ignore = "ten minutes: `cargo xtask nightly` runs it"]
fn a_thin_line_with_much_stdin_stays_for_ten_minutes_and_others_are_answered() {
    upload(WATCHED_LONG);
}

/// Another command, asked for while all of it waits.
struct Other {
    exec: Process,
    asked: SystemTime,
    took: Option<Duration>,
}

impl Other {
    fn ask(home: &Home) -> Self {
        Self {
            exec: home.start(["node", "exec", "box", "--", "echo", "here"]),
            asked: SystemTime::now(),
            took: None,
        }
    }

    /// Looks at whether it is over.
    fn look(&mut self) {
        let waited = self.asked.elapsed().unwrap();
        if self.took.is_none() && !self.exec.is_running() {
            self.took = Some(waited);
        }
        assert!(
            self.took.is_some() || waited < ANSWERED,
            "another command waits"
        );
    }
}

/// Begins a gateway that its node reaches by a line.
fn begin<'a>(home: &'a Home, machine: &'a Home) -> (Gateway<'a>, Line, Process) {
    home.write("moltis.toml", "[gateway]\nhosts = [\"127.0.0.1\"]\n");
    let mut gateway = home.gateway();
    let line = Line::to(&gateway.address);
    gateway.address.clone_from(&line.address);
    let node = gateway.join(machine, "box");
    (gateway, line, node)
}

/// Waits for the number that a command has written there.
fn pid_in(file: &Path) -> Pid {
    let read = || fs::read_to_string(file).ok()?.trim().parse().ok();
    Pid::from_raw(eventually("the command to say its number", read)).unwrap()
}

fn is_online(home: &Home) -> bool {
    home.json(["node", "list", "--all", "--json"])[0]["state"] == "online"
}

fn watch(lasts: Duration) {
    let (home, machine) = (Home::new(), Home::new());
    let (_gateway, line, mut node) = begin(&home, &machine);
    let dir = machine.user();
    let (gate, printed) = (dir.join("gate"), dir.join("printed"));
    let half = WAITING / 2;
    let script = format!(
        "while [ ! -e {} ]; do sleep 0.02; done; head -c {half} /dev/zero; \
         head -c {half} /dev/zero >&2; echo $$ > {1}.new; mv {1}.new {1}; exec sleep 3600",
        gate.display(),
        printed.display()
    );
    let id = home.ok(["node", "exec", "box", "--detach", "--shell", &script]);
    let id = id.trim();
    eventually("the command to run", || {
        let run = home.json(["runs", "show", id, "--json"]);
        (run["state"] == "running").then_some(())
    });
    // All of it lies in the spools before the line is there again.
    node.signal(Signal::KILL);
    node.wait();
    fs::write(gate, "").unwrap();
    eventually("the command to have printed", || {
        printed.exists().then_some(())
    });
    let pid = pid_in(&printed);

    line.rate.store(RATE, Ordering::SeqCst);
    let before = line.joined();
    let _node = machine.start(["node", "run"]);
    let came = |home: &Home| {
        let run = home.json(["runs", "show", id, "--json"]);
        run["stdout_bytes"].as_u64().unwrap() + run["stderr_bytes"].as_u64().unwrap()
    };
    eventually("output to come", || {
        (is_online(&home) && came(&home) > 0).then_some(())
    });
    let (began, first) = (SystemTime::now(), came(&home));
    let (mut newest, mut heard) = (first, began);
    // The first meets a line of which nothing is known yet, the second one that is full.
    let mut others = vec![Other::ask(&home)];
    while began.elapsed().unwrap() < lasts {
        assert!(is_online(&home), "it flaps {:?} later", began.elapsed());
        let now = came(&home);
        if now > newest {
            (newest, heard) = (now, SystemTime::now());
        }
        let silent = heard.elapsed().unwrap();
        assert!(silent < SILENT, "no output for {silent:?}");
        if others.len() < 2 && began.elapsed().unwrap() > SECOND_ASKS {
            others.push(Other::ask(&home));
        }
        for other in &mut others {
            other.look();
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(line.joined(), before + 1, "it has dialled again");
    assert!(
        newest < WAITING / 10,
        "the line is thin: {newest} bytes came"
    );

    let answered: Vec<_> = others.iter().map(|other| other.took).collect();
    for mut other in others {
        let done = other.exec.wait();
        assert_eq!((done.code, done.stdout.as_str()), (0, "here\n"), "{done:?}");
    }

    let asked = SystemTime::now();
    home.ok(["runs", "cancel", id]);
    eventually("the command to be gone", || {
        test_kill_process(pid).is_err().then_some(())
    });
    let cancelled = asked.elapsed().unwrap();
    assert!(cancelled < CANCELLED, "the cancel took {cancelled:?}");
    assert_eq!(line.joined(), before + 1, "it has dialled again");
    println!(
        "in {lasts:?} {} bytes came, {} of {WAITING} wait, one connection; other commands were answered after \
         {answered:?}, the cancel took {cancelled:?}",
        newest - first,
        WAITING - newest
    );
}

/// How much of its stdin a command has read, which it writes to a file.
fn read_by(file: &Path) -> u64 {
    fs::metadata(file).map_or(0, |file| file.len())
}

fn upload(lasts: Duration) {
    let (home, machine) = (Home::new(), Home::new());
    let (_gateway, line, _node) = begin(&home, &machine);
    let dir = machine.user();
    let big = home.user().join("big");
    let file = fs::File::create(&big).unwrap();
    file.set_len(WAITING).unwrap();
    // Two commands that read, and one that does not: its stdin holds up nobody.
    let scripts = ["cat > got1", "cat > got2", "sleep 3600"];
    let began = line.joined();
    line.rate.store(RATE, Ordering::SeqCst);
    let commands: Vec<_> = (1..)
        .zip(scripts)
        .map(|(number, script)| {
            let pid = dir.join(format!("pid{number}"));
            let script = format!(
                "cd {}; echo $$ > {1}.new; mv {1}.new {1}; exec {script}",
                dir.display(),
                pid.display()
            );
            let mut command = home.command(["node", "exec", "--stdin", "box", "--shell", &script]);
            command.stdin(fs::File::open(&big).unwrap());
            (Process::start(command), pid)
        })
        .collect();
    let pids: Vec<_> = commands.iter().map(|(_, pid)| pid_in(pid)).collect();
    let started = SystemTime::now();
    let (mut newest, mut heard) = (0, started);
    let mut others = vec![Other::ask(&home)];
    while started.elapsed().unwrap() < lasts {
        assert!(is_online(&home), "it flaps {:?} later", started.elapsed());
        let now = read_by(&dir.join("got1")) + read_by(&dir.join("got2"));
        if now > newest {
            (newest, heard) = (now, SystemTime::now());
        }
        let silent = heard.elapsed().unwrap();
        assert!(silent < SILENT, "no stdin for {silent:?}");
        if others.len() < 2 && started.elapsed().unwrap() > SECOND_ASKS {
            others.push(Other::ask(&home));
        }
        for other in &mut others {
            other.look();
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let least = RATE * lasts.as_secs() / 3;
    assert!(newest > least, "the line is not used: {newest} bytes came");
    for other in &mut others {
        let done = other.exec.wait();
        assert_eq!((done.code, done.stdout.as_str()), (0, "here\n"), "{done:?}");
    }
    let answered: Vec<_> = others.iter().map(|other| other.took).collect();

    test_kill_process(pids[0]).expect("it reads");
    let asked = SystemTime::now();
    commands[0].0.signal(Signal::INT);
    eventually("the first command to be gone", || {
        test_kill_process(pids[0]).is_err().then_some(())
    });
    let cancelled = asked.elapsed().unwrap();
    assert!(cancelled < CANCELLED, "the cancel took {cancelled:?}");
    assert_eq!(line.joined(), began, "it has dialled again");
    println!(
        "in {lasts:?} {newest} bytes of stdin came, one connection; other commands were answered after \
         {answered:?}, the cancel took {cancelled:?}"
    );
}
