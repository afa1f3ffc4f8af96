//! A day of telemetry for the charts: eight bytes a sample, one row for a node and hour.
//!
//! The gateway's clock stamps what arrives. The current hour is in memory and is written every ten
//! minutes, each node in its own minute; a crash costs at most that. The last sample itself, with
//! all it says, is held by the session and never stored.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use moltis_proto::DeviceId;
use moltis_proto::name::is_deceptive;
use moltis_proto::telemetry::Sample;

use crate::store::{Store, StoreError};

/// Bytes of one stored sample.
const SAMPLE_BYTES: usize = 8;

/// Samples of one hour, at most: one each 30 seconds.
const SAMPLES_MAX: usize = 120;

/// How long an hour is kept behind its last sample.
pub const HOURS_KEPT: Duration = Duration::from_hours(24);

/// Minutes between two writes of one node's hour.
const WRITE_MINUTES: i64 = 10;

const HOUR_MS: i64 = 3_600_000;

/// The highest load average that is believed: more tasks than this no Linux has (`pid_max`, proc(5)).
const LOAD_MAX: f32 = 4_194_304.0;

/// Makes a sample one that a machine can have: a node may send any bits, and people and programs
/// rely on what is shown. Figures are put into their bounds, and those that are no numbers go: JSON
/// has no word for them. Texts lose what could change how they are shown, and what has no name then
/// is left out.
pub(crate) fn make_plausible(sample: &mut Sample) {
    let within = |figure: f32, max| figure.is_finite().then(|| figure.clamp(0.0, max));
    sample.cpu_usage_percent = sample
        .cpu_usage_percent
        .and_then(|usage| within(usage, 100.0));
    sample.load_1m = within(sample.load_1m, LOAD_MAX).unwrap_or(0.0);
    sample.memory_available_bytes = sample.memory_available_bytes.min(sample.memory_total_bytes);
    sample.disk_available_bytes = sample.disk_available_bytes.min(sample.disk_total_bytes);
    sample.gpus.retain_mut(|gpu| {
        gpu.memory_used_bytes = gpu.memory_used_bytes.min(gpu.memory_total_bytes);
        make_visible(&mut gpu.name)
    });
    sample.runtimes.retain_mut(|runtime| {
        make_visible(&mut runtime.version); // one whose version nobody knows is there all the same
        make_visible(&mut runtime.name)
    });
    sample.providers.retain_mut(|provider| {
        provider.models.retain_mut(make_visible);
        let variable = provider.variable.take();
        provider.variable = variable.and_then(|mut name| make_visible(&mut name).then_some(name));
        make_visible(&mut provider.name)
    });
}

/// Leaves out of a text what could change how it is shown, and says whether something is left.
fn make_visible(text: &mut String) -> bool {
    text.retain(|c| !is_deceptive(c));
    !text.trim().is_empty()
}

/// One sample as the history keeps it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// When it arrived, to 30 seconds.
    pub at: Timestamp,
    /// Percent of all CPUs, to halves; `None` where the sample had none.
    pub cpu_usage_percent: Option<f32>,
    /// Available memory as a part of all, 0 to 1.
    pub memory_available: f32,
    /// Available disk as a part of all, 0 to 1.
    pub disk_available: f32,
    /// Load average, to tenths, at most 6,553.5.
    pub load_1m: f32,
}

/// The hours that are not written yet.
#[derive(Debug, Default)]
pub struct History {
    hours: HashMap<DeviceId, Hour>,
}

#[derive(Debug, Clone, Default)]
struct Hour {
    number: i64,
    samples: Vec<u8>,
    dirty: bool,
}

/// An hour to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HourRow {
    /// The node.
    pub device_id: DeviceId,
    /// Hours since 1970.
    pub hour: i64,
    /// Eight bytes a sample.
    pub samples: Vec<u8>,
}

impl History {
    /// Takes a sample. Returns the hour before, where this one begins a new hour.
    ///
    /// A clock that was turned back begins an hour that is written over what stood there.
    pub fn record(
        &mut self,
        device_id: DeviceId,
        sample: &Sample,
        at: Timestamp,
    ) -> Option<HourRow> {
        let number = at.as_millisecond().div_euclid(HOUR_MS);
        let hour = self.hours.entry(device_id).or_default();
        let finished = (hour.number != number && hour.dirty).then(|| HourRow {
            device_id,
            hour: hour.number,
            samples: std::mem::take(&mut hour.samples),
        });
        if hour.number != number {
            *hour = Hour {
                number,
                ..Hour::default()
            };
        }
        // A node that sends too often gives more samples, not more bytes.
        if hour.samples.len() < SAMPLES_MAX * SAMPLE_BYTES {
            hour.samples.extend_from_slice(&encode(sample, at));
            hour.dirty = true;
        }
        finished
    }

