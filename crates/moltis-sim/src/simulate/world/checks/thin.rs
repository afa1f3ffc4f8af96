//! I16: on a thin line that is full of output, a word comes through all the same.

use std::time::Duration;

use tokio::time::Instant;

use crate::simulate::kernel::script::Tag;
use crate::simulate::model::violation;
use crate::simulate::world::callers::Caller;
use crate::simulate::world::{World, spawn};

/// Within this a cancel has come to the child's group (docs/reliability.md).
const CANCEL_ACTS: Duration = Duration::from_secs(5);

impl World {
    /// Cancels a run, and looks at how long that takes to get to it.
    pub(in super::super) fn cancel_in_time(
        &self,
        caller: Caller,
        tag: Tag,
        id: String,
        grace: u64,
    ) {
        let kernel = self.node(1).machine().kernel().clone();
        let lives = kernel.lives(tag);
        let (witness, asked) = (caller.witness.clone(), Instant::now());
        spawn(caller.cancel(tag, id, grace));
        spawn(async move {
            tokio::time::sleep_until(asked + CANCEL_ACTS).await;
            if lives && !kernel.was_signalled(tag) {
                let after = CANCEL_ACTS.as_secs();
                let words = format!("{tag} has heard nothing of its cancel {after} s after it");
                witness.violated(violation!("I16", "{words}"));
            }
        });
    }
}
