//! What happens to a keeper in these tests: a story that takes every step there is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use moltis_node::keeper::{KeeperConfig, KeeperStream, Policy, Rules};
use moltis_node::{KeeperDir, Keepers as _, simulation};
use moltis_proto::run::{Ending, Outcome, RunSpec};
use moltis_proto::{BootId, RunId, RunRefusal, ToKeeper};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::client::{Client, argv, id};
use crate::machine::Machine;

/// What the one who asks knows of a run.
#[derive(Debug, Default, Clone)]
pub(crate) struct Told {
    pub(crate) spec: Option<RunSpec>,
    pub(crate) started: bool,
    pub(crate) refused: bool,
    pub(crate) ended: Option<Ending>,
    /// Whether `Forget` was said.
    pub(crate) forgotten: bool,
    /// Bytes that came.
    pub(crate) next: [u64; 2],
}

/// A directory with its keepers, and who asks them.
pub(crate) struct Stage {
    pub(crate) machine: Machine,
    pub(crate) dir: PathBuf,
    keepers: Arc<Mutex<JoinSet<()>>>,
    pub(crate) told: BTreeMap<u8, Told>,
}

/// A run that ends at the beginning and is forgotten at the end.
const KEPT: u8 = 5;
/// A run whose keeper dies.
const LOST: u8 = 4;

impl Stage {
    pub(crate) fn new(machine: Machine, dir: &Path) -> Self {
        Self {
            machine,
            dir: dir.to_owned(),
            keepers: Arc::default(),
            told: BTreeMap::new(),
        }
    }

    /// Connects as a link of this version does: to all keepers that live, the one for new runs first.
    pub(crate) async fn connect(&self, version: &'static str) -> Vec<KeeperStream> {
        let (machine, keepers) = (self.machine.clone(), Arc::clone(&self.keepers));
        let starter = move |dir: &Path| {
            let config = config(dir, version);
            let machine = machine.of_keeper();
            keepers.lock().unwrap().spawn(async move {
                let served = simulation::serve(config, machine, CancellationToken::new());
                served.await.ok(); // one whose disk fails at the very first does not begin
            });
            Ok(())
        };
        let keepers = KeeperDir::new(&self.dir, starter).version(version);
        let keepers = keepers.simulated(self.machine.sockets.clone());
        keepers.connect().await.unwrap()
    }

    pub(crate) async fn client(&self) -> (Client, Vec<RunId>) {
        let first = self.connect("1.0.0").await.swap_remove(0);
        let (client, listed) = Client::attach(first).await;
        let runs = listed.runs.into_iter().map(|run| run.run_id);
        (client, runs.collect())
    }

    /// Kills the keeper between two of its turns.
    pub(crate) async fn kill(&self) {
        let mut keepers = std::mem::take(&mut *self.keepers.lock().unwrap());
        keepers.shutdown().await;
    }

    pub(crate) fn spec_of(&self, run: u8) -> RunSpec {
        self.told[&run].spec.clone().unwrap()
    }

    async fn start(&mut self, client: &mut Client, run: u8, words: &[&str]) {
        let spec = argv(words);
        self.told.entry(run).or_default().spec = Some(spec.clone());
        client.start(id(run), spec).await;
    }

    /// Takes messages until a run is as asked, and remembers what was told.
    async fn until(&mut self, client: &mut Client, run: u8, what: Until) {
        loop {
            let known = client.runs.entry(id(run)).or_default();
            let told = self.told.get_mut(&run).unwrap();
            told.started |= known.pid.is_some();
            told.refused |= known.refused.is_some();
            told.ended = known.ended.clone().map(|(ending, _)| ending);
            told.next = known.next;
            let is_so = match what {
                Until::Started => told.started,
                Until::Ended => told.ended.is_some(),
                Until::Refused => told.refused,
            };
            if is_so {
                return;
            }
            let message = client.next().await;
            client.take(message).await;
        }
    }

