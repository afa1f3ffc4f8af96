//! How a plan is drawn.

use std::time::Duration;

use super::{Claim, Fault, How, Plan, STEPS, Shape, Step, Theme, Wish};
use crate::simulate::dice::Dice;
use crate::simulate::disk::{Boundary, Edge, RAREST_OF_GATEWAY, STEPS_OF_DRAFTS, Trouble};
use crate::simulate::kernel::script::{Act, Finish, Script, Stream, Tag};
use crate::simulate::net::{Door, Place, Sent, Weather};

/// Signals that are sent by name.
const SIGNALS: [&str; 5] = ["HUP", "INT", "TERM", "USR1", "KILL"];

/// Ten years.
const DECADE_SECONDS: i64 = 10 * 365 * 24 * 3600;

impl Plan {
    /// Returns the plan of this number.
    pub(in super::super) fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed, "plan");
        let theme = *dice.weighted(&[
            (72, Theme::Plain),
            (4, Theme::Wordy),
            (9, Theme::Dark),
            (6, Theme::Loud),
            (6, Theme::Apart),
            (3, Theme::Thin),
        ]);
        let is_for_one = matches!(theme, Theme::Wordy | Theme::Thin);
        let nodes = if is_for_one {
            1
        } else {
            *dice.weighted(&[(4, 1), (4, 2), (2, 3)])
        };
        let shape = Shape {
            nodes,
            has_local: !is_for_one && dice.percent(40),
            is_beside: matches!(theme, Theme::Plain | Theme::Dark) && dice.percent(12),
            is_small: dice.percent(60) || theme == Theme::Loud,
            is_troubled: dice.percent(95) && theme != Theme::Thin,
            theme,
            weathers: (0..nodes).map(|_| weather_of(theme, &mut dice)).collect(),
            keepers_stay: dice.millis(5_000, 600_000),
        };
        let mut draw = Draw {
            dice,
            tags: 0,
            keyed: Vec::new(),
            shape: &shape,
        };
        let steps = (0..STEPS).map(|_| (draw.pause(), draw.step()));
        let steps = steps.collect();
        Self { shape, steps }
    }
}

struct Draw<'a> {
    dice: Dice,
    /// Requests so far; their tags are 1 to this.
    tags: Tag,
    keyed: Vec<Tag>,
    shape: &'a Shape,
}

fn weather(dice: &mut Dice) -> Weather {
    let (delay, rate) = *dice.weighted(&[
        (5, (0, 100_000_000)),
        (3, (15, 10_000_000)),
        (2, (120, 1_000_000)),
        (1, (400, 60_000)),
    ]);
    Weather {
        delay: Weather::FAIR.delay + Duration::from_millis(delay),
        bytes_per_second: rate,
        door: Door::Open,
    }
}

fn weather_of(theme: Theme, dice: &mut Dice) -> Weather {
    match theme {
        Theme::Wordy => Weather::FAIR,
        Theme::Thin => Weather {
            delay: dice.millis(1, 300),
            bytes_per_second: 8_000,
            door: Door::Open,
        },
        Theme::Plain | Theme::Dark | Theme::Loud | Theme::Apart => weather(dice),
    }
}

