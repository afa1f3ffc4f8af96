//! Joins the sources into one sample, side by side, and keeps what need not be asked each time.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use moltis_proto::telemetry::{Gpu, Runtime, Sample};
use tokio::time::Instant;

use crate::host::Host;
use crate::{fit, gpus, ollama, providers, runtimes};

/// How long a list of runtimes is believed. They change when somebody installs one.
const RUNTIMES_KEPT: Duration = Duration::from_mins(10);

/// How long a tool that failed to answer is left alone.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_mins(5);

/// What a collector may look at: all of it values, so that a test can hand in its own.
#[derive(Debug, Clone)]
pub struct CollectorConfig {
    /// Where programs are looked for, as in `PATH`.
    pub path: OsString,
    /// The home of the account, for tools that keep their settings there.
    pub home: Option<PathBuf>,
    /// Names of environment variables that are set; those of model providers are reported.
    pub set_variables: Vec<String>,
    /// As in `OLLAMA_HOST`; `None` is 127.0.0.1:11434.
    pub ollama_host: Option<String>,
    /// The file system whose size is reported.
    pub root: PathBuf,
    /// Where the kernel shows its devices (sysfs(5)).
    pub sysfs: PathBuf,
}

impl CollectorConfig {
    /// Looks for programs in `path`, at the file system `/`, and at the usual place for Ollama.
    pub fn new(path: impl Into<OsString>) -> Self {
        Self {
            path: path.into(),
            home: None,
            set_variables: Vec::new(),
            ollama_host: None,
            root: PathBuf::from("/"),
            sysfs: PathBuf::from("/sys"),
        }
    }
}

/// Takes samples of this machine.
#[derive(Debug)]
pub struct Collector {
    config: CollectorConfig,
    host: Host,
    runtimes: Option<Known<Vec<Runtime>>>,
    nvidia_pause: Option<Instant>,
}

#[derive(Debug)]
struct Known<T> {
    value: T,
    since: Instant,
}

impl Collector {
    /// Looks at nothing yet.
    pub fn new(config: CollectorConfig) -> Self {
        Self {
            host: Host::new(config.root.clone()),
            config,
            runtimes: None,
            nvidia_pause: None,
        }
    }

    /// Takes a sample. All sources are asked at the same time, each with its own deadline, the
    /// longest of which is five seconds. What does not answer is left out.
    ///
    /// # Cancel safety
    /// A sample that is dropped is lost, and programs it has started are ended.
    pub async fn sample(&mut self) -> Sample {
        let (host, gpus, runtimes, ollama) = tokio::join!(
            self.host.sample(),
            gpus(&self.config, &mut self.nvidia_pause),
            runtimes(&self.config, &mut self.runtimes),
            ollama::ask(self.config.ollama_host.as_deref()),
        );
        let mut sample = Sample {
            gpus,
            runtimes,
            ..host
        };
        sample.providers.extend(ollama);
        sample
            .providers
            .extend(providers::from_variables(&self.config.set_variables));
        fit::cut(&mut sample);
        sample
    }
}

async fn gpus(config: &CollectorConfig, pause: &mut Option<Instant>) -> Vec<Gpu> {
    let mut found = Vec::new();
    if pause.is_none_or(|until| Instant::now() >= until) {
        match gpus::nvidia(&config.path).await {
            Some(nvidia) => found = nvidia,
            None => *pause = Some(Instant::now() + PAUSE_AFTER_FAILURE),
        }
    }
    found.extend(gpus::amd(&config.sysfs).await);
    found
}

async fn runtimes(
    config: &CollectorConfig,
    known: &mut Option<Known<Vec<Runtime>>>,
) -> Vec<Runtime> {
    if let Some(known) = known
        && known.since.elapsed() < RUNTIMES_KEPT
    {
        return known.value.clone();
    }
    let value = runtimes::ask_all(&config.path, config.home.as_deref()).await;
    *known = Some(Known {
        value: value.clone(),
        since: Instant::now(),
    });
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_sample_of_this_machine_is_plausible() {
        let mut collector = Collector::new(CollectorConfig {
            ollama_host: Some("127.0.0.1:1".to_owned()),
            ..CollectorConfig::new("")
        });
        let first = collector.sample().await;
        assert!(first.cpu_count >= 1);
        assert_eq!(first.cpu_usage_percent, None, "no interval has passed yet");
        assert!(first.memory_total_bytes > first.memory_available_bytes);
        assert!(first.memory_available_bytes > 0);
        assert!(first.disk_total_bytes >= first.disk_available_bytes);
        assert!(first.disk_total_bytes > 0);
        assert!(first.uptime_seconds > 0);
        assert!(first.runtimes.is_empty() && first.providers.is_empty());
        let second = collector.sample().await;
        let usage = second.cpu_usage_percent.unwrap();
        assert!((0.0..=100.0).contains(&usage), "{usage}");
    }

    #[tokio::test]
    async fn keys_of_providers_are_named_and_nothing_else_is() {
        let mut collector = Collector::new(CollectorConfig {
            set_variables: vec!["ANTHROPIC_API_KEY".to_owned(), "HOME".to_owned()],
            ollama_host: Some("127.0.0.1:1".to_owned()),
            ..CollectorConfig::new("")
        });
        let sample = collector.sample().await;
        assert_eq!(sample.providers.len(), 1);
        assert_eq!(sample.providers[0].name, "anthropic");
        assert_eq!(
            sample.providers[0].variable.as_deref(),
            Some("ANTHROPIC_API_KEY")
        );
    }
}
