//! A road that breaks at every point: the node comes back each time, and once it holds it works.

use moltis_node::GatewayUrl;
use moltis_proto::{ToGateway, ToNode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::gateway::{Peer, TestGateway, accepted};
use crate::node::{TestNode, config};
use crate::session::start;

/// How many bytes a road carries to the gateway, and how many from it.
#[derive(Debug, Clone, Copy)]
struct Road {
    forth: usize,
    back: usize,
}

impl Road {
    const WHOLE: Self = Self {
        forth: usize::MAX,
        back: usize::MAX,
    };

    /// Carries one connection, until either way has carried all that it does.
    async fn carry(self, near: TcpStream, far: TcpStream) {
        let (near_read, near_write) = near.into_split();
        let (far_read, far_write) = far.into_split();
        tokio::select! {
            () = carry(near_read, far_write, self.forth) => {}
            () = carry(far_read, near_write, self.back) => {}
        }
    }
}

/// Carries so many bytes.
async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut left: usize) {
    let mut bytes = vec![0; 4096];
    while left > 0 {
        let room = bytes.len().min(left);
        match from.read(&mut bytes[..room]).await {
            Ok(0) | Err(_) => return,
            Ok(len) => {
                if to.write_all(&bytes[..len]).await.is_err() {
                    return;
                }
                left -= len;
            }
        }
    }
}

/// Serves one connection for as long as it holds.
async fn serve(gateway: &TestGateway) -> Option<Peer> {
    let mut peer = Peer::noise(gateway.tcp().await).await.ok()?;
    gateway.challenge(&mut peer).await.ok()?;
    peer.try_send(&accepted(peer.codec)).await.ok()?;
    let runs: ToGateway = peer.try_receive().await.ok()?;
    assert!(matches!(runs, ToGateway::Run(_)));
    Some(peer)
}

#[tokio::test]
async fn a_connection_that_is_cut_at_every_point_is_made_again() {
    let gateway = TestGateway::bind().await;
    let road = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url: GatewayUrl = format!("ws://{}/ws", road.local_addr().unwrap())
        .parse()
        .unwrap();
    let mut node = TestNode::run(config(url));
    let mut carriers = JoinSet::new();
    // The upgrade, its answer and the handshake have some 600 bytes each way.
    let back = (1..800).map(|back| Road {
        back,
        ..Road::WHOLE
    });
    let forth = (1..800).map(|forth| Road {
        forth,
        ..Road::WHOLE
    });
    for cut in back.chain(forth) {
        let (near, _) = road.accept().await.unwrap();
        let far = TcpStream::connect(gateway.address()).await.unwrap();
        carriers.spawn(cut.carry(near, far));
        let served = async {
            serve(&gateway).await;
        };
        tokio::select! {
            () = served => {}
            () = async {
                loop {
                    node.keeper().await.try_list(1, Vec::new()).await.unwrap_or_default();
                }
            } => {}
        }
        node.disconnected().await;
        tokio::time::pause();
        tokio::time::advance(std::time::Duration::from_mins(1)).await;
        tokio::time::resume();
    }
    let (near, _) = road.accept().await.unwrap();
    let far = TcpStream::connect(gateway.address()).await.unwrap();
    carriers.spawn(Road::WHOLE.carry(near, far));
    let (peer, mut keeper) = tokio::join!(serve(&gateway), node.idle_keeper());
    let mut peer = peer.unwrap();
    peer.say(ToNode::Run(start(1))).await;
    assert_eq!(keeper.hear().await, start(1));
    node.stop().await;
}
