//! What is to happen in a world: all of it follows from the number, and is known before it begins.
//!
//! A plan names machines by their place and runs by their tag, and never looks at what became of
//! them. What is asked for stands in [`Wish`], what goes wrong in [`Fault`].

mod draw;

use std::time::Duration;

use super::disk::{Boundary, Trouble};
use super::kernel::script::{Script, Tag};
use super::net::{Door, Place, Sent, Weather};

/// Steps of each world: what somebody wants or what goes wrong.
const STEPS: usize = 220;

/// The gateway's place.
pub(super) const GATEWAY: Place = 0;

/// A world, and what is to happen in it.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) shape: Shape,
    /// Each with the wait before it.
    pub(super) steps: Vec<(Duration, Step)>,
}

/// What does not change.
#[derive(Debug)]
pub(super) struct Shape {
    /// Nodes, at the places from 1 on.
    pub(super) nodes: usize,
    /// Whether there is a keeper on the gateway's machine.
    pub(super) has_local: bool,
    /// Whether the first node is on the gateway's machine.
    pub(super) is_beside: bool,
    /// Whether windows, segments and limits are so small that they are met.
    pub(super) is_small: bool,
    /// Whether anything goes wrong: one world in some has good weather only.
    pub(super) is_troubled: bool,
    /// What there is more of than elsewhere.
    pub(super) theme: Theme,
    /// What the roads are like at first, for each node.
    pub(super) weathers: Vec<Weather>,
    /// How long a keeper stays that has nothing to do.
    pub(super) keepers_stay: Duration,
}

/// What a world is about: what is seldom met by chance is met often in some.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Theme {
    /// Everything in turn.
    Plain,
    /// Every command has so many words that a journal is written anew.
    Wordy,
    /// Most of what goes wrong befalls the gateway's power and its database.
    Dark,
    /// Commands write more than is kept, and most of what goes wrong befalls the gateway's output.
    Loud,
    /// Others come with a node's key, or with its name.
    Apart,
    /// A line of 64 kbit/s that is full all the time, and nothing else goes wrong.
    Thin,
}

/// One thing that happens.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Wish(Wish),
    Fault(Fault),
}

/// Something that somebody wants.
#[derive(Debug, Clone)]
pub(super) enum Wish {
    /// A run. The words of its key, where it has one, follow from its tag.
    Start {
        place: Place,
        script: Script,
        has_key: bool,
        how: How,
        timeout_seconds: Option<u64>,
    },
    /// The same once more, by its key.
    Repeat(Tag),
    /// Something else by the same key, which is refused.
    Contradict(Tag),
    Cancel(Tag, u64),
    Signal(Tag, &'static str),
    /// So many bytes more for its stdin, or their end.
    Feed(Tag, u64, bool),
    /// Its output from the beginning, for this long.
    Follow(Tag, Duration),
    Look(Tag),
    List,
    Rename(Place, u32),
    Revoke(Place),
    /// All runs that nobody has asked for.
    Claim,
}

/// How somebody asks for a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// Is told when it is on its way.
    Detached,
    /// Waits until it is over.
    Waiting,
    /// Follows it.
    Following,
}

/// What a stranger says of itself. Its key is always its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Claim {
    /// The device and the name of a known node.
    All,
    /// The name of a known node.
    Name,
    /// Nothing that is known: somebody may let it in.
    Nothing,
}

