//! Which machine a run goes to: from the words of a request to one place, or to a clear no. Pure.
//!
//! Nothing falls back: a word that names no place, two places, or a place that may not be used is
//! an error that says so.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use moltis_proto::{DeviceId, NodeId, NodeName};

use crate::store::NodeRecord;

/// A place, found.
#[derive(Debug, Clone)]
pub enum Route {
    /// The gateway's own machine.
    Local,
    /// A node that is known and not revoked; whether it is here is another question.
    Node(Arc<NodeRecord>),
    /// An SSH target, by its label.
    Ssh(String),
}

/// One of several that a word could mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its id.
    pub node_id: NodeId,
    /// Its name.
    pub name: NodeName,
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.node_id.as_str(), self.name.as_str())
    }
}

/// Why a word leads nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RouteError {
    /// No node is called so.
    #[error("no node is called `{word}`, by id, beginning of an id, or name")]
    NotFound {
        /// The word.
        word: String,
    },
    /// Several are.
    #[error("`{word}` could be {}", list(candidates))]
    Ambiguous {
        /// The word.
        word: String,
        /// Those that it could be.
        candidates: Vec<Candidate>,
    },
    /// One is, and may not be used.
    #[error("the node `{name}` is revoked")]
    Revoked {
        /// Its name.
        name: NodeName,
    },
    /// An SSH target that is not there.
    #[error("no SSH target is called `{label}`")]
    NoSuchTarget {
        /// The label.
        label: String,
    },
}

fn list(candidates: &[Candidate]) -> String {
    let words: Vec<String> = candidates.iter().map(Candidate::to_string).collect();
    words.join(", or ")
}

/// Everybody who is known, ready to be looked up. Made anew when a record changes.
#[derive(Debug, Default)]
pub struct Directory {
    devices: HashMap<DeviceId, Arc<NodeRecord>>,
    /// Of those that are not revoked: a revoked node's id is free at once.
    ids: BTreeMap<String, DeviceId>,
    names: HashMap<String, Vec<DeviceId>>,
}

impl Directory {
    /// Takes down all of them.
    pub fn new(records: impl IntoIterator<Item = Arc<NodeRecord>>) -> Self {
        let mut directory = Self::default();
        for record in records {
            if record.revoked_at.is_none() {
                directory
                    .ids
                    .insert(record.node_id.as_str().to_owned(), record.device_id);
                directory
                    .names
                    .entry(record.name.as_str().to_owned())
                    .or_default()
                    .push(record.device_id);
            }
            directory.devices.insert(record.device_id, record);
        }
        directory
    }

    /// Returns the node with this device.
    pub fn get(&self, device: DeviceId) -> Option<&Arc<NodeRecord>> {
        self.devices.get(&device)
    }

    /// Returns all of them, revoked ones too, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<NodeRecord>> {
        self.devices.values()
    }

    /// Finds the node that a word names: its id, its name, or the beginning of its id.
    ///
    /// # Errors
    /// [`RouteError`], with the candidates where there are several.
    pub fn find(&self, word: &str) -> Result<&Arc<NodeRecord>, RouteError> {
        if let Some(record) = self.ids.get(word).and_then(|device| self.get(*device)) {
            return Ok(record);
        }
        // A name that begins like another's id hides nobody: whoever typed it is asked.
        let named = self.names.get(word.trim()).map_or(&[][..], Vec::as_slice);
        let mut found = self.with_prefix(word);
        found.retain(|device| !named.contains(device));
        found.extend(named);
        match found.as_slice() {
            [device] => self.get(*device).ok_or_else(|| not_found(word)),
            [] => Err(self.revoked(word).unwrap_or_else(|| not_found(word))),
            several => Err(self.ambiguous(word, several)),
        }
    }

    fn with_prefix(&self, word: &str) -> Vec<DeviceId> {
        if word.is_empty() {
            return Vec::new();
        }
        self.ids
            .range(word.to_owned()..)
            .take_while(|(id, _)| id.starts_with(word))
            .map(|(_, device)| *device)
            .collect()
    }

    fn revoked(&self, word: &str) -> Option<RouteError> {
        self.devices
            .values()
            .find(|record| record.node_id.as_str() == word || record.name.as_str() == word)
            .map(|record| RouteError::Revoked {
                name: record.name.clone(),
            })
    }

    fn ambiguous(&self, word: &str, devices: &[DeviceId]) -> RouteError {
        /// Candidates that an error names; the rest are counted out by typing more.
        const CANDIDATES_MAX: usize = 10;
        let mut candidates: Vec<Candidate> = devices
            .iter()
            .filter_map(|device| self.get(*device))
            .map(|record| Candidate {
                node_id: record.node_id.clone(),
                name: record.name.clone(),
            })
            .collect();
        candidates.sort_by(|a, b| a.node_id.cmp(&b.node_id));
        candidates.truncate(CANDIDATES_MAX);
        RouteError::Ambiguous {
            word: shown(word),
            candidates,
        }
    }

    /// Finds the place that a route names: `local`, `node:<word>`, `ssh:<label>`, or a node's word.
    ///
    /// # Errors
    /// [`RouteError`].
    pub fn route(&self, text: &str) -> Result<Route, RouteError> {
        if text == "local" {
            return Ok(Route::Local);
        }
        if let Some(label) = text.strip_prefix("ssh:") {
            return Ok(Route::Ssh(label.to_owned()));
        }
        let word = text.strip_prefix("node:").unwrap_or(text);
        self.find(word).cloned().map(Route::Node)
    }
}

fn not_found(word: &str) -> RouteError {
    RouteError::NotFound { word: shown(word) }
}

/// Cuts and escapes a word that somebody typed, for a message.
fn shown(word: &str) -> String {
    word.chars()
        .take(80)
        .flat_map(|c| {
            let escaped = moltis_proto::name::is_deceptive(c);
            let plain = (!escaped).then_some(c);
            plain
                .into_iter()
                .chain(c.escape_unicode().filter(move |_| escaped))
        })
        .collect()
}
