//! A real pseudo-terminal around the binary: `--tty`, `shell`, questions, and what a terminal must
//! never be sent.

use std::io::Write as _;
use std::process::Child;

use pty_process::blocking::{Command, Pty, open};
use rustix::termios::{LocalModes, tcgetattr};

use crate::harness::{Home, Printed, eventually};

/// A program on a terminal of its own.
pub(crate) struct OnTerminal {
    child: Child,
    pty: Pty,
    pub(crate) screen: Printed,
}

impl OnTerminal {
    /// Starts a command. Ctrl+C is heard only by a program in it that asks to hear it.
    pub(crate) fn of(command: &std::process::Command) -> Self {
        let deaf = "trap '' INT; exec \"$0\" \"$@\"";
        let set = |(name, value): (&std::ffi::OsStr, Option<&std::ffi::OsStr>)| {
            Some((name.to_owned(), value?.to_owned()))
        };
        let command = Command::new("/bin/sh")
            .args(["-c", deaf])
            .arg(command.get_program())
            .args(command.get_args())
            .env_clear()
            .envs(command.get_envs().filter_map(set));
        Self::spawn(command)
    }

    fn start(home: &Home, args: &[&str]) -> Self {
        Self::start_with(home, args, &[])
    }

    fn start_with(home: &Home, args: &[&str], env: &[(&str, &str)]) -> Self {
        let command = Command::new(env!("CARGO_BIN_EXE_moltis"))
            .args(args)
            .env_clear()
            .envs(home.environment())
            .env("TERM", "xterm-256color")
            .envs(env.iter().copied())
            .current_dir(home.user());
        Self::spawn(command)
    }

    fn spawn(command: Command) -> Self {
        let (pty, pts) = open().unwrap();
        pty.resize(pty_process::Size::new(33, 111)).unwrap();
        let child = command.spawn(pts).unwrap();
        let reader = rustix::io::dup(&pty).unwrap();
        Self {
            child,
            pty,
            screen: Printed::of(std::fs::File::from(reader)),
        }
    }

    pub(crate) fn type_in(&mut self, text: &str) {
        self.pty.write_all(text.as_bytes()).unwrap();
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(&self.pty)
            .unwrap()
            .local_modes
            .contains(LocalModes::ICANON)
    }

