//! Whether what was told of a run may be true, knowing who was killed meanwhile. Pure.

use serde_json::Value;

use super::caller::{Asked, Way};
use super::script::End;
use super::site::Kept;

/// The code of `runs attach` where the gateway cannot be asked: the run may go on.
const NOT_REACHED: i32 = 255;

/// Who was killed while a command was asked for and ran.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Killed {
    pub(super) keeper: bool,
    pub(super) gateway: bool,
    /// Shortly before: what was sent to the journal of a keeper that has just died was never taken.
    pub(super) keeper_before: bool,
}

/// How a run came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Came {
    /// It ended as it is known to.
    AsKnown,
    /// Its keeper was killed, and that is what it says.
    Lost,
    /// It never began, and that is what it says.
    NotStarted,
    /// Nobody was told that there is such a run.
    Unknown,
}

impl Came {
    pub(super) const ALL: [Self; 4] = [Self::AsKnown, Self::Lost, Self::NotStarted, Self::Unknown];
}

/// What is there of a run in the end.
#[derive(Debug)]
pub(super) struct Facts {
    /// The gateway's last word; `None` where it knows no such run.
    pub(super) run: Option<Value>,
    /// How often its command began.
    pub(super) starts: usize,
    pub(super) outputs: [Kept; 2],
    pub(super) killed: Killed,
}

/// Judges one run.
///
/// # Errors
///
/// With what cannot be.
pub(super) fn judge(asked: &Asked, facts: &Facts) -> Result<Came, String> {
    if facts.starts > 1 {
        return Err(format!("its command began {} times", facts.starts));
    }
    if asked.ids.len() > 1 {
        return Err(format!("several runs were told for it: {:?}", asked.ids));
    }
    let Some(run) = &facts.run else {
        return unknown(asked, facts);
    };
    if asked.refused {
        return Err(format!(
            "nothing was started, they said, and there is {run}"
        ));
    }
    if let Some(id) = asked.ids.first()
        && run["id"] != **id
    {
        return Err(format!("run {id} was told for it, and there is {run}"));
    }
    if run["state"] != "ended" || run["unclaimed"] != false {
        return Err(format!("it is not over: {run}"));
    }
    let came = outcome(asked, run, facts)?;
    if let Some(told) = &asked.told {
        for field in ["outcome", "outcome_reason", "exit_code", "signal"] {
            if told[field] != run[field] {
                return Err(format!("{field} was {} and is {}", told[field], run[field]));
            }
        }
    }
    for (kept, printed) in facts.outputs.iter().zip(&asked.script.prints) {
        if let Some(wrong) = kept.differs_from(printed) {
            return Err(wrong);
        }
        if !kept.gaps.is_empty() && !facts.killed.keeper {
            return Err(format!("a gap, and no keeper died: {:?}", kept.gaps));
        }
        let gone: u64 = kept.gaps.iter().map(|(from, to)| to - from).sum();
        let is_short = kept.bytes() + gone < printed.len() as u64;
        if is_short && came == Came::AsKnown && asked.script.end != End::Cancelled {
            return Err(format!("{} bytes, of {}", kept.bytes(), printed.len()));
        }
    }
    printed(asked, came, facts)?;
    Ok(came)
}

fn unknown(asked: &Asked, facts: &Facts) -> Result<Came, String> {
    if !asked.ids.is_empty() {
        return Err(format!(
            "it was acknowledged as {:?}, and is gone",
            asked.ids
        ));
    }
    if facts.starts > 0 {
        return Err("its command began, and there is no such run".to_owned());
    }
    match &asked.printed {
        Some(printed) if printed.code == Some(0) => Err("success was told of no run".to_owned()),
        _ => Ok(Came::Unknown),
    }
}

