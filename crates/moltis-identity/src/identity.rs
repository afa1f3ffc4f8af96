//! What a node and a gateway are, once their key file is read.

use std::path::Path;

use moltis_proto::{DeviceId, NodeId};

use crate::key_file::{self, Kind, Record};
use crate::{Fingerprint, KeyFileError, SecretKey, random};

/// This machine as a node: `node_key`.
#[derive(Debug, Clone)]
pub struct NodeIdentity {
    /// Proves that this machine is this node.
    pub secret: SecretKey,
    /// Made once together with the key: what the gateway's roster is keyed by.
    pub device_id: DeviceId,
    /// The label that this node asks to be known by.
    pub node_id: NodeId,
}

/// This machine as a gateway: `gateway_key`.
#[derive(Debug, Clone)]
pub struct GatewayIdentity {
    /// Proves to nodes that this is their gateway.
    pub secret: SecretKey,
}

impl NodeIdentity {
    /// Makes a new node, on no disk yet.
    pub fn generate(node_id: NodeId) -> Self {
        Self {
            secret: SecretKey::generate(),
            device_id: DeviceId::from_bytes(random::bytes()),
            node_id,
        }
    }

    /// Reads a key file.
    ///
    /// # Errors
    /// [`KeyFileError::Missing`] when there is none; others when it is not fit to be trusted.
    pub fn load(path: &Path) -> Result<Self, KeyFileError> {
        let record = key_file::read(path, Kind::Node)?;
        let (device_id, node_id) = record.node.ok_or_else(|| KeyFileError::Corrupt {
            path: path.to_owned(),
            problem: "it names no device",
        })?;
        Ok(Self {
            secret: record.secret,
            device_id,
            node_id,
        })
    }

    /// Makes a new node and its key file, which must not exist yet.
    ///
    /// # Errors
    /// [`KeyFileError::Exists`], or what the file system says. Nothing is left behind then.
    pub fn create(path: &Path, node_id: NodeId) -> Result<Self, KeyFileError> {
        let identity = Self::generate(node_id);
        key_file::create(path, &identity.record())?;
        Ok(identity)
    }

    /// Reads the key file, or makes one where there is none. Two that do so at once get the same
    /// node.
    ///
    /// # Errors
    /// As [`load`](Self::load) and [`create`](Self::create).
    pub fn load_or_create(
        path: &Path,
        node_id: impl FnOnce() -> NodeId,
    ) -> Result<Self, KeyFileError> {
        load_or_create(path, Self::load, |path| Self::create(path, node_id()))
    }

    /// Asks for another node id from now on: replaces the key file whole, key and device stay.
    ///
    /// # Errors
    /// What the file system says; the old file is then still there.
    pub fn change_node_id(&mut self, path: &Path, node_id: NodeId) -> Result<(), KeyFileError> {
        let mut changed = self.clone();
        changed.node_id = node_id;
        key_file::replace(path, &changed.record())?;
        *self = changed;
        Ok(())
    }

    /// Returns the fingerprint of this node's key.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.secret.public_key())
    }

    fn record(&self) -> Record {
        Record {
            secret: self.secret.clone(),
            node: Some((self.device_id, self.node_id.clone())),
        }
    }
}

impl GatewayIdentity {
    /// Makes a new gateway, on no disk yet.
    pub fn generate() -> Self {
        Self {
            secret: SecretKey::generate(),
        }
    }

    /// Reads a key file.
    ///
    /// # Errors
    /// [`KeyFileError::Missing`] when there is none; others when it is not fit to be trusted.
    pub fn load(path: &Path) -> Result<Self, KeyFileError> {
        let record = key_file::read(path, Kind::Gateway)?;
        Ok(Self {
            secret: record.secret,
        })
    }

    /// Makes a new gateway and its key file, which must not exist yet.
    ///
    /// # Errors
    /// [`KeyFileError::Exists`], or what the file system says. Nothing is left behind then.
    pub fn create(path: &Path) -> Result<Self, KeyFileError> {
        let identity = Self::generate();
        let record = Record {
            secret: identity.secret.clone(),
            node: None,
        };
        key_file::create(path, &record)?;
        Ok(identity)
    }

    /// Reads the key file, or makes one where there is none. Two that do so at once get the same
    /// gateway.
    ///
    /// # Errors
    /// As [`load`](Self::load) and [`create`](Self::create).
    pub fn load_or_create(path: &Path) -> Result<Self, KeyFileError> {
        load_or_create(path, Self::load, Self::create)
    }

    /// Returns the fingerprint of this gateway's key.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.secret.public_key())
    }
}

fn load_or_create<T>(
    path: &Path,
    load: impl Fn(&Path) -> Result<T, KeyFileError>,
    create: impl FnOnce(&Path) -> Result<T, KeyFileError>,
) -> Result<T, KeyFileError> {
    match load(path) {
        Err(KeyFileError::Missing { .. }) => {}
        other => return other,
    }
    match create(path) {
        // Somebody else was quicker; theirs is whole, because it appears whole.
        Err(KeyFileError::Exists { .. }) => load(path),
        other => other,
    }
}
