//! The collector, kept over many sessions: its interval for the processors' use goes on.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use moltis_proto::telemetry::Sample;
use moltis_telemetry::Collector;
use tokio::sync::Mutex;

/// Takes samples beside a session.
#[derive(Debug, Clone)]
pub(super) enum Telemetry {
    Collector(Arc<Mutex<Collector>>),
    #[cfg(feature = "simulation")]
    Simulated(Box<Sample>),
}

impl Telemetry {
    pub(super) fn new(collector: Collector) -> Self {
        Self::Collector(Arc::new(Mutex::new(collector)))
    }

    /// Takes a sample. Asked by one session at a time, so nobody waits for the lock.
    pub(super) fn sample(&self) -> BoxFuture<'static, Sample> {
        match self {
            Self::Collector(collector) => {
                let collector = Arc::clone(collector);
                Box::pin(async move { collector.lock().await.sample().await })
            }
            #[cfg(feature = "simulation")]
            Self::Simulated(sample) => Box::pin(std::future::ready(Sample::clone(sample))),
        }
    }
}
