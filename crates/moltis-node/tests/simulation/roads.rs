//! A link whose roads are made up.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use moltis_identity::NodeIdentity;
use moltis_node::simulation::{Dial, Facts, Road, Sockets};
use moltis_node::{KeeperDir, LinkError, LinkEvent, Node, NodeConfig};
use moltis_proto::telemetry::Platform;
use moltis_proto::{BootId, NodeId, NodeName};
use tokio::io::{AsyncReadExt as _, DuplexStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// A host that refuses everybody twice, and then answers.
#[derive(Debug)]
struct Host {
    refusals: Mutex<u32>,
    far: mpsc::Sender<DuplexStream>,
}

impl Dial for Host {
    fn dial(&self, authority: &str) -> BoxFuture<'static, io::Result<Box<dyn Road>>> {
        assert_eq!(authority, "gateway.example:9090");
        let mut refusals = self.refusals.lock().unwrap();
        let is_up = *refusals == 0;
        *refusals = refusals.saturating_sub(1);
        let far = self.far.clone();
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(40)).await;
            if !is_up {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            let (near, other) = tokio::io::duplex(64 * 1024);
            far.send(other).await.unwrap();
            Ok(Box::new(near) as Box<dyn Road>)
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_link_dials_as_the_simulation_lets_it() {
    let (far, mut arriving) = mpsc::channel(1);
    let host = Host {
        refusals: Mutex::new(2),
        far,
    };
    let facts = Facts {
        boot_id: BootId::from_bytes([3; 16]),
        platform: Platform::default(),
        sample: None,
    };
    let url = "ws://gateway.example:9090/ws".parse().unwrap();
    let config = NodeConfig::new(url, NodeName::new("Sim").unwrap(), "/", "/bin");
    let identity = NodeIdentity::generate(NodeId::new("box-1").unwrap());
    let nobody = |_: &std::path::Path| Err(io::Error::other("no keeper is asked for"));
    let keepers = KeeperDir::new("/nowhere", nobody).simulated(Sockets::default());
    let (tell, mut events) = mpsc::channel(64);
    let node = Node::builder(config, identity, keepers)
        .trust_first_use()
        .events(tell)
        .simulated(Arc::new(host), facts)
        .build();
    let stop = CancellationToken::new();
    let gateway = async {
        let mut road = arriving.recv().await.unwrap();
        let mut request = vec![0; 14];
        road.read_exact(&mut request).await.unwrap();
        stop.cancel();
        request
    };
    let (ended, request) = tokio::join!(node.run(stop.clone()), gateway);
    ended.unwrap();
    assert_eq!(request, b"GET /ws HTTP/1");
    let mut refused = 0;
    while let Ok(event) = events.try_recv() {
        if let LinkEvent::Disconnected { error, .. } = event {
            assert!(matches!(*error, LinkError::ConnectionRefused { .. }));
            refused += 1;
        }
    }
    assert_eq!(refused, 2);
}
