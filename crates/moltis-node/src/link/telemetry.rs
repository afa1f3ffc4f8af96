//! The collector, kept over many sessions: its interval for the processors' use goes on.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use moltis_proto::telemetry::Sample;
use moltis_telemetry::Collector;
use tokio::sync::Mutex;

/// Takes samples beside a session.
#[derive(Debug, Clone)]
pub(super) struct Telemetry(Arc<Mutex<Collector>>);

impl Telemetry {
    pub(super) fn new(collector: Collector) -> Self {
        Self(Arc::new(Mutex::new(collector)))
    }

    /// Takes a sample. Asked by one session at a time, so nobody waits for the lock.
    pub(super) fn sample(&self) -> BoxFuture<'static, Sample> {
        let collector = Arc::clone(&self.0);
        Box::pin(async move { collector.lock().await.sample().await })
    }
}
