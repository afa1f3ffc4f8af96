//! The gateway of this program: what it keeps, and by which names it may be asked for.

use std::error::Error;
use std::path::{Path, absolute};

use moltis_gateway::{Gateway, GatewayConfig};

/// Builds a gateway that keeps everything in `dir`. Without a keeper it has no `local`: this program
/// runs commands on nodes alone.
pub(crate) async fn build(dir: &Path) -> Result<Gateway, Box<dyn Error>> {
    let mut config = GatewayConfig::new(absolute(dir)?.join("moltis"));
    // A browser that is led here by another name is turned away; these are ours beside loopback.
    config.hosts = vec!["workshop.example".to_owned()];
    Ok(Gateway::builder(config).build().await?)
}