    pub(crate) fn wait(&mut self) -> i32 {
        let status = eventually("the end of a command on a terminal", || {
            self.child.try_wait().unwrap()
        });
        status.code().unwrap_or(-1)
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[test]
fn a_command_with_a_terminal_has_our_size_and_ours_is_restored() {
    let home = Home::new();
    let _gateway = home.gateway();
    let args = [
        "node",
        "exec",
        "local",
        "--tty",
        "--shell",
        "stty size; read line; echo got $line",
    ];
    let mut on = OnTerminal::start(&home, &args);
    on.screen.wait_for("33 111");
    assert!(on.is_raw());
    on.pty.resize(pty_process::Size::new(44, 99)).unwrap();
    on.type_in("hello\r");
    on.screen.wait_for("got hello");
    assert_eq!(on.wait(), 0);
    assert!(!on.is_raw(), "the terminal is as it was");
}

#[test]
fn a_new_size_of_our_terminal_reaches_the_command() {
    let home = Home::new();
    let _gateway = home.gateway();
    let script = "trap 'stty size; exit 0' WINCH; echo up; while :; do sleep 0.05; done";
    let mut on = OnTerminal::start(
        &home,
        &["node", "exec", "local", "--tty", "--shell", script],
    );
    on.screen.wait_for("up");
    on.pty.resize(pty_process::Size::new(20, 70)).unwrap();
    on.screen.wait_for("20 70");
    assert_eq!(on.wait(), 0);
}

#[test]
fn ctrl_c_on_a_terminal_goes_to_the_command() {
    let home = Home::new();
    let _gateway = home.gateway();
    let script = "trap 'echo caught; exit 3' INT; echo up; while :; do sleep 0.05; done";
    let mut on = OnTerminal::start(
        &home,
        &["node", "exec", "local", "--tty", "--shell", script],
    );
    on.screen.wait_for("up");
    on.type_in("\x03");
    on.screen.wait_for("caught");
    assert_eq!(on.wait(), 3);
    assert!(!on.is_raw());
}

#[test]
fn a_shell_is_opened_and_left() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    let _node = gateway.join(&machine, "box");
    let mut on = OnTerminal::start(&home, &["node", "shell", "box"]);
    on.type_in("echo $((6*7)); tty\r");
    on.screen.wait_for("42");
    on.screen.wait_for("/dev/pts/");
    on.type_in("exit 6\r");
    assert_eq!(on.wait(), 6);
    assert!(!on.is_raw());
    let without = home.run(["node", "shell", "box"]);
    assert_eq!(without.code, 2, "{without:?}");
}

#[test]
fn the_terminal_is_restored_when_we_are_ended() {
    let home = Home::new();
    let _gateway = home.gateway();
    let args = [
        "node",
        "exec",
        "local",
        "--tty",
        "--shell",
        "echo up; sleep 600",
    ];
    let mut on = OnTerminal::start(&home, &args);
    on.screen.wait_for("up");
    let pid = rustix::process::Pid::from_child(&on.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    on.wait();
    assert!(!on.is_raw());
}

#[test]
fn what_would_act_on_the_terminal_is_shown_instead() {
    let home = Home::new();
    let _gateway = home.gateway();
    let script = "printf '\\033]0;owned\\007\\033[2Jdone\\n'";
    let mut on = OnTerminal::start(&home, &["node", "exec", "local", "--shell", script]);
    let screen = on.screen.wait_for("done");
    assert!(screen.contains("␛]0;owned␇␛[2Jdone"), "{screen:?}");
    assert!(!screen.contains('\x1b'), "{screen:?}");
    assert_eq!(on.wait(), 0);
}

#[test]
fn what_changes_while_a_person_thinks_is_not_approved() {
    let (home, machine) = (Home::new(), Home::new());
    let mut gateway = home.gateway();
    home.ok(["node", "pairing", "enable"]);
    let node = machine.start(["node", "add", "--foreground", "--host", &gateway.ws()]);
    let code = crate::harness::code_of(&node.stdout.wait_for("Connection code"));
    let id = gateway.request_with(&code);
    let mut on = OnTerminal::start(&home, &["node", "approve", &id]);
    on.screen
        .wait_until("the question", |screen| screen.contains("[y/N]"));
    gateway.crash_and_restart();
    node.stdout.wait_until("another code", |printed| {
        printed.matches("Connection code").count() == 2 && printed.ends_with('\n')
    });
    on.type_in("y\r");
    let screen = on.screen.wait_for("look again");
    assert!(screen.contains("error:"), "{screen}");
    assert_eq!(on.wait(), 1);
    assert_eq!(
        home.json(["node", "list", "--all", "--json"]),
        serde_json::json!([])
    );
}

#[test]
fn a_question_is_asked_and_no_is_the_default() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    home.ok(["node", "pairing", "enable"]);
    let node = machine.start(["node", "add", "--foreground", "--host", &gateway.ws()]);
    let code = crate::harness::code_of(&node.stdout.wait_for("Connection code"));
    let id = gateway.request_with(&code);
    let mut on = OnTerminal::start(&home, &["node", "approve", &id]);
    on.screen
        .wait_until("the question", |screen| screen.contains("[y/N]"));
    on.type_in("\r");
    assert_eq!(on.wait(), 1);
    let mut on = OnTerminal::start(&home, &["node", "approve", &id]);
    let screen = on
        .screen
        .wait_until("the question", |screen| screen.contains("[y/N]"));
    assert!(screen.contains(&code), "{screen}");
    on.type_in("y\r");
    assert_eq!(on.wait(), 0);
    node.stdout.wait_for("Approved.");
}

#[test]
fn ctrl_c_at_a_question_answers_nothing() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    home.ok(["node", "pairing", "enable"]);
    let node = machine.start(["node", "add", "--foreground", "--host", &gateway.ws()]);
    let code = crate::harness::code_of(&node.stdout.wait_for("Connection code"));
    let id = gateway.request_with(&code);
    let mut on = OnTerminal::start(&home, &["node", "approve", &id]);
    on.screen
        .wait_until("the question", |screen| screen.contains("[y/N]"));
    on.type_in("\x03");
    let status = eventually("its end", || on.child.try_wait().unwrap());
    assert!(!status.success(), "{status}");
    gateway.request_with(&code);
}

