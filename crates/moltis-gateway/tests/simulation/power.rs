//! The power of the gateway's machine goes in the moment in which a start arrives at its keeper: the
//! files are cut back to what was synced, the keeper's are gone, and the request comes again.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use moltis_gateway::api::runs::OutcomeReason;
use moltis_gateway::clock::Clock;
use moltis_gateway::local::{Connecting, KeeperStream};
use moltis_gateway::simulation::{Disk, Edge, Incarnation, Step};
use moltis_gateway::{Gateway, GatewayConfig, Principal};
use moltis_proto::{BootId, Codec, FromKeeper, JournalId, ToKeeper};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, DuplexStream};
use tokio::time::timeout;

use super::keeper::say;
use super::{QUIET, run, simulate};

/// What a power cut would leave of each file.
type Left = BTreeMap<PathBuf, Vec<u8>>;

/// A disk that knows what a power cut would leave of the store.
#[derive(Default)]
struct Platter {
    left: Mutex<Left>,
    /// The `-wal` file as the sync that is under way found it.
    under_way: Mutex<Vec<u8>>,
}

impl Platter {
    fn left(&self) -> Left {
        self.left.lock().unwrap().clone()
    }

    /// The disk has a file now as it was then.
    fn keep(&self, path: &Path, bytes: Vec<u8>) {
        self.left.lock().unwrap().insert(path.to_owned(), bytes);
    }

    fn begin_sync(&self, path: &Path) {
        *self.under_way.lock().unwrap() = read(path);
    }

    fn end_sync(&self, path: &Path) {
        let synced = std::mem::take(&mut *self.under_way.lock().unwrap());
        self.keep(path, synced);
    }
}

impl Disk for Platter {
    fn step(&self, at: Step<'_>) -> io::Result<()> {
        match (at.what, at.edge) {
            ("store.sync", Edge::Before) => self.begin_sync(at.path),
            ("store.sync", Edge::After) => self.end_sync(at.path),
            ("store.migrate" | "store.checkpoint" | "store.close", Edge::After) => {
                for name in ["gateway.db", "gateway.db-wal"] {
                    let path = at.path.with_file_name(name);
                    self.keep(&path, read(&path));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_default()
}

/// The keeper of one boot, which remembers nothing of the one before. It notes what the disk would
/// have kept when the first start came.
struct Forgetful {
    boot_id: BootId,
    platter: Arc<Platter>,
    starts: AtomicUsize,
    at_first_start: Mutex<Option<Left>>,
}

impl Forgetful {
    fn on(boot_id: BootId, platter: &Arc<Platter>) -> Arc<Self> {
        Arc::new(Self {
            boot_id,
            platter: Arc::clone(platter),
            starts: AtomicUsize::new(0),
            at_first_start: Mutex::default(),
        })
    }

    async fn serve(self: Arc<Self>, mut stream: DuplexStream) -> io::Result<()> {
        loop {
            let length = stream.read_u32().await?;
            let mut frame = vec![0; length as usize];
            stream.read_exact(&mut frame).await?;
            match Codec::Postcard.decode(&frame).unwrap() {
                ToKeeper::Attach { .. } => {
                    let nothing = FromKeeper::Runs {
                        boot_id: self.boot_id,
                        journals: vec![JournalId::from_bytes(*self.boot_id.as_bytes())],
                        runs: Vec::new(),
                        last: true,
                    };
                    say(&mut stream, nothing).await?;
                }
                ToKeeper::Start { run_id, .. } => {
                    self.starts.fetch_add(1, Ordering::SeqCst);
                    let left = || self.platter.left();
                    self.at_first_start.lock().unwrap().get_or_insert_with(left);
                    say(&mut stream, FromKeeper::Started { run_id, pid: 7 }).await?;
                }
                _ => {}
            }
        }
    }

    fn starts(&self) -> usize {
        self.starts.load(Ordering::SeqCst)
    }
}

/// Builds the gateway of one boot.
async fn build(home: &Path, keeper: &Arc<Forgetful>, incarnation: &Incarnation) -> Gateway {
    let (keeper, boot_id) = (Arc::clone(keeper), keeper.boot_id);
    let connector = move || -> Connecting {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        drop(tokio::spawn(Arc::clone(&keeper).serve(theirs)));
        Box::pin(async { Ok(vec![Box::new(ours) as Box<dyn KeeperStream>]) })
    };
    Gateway::builder(GatewayConfig::new(home))
        .keeper(connector)
        .clock(Clock::manual(
            jiff::Timestamp::from_second(1_000_000_000).unwrap(),
        ))
        .boot_id(boot_id)
        .simulated(incarnation)
        .build()
        .await
        .unwrap()
}

#[test]
fn a_request_that_comes_again_after_a_power_cut_starts_nothing_again() {
    simulate(async {
        let (dir, again) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let platter = Arc::new(Platter::default());
        let before = Forgetful::on(BootId::from_bytes([1; 16]), &platter);
        let incarnation = Incarnation::new(Arc::<Platter>::clone(&platter));
        let gateway = build(dir.path(), &before, &incarnation).await;
        let api = gateway.on_behalf_of(Principal::Operator);
        // Who waits for the end asks for no sync, and there is none before it.
        let run = run();
        let ended = api.run_to_end(&run, Some("once"));
        assert!(timeout(QUIET, ended).await.is_err());
        incarnation.kill();
        let left = before.at_first_start.lock().unwrap().take();
        for (path, bytes) in left.expect("it was started") {
            let name = path.file_name().unwrap();
            std::fs::write(again.path().join(name), bytes).unwrap();
        }

        let after = Forgetful::on(BootId::from_bytes([2; 16]), &platter);
        let incarnation = Incarnation::new(Arc::<Platter>::default());
        let gateway = build(again.path(), &after, &incarnation).await;
        let api = gateway.on_behalf_of(Principal::Operator);
        let told = api.run_to_end(&run, Some("once"));
        let told = timeout(QUIET, told).await;
        assert_eq!((before.starts(), after.starts()), (1, 0), "{told:?}");
        let told = told.unwrap().unwrap();
        assert_eq!(told.outcome_reason, Some(OutcomeReason::NodeRebooted));
        gateway.shutdown().await;
    });
}
