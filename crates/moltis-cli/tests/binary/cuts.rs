//! Connections that are cut in the middle of a long output, as a gateway does with a reader who takes
//! nothing for long, and proxies with many; and by the end of the gateway itself.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex};

use serde_json::Value;

use crate::harness::{Home, LONG, Process, eventually, run};

/// Bytes of answers that a connection carries, where whole ones are long and where they are not.
const CARRIED: u64 = 700_000;
const CARRIED_SHORT: u64 = 100_000;

/// A way to a gateway on which every connection is cut after so many bytes.
fn cutting(target: &str, carried: u64) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let target = target.to_owned();
    std::thread::spawn(move || {
        for near in listener.incoming() {
            let target = target.clone();
            std::thread::spawn(move || carry(&near.unwrap(), &target, carried));
        }
    });
    format!("http://{address}")
}

fn carry(mut near: &TcpStream, target: &str, carried: u64) -> io::Result<()> {
    let far = TcpStream::connect(target)?;
    let (mut asks, mut asked) = (near.try_clone()?, far.try_clone()?);
    std::thread::spawn(move || io::copy(&mut asks, &mut asked));
    let carried = io::copy(&mut (&far).take(carried), &mut near);
    for end in [near, &far] {
        end.shutdown(std::net::Shutdown::Both).ok(); // a gateway that was killed has done so
    }
    carried.map(|_| ())
}

fn numbers() -> String {
    let all: Vec<_> = (1..=400_000)
        .map(|number: u32| number.to_string())
        .collect();
    all.join("\n") + "\n"
}

/// Runs a command over such a way, and expects all numbers and not a word.
#[track_caller]
fn is_whole_and_quiet(mut command: Command, url: &str, token: &str) {
    command
        .env("MOLTIS_GATEWAY", url)
        .env("MOLTIS_API_TOKEN", token.trim());
    let done = run(command);
    assert_eq!((done.code, done.stderr.as_str()), (0, ""));
    assert!(done.stdout == numbers(), "{} bytes", done.stdout.len());
}

#[test]
fn output_goes_on_at_the_byte_without_a_word_behind_cuts() {
    let home = Home::new();
    // What is carried asks for the port of who carries it.
    home.write("moltis.toml", "[gateway]\nhosts = [\"127.0.0.1\"]\n");
    let gateway = home.gateway();
    let token = home.ok(["token", "create", "--name", "me", "--scope", "admin"]);
    let url = cutting(&gateway.address, CARRIED);
    let elsewhere = Home::new();
    let exec = elsewhere.command(["node", "exec", "local", "--", "seq", "1", "400000"]);
    is_whole_and_quiet(exec, &url, &token);
    let id = home.json(["runs", "list", "--json"])[0]["id"].clone();
    let id = id.as_str().unwrap();
    for args in [
        &["runs", "attach", id][..],
        &["runs", "output", id],
        &["runs", "output", id, "--follow"],
    ] {
        is_whole_and_quiet(elsewhere.command(args), &url, &token);
    }
}

/// Steps of a command that prints much; the gateway is killed within each but the last.
const STEPS: u32 = 4;

/// Lines of a step on stdout, and on stderr half as many. Each has ten bytes.
const LINES: u32 = 30_000;

/// A command that prints a step for each file that appears.
fn stepwise(dir: &std::path::Path) -> String {
    format!(
        "n=0; while [ $n -lt {STEPS} ]; do while [ ! -e {0}/step$n ]; do sleep 0.02; done; \
         seq -f o$n%07.0f 1 {LINES}; seq -f e$n%07.0f 1 {1} >&2; n=$((n+1)); done; exit 9",
        dir.display(),
        LINES / 2
    )
}

/// What it prints of all steps up to this one.
fn printed(letter: char, lines: u32, steps: u32) -> String {
    let mut text = String::new();
    for step in 0..steps {
        for line in 1..=lines {
            writeln!(text, "{letter}{step}{line:07}").unwrap();
        }
    }
    text
}

/// What somebody has read of a run, by `GET runs/{id}/follow` alone.
#[derive(Debug, Default)]
struct Read {
    outputs: [Vec<u8>; 2],
    ended: Option<Value>,
    asked: usize,
}

/// Asks to go on from where the last answer stopped; `None` where nobody answers.
fn ask_on(read: &Mutex<Read>, url: &str, token: &str, id: &str) -> Option<BufReader<TcpStream>> {
    let address = url.trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(LONG)).ok()?;
    let [stdout, stderr] = read.lock().ok()?.outputs.each_ref().map(Vec::len);
    // As HTTP/1.0 has it: the body goes on until the connection ends.
    write!(
        stream,
        "GET /api/v1/runs/{id}/follow?stdout={stdout}&stderr={stderr} HTTP/1.0\r\n\
         host: {address}\r\nauthorization: Bearer {token}\r\n\r\n"
    )
    .ok()?;
    let mut answer = BufReader::new(stream);
    let mut line = String::new();
    answer.read_line(&mut line).ok()?;
    let is_good = line.contains(" 200 ");
    while line.trim() != "" {
        line.clear();
        answer.read_line(&mut line).ok()?;
    }
    is_good.then_some(answer)
}

