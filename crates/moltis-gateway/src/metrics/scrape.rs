//! One scrape: what was counted, and what there is at this moment, as `OpenMetrics` text.
//!
//! A registry is made for each scrape and holds every name and every HELP, in the order of
//! `docs/operating.md`, which lists them too. Called by the handler of `GET /metrics`.

use std::path::PathBuf;
use std::sync::Arc;

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeGaugeValue, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry, Unit};

use super::RouteSeconds;
use crate::doctor::gather::disks;
use crate::exec::Shared;
use crate::http::guests::Guests;
use crate::roster::Census;
use crate::socket::Door;

/// The media type of a scrape.
pub(crate) const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The rooms that a scrape looks into.
#[derive(Debug)]
pub(crate) struct Sources {
    pub(crate) shared: Arc<Shared>,
    pub(crate) door: Door,
    pub(crate) guests: Guests,
    /// Where the gateway keeps everything.
    pub(crate) dir: PathBuf,
}

/// A gauge for each of some words.
#[derive(Debug)]
struct Each<V> {
    label: &'static str,
    values: Vec<(&'static str, V)>,
}

impl<V: EncodeGaugeValue> EncodeMetric for Each<V> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        for (word, value) in &self.values {
            let labels = [(self.label, *word)];
            encoder.encode_family(&labels)?.encode_gauge(value)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }
}

/// The names of one scrape.
struct Page(Registry);

impl Page {
    fn add(&mut self, name: &str, help: &str, metric: impl Metric) {
        self.0.register(name, help, metric);
    }

    fn seconds(&mut self, name: &str, help: &str, metric: impl Metric) {
        self.0.register_with_unit(name, help, Unit::Seconds, metric);
    }

    fn bytes(&mut self, name: &str, help: &str, metric: impl Metric) {
        self.0.register_with_unit(name, help, Unit::Bytes, metric);
    }
}

impl Sources {
    /// Returns a scrape. `started_at` is when this gateway began; `requests` is what the front desk
    /// has counted.
    pub(crate) async fn text(
        &self,
        started_at: jiff::Timestamp,
        requests: &RouteSeconds,
    ) -> String {
        let mut page = Page(Registry::with_prefix("moltis"));
        self.itself(&mut page, started_at);
        self.nodes(&mut page);
        self.runs(&mut page);
        self.output(&mut page);
        self.store(&mut page);
        self.queues(&mut page);
        self.requests(&mut page, requests);
        self.disk(&mut page).await;
        let mut text = String::new();
        encode(&mut text, &page.0).expect("writing to a string does not fail");
        text
    }

