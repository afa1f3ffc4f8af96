//! A road that breaks at every point: the node comes back each time, and once it holds it works.

use moltis_node::GatewayUrl;
use moltis_proto::{ToGateway, ToNode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::gateway::{Peer, TestGateway, accepted};
use crate::node::{TestNode, config};
use crate::session::start;

/// Carries one connection and cuts it after so many bytes from the gateway.
async fn carry(near: TcpStream, far: TcpStream, bytes_max: usize) {
    let (mut near_read, mut near_write) = near.into_split();
    let (mut far_read, mut far_write) = far.into_split();
    let forth = async {
        tokio::io::copy(&mut near_read, &mut far_write).await.ok();
    };
    let back = async {
        let mut left = bytes_max;
        let mut bytes = vec![0; 4096];
        while left > 0 {
            let room = bytes.len().min(left);
            match far_read.read(&mut bytes[..room]).await {
                Ok(0) | Err(_) => return,
                Ok(len) => {
                    if near_write.write_all(&bytes[..len]).await.is_err() {
                        return;
                    }
                    left -= len;
                }
            }
        }
    };
    tokio::select! {
        () = forth => {}
        () = back => {}
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
    // The answer to the upgrade and the handshake have some 600 bytes; 37 has no common factor
    // with anything in them.
    for bytes_max in (1..800).step_by(37) {
        let (near, _) = road.accept().await.unwrap();
        let far = TcpStream::connect(gateway.address()).await.unwrap();
        carriers.spawn(carry(near, far, bytes_max));
        let cut = async {
            serve(&gateway).await;
        };
        tokio::select! {
            () = cut => {}
            _ = async { loop { node.keeper().await.list(1, Vec::new()).await } } => {}
        }
        node.disconnected().await;
        tokio::time::pause();
        tokio::time::advance(std::time::Duration::from_mins(1)).await;
        tokio::time::resume();
    }
    let (near, _) = road.accept().await.unwrap();
    let far = TcpStream::connect(gateway.address()).await.unwrap();
    carriers.spawn(carry(near, far, usize::MAX));
    let (peer, mut keeper) = tokio::join!(serve(&gateway), node.idle_keeper());
    let mut peer = peer.unwrap();
    peer.say(ToNode::Run(start(1))).await;
    assert_eq!(keeper.hear().await, start(1));
    node.stop().await;
}