#[test]
fn a_shell_on_a_node_that_is_away_can_be_left() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    let mut node = gateway.join(&machine, "box");
    let mut on = OnTerminal::start(&home, &["node", "shell", "box"]);
    on.type_in("echo $((6*7))\r");
    on.screen.wait_for("42");
    node.signal(rustix::process::Signal::KILL);
    node.wait();
    on.screen.wait_for("until then Ctrl+C leaves it");
    assert!(on.is_raw());
    on.type_in("\x03");
    assert_eq!(on.wait(), 130);
    assert!(!on.is_raw(), "the terminal is as it was");
}

#[test]
fn a_shell_on_a_gateway_that_is_away_can_be_left_or_goes_on() {
    let home = Home::new();
    let mut gateway = home.gateway();
    let script = "echo up; exec cat";
    let args = ["node", "exec", "local", "--tty", "--shell", script];
    let mut on = OnTerminal::start(&home, &args);
    on.screen.wait_for("up");
    on.type_in("one\r");
    on.screen.wait_until("an echo and a line", |screen| {
        screen.matches("one").count() == 2
    });
    gateway.crash();
    on.screen.wait_for("until then Ctrl+C leaves it");
    for key in [
        "t", "w", "o", " ", "a", "n", "d", " ", "m", "o", "r", "e", "\r",
    ] {
        on.type_in(key);
    }
    gateway.restart();
    on.screen.wait_until("an echo and a line", |screen| {
        screen.matches("two and more").count() == 2
    });
    gateway.crash();
    // Until the cut is noticed, what is typed is the command's.
    eventually("Ctrl+C to be heard", || {
        on.pty.write_all(b"\x03").ok();
        on.child.try_wait().unwrap()
    });
    assert_eq!(on.wait(), 130);
    assert!(!on.is_raw(), "the terminal is as it was");
}

#[test]
fn a_terminal_that_is_not_heard_any_more_is_given_back() {
    let home = Home::new();
    let gateway = home.gateway();
    let args = ["token", "create", "--name", "t", "--scope", "admin"];
    let token = home.ok(args);
    let url = format!("http://{}", gateway.address);
    let args = [
        "node",
        "exec",
        "local",
        "--gateway",
        &url,
        "--tty",
        "--shell",
        "echo up; exec cat",
    ];
    let token = [("MOLTIS_API_TOKEN", token.trim())];
    let mut on = OnTerminal::start_with(&home, &args, &token);
    on.screen.wait_for("up");
    on.type_in("one\r");
    on.screen.wait_until("an echo and a line", |screen| {
        screen.matches("one").count() == 2
    });
    home.ok(["token", "revoke", "t"]);
    on.type_in("two\r");
    on.screen
        .wait_for("what is typed does not reach it any more");
    assert_eq!(on.wait(), 255);
    assert!(!on.is_raw(), "the terminal is as it was");
}

#[test]
fn the_doctor_is_coloured_on_a_terminal_only() {
    let home = Home::new();
    let coloured = |env: &[(&str, &str)]| {
        let mut doctor = OnTerminal::start_with(&home, &["doctor"], env);
        assert_eq!(doctor.wait(), 1);
        let screen = doctor.screen.wait_for("exec_route");
        assert!(screen.contains("error"), "{screen:?}");
        screen.contains("\x1b[1;31merror    \x1b[0mgateway")
    };
    assert!(coloured(&[("NO_COLOR", "")]));
    assert!(!coloured(&[]));
    assert!(!home.run(["doctor"]).stdout.contains('\x1b'));
}
