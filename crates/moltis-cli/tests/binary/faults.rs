//! What a machine may do to its commands: start anew, lose a file, kill one of them, be copied, be
//! given a newer program. Each ends as it truly did, or goes on.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::harness::{Gateway, Home, Process, eventually, keepers_of, not_tested, processes_of};

/// Starts the node of a machine on a boot of its own; `None` where no boot can be made up here.
fn on_boot(machine: &Home, number: u8) -> Option<Process> {
    let boot = machine.user().join(format!("boot{number}"));
    fs::write(&boot, format!("{number:08}-2222-4333-8444-555555555555\n")).unwrap();
    let script = r#"mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@""#;
    let in_boot = |words: &Command| {
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-c", script])
            .arg(&boot)
            .arg(words.get_program())
            .args(words.get_args())
            .env_clear()
            .envs(machine.environment())
            .current_dir(machine.user())
            .stdin(Stdio::null());
        command
    };
    let can = in_boot(&Command::new("true")).output();
    can.is_ok_and(|done| done.status.success())
        .then(|| Process::start(in_boot(&machine.command(["node", "run"]))))
}

/// All processes of a machine end at once, as when its power goes: its node, and all others.
fn switch_off(machine: &Home, node: Process) {
    drop(node);
    eventually("everything to end", || {
        let all = processes_of(machine.path().parent().unwrap());
        for pid in &all {
            kill_process(Pid::from_raw(*pid).unwrap(), Signal::KILL).ok();
        }
        all.is_empty().then_some(())
    });
}

fn show(home: &Home, run: &str) -> Value {
    home.json(["runs", "show", run, "--json"])
}

fn ended(home: &Home, run: &str) -> Value {
    eventually("the run to end", || {
        let run = show(home, run);
        (run["state"] == "ended").then_some(run)
    })
}

fn detach(home: &Home, script: &str) -> String {
    let id = home.ok(["node", "exec", "box", "--detach", "--shell", script]);
    id.trim().to_owned()
}

/// Waits until the gateway says so of its only node.
fn is_online(home: &Home, online: bool) {
    eventually("the node to come or to go", || {
        let nodes = home.json(["node", "list", "--json"]);
        (nodes.as_array().unwrap().is_empty() != online).then_some(())
    });
}

/// Waits until a file of the machine's user is there.
fn wait_for(file: &Path) {
    eventually("a command to come so far", || file.exists().then_some(()));
}

/// The longest spool of a machine, in bytes.
fn spooled(machine: &Home) -> u64 {
    let files = fs::read_dir(machine.path().join("runs")).unwrap().flatten();
    let spools = files.filter(|file| file.path().extension().is_some_and(|kind| kind == "out"));
    spools
        .map(|file| file.metadata().map_or(0, |about| about.len()))
        .max()
        .unwrap_or(0)
}

fn journals(machine: &Home) -> Vec<PathBuf> {
    let files = fs::read_dir(machine.path().join("runs")).unwrap().flatten();
    let paths = files.map(|file| file.path());
    paths
        .filter(|path| path.extension().is_some_and(|kind| kind == "journal"))
        .collect()
}