fn outcome(asked: &Asked, run: &Value, facts: &Facts) -> Result<Came, String> {
    let word = |field: &str| run[field].as_str().unwrap_or("nothing").to_owned();
    let (outcome, reason) = (word("outcome"), word("outcome_reason"));
    let is_known = outcome == asked.script.end.outcome()
        && match asked.script.end {
            End::Exited(code) => run["exit_code"] == code,
            End::Cancelled | End::TimedOut => true,
        };
    if is_known {
        // Only a command that is cancelled may be over before it has begun.
        let begun = facts.starts == 1 || asked.script.end == End::Cancelled;
        return begun
            .then_some(Came::AsKnown)
            .ok_or_else(|| format!("it is {outcome}, and its command never began"));
    }
    match (outcome.as_str(), reason.as_str()) {
        ("lost", "keeper_died" | "journal_wiped") if facts.killed.keeper => Ok(Came::Lost),
        // Of a start that was under way nobody can be asked behind both deaths (ADR 70).
        ("lost", "node_forgot")
            if facts.killed.gateway && (facts.killed.keeper || facts.killed.keeper_before) =>
        {
            Ok(Came::Lost)
        }
        ("failed_to_start", "not_started") => {
            let Killed {
                keeper,
                gateway,
                keeper_before,
            } = facts.killed;
            match facts.starts {
                0 if keeper || gateway || keeper_before => Ok(Came::NotStarted),
                0 => Err("it never began, and nobody was killed".to_owned()),
                _ => Err("it never began, they say, and it did".to_owned()),
            }
        }
        _ => Err(format!("it is {outcome} ({reason}): {run}")),
    }
}

/// Judges what a follower got beside what is kept.
fn printed(asked: &Asked, came: Came, facts: &Facts) -> Result<(), String> {
    let Some(printed) = &asked.printed else {
        return Ok(());
    };
    let [stdout, stderr] = &asked.script.prints;
    if came != Came::AsKnown {
        return match printed.code {
            Some(0) => Err("success was told of a run that is none".to_owned()),
            _ => Ok(()),
        };
    }
    if asked.way == Way::Attach && printed.code == Some(NOT_REACHED) && facts.killed.gateway {
        return Ok(()); // it says that there was no gateway to ask
    }
    if let (Some(code), End::Exited(known)) = (printed.code, asked.script.end)
        && i64::from(code) != known
    {
        let said = String::from_utf8_lossy(&printed.outputs[1]);
        return Err(format!(
            "it exited with {known}, and the program said {code}: {said}"
        ));
    }
    if facts.killed.keeper {
        // Followers hear of output before it is on a disk, so what they got need not be kept.
        let got = &printed.outputs[0];
        let is_right = if printed.has_gap {
            is_part_of(got, stdout)
        } else {
            got == stdout
        };
        return is_right.then_some(()).ok_or_else(|| {
            let (got, all) = (got.len(), stdout.len());
            let gap = if printed.has_gap { "a" } else { "no" };
            format!("its follower got {got} bytes of {all} and {gap} gap, or others")
        });
    }
    if printed.has_gap {
        return Err("its follower met a gap, and no keeper died".to_owned());
    }
    if printed.outputs[0] != *stdout {
        let length = printed.outputs[0].len();
        return Err(format!(
            "its follower got {length} bytes of {}, or others",
            stdout.len()
        ));
    }
    // Ours says there, too, that a connection was cut.
    if printed.code.is_none() && printed.outputs[1] != *stderr {
        return Err("its follower got another stderr".to_owned());
    }
    Ok(())
}

