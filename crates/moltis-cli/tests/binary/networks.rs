//! A network that breaks without a word: gateway and node are in network namespaces of their own,
//! and packets between them vanish.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use crate::harness::{Gateway, Home, Process, eventually, not_tested};

/// How long either end may take to notice: 45 s without a frame, and what a busy machine adds until
/// it is asked and has said so.
const NOTICED: Duration = Duration::from_secs(50);

/// Addresses of a network that leads nowhere else.
const GATEWAY: &str = "10.203.77.1";
const NODE: &str = "10.203.77.2";

/// A network namespace, for as long as it is held.
struct Network {
    holder: Process,
    end: &'static str,
}

impl Network {
    fn make(end: &'static str) -> Option<Self> {
        let mut unshare = Command::new("unshare");
        unshare.args(["--net", "sh", "-c", "echo made && exec cat"]);
        unshare.stdin(Stdio::piped());
        let holder = Process::start_if_there(unshare)?;
        holder.stdout.wait_for_line_or_end();
        let is_made = holder.stdout.text().contains("made");
        is_made.then_some(Self { holder, end })
    }

    /// What nsenter(1) is told to get here.
    fn flag(&self) -> String {
        format!("--net=/proc/{}/ns/net", self.holder.pid().as_raw_pid())
    }

    /// Runs `ip` in here, and returns whether it did what was asked.
    fn ip(&self, line: &str) -> bool {
        let mut command = Command::new("nsenter");
        command
            .args([&self.flag(), "--", "ip"])
            .args(line.split(' '));
        command.output().is_ok_and(|done| done.status.success())
    }

    /// Brings its end of the cable up, with this address.
    fn up(&self, address: &str) -> bool {
        self.ip("link set lo up")
            && self.ip(&format!("address add {address}/24 dev {}", self.end))
            && self.ip(&format!("link set {} up", self.end))
    }
}

/// Two namespaces with one cable between them.
fn networks() -> Result<[Network; 2], &'static str> {
    let made = Network::make("gw").zip(Network::make("nd"));
    let (gateway, node) = made.ok_or("no network namespace can be made here")?;
    let cable = format!(
        "link add gw type veth peer name nd netns {}",
        node.holder.pid().as_raw_pid()
    );
    if !gateway.ip(&cable) {
        return Err("no pair of virtual interfaces can be made here");
    }
    if !gateway.up(GATEWAY) || !node.up(NODE) {
        return Err("a virtual interface takes no address here");
    }
    Ok([gateway, node])
}

#[test]
fn a_network_that_breaks_without_a_word_is_noticed_at_both_ends_and_the_run_goes_on() {
    let [near, far] = match networks() {
        Ok(networks) => networks,
        Err(why) => return not_tested("network namespaces", why),
    };
    let home = Home::new().in_a_network(near.flag());
    let machine = Home::new().in_a_network(far.flag());
    let gateway = home.gateway_with(&["--listen", &format!("{GATEWAY}:0")]);
    let _node = gateway.join(&machine, "box");
    let dir = machine.user();
    let script = format!(
        "n=0; while [ $n -lt 3 ]; do while [ ! -e {0}/step$n ]; do sleep 0.05; done; \
         echo line $n; n=$((n+1)); done; exit 9",
        dir.display()
    );
    let step = |number: u32| fs::write(dir.join(format!("step{number}")), "").unwrap();
    let mut exec = home.start(["node", "exec", "box", "--shell", &script]);
    step(0);
    exec.stdout.wait_for("line 0");

    let cut = SystemTime::now();
    assert!(far.ip("link set nd down"));
    step(1);
    let noticed = eventually_both(&gateway, &machine);
    for (end, at) in ["gateway", "node"].iter().zip(noticed) {
        let after = at.duration_since(cut).unwrap();
        assert!(after < NOTICED, "the {end} noticed after {after:?}");
        // A cut that somebody tells of would be noticed at once, and show nothing.
        assert!(
            after > Duration::from_secs(20),
            "the {end} was told: {after:?}"
        );
    }
    step(2);
    let run = home.json(["runs", "list", "--json"])[0].clone();
    assert_eq!(
        (&run["state"], &run["reachable"]),
        (&"running".into(), &false.into()),
        "{run}"
    );
    assert!(far.ip("link set nd up"));
    let done = exec.wait();
    assert_eq!(
        (done.code, done.stdout.as_str()),
        (9, "line 0\nline 1\nline 2\n"),
        "{done:?}"
    );
}

/// Waits until each end says that the other one is gone, and returns when each did.
fn eventually_both(gateway: &Gateway<'_>, machine: &Home) -> [SystemTime; 2] {
    let mut noticed = [None; 2];
    eventually("both ends to notice", || {
        let nodes = gateway.home.json(["node", "list", "--all", "--json"]);
        if nodes[0]["state"] == "offline" {
            noticed[0].get_or_insert_with(SystemTime::now);
        }
        let status = machine.json(["node", "status", "--json"]);
        if status["connected"] == false {
            noticed[1].get_or_insert_with(SystemTime::now);
        }
        match noticed {
            [Some(near), Some(far)] => Some([near, far]),
            _ => None,
        }
    })
}