#[test]
fn what_ran_when_the_machine_was_started_anew_is_lost_and_its_spool_comes() {
    let (home, machine) = (Home::new(), Home::new());
    let mut gateway = home.gateway();
    let node = gateway.join(&machine, "box");
    is_online(&home, true);
    switch_off(&machine, node);
    is_online(&home, false);
    let Some(node) = on_boot(&machine, 1) else {
        return not_tested(
            "a machine that is started anew",
            "no boot may be made up here",
        );
    };
    is_online(&home, true);
    let (go, printed) = (machine.user().join("go"), machine.user().join("printed"));
    let long = detach(
        &home,
        &format!(
            "echo $$ >> began; until [ -e go ]; do sleep 0.05; done; seq 1 600000; echo > {}; sleep 600",
            printed.display()
        ),
    );
    wait_for(&machine.user().join("began"));
    let short = detach(&home, "until [ -e go ]; do sleep 0.05; done; exit 3");

    // Nobody takes what it prints, so it goes to the disk.
    gateway.crash();
    fs::write(&go, "").unwrap();
    wait_for(&printed);
    eventually("the spool to be written", || {
        (spooled(&machine) > 3_000_000).then_some(())
    });
    eventually("the short one to be over", || {
        let all = processes_of(machine.path().parent().unwrap());
        // The keeper, the shell that began and what it waits for.
        (all.len() <= 3).then_some(())
    });
    switch_off(&machine, node);
    let _node = on_boot(&machine, 2).expect("a boot could be made up before");
    gateway.restart();

    let lost = ended(&home, &long);
    assert_eq!(lost["outcome"], "lost", "{lost}");
    assert_eq!(lost["outcome_reason"], "node_rebooted", "{lost}");
    assert_eq!(lost["exit_code"], Value::Null);
    let output = home.run(["runs", "output", &long]).stdout_bytes;
    let whole: Vec<u8> = (1..=600_000)
        .flat_map(|n| format!("{n}\n").into_bytes())
        .collect();
    assert!(output.len() > 3_000_000 - 4096, "{} bytes", output.len());
    assert!(whole.starts_with(&output), "it is what the command printed");
    let over = ended(&home, &short);
    assert_eq!(
        (&over["outcome"], &over["exit_code"]),
        (&"exited".into(), &3.into()),
        "{over}"
    );
    let began = fs::read_to_string(machine.user().join("began")).unwrap();
    assert_eq!(began.lines().count(), 1, "nothing started twice");
}

#[test]
fn a_journal_that_is_gone_is_noticed() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    let node = gateway.join(&machine, "box");
    let run = detach(&home, "echo > began; sleep 600");
    wait_for(&machine.user().join("began"));
    switch_off(&machine, node);
    for journal in journals(&machine) {
        fs::remove_file(journal).unwrap();
    }
    let _node = machine.start(["node", "run"]);
    let lost = ended(&home, &run);
    assert_eq!(
        (&lost["outcome"], &lost["outcome_reason"]),
        (&"lost".into(), &"journal_wiped".into()),
        "{lost}"
    );
}

/// Starts a command that waits for [`bystander_goes_on`].
fn bystander(home: &Home) -> String {
    detach(home, "until [ -e go ]; do sleep 0.05; done; echo went")
}

/// What befell another command of its machine has done nothing to this one.
fn bystander_goes_on(home: &Home, machine: &Home, run: &str) {
    fs::write(machine.user().join("go"), "").unwrap();
    let attached = home.run(["runs", "attach", run]);
    assert_eq!(
        (attached.code, &*attached.stdout),
        (0, "went\n"),
        "{attached:?}"
    );
}

#[test]
fn a_command_that_the_kernel_kills_ends_alone() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    let mut node = gateway.join(&machine, "box");
    let other = bystander(&home);
    // As the kernel does to the largest when memory is out: without a word to anybody else.
    let killed = detach(&home, "echo before; echo $$ > pid; sleep 600");
    let pid = machine.user().join("pid");
    let pid = eventually("its process", || {
        fs::read_to_string(&pid).ok()?.trim().parse().ok()
    });
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    let run = ended(&home, &killed);
    assert_eq!(
        (&run["outcome"], &run["signal"], &run["exit_code"]),
        (&"signaled".into(), &9.into(), &Value::Null),
        "{run}"
    );
    let attached = home.run(["runs", "attach", &killed]);
    assert_eq!(
        (attached.code, &*attached.stdout),
        (137, "before\n"),
        "{attached:?}"
    );
    bystander_goes_on(&home, &machine, &other);
    assert!(node.is_running());
}

/// A control group in which the kernel ends what takes more than 32 MiB.
struct Tight(PathBuf);