/// Reads one answer to its end, or as far as it comes.
fn read_on(read: &Mutex<Read>, mut answer: BufReader<TcpStream>) {
    read.lock().unwrap().asked += 1;
    let mut head = [0; 13];
    while answer.read_exact(&mut head).is_ok() {
        let offset = u64::from_be_bytes(head[1..9].try_into().unwrap());
        let length = u32::from_be_bytes(head[9..].try_into().unwrap());
        let mut bytes = Vec::new();
        // A frame may be cut: its beginning counts.
        let came = (&mut answer).take(length.into()).read_to_end(&mut bytes);
        let is_whole = came.is_ok_and(|came| came == length as usize);
        let mut read = read.lock().unwrap();
        match head[0] {
            kind @ (1 | 2) => {
                let output = &mut read.outputs[usize::from(kind) - 1];
                assert_eq!(offset, output.len() as u64, "it goes on at the byte");
                output.extend(bytes);
            }
            4 if is_whole => read.ended = serde_json::from_slice(&bytes).unwrap(),
            4 | 5 => {}
            kind => panic!("a frame of kind {kind} at {offset}"),
        }
    }
}

/// Leaves out what says that the gateway was away, which may stand in the middle of a line.
fn without_notes(text: &str) -> String {
    let is_of_a_note = |letter: char| !"e0123456789\n".contains(letter);
    let (mut left, mut rest) = (String::new(), text);
    while let Some(at) = rest.find(is_of_a_note) {
        left.push_str(&rest[..at]);
        rest = rest[at..].split_once('\n').map_or("", |(_, behind)| behind);
    }
    left + rest
}

#[test]
fn who_follows_goes_on_at_the_byte_behind_cuts_and_kills_of_the_gateway() {
    let (home, machine) = (Home::new(), Home::new());
    home.write("moltis.toml", "[gateway]\nhosts = [\"127.0.0.1\"]\n");
    let mut gateway = home.gateway();
    let _node = gateway.join(&machine, "box");
    let token = home.ok(["token", "create", "--name", "me", "--scope", "admin"]);
    let token = token.trim();
    let script = stepwise(&machine.user());
    let id = home.ok(["node", "exec", "box", "--detach", "--shell", &script]);
    let id = id.trim();
    let url = cutting(&gateway.address, CARRIED_SHORT);
    let elsewhere = Home::new();
    let start = |args: &[&str]| {
        let mut command = elsewhere.command(args);
        command.env("MOLTIS_GATEWAY", &url);
        command.env("MOLTIS_API_TOKEN", token);
        Process::start(command)
    };
    let mut attached = start(&["runs", "attach", id]);
    let mut followed = start(&["runs", "output", id, "--follow"]);
    let read = Arc::<Mutex<Read>>::default();
    let reader = {
        let (read, url) = (Arc::clone(&read), url.clone());
        let (token, id) = (token.to_owned(), id.to_owned());
        std::thread::spawn(move || {
            eventually("the end of the run", || {
                if let Some(answer) = ask_on(&read, &url, &token, &id) {
                    read_on(&read, answer);
                }
                read.lock().unwrap().ended.clone()
            })
        })
    };
    let step = |number: u32| {
        fs::write(machine.user().join(format!("step{number}")), "").unwrap();
    };
    step(0);
    // Who has not begun is told that the gateway is away.
    attached.stdout.wait_for("o0");
    followed.stdout.wait_for("o0");
    for number in 1..STEPS {
        let before = (number - 1) * LINES * 10;
        eventually("something of this step to be read", || {
            let read = read.lock().unwrap().outputs[0].len();
            (read > before as usize).then_some(())
        });
        gateway.crash();
        step(number);
        gateway.restart();
    }
    let ended = reader.join().unwrap();
    assert_eq!(ended["exit_code"], 9, "{ended}");
    let wanted = [printed('o', LINES, STEPS), printed('e', LINES / 2, STEPS)];
    let read = read.lock().unwrap();
    for (read, wanted) in read.outputs.iter().zip(&wanted) {
        assert!(read == wanted.as_bytes(), "{} bytes", read.len());
    }
    // The first time, once behind each kill, and behind cuts.
    assert!(read.asked > STEPS as usize, "{} times", read.asked);
    let (attached, followed) = (attached.wait(), followed.wait());
    assert_eq!(attached.code, 9);
    assert!(attached.stdout == wanted[0], "{}", attached.stdout.len());
    let errors = without_notes(&attached.stderr);
    assert!(errors == wanted[1], "{}", errors.len());
    assert_eq!(followed.code, 0, "{}", followed.stderr);
    assert!(followed.stdout == wanted[0], "{}", followed.stdout.len());
}
