//! What a link asks of its machine: what it is, and the way to a gateway.

#[cfg(feature = "simulation")]
use std::sync::Arc;

use moltis_proto::BootId;
use moltis_proto::telemetry::Platform;
use moltis_telemetry::{Collector, PlatformError};

use super::dial::{self, Road};
use super::telemetry::Telemetry;
use crate::error::LinkError;
#[cfg(feature = "simulation")]
use crate::simulation::{Dial, Facts};
use crate::url::GatewayUrl;

/// The machine of a link.
#[derive(Debug)]
pub(crate) enum Machine {
    /// This one.
    System,
    /// One that a simulation has made up.
    #[cfg(feature = "simulation")]
    Simulated(Arc<dyn Dial>, Box<Facts>),
}

impl Machine {
    /// Returns the id of this boot.
    pub(super) fn boot_id(&self) -> Result<BootId, PlatformError> {
        match self {
            Self::System => moltis_telemetry::boot_id(),
            #[cfg(feature = "simulation")]
            Self::Simulated(_, facts) => Ok(facts.boot_id),
        }
    }

    /// Returns what it is.
    pub(super) fn platform(&self) -> Platform {
        match self {
            Self::System => moltis_telemetry::platform(),
            #[cfg(feature = "simulation")]
            Self::Simulated(_, facts) => facts.platform.clone(),
        }
    }

    /// Returns what takes samples of it, where any are to be sent.
    pub(super) fn telemetry(&self, collector: Option<Collector>) -> Option<Telemetry> {
        match self {
            Self::System => collector.map(Telemetry::new),
            #[cfg(feature = "simulation")]
            Self::Simulated(_, facts) => {
                facts.sample.clone().map(Box::new).map(Telemetry::Simulated)
            }
        }
    }

    /// Connects to a gateway's host.
    pub(super) async fn reach(&self, url: &GatewayUrl) -> Result<Box<dyn Road>, LinkError> {
        match self {
            Self::System => dial::reach(url).await,
            #[cfg(feature = "simulation")]
            Self::Simulated(dialling, _) => {
                let road = dial::attempt(url, dialling.dial(&url.authority())).await?;
                Ok(Box::new(road))
            }
        }
    }
}