impl Tight {
    /// Returns `None` where no such group can be made: without its rights, or a memory controller.
    fn new() -> Option<Self> {
        let root = Path::new("/sys/fs/cgroup");
        let second = fs::read_to_string(root.join("cgroup.controllers"));
        let is_second = second.is_ok_and(|all| all.split_whitespace().any(|one| one == "memory"));
        let (parent, files) = if is_second {
            // It may be on already.
            fs::write(root.join("cgroup.subtree_control"), "+memory").ok();
            (root.to_owned(), ["memory.max", "memory.swap.max"])
        } else {
            let files = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"];
            (root.join("memory"), files)
        };
        let group = parent.join(format!("moltis-test-{}", std::process::id()));
        fs::create_dir(&group).ok()?;
        let tight = Self(group);
        let [memory, swap] = files.map(|file| tight.0.join(file));
        fs::write(memory, "33554432").ok()?;
        let least = if is_second { "0" } else { "33554432" };
        fs::write(swap, least).ok(); // there is none where nothing is swapped
        Some(tight)
    }
}

impl Drop for Tight {
    fn drop(&mut self) {
        fs::remove_dir(&self.0).ok(); // nobody is in it any more, or it stays
    }
}

#[test]
fn a_command_that_is_out_of_memory_ends_alone() {
    let Some(tight) = Tight::new() else {
        let why = "no control group with a bound of memory can be made here";
        return not_tested("an OOM kill by the kernel", why);
    };
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    let mut node = gateway.join(&machine, "box");
    let other = bystander(&home);
    let script = format!(
        "echo before; echo $$ > {}/cgroup.procs && exec tail /dev/zero",
        tight.0.display()
    );
    let run = ended(&home, &detach(&home, &script));
    assert_eq!(
        (&run["outcome"], &run["signal"], &run["exit_code"]),
        (&"signaled".into(), &9.into(), &Value::Null),
        "{run}"
    );
    assert_eq!(run["stdout_bytes"], 7, "{run}");
    bystander_goes_on(&home, &machine, &other);
    assert!(node.is_running());
}

#[test]
fn a_key_on_two_machines_is_told_and_the_newest_of_them_works() {
    let (home, machine, copy) = (Home::new(), Home::new(), Home::new());
    let gateway = home.gateway();
    let first = gateway.join(&machine, "box");
    fs::create_dir(copy.path()).unwrap();
    fs::set_permissions(copy.path(), fs::Permissions::from_mode(0o700)).unwrap();
    for file in ["node.json", "node_key"] {
        fs::copy(machine.path().join(file), copy.path().join(file)).unwrap();
    }
    let second = copy.start(["node", "run"]);
    // Each takes over from the other as soon as its pause is over.
    let finding = eventually("the copy to be told", || {
        let findings = home.run(["doctor", "--json"]).stdout;
        let findings: Value = serde_json::from_str(&findings).ok()?;
        let all = findings
            .as_array()
            .or_else(|| findings["findings"].as_array())?;
        let found = all.iter().find(|finding| finding["check"] == "nodes")?;
        (found["level"] == "error").then(|| found.clone())
    });
    let message = finding["message"].as_str().unwrap_or_default();
    assert!(message.contains("the key of `box`"), "{finding}");
    drop(first);
    let done = eventually("the one that is left to be asked", || {
        let done = home.run(["node", "exec", "box", "--shell", "echo $HOME"]);
        (done.code == 0).then_some(done)
    });
    assert_eq!(done.stdout.trim(), copy.user().to_str().unwrap());
    drop(second);
}