    /// Takes up what an earlier process wrote of the current hour.
    pub fn resume(&mut self, row: HourRow) {
        self.hours.entry(row.device_id).or_insert(Hour {
            number: row.hour,
            samples: row.samples,
            dirty: false,
        });
    }

    /// Returns the hours to write in this minute: each node's is due once in ten.
    pub fn due(&mut self, now: Timestamp) -> Vec<HourRow> {
        let minute = now
            .as_millisecond()
            .div_euclid(60_000)
            .rem_euclid(WRITE_MINUTES);
        self.rows(|device_id| i64::from(device_id.as_bytes()[0]) % WRITE_MINUTES == minute)
    }

    /// Returns all hours with something to write: the gateway shuts down.
    pub fn all(&mut self) -> Vec<HourRow> {
        self.rows(|_| true)
    }

    fn rows(&mut self, wanted: impl Fn(&DeviceId) -> bool) -> Vec<HourRow> {
        let hours = self.hours.iter_mut();
        let due = hours.filter(|(device_id, hour)| hour.dirty && wanted(device_id));
        due.map(|(device_id, hour)| {
            hour.dirty = false;
            HourRow {
                device_id: *device_id,
                hour: hour.number,
                samples: hour.samples.clone(),
            }
        })
        .collect()
    }

    /// Forgets a node.
    pub fn forget(&mut self, device_id: DeviceId) {
        self.hours.remove(&device_id);
    }

    /// Returns a node's points since `since`, oldest first: stored hours, and the current one.
    ///
    /// # Errors
    /// Where the database cannot be read.
    pub async fn read(
        store: &Store,
        device_id: DeviceId,
        current: Option<HourRow>,
        since: Timestamp,
    ) -> Result<Vec<Point>, StoreError> {
        let first = since.as_millisecond().div_euclid(HOUR_MS);
        let mut hours = store.telemetry_hours(device_id, first).await?;
        if let Some(current) = current {
            hours.retain(|(hour, _)| *hour != current.hour);
            hours.push((current.hour, current.samples));
        }
        let points = hours.iter().flat_map(|(hour, samples)| {
            let samples = samples.chunks_exact(SAMPLE_BYTES);
            samples.filter_map(|sample| decode(*hour, sample))
        });
        Ok(points.filter(|point| point.at >= since).collect())
    }

    /// Returns the hour of a node that is in memory.
    pub fn current(&self, device_id: DeviceId) -> Option<HourRow> {
        let hour = self.hours.get(&device_id)?;
        Some(HourRow {
            device_id,
            hour: hour.number,
            samples: hour.samples.clone(),
        })
    }
}

/// No CPU usage: the first sample of a connection.
const NO_CPU: u8 = u8::MAX;

/// | bytes | what |
/// |---|---|
/// | 0 | the slot of 30 seconds within the hour |
/// | 1 | CPU in half percents; 255 is none |
/// | 2, 3 | available memory as a part of 65,535, big-endian |
/// | 4, 5 | available disk, likewise |
/// | 6, 7 | load in tenths, big-endian |
fn encode(sample: &Sample, at: Timestamp) -> [u8; SAMPLE_BYTES] {
    let slot = at.as_millisecond().rem_euclid(HOUR_MS) / 30_000;
    let memory = part(sample.memory_available_bytes, sample.memory_total_bytes);
    let disk = part(sample.disk_available_bytes, sample.disk_total_bytes);
    let load = rounded(sample.load_1m * 10.0, u16::MAX);
    let cpu = match sample.cpu_usage_percent {
        Some(percent) => u8::try_from(rounded(percent * 2.0, 200)).unwrap_or(NO_CPU),
        None => NO_CPU,
    };
    let [m0, m1] = memory.to_be_bytes();
    let [d0, d1] = disk.to_be_bytes();
    let [l0, l1] = load.to_be_bytes();
    [
        u8::try_from(slot).unwrap_or(u8::MAX),
        cpu,
        m0,
        m1,
        d0,
        d1,
        l0,
        l1,
    ]
}

