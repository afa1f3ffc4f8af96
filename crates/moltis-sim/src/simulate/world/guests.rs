//! Machines that come and go: copies of a node, with its key and nothing else of it, and strangers who
//! say that they are somebody whom the gateway knows.

use std::time::Duration;

use moltis_gateway::api::pairing::{Approve, SetPairing};
use moltis_identity::NodeIdentity;

use super::gateway::Served;
use super::link::Linked;
use super::machine::Machine;
use super::{World, spawn};
use crate::simulate::net::Place;
use crate::simulate::plan::Claim;

/// The place of the first of them. Nobody asks for a run there.
const FIRST: Place = 100;

/// How long a stranger has waited when the operator comes to look.
const OPERATOR_AFTER: Duration = Duration::from_secs(2);

impl World {
    /// Has another machine use a copy of a node's key for some time.
    pub(super) fn clone_node(&mut self, place: Place, time: Duration) {
        let identity = self.node(place).identity().clone();
        self.invite(place, place, identity, time);
    }

    /// Has a stranger come for some time, and the operator let in whoever may be let in.
    pub(super) fn send_stranger(&mut self, place: Place, claim: Claim, time: Duration) {
        let known = self.node(place).identity().clone();
        let name = match claim {
            Claim::All | Claim::Name => known.node_id.as_str().to_owned(),
            Claim::Nothing => format!("stranger{}", self.guests.len()),
        };
        let stranger = NodeIdentity::generate(name.parse().expect("a name"));
        let identity = match claim {
            Claim::All => NodeIdentity {
                device_id: known.device_id,
                ..stranger
            },
            Claim::Name | Claim::Nothing => stranger,
        };
        // The name of a node that was revoked is free for another machine.
        let is_known = !self.revoked.contains(&place) || claim == Claim::Nothing;
        self.invite(place, FIRST + self.guests.len(), identity, time);
        if is_known {
            let served = self.served.clone();
            spawn(async move {
                tokio::time::sleep(OPERATOR_AFTER).await;
                let_all_in(&served).await;
            });
        }
    }

    fn invite(&mut self, place: Place, of: Place, identity: NodeIdentity, time: Duration) {
        let own = FIRST + self.guests.len();
        let root = self.root.join(format!("place{own}"));
        let machine = Machine::new((own, of), &root, self.keepers_stay, None, &self.witness);
        let guest = self.node(place).beside(machine, identity);
        self.guests.push(guest.clone());
        guest.begin();
        spawn(async move {
            tokio::time::sleep(time).await;
            guest.vanish();
        });
    }
}

/// Opens the window, and approves of all requests that wait. What comes of it is looked at by the pins.
async fn let_all_in(served: &Served) {
    let Some(api) = served.life().and_then(|life| life.api()) else {
        return;
    };
    let open = SetPairing {
        enabled: true,
        for_seconds: None,
    };
    api.set_pairing(&open).await.ok(); // the disk may be in trouble
    let Ok(requests) = api.list_pairing_requests().await else {
        return;
    };
    // The name of a node that was revoked is free: another machine of this name would get its runs.
    let is_free = |words: &Vec<String>| words.iter().any(|word| word.contains("revoked"));
    for request in requests.items {
        if is_free(&request.warnings) {
            continue;
        }
        let seen = Approve {
            fingerprint: request.fingerprint,
            connection_code: request.connection_code,
        };
        api.approve_pairing_request(&request.id, &seen).await.ok(); // some may not be let in
    }
}

/// The machines of some guests.
pub(super) fn machines(guests: &[Linked]) -> impl Iterator<Item = &Machine> {
    guests.iter().map(Linked::machine)
}
