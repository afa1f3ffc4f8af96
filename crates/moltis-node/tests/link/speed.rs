//! How fast frames pass, measured by hand:
//! `cargo test --release --workspace --test link speed -- --ignored --nocapture`.

use std::time::Duration;

use futures_util::future::BoxFuture;
use moltis_identity::NodeIdentity;
use moltis_node::keeper::KeeperStream;
use moltis_node::keeper::wire::{FrameReader, FrameWriter};
use moltis_node::keepers::KeepersError;
use moltis_node::{Keepers, Node};
use moltis_proto::{FromKeeper, NodeId, Subprotocol, ToGateway, ToKeeper, ToNode};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::gateway::{Peer, TestGateway};
use crate::node::config;
use crate::session::{CHUNK, output, run};

const BYTES: u64 = 2 * 1024 * 1024 * 1024;

/// Frames that are acknowledged one by one, and then frames for each acknowledgement.
const ACKED_AT_FIRST: u64 = 256;
const ACKED_EVERY: u64 = 32;

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

/// What one side costs: processor time of its own thread.
fn on_own_thread<T: Send + 'static>(
    work: impl AsyncFnOnce() -> T + Send + 'static,
) -> std::thread::JoinHandle<(T, Duration)> {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let done = runtime.block_on(work());
        let spent = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        let spent = Duration::try_from(spent).unwrap();
        (done, spent)
    })
}

async fn keep(keeper: UnixStream) {
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
}

async fn drain(gateway: &TestGateway) -> Duration {
    let mut peer = gateway.admit().await;
    assert!(matches!(peer.hear().await, ToGateway::Run(_)));
    let begun = Instant::now();
    let mut plain = Vec::new();
    let mut received = 0;
    for number in 0_u64.. {
        let frame = peer.frame().await;
        plain.clear();
        peer.opener.open(&frame, &mut plain).unwrap();
        received += plain.len() as u64;
        if received >= BYTES {
            break;
        }
        // A link that knows nothing of its road sends little on without; later it costs next to nothing.
        if number < ACKED_AT_FIRST || number.is_multiple_of(ACKED_EVERY) {
            acknowledge(&mut peer, &plain).await;
        }
    }
    begun.elapsed()
}

/// Says that everything up to the end of this frame is stored.
async fn acknowledge(peer: &mut Peer, plain: &[u8]) {
    let message = peer.codec.decode(plain).unwrap();
    if let ToGateway::Run(FromKeeper::Output { offset, bytes, .. }) = message {
        peer.say(ToNode::Run(ToKeeper::Ack {
            run_id: run(1),
            stdout: offset + bytes.0.len() as u64,
            stderr: 0,
        }))
        .await;
    }
}

#[expect(clippy::print_stdout, reason = "figures for people")]
fn measure(offer: Subprotocol) {
    let (url, told) = std::sync::mpsc::channel();
    let stop = CancellationToken::new();
    let end = stop.clone();
    let gateway = on_own_thread(async move || {
        let gateway = TestGateway::bind().await;
        url.send(gateway.url()).unwrap();
        let took = drain(&gateway).await;
        end.cancel();
        took
    });
    let (far, mut sockets) = mpsc::channel(1);
    let keeper = on_own_thread(async move || keep(sockets.recv().await.unwrap()).await);
    let url = told.recv().unwrap();
    let link = on_own_thread(async move || {
        let identity = NodeIdentity::generate(NodeId::new("box-1").unwrap());
        let node = Node::builder(config(url), identity, Sockets(far))
            .trust_first_use()
            .offers(vec![offer]);
        node.build().run(stop).await.unwrap();
    });
    let (took, gateway_cpu) = gateway.join().unwrap();
    let ((), link_cpu) = link.join().unwrap();
    keeper.join().unwrap();
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    let megabytes = BYTES as f64 / 1e6;
    println!(
        "{:20} {:5.0} MB/s   link alone {:5.0} MB/s   a gateway that only opens {:5.0} MB/s",
        offer.name(),
        megabytes / took.as_secs_f64(),
        megabytes / link_cpu.as_secs_f64(),
        megabytes / gateway_cpu.as_secs_f64(),
    );
}

#[test]
#[ignore = "a measurement"]
fn one_run_fills_the_road() {
    for _ in 0..3 {
        measure(Subprotocol::PostcardAes);
        measure(Subprotocol::Postcard);
    }
}