fn decode(hour: i64, sample: &[u8]) -> Option<Point> {
    let [slot, cpu, m0, m1, d0, d1, l0, l1] = *<&[u8; SAMPLE_BYTES]>::try_from(sample).ok()?;
    let at = hour
        .checked_mul(HOUR_MS)?
        .checked_add(i64::from(slot) * 30_000)?;
    let part = |high, low| f32::from(u16::from_be_bytes([high, low])) / f32::from(u16::MAX);
    Some(Point {
        at: Timestamp::from_millisecond(at).ok()?,
        cpu_usage_percent: (cpu != NO_CPU).then(|| f32::from(cpu) / 2.0),
        memory_available: part(m0, m1),
        disk_available: part(d0, d1),
        load_1m: f32::from(u16::from_be_bytes([l0, l1])) / 10.0,
    })
}

/// Returns `some` of `all` as a part of 65,535.
fn part(some: u64, all: u64) -> u16 {
    if all == 0 {
        return 0;
    }
    let part = u128::from(some.min(all)) * u128::from(u16::MAX) / u128::from(all);
    u16::try_from(part).unwrap_or(u16::MAX)
}

/// Returns a figure of the wire as a whole number from 0 to `max`; what is no number becomes 0.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to the range of the type just before"
)]
fn rounded(figure: f32, max: u16) -> u16 {
    figure.round().clamp(0.0, f32::from(max)) as u16
}

#[cfg(test)]
mod tests {
    use moltis_proto::telemetry::{Gpu, Provider, ProviderKind, Runtime};

    use super::*;
    use crate::store::pairings::tests::pin;
    use crate::store::testing::{at, node, store};

    fn sample(cpu: Option<f32>, load: f32) -> Sample {
        Sample {
            cpu_usage_percent: cpu,
            load_1m: load,
            memory_total_bytes: 16 << 30,
            memory_available_bytes: 4 << 30,
            disk_total_bytes: 1000,
            disk_available_bytes: 999,
            ..Sample::default()
        }
    }

    fn device() -> DeviceId {
        node(1).device_id
    }

    #[test]
    fn a_sample_survives_to_the_precision_that_is_promised() {
        let when = at(77);
        let bytes = encode(&sample(Some(33.26), 1.26), when);
        let hour = when.as_millisecond().div_euclid(HOUR_MS);
        let point = decode(hour, &bytes).unwrap();
        assert_eq!(point.cpu_usage_percent, Some(33.5));
        assert!((point.load_1m - 1.3).abs() < 0.001);
        assert!((point.memory_available - 0.25).abs() < 0.0001);
        assert!((point.disk_available - 0.999).abs() < 0.0001);
        let late = when.as_millisecond() - point.at.as_millisecond();
        assert!((0..30_000).contains(&late), "{late}");
    }

    #[test]
    fn figures_that_are_none_harm_nothing() {
        for (cpu, load) in [
            (Some(f32::NAN), f32::INFINITY),
            (Some(-5.0), f32::NEG_INFINITY),
            (Some(1e30), -1.0),
            (None, f32::NAN),
        ] {
            let strange = Sample {
                memory_total_bytes: 0,
                disk_available_bytes: u64::MAX,
                ..sample(cpu, load)
            };
            let point = decode(0, &encode(&strange, at(0))).unwrap();
            assert!(
                point
                    .cpu_usage_percent
                    .is_none_or(|cpu| (0.0..=100.0).contains(&cpu))
            );
            assert!((0.0..=6553.5).contains(&point.load_1m));
            assert!((point.disk_available - 1.0).abs() < f32::EPSILON);
            assert!(point.memory_available.abs() < f32::EPSILON);
        }
        assert_eq!(decode(i64::MAX, &[0; 8]), None);
    }

    #[test]
    fn figures_that_no_machine_has_are_put_into_their_bounds() {
        for (cpu, shown_cpu) in [
            (Some(150.0), Some(100.0)),
            (Some(-1.0), Some(0.0)),
            (Some(33.5), Some(33.5)),
            (Some(f32::NAN), None),
            (None, None),
        ] {
            let mut strange = sample(cpu, 1.0);
            make_plausible(&mut strange);
            assert_eq!(strange.cpu_usage_percent, shown_cpu, "{cpu:?}");
        }
        for (load, shown_load) in [
            (-1.0, 0.0),
            (1e30, LOAD_MAX),
            (f32::INFINITY, 0.0),
            (0.25, 0.25),
        ] {
            let mut strange = sample(None, load);
            make_plausible(&mut strange);
            assert!(
                (strange.load_1m - shown_load).abs() < f32::EPSILON,
                "{load}"
            );
        }
        let mut strange = Sample {
            memory_available_bytes: u64::MAX,
            disk_available_bytes: 1001,
            gpus: vec![Gpu {
                name: "A100".to_owned(),
                memory_total_bytes: 80,
                memory_used_bytes: 81,
            }],
            ..sample(None, 0.0)
        };
        make_plausible(&mut strange);
        assert_eq!(strange.memory_available_bytes, strange.memory_total_bytes);
        assert_eq!(strange.disk_available_bytes, 1000);
        assert_eq!(strange.gpus[0].memory_used_bytes, 80);
    }

