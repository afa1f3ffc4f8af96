//! The joining itself, in this terminal: write node.json, dial, show both keys and the code, wait
//! for the answer, and stay as long as was asked for.

use moltis_identity::Fingerprint;
use moltis_node::GiveUp;
use tokio::sync::mpsc;

use super::events::Person;
use super::request::{Joined, Request};
use super::{Prepared, QUEUE, link_failure, lock, stop_on_signal};
use crate::commands::Context;
use crate::paths::Home;

/// How long to stay connected here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// Until somebody stops it.
    Stopped,
    /// Until the gateway has taken this node: a service does the rest.
    Accepted,
    /// Until the gateway has heard the request: a service waits for the answer.
    Heard,
}

/// How a meeting with the gateway ended that did not fail.
#[derive(Debug)]
pub(super) struct Met {
    /// What was written.
    pub(super) joined: Joined,
    /// The gateway has taken this node.
    pub(super) accepted: bool,
    /// A person approved it just now.
    pub(super) approved: bool,
    /// The gateway holds a request of this node that nobody has answered.
    pub(super) waiting: bool,
    /// The key that the gateway proved.
    pub(super) gateway: Option<Fingerprint>,
}

/// Joins this machine to the gateway that was named.
///
/// # Errors
/// It is turned away, or no gateway answers. What was written then is taken back.
pub(super) async fn meet(
    context: &Context,
    home: &Home,
    request: &Request,
    until: Until,
) -> anyhow::Result<Met> {
    let state = lock(home)?;
    let joined = request.write(home)?;
    if rustix::process::geteuid().is_root() {
        context
            .output
            .warn("commands from the gateway will run on this machine as root");
    }
    let prepared = Prepared {
        home: home.clone(),
        config: joined.config.clone(),
        identity: joined.identity.clone(),
        state,
    };
    let (events, told) = mpsc::channel(QUEUE);
    let node = prepared
        .builder(context)?
        .pair()
        .give_up(GiveUp::WhenTurnedAway)
        .events(events)
        .build();
    let stop = stop_on_signal()?;
    let person = Person::new(context.output, &joined, home, until, stop.clone());
    let (told, ended) = tokio::join!(person.tell(told), node.run(stop));
    if let Err(error) = ended {
        if !told.accepted {
            joined.undo(home);
        }
        return Err(link_failure(error).into());
    }
    Ok(Met {
        accepted: told.accepted,
        approved: told.approved,
        waiting: told.waiting,
        gateway: told.gateway,
        joined,
    })
}
