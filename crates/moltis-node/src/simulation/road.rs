//! What a simulated link sees of the world: its machine, and the roads to gateways.

use std::fmt;
use std::io;

use futures_util::future::BoxFuture;
use moltis_proto::BootId;
use moltis_proto::telemetry::{Platform, Sample};
use tokio::io::{AsyncRead, AsyncWrite};

/// A stream of bytes to a gateway, and back.
pub trait Road: AsyncRead + AsyncWrite + fmt::Debug + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + fmt::Debug + Send + Unpin> Road for T {}

/// Reaches gateways.
pub trait Dial: fmt::Debug + Send + Sync {
    /// Opens a stream of bytes to a host and a port, as in a URL. It may take as long as it likes.
    ///
    /// # Errors
    /// As connect(2).
    fn dial(&self, authority: &str) -> BoxFuture<'static, io::Result<Box<dyn Road>>>;
}

/// What a machine says of itself.
#[derive(Debug, Clone)]
pub struct Facts {
    /// This boot.
    pub boot_id: BootId,
    /// What it is.
    pub platform: Platform,
    /// What it does. Left out, no telemetry is sent.
    pub sample: Option<Sample>,
}
