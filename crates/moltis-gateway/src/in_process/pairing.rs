//! Pairing: the window, the requests that wait, and the line to type on another machine.

use super::InProcess;
use crate::api::nodes::NodeDetail;
use crate::api::pairing::{Approve, PairingCommand, PairingRequest, PairingStatus, SetPairing};
use crate::api::problem::Problem;
use crate::api::{Empty, List};

impl InProcess {
    /// Returns whether machines may ask to pair, and for how long.
    ///
    /// # Errors
    /// The [`Problem`] that the route answers with.
    pub async fn show_pairing(&self) -> Result<PairingStatus, Problem> {
        self.call("show_pairing").answer().await
    }

    /// Opens or closes the pairing window.
    ///
    /// # Errors
    /// The [`Problem`] that the route answers with.
    pub async fn set_pairing(&self, set: &SetPairing) -> Result<PairingStatus, Problem> {
        self.call("set_pairing").json(set).answer().await
    }

    /// Returns the line to type on a machine that joins. No request says here by which address this
    /// gateway is reached, so it names a listener of the gateway's own, and is `not_found` where the
    /// embedder listens by itself: a request below its prefix is told the address that it came by.
    ///
    /// # Errors
    /// The [`Problem`] that the route answers with.
    pub async fn show_pairing_command(&self) -> Result<PairingCommand, Problem> {
        self.call("show_pairing_command").answer().await
    }

    /// Returns the requests that wait for a person.
    ///
    /// # Errors
    /// The [`Problem`] that the route answers with.
    pub async fn list_pairing_requests(&self) -> Result<List<PairingRequest>, Problem> {
        self.call("list_pairing_requests").answer().await
    }

    /// Takes a machine in, by what the person saw of it.
    ///
    /// # Errors
    /// The [`Problem`] that the route answers with.
    pub async fn approve_pairing_request(
        &self,
        id: &str,
        seen: &Approve,
    ) -> Result<NodeDetail, Problem> {
        let call = self.call("approve_pairing_request").of(id);
        call.json(seen).answer().await
    }

    /// Turns a machine away.
    ///
    /// # Errors
    /// The [`Problem`] that the route answers with.
    pub async fn reject_pairing_request(&self, id: &str) -> Result<(), Problem> {
        let call = self.call("reject_pairing_request").of(id);
        call.json(&Empty {}).done().await
    }
}