/// The binary as a newer version of it would be: another number, nothing else.
fn newer(machine: &Home) -> PathBuf {
    let version = env!("CARGO_PKG_VERSION");
    let (front, last) = version.rsplit_once('.').unwrap();
    let next = last.parse::<u32>().unwrap() + 1;
    let (old, new) = (version.replace('.', "[.]"), format!("{front}.{next}"));
    assert_eq!(
        new.len(),
        version.len(),
        "a string in a binary keeps its length"
    );
    let path = machine.user().join("moltis");
    let mut sed = Command::new("sed");
    sed.arg(format!("s/{old}/{new}/g"))
        .arg(env!("CARGO_BIN_EXE_moltis"))
        .stdout(fs::File::create(&path).unwrap());
    assert!(sed.status().unwrap().success());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Starts the node of a machine with this program.
fn start_node(machine: &Home, program: &Path) -> Process {
    let plain = machine.command(["node", "run"]);
    let mut command = Command::new(program);
    command
        .args(plain.get_args())
        .env_clear()
        .envs(machine.environment())
        .current_dir(machine.user())
        .stdin(Stdio::null());
    Process::start(command)
}

#[test]
fn what_runs_outlives_an_upgrade_and_new_runs_go_to_the_new_version() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    let mut node = gateway.join(&machine, "box");
    let old = detach(
        &home,
        "echo > began; until [ -e go ]; do sleep 0.05; done; echo went",
    );
    wait_for(&machine.user().join("began"));
    node.signal(Signal::TERM);
    node.wait();
    let runs = machine.path().join("runs");
    let keepers = keepers_of(&runs);
    let node = start_node(&machine, &newer(&machine));
    let done = eventually("the new version to take a run", || {
        let done = home.run(["node", "exec", "box", "--", "echo", "new"]);
        (done.code == 0).then_some(done)
    });
    assert_eq!(done.stdout, "new\n");
    let both = keepers_of(&runs);
    assert!(
        both.len() == 2 && both.contains(&keepers[0]),
        "{keepers:?}, {both:?}"
    );
    assert_eq!(show(&home, &old)["state"], "running");
    fs::write(machine.user().join("go"), "").unwrap();
    let attached = home.run(["runs", "attach", &old]);
    assert_eq!(
        (attached.code, &*attached.stdout),
        (0, "went\n"),
        "{attached:?}"
    );
    drop(node);
}

#[test]
fn a_link_whose_program_was_replaced_still_gets_a_keeper() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    let mut node = gateway.join(&machine, "box");
    node.signal(Signal::TERM);
    node.wait();
    let runs = machine.path().join("runs");
    let (program, newer) = (machine.user().join("here"), newer(&machine));
    fs::copy(env!("CARGO_BIN_EXE_moltis"), &program).unwrap();
    let node = start_node(&machine, &program);
    let runs_a_command = || {
        eventually("a command to run", || {
            let done = home.run(["node", "exec", "box", "--", "echo", "done"]);
            (done.code == 0).then_some(())
        });
    };
    runs_a_command();
    fs::rename(newer, &program).unwrap();
    for keeper in keepers_of(&runs) {
        kill_process(keeper, Signal::KILL).unwrap();
    }
    runs_a_command();
    drop(node);
}

/// Ends the gateway in order; a node hears when to come back, and nothing is left behind.
fn restarts_in_order(gateway: &mut Gateway<'_>) {
    gateway.process.signal(Signal::TERM);
    let done = gateway.process.wait();
    assert_eq!(done.code, 0, "{done:?}");
    assert!(!gateway.home.path().join("gateway.sock").exists());
    gateway.restart();
}

#[test]
fn askers_go_on_by_themselves_over_a_gateway_that_is_restarted() {
    let (home, machine) = (Home::new(), Home::new());
    let mut gateway = home.gateway();
    let mut node = gateway.join(&machine, "box");
    let run = detach(
        &home,
        "echo one; until [ -e go ]; do sleep 0.05; done; echo two; exit 4",
    );
    let mut attached = home.start(["runs", "attach", &run]);
    let mut followed = home.start(["runs", "output", &run, "--follow"]);
    attached.stdout.wait_for("one");
    followed.stdout.wait_for("one");
    restarts_in_order(&mut gateway);
    gateway.crash_and_restart();
    fs::write(machine.user().join("go"), "").unwrap();
    let (attached, followed) = (attached.wait(), followed.wait());
    assert_eq!(
        (attached.code, &*attached.stdout),
        (4, "one\ntwo\n"),
        "{attached:?}"
    );
    assert_eq!(
        (followed.code, &*followed.stdout),
        (0, "one\ntwo\n"),
        "{followed:?}"
    );
    assert!(node.is_running());
}
