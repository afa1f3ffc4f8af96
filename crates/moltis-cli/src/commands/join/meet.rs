//! The joining itself, in this terminal: write node.json, dial, show both keys and the code, wait
//! for the answer, and stay as long as was asked for.

use moltis_identity::Fingerprint;
use moltis_node::{GiveUp, LinkError, Outlook};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::events::Person;
use super::request::{Joined, Request};
use super::{Prepared, QUEUE, link_failure, lock};
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
    /// Why the gateway that this machine has joined before cannot be reached now. What was written
    /// holds for when it can.
    pub(super) unreached: Option<LinkError>,
}

/// Joins this machine to the gateway that was named. `stop` ends it before that.
///
/// # Errors
/// It is turned away, or no gateway answers. What was written then is put back.
pub(super) async fn meet(
    context: &Context,
    home: &Home,
    request: &Request,
    until: Until,
    stop: &CancellationToken,
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
    let mut node = prepared
        .builder(context)?
        .pair()
        .give_up(GiveUp::WhenTurnedAway)
        .events(events);
    if until != Until::Stopped {
        node = node.leave_once_accepted();
    }
    let enough = stop.child_token();
    let person = Person::new(context.output, &joined, home, until, enough.clone());
    let (told, ended) = tokio::join!(person.tell(told), node.build().run(enough));
    let mut unreached = None;
    match ended {
        Ok(()) => {}
        Err(error)
            if joined.was_joined()
                && !request.risks_the_connection()
                && error.outlook() != Outlook::NeedsPerson =>
        {
            unreached = Some(error);
        }
        Err(error) => {
            if !told.accepted {
                joined.undo(home);
            }
            return Err(link_failure(error).into());
        }
    }
    Ok(Met {
        unreached,
        accepted: told.accepted,
        approved: told.approved,
        waiting: told.waiting,
        gateway: told.gateway,
        joined,
    })
}
