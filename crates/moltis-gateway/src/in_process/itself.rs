//! The gateway itself: health, what it is, what is wrong with it.

use super::InProcess;
use super::call::parsed;
use crate::api::doctor::Finding;
use crate::api::gateway::Gateway;
use crate::api::problem::Problem;
use crate::api::{Health, List};

impl InProcess {
    /// Returns the front page, in words.
    ///
    /// # Errors
    /// The [`Problem`] that the route answers with.
    pub async fn front_page(&self) -> Result<String, Problem> {
        self.call("front_page").text().await
    }

    /// Returns that the process lives.
    ///
    /// # Errors
    /// The [`Problem`] that the route answers with.
    pub async fn healthz(&self) -> Result<Health, Problem> {
        self.call("healthz").answer().await
    }

    /// Returns whether the gateway can do its work, and what is in its way where it cannot.
    ///
    /// # Errors
    /// The [`Problem`] that the route answers with; that it cannot is none.
    pub async fn readyz(&self) -> Result<Health, Problem> {
        let answer = self.call("readyz").send_anyhow().await?;
        parsed(answer).await
    }

    /// Returns the OpenAPI document, as of a gateway at the root of its host.
    ///
    /// # Errors
    /// The [`Problem`] that the route answers with.
    pub async fn openapi(&self) -> Result<serde_json::Value, Problem> {
        self.call("openapi").answer().await
    }

    /// Returns what this gateway is and where it listens.
    ///
    /// # Errors
    /// The [`Problem`] that the route answers with.
    pub async fn show_gateway(&self) -> Result<Gateway, Problem> {
        self.call("show_gateway").answer().await
    }

    /// Looks for what is wrong: a finding for each check.
    ///
    /// # Errors
    /// The [`Problem`] that the route answers with.
    pub async fn diagnose(&self) -> Result<List<Finding>, Problem> {
        self.call("diagnose").answer().await
    }

    /// Returns what is counted, as `OpenMetrics` text.
    ///
    /// # Errors
    /// The [`Problem`] that the route answers with.
    #[cfg(feature = "metrics")]
    pub async fn scrape_metrics(&self) -> Result<String, Problem> {
        self.call("scrape_metrics").text().await
    }
}