/// Something that goes wrong.
#[derive(Debug, Clone)]
pub(super) enum Fault {
    Cut(Place),
    CutAfter(Place, u64),
    Silence(Place),
    Weather(Place, Weather),
    Door(Place, Door, Duration),
    /// Every connection at once.
    Storm,
    /// A second link with the same key, for this long.
    Double(Place, Duration),
    /// Another machine with a copy of the key, for this long.
    Clone(Place, Duration),
    /// Another machine that claims to be this one, or to be known, for this long.
    Stranger(Place, Claim, Duration),
    KillLink(Place),
    StopLink(Place),
    UpgradeLink(Place),
    KillKeeper(Place),
    KillKeeperIn(Place, u32),
    /// Of the steps that are seldom taken.
    KillKeeperInRare(Place, u32),
    LeaveKeeper(Place),
    KillGateway(Sent),
    KillGatewayIn(u32),
    KillGatewayInRare(u32),
    /// Of the steps that are taken least. Keepers die at these, one after the other.
    KillKeeperAt(Place, Vec<Boundary>),
    KillGatewayAt(Boundary),
    /// In the moment in which it comes to such a step.
    PowerCutGatewayAt(Boundary),
    /// The link does nothing for so long, and goes on.
    Freeze(Place, Duration),
    StopGateway,
    PowerCutGateway,
    /// Notes the state of the database.
    Backup,
    /// Puts the database back to the noted state.
    Restore,
    Reboot(Place),
    PowerCut(Place),
    /// The disk of the keepers of a machine.
    DiskOfKeeper(Place, Trouble, u32),
    DiskOfGateway(Trouble, u32),
    SlowDisks(Duration, Duration),
    Suspend(Place, Duration),
    /// The gateway's wall clock jumps by so many seconds.
    ClockJumps(i64),
}

impl Fault {
    /// Every name that [`name`](Self::name) gives.
    pub(super) const NAMES: [&'static str; 34] = [
        "cut",
        "cut mid-frame",
        "half-open",
        "weather",
        "refusal",
        "reconnect storm",
        "duplicate connection",
        "link kill",
        "link stop",
        "upgrade",
        "keeper kill",
        "keeper kill at a step",
        "keeper leaves",
        "gateway kill",
        "gateway kill at a step",
        "gateway stop",
        "gateway power cut",
        "backup",
        "database restore",
        "reboot",
        "power cut",
        "keeper's disk",
        "gateway's disk",
        "slow disk",
        "suspend",
        "clock jump",
        "keeper kill at a rare step",
        "gateway kill at a rare step",
        "clone",
        "stranger",
        "keeper kill at a step of the rarest",
        "gateway kill at a step of the rarest",
        "frozen process",
        "gateway power cut at a step",
    ];

    /// Returns what it is called where it is counted.
    pub(super) fn name(&self) -> &'static str {
        let at = match self {
            Self::Cut(_) => 0,
            Self::CutAfter(..) => 1,
            Self::Silence(_) => 2,
            Self::Weather(..) => 3,
            Self::Door(..) => 4,
            Self::Storm => 5,
            Self::Double(..) => 6,
            Self::KillLink(_) => 7,
            Self::StopLink(_) => 8,
            Self::UpgradeLink(_) => 9,
            Self::KillKeeper(_) => 10,
            Self::KillKeeperIn(..) => 11,
            Self::LeaveKeeper(_) => 12,
            Self::KillGateway(_) => 13,
            Self::KillGatewayIn(_) => 14,
            Self::StopGateway => 15,
            Self::PowerCutGateway => 16,
            Self::Backup => 17,
            Self::Restore => 18,
            Self::Reboot(_) => 19,
            Self::PowerCut(_) => 20,
            Self::DiskOfKeeper(..) => 21,
            Self::DiskOfGateway(..) => 22,
            Self::SlowDisks(..) => 23,
            Self::Suspend(..) => 24,
            Self::ClockJumps(_) => 25,
            Self::KillKeeperInRare(..) => 26,
            Self::KillGatewayInRare(_) => 27,
            Self::Clone(..) => 28,
            Self::Stranger(..) => 29,
            Self::KillKeeperAt(..) => 30,
            Self::KillGatewayAt(_) => 31,
            Self::Freeze(..) => 32,
            Self::PowerCutGatewayAt(_) => 33,
        };
        Self::NAMES[at]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_number_makes_one_plan() {
        let told = |seed| format!("{:?}", Plan::new(seed));
        assert_eq!(told(5), told(5));
        assert_ne!(told(5), told(6));
    }

    #[test]
    fn every_fault_is_planned_sooner_or_later() {
        let mut met = BTreeSet::new();
        for seed in 0..200 {
            for (_, step) in Plan::new(seed).steps {
                if let Step::Fault(fault) = step {
                    met.insert(fault.name());
                }
            }
        }
        let never: Vec<_> = Fault::NAMES
            .iter()
            .filter(|it| !met.contains(*it))
            .collect();
        assert!(never.is_empty(), "{never:?}");
    }
}