    #[test]
    fn texts_that_deceive_lose_what_deceives_and_a_thing_without_a_name_goes() {
        let runtime = |name: &str, version: &str| Runtime {
            name: name.to_owned(),
            version: version.to_owned(),
        };
        let mut strange = Sample {
            runtimes: vec![
                runtime("py\u{1b}[2Jthon", "3.1\u{202e}1"),
                runtime("\u{7}", "1"),
                runtime("go", "\n"),
            ],
            providers: vec![Provider {
                name: "olla\u{0}ma".to_owned(),
                kind: ProviderKind::Ollama,
                models: vec!["\u{200b}".to_owned(), "llama\r3".to_owned()],
                variable: Some("\u{9b}".to_owned()),
            }],
            ..sample(None, 0.0)
        };
        make_plausible(&mut strange);
        assert_eq!(
            strange.runtimes,
            [runtime("py[2Jthon", "3.11"), runtime("go", "")]
        );
        let provider = &strange.providers[0];
        assert_eq!(
            (provider.name.as_str(), &provider.variable),
            ("ollama", &None)
        );
        assert_eq!(provider.models, ["llama3"]);
    }

    #[test]
    fn an_hour_is_full_at_120_samples_and_the_next_one_begins_empty() {
        let mut history = History::default();
        let start = 1_700_002_800; // a full hour
        let at = |seconds| crate::clock::from_millis((start + seconds) * 1000);
        for second in 0..300 {
            assert!(
                history
                    .record(device(), &sample(None, 0.0), at(second))
                    .is_none()
            );
        }
        let finished = history
            .record(device(), &sample(None, 0.0), at(3600))
            .unwrap();
        assert_eq!(finished.samples.len(), SAMPLES_MAX * SAMPLE_BYTES);
        assert_eq!(finished.hour * 3600, start);
        assert_eq!(
            history.current(device()).unwrap().samples.len(),
            SAMPLE_BYTES
        );
    }

    #[test]
    fn each_node_is_due_once_in_ten_minutes_and_only_with_something_new() {
        let mut history = History::default();
        for number in 0..20 {
            let device_id = DeviceId::from_bytes([number; 16]);
            history.record(device_id, &sample(None, 0.0), at(0));
        }
        let due: Vec<_> = (0..10).map(|m| history.due(at(m * 60)).len()).collect();
        assert_eq!(due, [2; 10]);
        assert!(history.all().is_empty());
        history.record(device(), &sample(None, 0.0), at(30));
        assert_eq!(history.all().len(), 1);
    }

    #[tokio::test]
    async fn a_day_is_read_from_rows_and_memory_and_goes_on_after_a_restart() {
        let store = store().await;
        pin(&store, node(1)).await;
        let mut history = History::default();
        let mut points = 0;
        for step in 0..400 {
            let when = at(step * 30);
            points += 1;
            if let Some(row) = history.record(device(), &sample(Some(1.0), 0.0), when) {
                store
                    .put_telemetry_hour(row.device_id, row.hour, row.samples)
                    .await
                    .unwrap();
            }
        }
        for row in history.all() {
            store
                .put_telemetry_hour(row.device_id, row.hour, row.samples)
                .await
                .unwrap();
        }
        let mut reborn = History::default();
        let hour = at(400 * 30).as_millisecond().div_euclid(HOUR_MS);
        for row in store.telemetry_of_hour(hour).await.unwrap() {
            reborn.resume(row);
        }
        reborn.record(device(), &sample(Some(1.0), 0.0), at(400 * 30));
        let current = reborn.current(device());
        let read = History::read(&store, device(), current.clone(), at(-30))
            .await
            .unwrap();
        assert_eq!(read.len(), points + 1);
        assert!(read.is_sorted_by_key(|point| point.at));
        let half = History::read(&store, device(), current, at(200 * 30 - 30))
            .await
            .unwrap();
        assert_eq!(half.len(), points / 2 + 1);
    }
}
