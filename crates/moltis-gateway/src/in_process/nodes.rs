//! Nodes: see them, rename and label one, revoke it, forget it. An `id` is a node's id, its name or its
//! fingerprint; to look at one, a unique beginning of its id will do.

use super::InProcess;
use crate::api::nodes::{ListNodes, Node, NodeDetail, PatchNode};
use crate::api::problem::Problem;
use crate::api::{Empty, List};

impl InProcess {
    /// Returns nodes, by name and id.
    ///
    /// # Errors
    /// The [`Problem`] that the route answers with.
    pub async fn list_nodes(&self, query: &ListNodes) -> Result<List<Node>, Problem> {
        self.call("list_nodes").ask(query).answer().await
    }

    /// Returns everything that is known of a node.
    ///
    /// # Errors
    /// The [`Problem`] that the route answers with.
    pub async fn show_node(&self, id: &str) -> Result<NodeDetail, Problem> {
        self.call("show_node").of(id).answer().await
    }

    /// Renames or labels a node.
    ///
    /// # Errors
    /// The [`Problem`] that the route answers with.
    pub async fn change_node(&self, id: &str, patch: &PatchNode) -> Result<NodeDetail, Problem> {
        self.call("change_node").of(id).json(patch).answer().await
    }

    /// Forgets a node that is revoked or offline.
    ///
    /// # Errors
    /// The [`Problem`] that the route answers with.
    pub async fn forget_node(&self, id: &str) -> Result<(), Problem> {
        self.call("forget_node").of(id).done().await
    }

    /// Refuses a node's key for good.
    ///
    /// # Errors
    /// The [`Problem`] that the route answers with.
    pub async fn revoke_node(&self, id: &str) -> Result<NodeDetail, Problem> {
        let call = self.call("revoke_node").of(id);
        call.json(&Empty {}).answer().await
    }
}
