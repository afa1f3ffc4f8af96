//! The settings that a link works by: read before each attempt, watched while it is connected.

use moltis_identity::Fingerprint;

use crate::config::{ConfigFileError, NodeConfig, Stamp};
use crate::node::Settings;

/// Settings, and the state of their file when they were read.
#[derive(Debug)]
pub(super) struct Watched {
    settings: Settings,
    current: Option<NodeConfig>,
    stamp: Option<Stamp>,
}

impl Watched {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            settings,
            current: None,
            stamp: None,
        }
    }

    /// Reads the settings anew.
    pub(super) fn load(&mut self) -> Result<NodeConfig, ConfigFileError> {
        let config = match &self.settings {
            Settings::Value(config) => NodeConfig::clone(config),
            Settings::File(file) => {
                self.stamp = file.stamp();
                file.load()?
            }
        };
        self.current = Some(config.clone());
        Ok(config)
    }

    /// Returns whether a person has changed something since the settings were read. A file that
    /// cannot be used now changes nothing for the connection that stands; a missing one does.
    pub(super) fn has_changed(&mut self) -> bool {
        let Settings::File(file) = &self.settings else {
            return false;
        };
        let stamp = file.stamp();
        if stamp == self.stamp {
            return false;
        }
        self.stamp = stamp;
        match file.load() {
            Ok(config) => self.current.as_ref() != Some(&config),
            Err(ConfigFileError::Missing { .. }) => true,
            Err(error) => {
                tracing::warn!(%error, "node.json was changed and cannot be used: the connection keeps the old settings");
                false
            }
        }
    }

    /// Remembers the gateway's key for good, unless a key is pinned, and that no gateway need be
    /// asked to pair any more. A file that a person has pointed at another gateway in this moment
    /// is left alone.
    pub(super) fn pin(&mut self, key: Fingerprint) -> Result<(), ConfigFileError> {
        let pinned = match &mut self.settings {
            Settings::Value(config) => {
                config.gateway_key.get_or_insert(key);
                config.pair = false;
                NodeConfig::clone(config)
            }
            Settings::File(file) => {
                let mut config = file.load()?;
                let same = self.current.as_ref().map(|current| &current.gateway_url)
                    == Some(&config.gateway_url);
                if same && (config.pair || config.gateway_key.is_none()) {
                    config.gateway_key.get_or_insert(key);
                    config.pair = false;
                    file.save(&config)?;
                    self.stamp = file.stamp();
                }
                config
            }
        };
        if let Some(current) = &mut self.current {
            current.gateway_key = pinned.gateway_key;
            current.pair = pinned.pair;
        }
        Ok(())
    }
}