impl Draw<'_> {
    fn pause(&mut self) -> Duration {
        let (from, to) = *self.dice.weighted(&[
            (50, (0, 20)),
            (38, (20, 600)),
            (10, (1_000, 8_000)),
            (2, (20_000, 60_000)),
        ]);
        self.dice.millis(from, to)
    }

    fn step(&mut self) -> Step {
        let faults = if self.is(Theme::Wordy) { 14 } else { 28 };
        if self.shape.is_troubled && self.dice.percent(faults) {
            Step::Fault(self.fault())
        } else {
            Step::Wish(self.wish())
        }
    }

    fn is(&self, theme: Theme) -> bool {
        self.shape.theme == theme
    }

    /// Returns where something runs.
    fn place(&mut self) -> Place {
        let nodes = self.shape.nodes as u64;
        let first = u64::from(!self.shape.has_local);
        usize::try_from(self.dice.between(first, nodes + 1)).unwrap_or(1)
    }

    /// Returns the place of a node.
    fn node(&mut self) -> Place {
        let nodes = self.shape.nodes as u64;
        usize::try_from(self.dice.between(1, nodes + 1)).unwrap_or(1)
    }

    /// Returns an earlier request, most often a late one.
    fn tag(&mut self) -> Option<Tag> {
        let back = if self.dice.percent(70) {
            self.dice.below(5)
        } else {
            self.dice.below(u64::from(self.tags.max(1)))
        };
        self.tags
            .checked_sub(u32::try_from(back).ok()?)
            .filter(|tag| *tag > 0)
    }

    fn wish(&mut self) -> Wish {
        let kind = *self.dice.weighted(&[
            (40, 0),
            (6, 1),
            (1, 2),
            (12, 3),
            (5, 4),
            (10, 5),
            (10, 6),
            (10, 7),
            (2, 8),
            (1, 9),
            (1, 10),
            (1, 11),
        ]);
        let kind = match self.shape.theme {
            Theme::Wordy if self.dice.percent(60) => 0,
            // What is under way to a child is none of what waits here.
            Theme::Thin if kind == 5 => 3,
            _ => kind,
        };
        let Some(tag) = self.tag().filter(|_| kind > 0) else {
            return self.start();
        };
        match kind {
            1 | 2 => {
                let Some(tag) = self.keyed.last().copied() else {
                    return self.start();
                };
                if kind == 1 {
                    let tag = *self.dice.pick(&self.keyed.clone());
                    Wish::Repeat(tag)
                } else {
                    Wish::Contradict(tag)
                }
            }
            3 => Wish::Cancel(tag, self.dice.below(4)),
            4 => Wish::Signal(tag, self.dice.pick::<&'static str>(&SIGNALS)),
            5 => {
                let bytes = *self.dice.pick(&[0, 1, 100, 5_000, 100_000]);
                Wish::Feed(tag, bytes, self.dice.percent(30))
            }
            6 => Wish::Follow(tag, self.dice.millis(1, 60_000)),
            7 => Wish::Look(tag),
            8 => Wish::List,
            9 => Wish::Rename(
                self.node(),
                u32::try_from(self.dice.below(100)).unwrap_or(0),
            ),
            11 => Wish::Claim,
            // Once in some worlds: a node that is refused for good is of no more use.
            _ if self.shape.nodes > 1 && self.dice.percent(30) => Wish::Revoke(self.node()),
            _ => Wish::Look(tag),
        }
    }

    fn start(&mut self) -> Wish {
        self.tags += 1;
        let has_key = self.dice.percent(50);
        if has_key {
            self.keyed.push(self.tags);
        }
        Wish::Start {
            place: self.place(),
            script: self.script(self.tags),
            has_key,
            how: *self
                .dice
                .weighted(&[(5, How::Detached), (3, How::Waiting), (3, How::Following)]),
            timeout_seconds: self.dice.percent(10).then(|| self.dice.between(1, 20)),
        }
    }

    fn script(&mut self, tag: Tag) -> Script {
        let acts = *self.dice.weighted(&[(3, 1), (3, 2), (2, 4), (1, 8)]);
        let acts = (0..acts).map(|_| self.act()).collect();
        let finish = if self.dice.percent(90) {
            Finish::Exit(*self.dice.weighted(&[(6, 0), (2, 1), (1, 77)]))
        } else {
            Finish::Signal(*self.dice.pick(&[6, 9, 11]))
        };
        let pad = if self.is(Theme::Wordy) {
            usize::try_from(self.dice.between(50_000, 60_000)).unwrap_or_default()
        } else {
            0
        };
        let mut script = Script {
            tag,
            acts,
            finish,
            is_fed: false,
            pad,
        };
        // On a thin line it would be in the way of what is measured there.
        script.is_fed = script.reads() > 0 && !self.is(Theme::Thin) && self.dice.percent(50);
        script
    }

    fn act(&mut self) -> Act {
        let bytes = *self.dice.weighted(&[
            (6, 10),
            (4, 3_000),
            (3, 70_000),
            (2, 200_000),
            (1, 1_300_000),
        ]);
        let is_full = matches!(self.shape.theme, Theme::Loud | Theme::Thin);
        let bytes = if is_full && self.dice.percent(30) {
            1_300_000
        } else {
            bytes
        };
        let bytes = 1 + self.dice.below(bytes);
        match *self
            .dice
            .weighted(&[(10, 0), (4, 1), (9, 2), (2, 3), (1, 4), (1, 5), (1, 6)])
        {
            0 => Act::Write(Stream::Out, bytes),
            1 => Act::Write(Stream::Err, bytes),
            2 => Act::Wait(*self.dice.weighted(&[
                (4, 5),
                (4, 200),
                (3, 3_000),
                (2, 20_000),
                (1, 3_600_000),
            ])),
            3 => {
                // More than the window of its stdin and a pipe hold, or as much as they do.
                let most = *self.dice.weighted(&[(2, 20_000), (1, 400_000)]);
                Act::Read(1 + self.dice.below(most))
            }
            4 => Act::Deafen,
            5 => Act::Fork(1 + self.dice.below(5_000)),
            _ => Act::Escape(1 + self.dice.below(5_000)),
        }
    }

    fn fault(&mut self) -> Fault {
        let node = self.node();
        let place = self.place();
        let steps = 1 + u32::try_from(self.dice.below(40)).unwrap_or(0);
        let trouble = *self
            .dice
            .weighted(&[(3, Trouble::Full), (1, Trouble::Failing)]);
        let rare = 1 + u32::try_from(self.dice.below(8)).unwrap_or(0);
        let of_theme = self.shape.theme;
        // A journal is written anew only by a keeper that has lived for long.
        let share = if of_theme == Theme::Wordy { 90 } else { 50 };
        if of_theme != Theme::Plain && self.dice.percent(share) {
            return self.fault_of(of_theme, node, rare);
        }
        match *self.dice.weighted(&[
            (4, 26),
            (4, 27),
            (8, 0),
            (10, 1),
            (6, 2),
            (5, 3),
            (4, 4),
            (3, 5),
            (3, 6),
            (6, 7),
            (3, 8),
            (2, 9),
            (3, 10),
            (6, 11),
            (1, 12),
            (4, 13),
            (14, 14),
            (3, 15),
            (3, 16),
            (2, 17),
            (2, 18),
            (2, 19),
            (2, 20),
            (4, 21),
            (3, 22),
            (3, 23),
            (3, 24),
            (3, 25),
            (3, 32),
            (8, 30),
        ]) {
            0 => Fault::Cut(node),
            1 => {
                let most = *self.dice.pick(&[10, 300, 5_000, 200_000]);
                Fault::CutAfter(node, self.dice.below(most))
            }
            2 => Fault::Silence(node),
            3 => Fault::Weather(node, weather(&mut self.dice)),
            4 => {
                let door = *self.dice.pick(&[Door::Refusing, Door::Silent]);
                Fault::Door(node, door, self.dice.millis(100, 20_000))
            }
            5 => Fault::Storm,
            6 => Fault::Double(node, self.dice.millis(100, 10_000)),
            7 => Fault::KillLink(node),
            8 => Fault::StopLink(node),
            9 => Fault::UpgradeLink(node),
            10 => Fault::KillKeeper(place),
            11 => Fault::KillKeeperIn(place, steps),
            12 => Fault::LeaveKeeper(place),
            13 => Fault::KillGateway(*self.dice.pick(&[Sent::Arrives, Sent::IsLost])),
            14 => Fault::KillGatewayIn(steps),
            15 => Fault::StopGateway,
            16 => Fault::PowerCutGateway,
            17 => Fault::Backup,
            18 => Fault::Restore,
            19 => Fault::Reboot(self.place()),
            20 => Fault::PowerCut(self.place()),
            21 => Fault::DiskOfKeeper(place, trouble, 1 + steps / 8),
            22 => Fault::DiskOfGateway(trouble, 1 + steps / 8),
            26 => Fault::KillKeeperInRare(place, rare),
            27 => Fault::KillGatewayInRare(rare),
            23 => {
                let takes = self.dice.millis(1, 2_000);
                Fault::SlowDisks(takes, self.dice.millis(500, 20_000))
            }
            30 => Fault::KillKeeperAt(place, vec![self.boundary(&["spool.stray"])]),
            32 => Fault::Freeze(node, self.dice.millis(1_000, 120_000)),
            24 => Fault::Suspend(node, self.dice.millis(1_000, 120_000)),
            _ => {
                let seconds = *self
                    .dice
                    .pick(&[-DECADE_SECONDS, -3600, 60, DECADE_SECONDS]);
                Fault::ClockJumps(seconds)
            }
        }
    }

    /// Returns what goes wrong most in worlds that are about something.
    fn fault_of(&mut self, theme: Theme, node: Place, rare: u32) -> Fault {
        match (theme, self.dice.below(5)) {
            // What one that dies so leaves is cleared by the next.
            (Theme::Wordy, _) => {
                let boundaries = [&STEPS_OF_DRAFTS[..], &["journal.clear"]];
                Fault::KillKeeperAt(node, boundaries.map(|of| self.boundary(of)).into())
            }
            (Theme::Loud, 1..=3) => Fault::KillGatewayAt(self.boundary(&RAREST_OF_GATEWAY)),
            (Theme::Dark, 0) => Fault::Backup,
            (Theme::Dark, 1) => Fault::Restore,
            (Theme::Dark, 2) => Fault::PowerCutGateway,
            // What stands behind the place that was synced last.
            (Theme::Loud, 0) => Fault::PowerCutGatewayAt(("output.gap", Edge::After)),
            (Theme::Apart, 0) => {
                let claim = *self.dice.pick(&[Claim::All, Claim::Name, Claim::Nothing]);
                Fault::Stranger(node, claim, self.dice.millis(5_000, 60_000))
            }
            (Theme::Apart, 1) => Fault::Double(node, self.dice.millis(5_000, 60_000)),
            (Theme::Apart, 2) => Fault::KillLink(node),
            (Theme::Apart, _) => Fault::Clone(node, self.dice.millis(5_000, 200_000)),
            (Theme::Dark | Theme::Loud | Theme::Plain | Theme::Thin, _) => {
                Fault::KillGatewayInRare(rare)
            }
        }
    }

    fn boundary(&mut self, of: &[&'static str]) -> Boundary {
        let edge = *self.dice.pick(&[Edge::Before, Edge::After]);
        (*self.dice.pick::<&'static str>(of), edge)
    }
}
