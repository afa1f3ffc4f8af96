//! All nodes at once, from several addresses.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use moltis_identity::random;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::Who;
use super::node::{Fleet, Node};
use super::tally::Tally;

/// The time over which nodes dial first, as machines that were started together do.
const FIRST_DIALS: Duration = Duration::from_secs(1);

/// Is these nodes until nobody reads what is told.
pub(super) async fn run(gateway: SocketAddr, addresses: u16, who: Who) -> anyhow::Result<()> {
    let fleet = Arc::new(Fleet {
        who,
        gateway,
        tally: Tally::default(),
        pin: OnceLock::new(),
    });
    let mut nodes = JoinSet::new();
    for number in 0..who.nodes {
        let from = address(u32::from(addresses.max(1)), number);
        let node = Node::new(Arc::clone(&fleet), number, from);
        let part = f64::from(u16::from_ne_bytes(random::bytes())) / f64::from(u16::MAX);
        nodes.spawn(async move {
            sleep(FIRST_DIALS.mul_f64(part)).await;
            node.live().await;
        });
    }
    fleet.tally.tell().await;
    Ok(())
}

/// Returns the address that a node dials from: one of so many, from 127.0.1.1 on.
fn address(addresses: u32, number: u32) -> IpAddr {
    let first = u32::from(Ipv4Addr::new(127, 0, 1, 1));
    Ipv4Addr::from(first + number % addresses).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_come_from_as_many_addresses_as_were_asked_for() {
        let found: std::collections::BTreeSet<_> =
            (0..1000).map(|number| address(300, number)).collect();
        assert_eq!(found.len(), 300);
        assert!(found.iter().all(IpAddr::is_loopback));
    }
}
