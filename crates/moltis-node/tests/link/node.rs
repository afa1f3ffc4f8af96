//! The node under test, and the keepers that a test plays.

use std::time::Duration;

use futures_util::future::BoxFuture;
use moltis_identity::NodeIdentity;
use moltis_node::keeper::KeeperStream;
use moltis_node::keeper::wire::{FrameReader, FrameWriter};
use moltis_node::keepers::KeepersError;
use moltis_node::{
    GatewayUrl, GiveUp, Keepers, LinkError, LinkEvent, Node, NodeBuilder, NodeConfig, Settings,
};
use moltis_proto::run::RunSummary;
use moltis_proto::{BootId, FromKeeper, JournalId, NodeId, NodeName, ToKeeper};
use tokio::io::{DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// A node that runs beside the test.
pub(crate) struct TestNode {
    pub(crate) events: mpsc::Receiver<LinkEvent>,
    pub(crate) stop: CancellationToken,
    task: JoinSet<Result<(), LinkError>>,
    keepers: mpsc::Receiver<TestKeeper>,
}

/// One keeper's side of its socket.
pub(crate) struct TestKeeper {
    pub(crate) reader: FrameReader<ReadHalf<DuplexStream>>,
    pub(crate) writer: FrameWriter<WriteHalf<DuplexStream>>,
}

struct TestKeepers {
    count: usize,
    far: mpsc::Sender<TestKeeper>,
}

impl Keepers for TestKeepers {
    fn connect(&self) -> BoxFuture<'_, Result<Vec<KeeperStream>, KeepersError>> {
        Box::pin(async {
            let mut streams = Vec::new();
            for _ in 0..self.count {
                let (near, far) = tokio::io::duplex(64 * 1024);
                let (reader, writer) = tokio::io::split(far);
                let far = TestKeeper {
                    reader: FrameReader::new(reader),
                    writer: FrameWriter::new(writer),
                };
                self.far.send(far).await?;
                streams.push(KeeperStream::from(near));
            }
            Ok(streams)
        })
    }
}

pub(crate) fn config(url: GatewayUrl) -> NodeConfig {
    let name = NodeName::new("Build Server").unwrap();
    NodeConfig::new(url, name, "/home/ada", "/usr/bin:/bin")
}

impl TestNode {
    /// A node as `node add --foreground` makes it.
    pub(crate) fn add(settings: impl Into<Settings>) -> Self {
        Self::start(settings, |node| node.pair().give_up(GiveUp::WhenTurnedAway))
    }

    /// A node as `node run` makes it.
    pub(crate) fn run(settings: impl Into<Settings>) -> Self {
        Self::start(settings, |node| node)
    }

    pub(crate) fn start(
        settings: impl Into<Settings>,
        setup: impl FnOnce(NodeBuilder) -> NodeBuilder,
    ) -> Self {
        Self::with_keepers(1, settings, setup)
    }

    pub(crate) fn with_keepers(
        count: usize,
        settings: impl Into<Settings>,
        setup: impl FnOnce(NodeBuilder) -> NodeBuilder,
    ) -> Self {
        let (far, keepers) = mpsc::channel(16);
        Self::of(settings, TestKeepers { count, far }, keepers, setup)
    }

    /// A node with real keepers.
    pub(crate) fn with_real(settings: impl Into<Settings>, keepers: impl Keepers) -> Self {
        let (_, none) = mpsc::channel(1);
        Self::of(settings, keepers, none, |node| node)
    }

    fn of(
        settings: impl Into<Settings>,
        played: impl Keepers,
        keepers: mpsc::Receiver<TestKeeper>,
        setup: impl FnOnce(NodeBuilder) -> NodeBuilder,
    ) -> Self {
        let (tell, events) = mpsc::channel(256);
        let identity = NodeIdentity::generate(NodeId::new("box-1").unwrap());
        let node = Node::builder(settings, identity, played)
            .trust_first_use()
            .events(tell);
        let stop = CancellationToken::new();
        let mut task = JoinSet::new();
        task.spawn(setup(node).build().run(stop.clone()));
        Self {
            events,
            stop,
            task,
            keepers,
        }
    }

    /// Returns the next event.
    pub(crate) async fn event(&mut self) -> LinkEvent {
        let next = tokio::time::timeout(Duration::from_mins(5), self.events.recv());
        next.await.expect("an event").expect("the node lives")
    }

    /// Returns the next error that is waited out.
    pub(crate) async fn disconnected(&mut self) -> (std::sync::Arc<LinkError>, Duration) {
        loop {
            if let LinkEvent::Disconnected { error, retry_in } = self.event().await {
                return (error, retry_in);
            }
        }
    }

    /// Waits until the node has ended by itself.
    pub(crate) async fn ended(&mut self) -> Result<(), LinkError> {
        self.task.join_next().await.unwrap().unwrap()
    }

    pub(crate) async fn error(&mut self) -> LinkError {
        self.ended().await.unwrap_err()
    }

    /// Stops the node and waits for its end.
    pub(crate) async fn stop(mut self) {
        self.stop.cancel();
        self.ended().await.unwrap();
    }

    /// Returns the next keeper that the link has connected to.
    pub(crate) async fn keeper(&mut self) -> TestKeeper {
        self.keepers.recv().await.expect("the node lives")
    }

    /// A keeper that holds nothing, with its floor taken.
    pub(crate) async fn idle_keeper(&mut self) -> TestKeeper {
        let mut keeper = self.keeper().await;
        keeper.list(1, Vec::new()).await;
        keeper
    }
}

impl TestKeeper {
    /// Hears `Attach` and answers with these runs.
    pub(crate) async fn list(&mut self, journal: u8, runs: Vec<RunSummary>) {
        let listed = self.try_list(journal, runs).await;
        listed.expect("the link lives");
    }

    /// Does as [`list`](Self::list); `None` where the link leaves meanwhile.
    pub(crate) async fn try_list(&mut self, journal: u8, runs: Vec<RunSummary>) -> Option<()> {
        let attach = self.reader.message().await.ok()??;
        assert!(matches!(attach, ToKeeper::Attach { .. }));
        let list = FromKeeper::Runs {
            boot_id: BootId::from_bytes([5; 16]),
            journals: vec![JournalId::from_bytes([journal; 16])],
            runs,
            last: true,
        };
        self.writer.send(&list).await.ok()
    }

    pub(crate) async fn hear(&mut self) -> ToKeeper {
        self.try_hear().await.expect("the link lives")
    }

    pub(crate) async fn try_hear(&mut self) -> Option<ToKeeper> {
        self.reader.message().await.unwrap()
    }

    pub(crate) async fn say(&mut self, message: FromKeeper) {
        self.writer.send(&message).await.unwrap();
    }
}
