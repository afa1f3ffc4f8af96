//! What the owner of a machine lets run, and what a child is given.

use std::sync::Arc;
use std::time::Duration;

use moltis_node::keeper::{Keeper, KeeperConfig, Policy, Rules, RulesError, RulesSource};
use moltis_proto::run::Outcome;
use moltis_proto::{BootId, RunRefusal};

use crate::client::{Client, argv, id, shell};
use crate::fixture::{Inside, Outside, rules};

/// Rules that nobody can read.
struct Spoiled;

impl RulesSource for Spoiled {
    fn current(&mut self) -> Result<Arc<Rules>, RulesError> {
        Err(RulesError {
            path: "/m/node.json".into(),
            source: "it is half a file".into(),
        })
    }
}

#[tokio::test]
async fn rules_that_cannot_be_read_start_nothing_and_do_not_say_that_the_owner_said_no() {
    let dir = tempfile::tempdir().unwrap();
    let boot_id = BootId::from_bytes([1; 16]);
    let config = KeeperConfig::new(dir.path(), Spoiled, boot_id, "1.0.0");
    let keeper = Keeper::spawn_in_process(config).unwrap();
    let (mut client, _) = Client::attach(keeper.connect().await.unwrap()).await;
    let run = client.run(id(1), shell("true")).await;
    assert_eq!(run.refused, None);
    assert_eq!(run.ending().outcome, Outcome::FailedToStart);
    let said = &run.ending().detail;
    assert!(said.contains("`/m/node.json`: it is half a file"), "{said}");
}

async fn refusal(rules: Rules, spec: moltis_proto::run::RunSpec) -> Option<RunRefusal> {
    let keeper = Inside::with(rules);
    let mut client = keeper.client().await;
    client.run(id(1), spec).await.refused
}

#[tokio::test]
async fn the_environment_holds_the_base_and_what_was_asked_for_and_nothing_else() {
    let keeper = Outside::start().await;
    let mut client = keeper.client().await;
    let mut spec = argv(&["env"]);
    spec.env.insert("LANG".to_owned(), "C".to_owned());
    let run = client.run(id(1), spec).await;
    let text = run.stdout();
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "HOME=/",
            "LANG=C",
            "LOGNAME=tester",
            "PATH=/usr/local/bin:/usr/bin:/bin",
            "SHELL=/bin/sh",
            "TMPDIR=/tmp",
            "USER=tester"
        ]
    );
}

#[tokio::test]
async fn a_child_inherits_three_descriptors_and_a_group_of_its_own() {
    let keeper = Outside::start().await;
    let mut client = keeper.client().await;
    let run = client.run(id(1), argv(&["ls", "/proc/self/fd"])).await;
    // The fourth is the directory that ls reads.
    assert_eq!(run.stdout(), "0\n1\n2\n3\n");
    let line = "ps -o pgid= -p $$ | tr -d ' '; echo $$; ulimit -n";
    let text = client.run(id(2), shell(line)).await.stdout();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], lines[1]);
    let here = std::process::Command::new("sh")
        .args(["-c", "ulimit -n"])
        .output()
        .unwrap();
    assert_eq!(lines[2], String::from_utf8(here.stdout).unwrap().trim());
}

#[tokio::test]
async fn a_variable_that_is_not_on_the_list_is_refused_and_never_dropped() {
    let mut spec = argv(&["env"]);
    spec.env.insert("BUILD_ID".to_owned(), "7".to_owned());
    assert_eq!(
        refusal(rules(), spec.clone()).await,
        Some(RunRefusal::EnvNotAllowed)
    );
    let allows = |name: &str| Rules {
        env_allow: vec![name.to_owned()],
        ..rules()
    };
    assert_eq!(refusal(allows("BUILD_ID"), spec).await, None);
    let mut spec = argv(&["env"]);
    spec.env.insert("LD_PRELOAD".to_owned(), "x".to_owned());
    assert_eq!(
        refusal(allows("LD_PRELOAD"), spec).await,
        Some(RunRefusal::EnvNotAllowed)
    );
}

#[tokio::test]
async fn the_owners_policy_is_kept() {
    let off = || Rules {
        policy: Policy::Off,
        ..rules()
    };
    let list = || Rules {
        policy: Policy::AllowList(vec![vec!["echo".to_owned(), "...".to_owned()]]),
        ..rules()
    };
    assert_eq!(
        refusal(off(), shell("true")).await,
        Some(RunRefusal::Policy)
    );
    assert_eq!(
        refusal(off(), argv(&["no-such-program"])).await,
        Some(RunRefusal::Policy)
    );
    assert_eq!(refusal(list(), argv(&["echo", "a"])).await, None);
    assert_eq!(
        refusal(list(), argv(&["env"])).await,
        Some(RunRefusal::Policy)
    );
    assert_eq!(
        refusal(list(), argv(&["no-such-program"])).await,
        Some(RunRefusal::Policy)
    );
    assert_eq!(
        refusal(list(), shell("echo a")).await,
        Some(RunRefusal::Policy)
    );
}

#[tokio::test]
async fn more_time_than_the_owner_grants_is_refused_with_the_longest() {
    let limited = || Rules {
        timeout_max: Some(Duration::from_secs(3)),
        timeout_default: Some(Duration::from_millis(100)),
        ..rules()
    };
    let mut spec = shell("exit 0");
    spec.timeout_ms = Some(3_001);
    let longest_ms = 3_000;
    assert_eq!(
        refusal(limited(), spec.clone()).await,
        Some(RunRefusal::TimeoutTooLong { longest_ms })
    );
    spec.timeout_ms = Some(3_000);
    assert_eq!(refusal(limited(), spec).await, None);
    let keeper = Inside::with(limited());
    let mut client = keeper.client().await;
    let run = client.run(id(1), argv(&["sleep", "60"])).await;
    assert_eq!(run.ending().outcome, Outcome::TimedOut);
}

#[tokio::test]
async fn values_out_of_their_bounds_are_refused() {
    let mut relative = shell("true");
    relative.cwd = Some("relative".to_owned());
    let mut endless = shell("true");
    endless.grace_ms = 86_400_000;
    let mut none = shell("true");
    none.timeout_ms = Some(0);
    for spec in [
        argv(&[]),
        argv(&["a\0b"]),
        shell("a\0b"),
        relative,
        endless,
        none,
    ] {
        assert_eq!(refusal(rules(), spec).await, Some(RunRefusal::Invalid));
    }
}

#[tokio::test]
async fn a_refused_id_stays_refused() {
    let keeper = Inside::new();
    let mut client = keeper.client().await;
    assert_eq!(
        client.run(id(1), argv(&[])).await.refused,
        Some(RunRefusal::Invalid)
    );
    assert_eq!(
        client.run(id(1), shell("true")).await.refused,
        Some(RunRefusal::Invalid)
    );
}