/// Returns whether these are the same bytes in the same order, with some of them left out.
fn is_part_of(part: &[u8], whole: &[u8]) -> bool {
    let mut rest = whole.iter();
    part.iter().all(|byte| rest.any(|other| other == byte))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Instant;

    use serde_json::json;

    use super::super::caller::Printed;
    use super::super::script::{Kind, Script};
    use super::*;
    use crate::dice::Dice;
    use crate::stage::Machine;

    /// A short command that was asked for under a key and acknowledged as run `a1`.
    fn asked() -> Asked {
        Asked {
            key: "c0-0".to_owned(),
            way: Way::Keyed,
            machine: Machine::Node,
            script: Script::new(Kind::Short, "c0-0", &mut Dice::new(1)),
            from: Instant::now(),
            to: Instant::now(),
            ids: BTreeSet::from(["a1".to_owned()]),
            refused: false,
            told: None,
            printed: None,
        }
    }

    /// What is there when nothing went wrong.
    fn facts(asked: &Asked) -> Facts {
        let End::Exited(code) = asked.script.end else {
            panic!("a short command exits");
        };
        let run = json!({
            "id": "a1", "state": "ended", "unclaimed": false,
            "outcome": "exited", "outcome_reason": null, "exit_code": code, "signal": null,
        });
        let kept = |bytes: &Vec<u8>| Kept {
            pieces: vec![(0, bytes.clone())],
            gaps: Vec::new(),
        };
        Facts {
            run: Some(run),
            starts: 1,
            outputs: asked.script.prints.each_ref().map(kept),
            killed: Killed::default(),
        }
    }

    /// Judges a run of which something is changed.
    fn judged(change: impl FnOnce(&mut Asked, &mut Facts)) -> Result<Came, String> {
        let mut asked = asked();
        let mut facts = facts(&asked);
        change(&mut asked, &mut facts);
        judge(&asked, &facts)
    }

    fn ended(facts: &mut Facts, outcome: &str, reason: &str) {
        let run = facts.run.as_mut().unwrap();
        run["outcome"] = outcome.into();
        run["outcome_reason"] = reason.into();
        run["exit_code"] = Value::Null;
    }

    #[test]
    fn what_is_as_known_is_right() {
        assert_eq!(judged(|_, _| ()), Ok(Came::AsKnown));
    }

    #[test]
    fn what_was_acknowledged_has_to_be_there_once() {
        let wrong: [fn(&mut Asked, &mut Facts); 6] = [
            |_, facts| facts.run = None,
            |_, facts| facts.starts = 2,
            |_, facts| facts.starts = 0,
            |asked, _| asked.ids.extend(["b2".to_owned()]),
            |asked, _| asked.refused = true,
            |_, facts| facts.run.as_mut().unwrap()["state"] = "running".into(),
        ];
        for (number, change) in wrong.into_iter().enumerate() {
            assert!(judged(change).is_err(), "{number}");
        }
    }

    #[test]
    fn a_run_is_lost_only_where_its_keeper_died() {
        assert!(judged(|_, facts| ended(facts, "lost", "keeper_died")).is_err());
        let lost = judged(|_, facts| {
            ended(facts, "lost", "keeper_died");
            facts.killed.keeper = true;
        });
        assert_eq!(lost, Ok(Came::Lost));
        let forgot = judged(|_, facts| {
            ended(facts, "lost", "node_forgot");
            facts.killed.keeper = true;
        });
        assert!(forgot.is_err());
    }

    #[test]
    fn a_run_that_never_started_has_not() {
        let not_started = |starts: usize, gateway: bool| {
            judged(|_, facts| {
                ended(facts, "failed_to_start", "not_started");
                facts.starts = starts;
                facts.outputs = Default::default();
                facts.killed.gateway = gateway;
            })
        };
        assert_eq!(not_started(0, true), Ok(Came::NotStarted));
        assert!(not_started(1, true).is_err());
        assert!(not_started(0, false).is_err());
    }

    #[test]
    fn output_is_whole_or_a_keeper_died() {
        let cut = |_: &mut Asked, facts: &mut Facts| {
            let (_, bytes) = &mut facts.outputs[0].pieces[0];
            bytes.pop();
        };
        assert!(judged(cut).is_err());
        let other = |_: &mut Asked, facts: &mut Facts| facts.outputs[1].pieces[0].1[0] ^= 1;
        assert!(judged(other).is_err());
        let gap = |killed: bool| {
            judged(|_, facts| {
                let length = facts.outputs[0].bytes();
                facts.outputs[0] = Kept {
                    pieces: Vec::new(),
                    gaps: vec![(0, length)],
                };
                facts.killed.keeper = killed;
            })
        };
        assert!(gap(false).is_err());
        assert_eq!(gap(true), Ok(Came::AsKnown));
    }

    #[test]
    fn success_is_not_told_of_what_is_none_and_a_told_ending_stays() {
        let printed = |code: i32| Printed {
            code: Some(code),
            outputs: Default::default(),
            has_gap: false,
        };
        let said = judged(|asked, facts| {
            ended(facts, "lost", "keeper_died");
            facts.killed.keeper = true;
            asked.printed = Some(printed(0));
        });
        assert!(said.is_err());
        assert!(judged(|asked, _| asked.printed = Some(printed(101))).is_err());
        let changed = judged(|asked, facts| {
            asked.told = facts.run.clone();
            ended(facts, "lost", "keeper_died");
            facts.killed.keeper = true;
        });
        assert!(changed.is_err());
    }
}