    async fn forget(&mut self, client: &mut Client, run: u8) {
        self.told.get_mut(&run).unwrap().forgotten = true;
        client.say(ToKeeper::Forget { run_id: id(run) }).await;
    }

    /// Takes every step that a keeper can take on its disk.
    pub(crate) async fn tell(&mut self) {
        let stray = format!("{}.out", id(99));
        std::fs::write(self.dir.join(stray), "of a run that nobody knows").unwrap();
        let (mut client, _) = self.client().await;
        self.start(&mut client, 1, &["/sim/print", "1", "10", "0"])
            .await;
        self.until(&mut client, 1, Until::Ended).await;
        self.forget(&mut client, 1).await;
        self.start(&mut client, KEPT, &["/sim/print", "5", "20", "9"])
            .await;
        self.until(&mut client, KEPT, Until::Ended).await;
        client = self.output_is_spooled(client).await;
        self.machine.disk.fail("journal.append");
        self.start(&mut client, 3, &["/sim/print", "3", "10", "0"])
            .await;
        self.until(&mut client, 3, Until::Refused).await;
        let refused = client.runs[&id(3)].refused;
        assert_eq!(refused, Some(RunRefusal::JournalFailed));
        self.the_journal_is_written_anew(&mut client).await;
        self.a_keeper_dies(client).await;
    }

    async fn output_is_spooled(&mut self, mut client: Client) -> Client {
        self.start(&mut client, 2, &["/sim/print", "2", "3000000", "7"])
            .await;
        self.until(&mut client, 2, Until::Started).await;
        drop(client);
        tokio::time::sleep(Duration::from_secs(10)).await;
        let (mut client, listed) = self.client().await;
        assert!(listed.contains(&id(2)));
        client.resume(id(2), 0, 0).await;
        self.until(&mut client, 2, Until::Ended).await;
        assert_eq!(client.runs[&id(2)].next, [3_000_000, 0]);
        self.forget(&mut client, 2).await;
        // Time goes on when everybody waits, and the disk takes some.
        tokio::time::sleep(Duration::from_secs(1)).await;
        client
    }

    async fn the_journal_is_written_anew(&mut self, client: &mut Client) {
        self.machine.disk.fail("journal.rewrite");
        let long = "x".repeat(55_000);
        for run in 100..=250 {
            self.start(client, run, &["/sim/absent", &long]).await;
            self.until(client, run, Until::Ended).await;
            let outcome = self.told[&run].ended.as_ref().unwrap().outcome;
            assert_eq!(outcome, Outcome::FailedToStart);
            self.forget(client, run).await;
            if self.machine.disk.has_seen("journal.rename") {
                return;
            }
        }
        panic!("a journal of many forgotten runs is never written anew");
    }

    async fn a_keeper_dies(&mut self, mut client: Client) {
        self.start(&mut client, LOST, &["/sim/wait", "4", "100000"])
            .await;
        self.until(&mut client, LOST, Until::Started).await;
        self.kill().await;
        let (mut client, listed) = self.client().await;
        assert!(listed.contains(&id(LOST)));
        client.resume(id(LOST), 0, 0).await;
        self.until(&mut client, LOST, Until::Ended).await;
        let outcome = self.told[&LOST].ended.as_ref().unwrap().outcome;
        assert_eq!(outcome, Outcome::Lost);
        self.forget(&mut client, LOST).await;
        self.forget(&mut client, KEPT).await;
        client.say(ToKeeper::Leave).await;
        while client.poll().await.is_some() {}
    }
}

#[derive(Debug, Clone, Copy)]
enum Until {
    Started,
    Ended,
    Refused,
}

fn config(dir: &Path, version: &str) -> KeeperConfig {
    let rules = Rules {
        policy: Policy::Full,
        env_allow: Vec::new(),
        timeout_max: None,
        timeout_default: None,
        working_dir: PathBuf::from("/"),
        base_env: BTreeMap::new(),
    };
    KeeperConfig::new(dir, Arc::new(rules), BootId::from_bytes([1; 16]), version)
}
