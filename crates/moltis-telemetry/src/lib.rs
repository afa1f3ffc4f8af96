//! One sample of this machine on request: what it has and what it does.
//!
//! [`Collector::sample`] gives processors, load, memory, the root disk, uptime, GPUs, language
//! runtimes and model providers; [`platform`] and [`boot_id`] give what does not change while the
//! machine runs. The node's link asks, at connect and every half minute.
//!
//! Nothing here has a timer or sends anything, and nothing waits without a deadline: a hanging
//! `java` or an Ollama that does not answer costs that one line of the sample. The environment is
//! never read; names of variables come in as values, and no value of one ever does.
//!
//! # Example
//!
//! ```
//! use moltis_telemetry::{Collector, CollectorConfig};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let config = CollectorConfig::new("/usr/bin:/bin");
//! let sample = Collector::new(config).sample().await;
//! assert!(sample.cpu_count > 0);
//! # }
//! ```

mod ask;
mod collector;
mod fit;
mod gpus;
mod host;
mod ollama;
mod platform;
mod providers;
mod runtimes;
mod text;

pub use collector::{Collector, CollectorConfig};
pub use platform::{PlatformError, boot_id, platform};
pub use providers::{API_KEY_VARIABLES, provider_of};
