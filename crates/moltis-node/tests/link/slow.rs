//! A road that swallows much and carries little.

use std::time::Duration;

use moltis_node::GatewayUrl;
use moltis_proto::{FromKeeper, ToGateway, ToKeeper, ToNode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::gateway::{Peer, TestGateway};
use crate::node::{TestKeeper, TestNode, config};
use crate::session::{CHUNK, output, run};

/// Bytes a second towards the gateway; the other way is free.
const RATE: usize = 250_000;

/// Pieces that the road holds: more than the window.
const QUEUE: usize = 64 * 1024;

/// Bytes that the keeper sends ahead of the acknowledgements: eight seconds of the road.
const WINDOW: u64 = 2_000_000;

/// Carries one connection: takes everything from the node at once, and passes it on slowly.
async fn carry(near: TcpStream, far: TcpStream) {
    let (mut near_read, mut near_write) = near.into_split();
    let (mut far_read, mut far_write) = far.into_split();
    let (queue, mut queued) = mpsc::channel::<Vec<u8>>(QUEUE);
    let swallow = async move {
        let mut bytes = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = near_read.read(&mut bytes).await {
            queue.send(bytes[..length].to_vec()).await.unwrap();
        }
    };
    let pass = async move {
        while let Some(bytes) = queued.recv().await {
            for slice in bytes.chunks(RATE / 100) {
                tokio::time::sleep(Duration::from_millis(10)).await;
                far_write.write_all(slice).await.unwrap();
            }
        }
    };
    let back = async move {
        tokio::io::copy(&mut far_read, &mut near_write).await.ok();
    };
    tokio::join!(swallow, pass, back);
}

/// A command without end, within its window.
async fn print(keeper: &mut TestKeeper) {
    let (mut sent, mut acked) = (0, 0);
    loop {
        while sent - acked < WINDOW {
            keeper.say(output(1, sent, CHUNK)).await;
            sent += CHUNK.len() as u64;
        }
        if let ToKeeper::Ack { stdout, .. } = keeper.hear().await {
            acked = stdout;
        }
    }
}

/// Hears one message, and acknowledges output. Returns its end.
async fn hear(peer: &mut Peer) -> Result<u64, ToGateway> {
    let message = peer.hear().await;
    let ToGateway::Run(FromKeeper::Output { offset, bytes, .. }) = &message else {
        return Err(message);
    };
    let stdout = offset + bytes.0.len() as u64;
    let (run_id, stderr) = (run(1), 0);
    peer.say(ToNode::Run(ToKeeper::Ack {
        run_id,
        stdout,
        stderr,
    }))
    .await;
    Ok(stdout)
}

#[tokio::test]
async fn a_pong_waits_behind_five_seconds_of_a_slow_road_and_no_window() {
    let gateway = TestGateway::bind().await;
    let road = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url: GatewayUrl = format!("ws://{}/ws", road.local_addr().unwrap())
        .parse()
        .unwrap();
    let mut node = TestNode::run(config(url));
    let mut carrier = JoinSet::new();
    let near = async {
        let (near, _) = road.accept().await.unwrap();
        let far = TcpStream::connect(gateway.address()).await.unwrap();
        carrier.spawn(carry(near, far));
    };
    let ((), mut peer, mut keeper) = tokio::join!(near, gateway.admit(), node.idle_keeper());
    peer.hear().await;
    let talk = async {
        let mut got = 0;
        // What went out before the road was known has arrived.
        while got < WINDOW + 300_000 {
            got = hear(&mut peer).await.unwrap();
        }
        peer.say(ToNode::Ping { number: 1 }).await;
        loop {
            match hear(&mut peer).await {
                Ok(now) => assert!(now - got < WINDOW * 7 / 8, "{} bytes", now - got),
                Err(pong) => break assert_eq!(pong, ToGateway::Pong { number: 1 }),
            }
        }
    };
    tokio::select! {
        () = talk => {}
        () = print(&mut keeper) => {}
    }
}
