//! How fast frames pass, measured by hand:
//! `cargo test --release --workspace --test link speed -- --ignored --nocapture`.

use std::time::Duration;

use futures_util::future::BoxFuture;
use moltis_identity::NodeIdentity;
use moltis_node::keeper::KeeperStream;
use moltis_node::keeper::wire::{FrameReader, FrameWriter};
use moltis_node::keepers::KeepersError;
use moltis_node::{Keepers, Node};
use moltis_proto::{FromKeeper, NodeId, Subprotocol, ToGateway, ToKeeper};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::gateway::TestGateway;
use crate::node::config;
use crate::session::{CHUNK, output};

const BYTES: u64 = 2 * 1024 * 1024 * 1024;

struct Sockets(mpsc::Sender<UnixStream>);

impl Keepers for Sockets {
    fn connect(&self) -> BoxFuture<'_, Result<Vec<KeeperStream>, KeepersError>> {
        Box::pin(async {
            let (near, far) = UnixStream::pair()?;
            self.0.send(far).await?;
            Ok(vec![KeeperStream::from(near)])
        })
    }
}

async fn measure(offer: Subprotocol) -> f64 {
    let gateway = TestGateway::bind().await;
    let (far, mut keepers) = mpsc::channel(1);
    let identity = NodeIdentity::generate(NodeId::new("box-1").unwrap());
    let node = Node::builder(config(gateway.url()), identity, Sockets(far))
        .offers(vec![offer])
        .build();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        node.run(CancellationToken::new()).await.unwrap();
    });
    tasks.spawn(async move {
        let keeper = keepers.recv().await.unwrap();
        let (reader, writer) = keeper.into_split();
        let mut reader = FrameReader::new(reader);
        let mut writer = FrameWriter::new(writer);
        let _attach: ToKeeper = reader.message().await.unwrap().unwrap();
        let list = FromKeeper::Runs {
            boot_id: moltis_proto::BootId::from_bytes([1; 16]),
            journals: Vec::new(),
            runs: Vec::new(),
            last: true,
        };
        writer.send(&list).await.unwrap();
        for number in 0.. {
            let frame = output(1, number * CHUNK.len() as u64, CHUNK);
            if writer.send(&frame).await.is_err() {
                return;
            }
        }
    });
    let mut peer = gateway.admit().await;
    assert!(matches!(peer.hear().await, ToGateway::Run(_)));
    let begun = Instant::now();
    let mut plain = Vec::new();
    let mut received = 0;
    while received < BYTES {
        let frame = peer.frame().await;
        plain.clear();
        peer.opener.open(&frame, &mut plain).unwrap();
        received += plain.len() as u64;
    }
    let seconds = begun.elapsed().as_secs_f64();
    tasks.shutdown().await;
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let rate = received as f64 / 1e6 / seconds;
    rate
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
#[ignore = "a measurement"]
#[expect(clippy::print_stdout, reason = "a figure for people")]
async fn one_run_fills_the_road() {
    for _ in 0..3 {
        for offer in [Subprotocol::PostcardAes, Subprotocol::Postcard] {
            let rate = measure(offer).await;
            println!("{}: {rate:.0} MB/s", offer.name());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