    #[expect(clippy::unused_self, reason = "it reads as one of many")]
    fn itself(&self, page: &mut Page, started_at: jiff::Timestamp) {
        page.add(
            "build",
            "What this gateway is",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        page.seconds(
            "start_time",
            "When this gateway began, in seconds since 1970",
            ConstGauge::new(started_at.as_duration().as_secs_f64()),
        );
    }

    fn nodes(&self, page: &mut Page) {
        let Census {
            online,
            offline,
            revoked,
        } = self.shared.roster.census();
        page.add(
            "nodes",
            "Known nodes, by state",
            Each {
                label: "state",
                values: vec![
                    ("online", online),
                    ("offline", offline),
                    ("revoked", revoked),
                ],
            },
        );
        page.add(
            "node_connections",
            "Connections of nodes, those included that do not take runs yet",
            ConstGauge::new(self.shared.roster.here()),
        );
        page.add(
            "node_violations",
            "Connections closed because the node broke the rules of the protocol",
            self.shared.faults().0.clone(),
        );
        let handshakes = self.door.handshakes();
        page.add(
            "handshakes_accepted",
            "Connections at /ws that became a node's",
            handshakes.accepted.0.clone(),
        );
        page.add(
            "handshakes_refused",
            "Connections at /ws that did not, by reason",
            handshakes.refused.family.clone(),
        );
        page.add(
            "strangers",
            "Connections at /ws that have not proved to be a node's, or wait for a person",
            ConstGauge::new(self.door.strangers()),
        );
        page.add(
            "pairing_requests_waiting",
            "Requests to pair that wait for a person",
            ConstGauge::new(self.shared.desk.pending().len()),
        );
        page.add(
            "pairing_window_open",
            "1 while machines may ask to pair, else 0",
            ConstGauge::new(u64::from(self.shared.desk.window().is_some())),
        );
    }

    fn runs(&self, page: &mut Page) {
        let counts = self.shared.counts();
        page.add(
            "runs_created",
            "Runs written for requests",
            counts.created.0.clone(),
        );
        page.add(
            "runs_started",
            "Runs whose process lives or lived, by their node's word",
            counts.started.0.clone(),
        );
        page.add(
            "runs_ended",
            "Runs that are over, by outcome",
            counts.ended.family.clone(),
        );
        let open = self.shared.table.open();
        page.add(
            "runs_open",
            "Runs that are not over, by state; ending is over and not written yet",
            Each {
                label: "state",
                values: vec![
                    ("starting", open.starting),
                    ("running", open.running),
                    ("ending", open.ending),
                ],
            },
        );
        page.seconds(
            "run_start",
            "From the request for a run to the word that its process lives",
            counts.start_time.0.clone(),
        );
        page.seconds(
            "run",
            "From the request for a run to its end",
            counts.whole_time.0.clone(),
        );
        page.seconds(
            "run_overhead",
            "From the request for a run to its end, less what its command took",
            counts.overhead.0.clone(),
        );
    }

    fn output(&self, page: &mut Page) {
        let outputs = &self.shared.outputs;
        let counts = outputs.counts();
        page.bytes(
            "output_received",
            "Output that came from nodes",
            counts.received.0.clone(),
        );
        page.bytes(
            "output_stored",
            "Output that is stored, so that nodes may let go of it",
            counts.stored.0.clone(),
        );
        page.bytes(
            "output_waiting",
            "Output that waits to be stored, gaps included",
            ConstGauge::new(outputs.bytes_waiting()),
        );
        page.bytes(
            "output_disk",
            "Output on the disk, of all runs that are kept",
            ConstGauge::new(outputs.bytes()),
        );
    }

    fn store(&self, page: &mut Page) {
        let times = self.shared.store.times();
        page.seconds(
            "store_commit",
            "One transaction of the store, from its begin to its commit",
            times.commit.0.clone(),
        );
        page.seconds(
            "store_sync",
            "One sync of the store to the disk",
            times.sync.0.clone(),
        );
        page.add(
            "store_read_only",
            "1 since the disk has failed and nothing is written any more, else 0",
            ConstGauge::new(u64::from(self.shared.store.failure().is_some())),
        );
    }

    fn queues(&self, page: &mut Page) {
        let (store, store_later) = self.shared.store.queued();
        page.add(
            "queue_length",
            "What waits in queues: writes of the store, commands for nodes, runs with output to write",
            Each {
                label: "queue",
                values: vec![
                    ("store", store),
                    ("store_later", store_later),
                    ("mailboxes", self.shared.commands_waiting()),
                    ("output", self.shared.outputs.runs_to_write()),
                ],
            },
        );
        page.add(
            "event_followers",
            "Who follows events, those inside of the gateway included",
            ConstGauge::new(self.shared.events.followers()),
        );
    }

    fn requests(&self, page: &mut Page, requests: &RouteSeconds) {
        page.seconds(
            "http_request",
            "From the head of a request to the head of its answer, by method, route and class of status; none is no route",
            requests.0.clone(),
        );
        page.add(
            "http_connections",
            "TCP connections that are open and no node's",
            ConstGauge::new(self.guests.count()),
        );
    }

    async fn disk(&self, page: &mut Page) {
        let dir = self.dir.clone();
        let looking = self.shared.outputs.system().blocking(move || disks(&dir));
        // A runtime that ends awaits nothing, and a disk that says nothing has no series.
        let found = looking.await.unwrap_or_default();
        let names = ["home", "outputs"];
        let rooms = || {
            let rooms = names.into_iter().zip(&found);
            rooms.filter_map(|(name, disk)| Some((name, disk.room.as_ref().ok()?)))
        };
        let each = |values| Each {
            label: "disk",
            values,
        };
        let free = rooms()
            .map(|(name, room)| (name, room.free_bytes))
            .collect();
        page.bytes(
            "disk_available",
            "Room for the gateway's user on the disk of its home, and on that of its output where it is another",
            each(free),
        );
        let size = rooms()
            .map(|(name, room)| (name, room.total_bytes))
            .collect();
        page.bytes("disk_size", "Size of those disks", each(size));
    }
}
