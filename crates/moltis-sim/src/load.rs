//! Many nodes in one process, and what a gateway meets beside them.
//!
//! `seed` writes nodes into a store, `nodes` is their fleet, `strangers` are those who mean no
//! good. Keys come from a number, so the same number names the same nodes each time. What happens
//! is told on stdout, one JSON object a line, to whoever started this.
//!
//! Everything on the wire is real: the protocol's machines, Noise, signatures, sockets. Only the
//! commands are a play ([`keeper`]): no process is started.

mod comeback;
mod descriptors;
mod dial;
mod fleet;
mod keeper;
mod node;
mod seed;
mod strangers;
mod tally;

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context as _;

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Load {
    /// Write nodes into the store of a gateway that does not run.
    Seed {
        /// The gateway's folder.
        #[arg(long)]
        home: PathBuf,
        #[command(flatten)]
        who: Who,
    },
    /// Be these nodes, until nobody reads what is told.
    Nodes {
        /// Where the gateway listens.
        #[arg(long)]
        gateway: SocketAddr,
        /// Loopback addresses that the nodes come from, beginning with 127.0.1.1.
        #[arg(long, default_value_t = 16)]
        addresses: u16,
        #[command(flatten)]
        who: Who,
    },
    /// Be those who mean no good, until nobody reads what is told.
    Strangers {
        /// Where the gateway listens.
        #[arg(long)]
        gateway: SocketAddr,
        /// What they do; all of it where none is named.
        #[arg(long, value_enum)]
        kind: Vec<strangers::Kind>,
    },
}

/// Which nodes.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Who {
    /// How many.
    #[arg(long)]
    nodes: u32,
    /// The number that their keys come from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Does it.
pub(crate) fn run(load: Load) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    runtime.block_on(async {
        match load {
            Load::Seed { home, who } => seed::write(&home, who).await,
            Load::Nodes {
                gateway,
                addresses,
                who,
            } => {
                descriptors::need(u64::from(who.nodes))?;
                fleet::run(gateway, addresses, who).await
            }
            Load::Strangers { gateway, kind } => {
                descriptors::need(strangers::SOCKETS_MAX)?;
                strangers::run(gateway, &kind).await
            }
        }
    })
}
