//! The link: dial, prove, pass frames, and again.

use moltis_proto::handshake::Intent;
use tokio_util::sync::CancellationToken;

use crate::error::LinkError;
use crate::node::NodeBuilder;

/// Everything that one node's connections need.
#[derive(Debug)]
pub(crate) struct Link {
    setup: NodeBuilder,
}

impl Link {
    pub(crate) fn new(setup: NodeBuilder) -> Self {
        Self { setup }
    }

    pub(crate) async fn run(self, stop: CancellationToken) -> Result<(), LinkError> {
        let _pairs = self.setup.intent == Intent::Pair;
        stop.cancelled().await;
        Ok(())
    }
}
