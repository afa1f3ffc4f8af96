//! What became of many runs: the lines at the end, the array of `--json`, the exit code.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use moltis_gateway::api::fleet::{FleetRuns, Skipped};
use moltis_gateway::api::problem::Code;
use moltis_gateway::api::runs::{Outcome, OutcomeReason, Run};
use serde::Serialize;

use super::super::super::runs::state_of;
use super::super::collect::Collected;
use super::super::once::NotDone;
use super::lines::Lines;
use crate::api::ApiError;
use crate::commands::Context;
use crate::exit::Exit;
use crate::failure::{Failure, failure};
use crate::units::short;

/// Names in one line of the summary, at the most; `--json` has all.
const NAMES_MAX: usize = 20;

/// One of many nodes, and what it told.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) node_id: String,
    pub(super) node_name: String,
    /// What lines and messages call it.
    pub(super) label: String,
    pub(super) outputs: Outputs,
    /// Its run; `None` before it is started, and where it is not.
    pub(super) run_id: Option<String>,
    /// `None` until it is known.
    pub(super) became: Option<Became>,
    pub(super) said_away: bool,
    pub(super) said_waits: bool,
}

/// What is done with the outputs of one node.
#[derive(Debug)]
pub(super) enum Outputs {
    /// They are shown as they come.
    Lines([Lines; 2]),
    /// They are kept for `--json`.
    Collected([Collected; 2]),
}

/// What became of one node's run.
#[derive(Debug)]
pub(super) enum Became {
    /// It is over.
    Ended(Box<Run>),
    /// There is none: the gateway said no, or was gone.
    NotStarted(NotDone),
    /// There is none: no more were started.
    HeldBack,
    /// There is one, and the gateway was lost, or forgot it.
    Lost(ApiError),
}

impl Became {
    /// Returns a few words, the same for all to whom the same happened.
    fn words(&self) -> String {
        match self {
            Self::Ended(run) => match ending(run) {
                Some(detail) => format!("{}: {detail}", state_of(run)),
                None => state_of(run),
            },
            Self::NotStarted(NotDone::Refused(error)) => match error.code() {
                Some(Code::NodeOffline) => "offline".to_owned(),
                Some(Code::NodeRevoked | Code::NodeNotFound) => "revoked".to_owned(),
                _ => format!("not started: {error}"),
            },
            Self::NotStarted(NotDone::Unknown(error)) if error.code().is_none() => {
                "perhaps started: the gateway was lost".to_owned()
            }
            Self::NotStarted(NotDone::Unknown(error) | NotDone::Unheard(error)) => {
                format!("perhaps started: {error}")
            }
            Self::HeldBack => "not started".to_owned(),
            Self::Lost(error) => format!("not known: {error}"),
        }
    }

    fn exit(&self) -> Option<Exit> {
        match self {
            Self::Ended(run) => Some(Exit::of_run(run)),
            Self::NotStarted(_) | Self::HeldBack | Self::Lost(_) => None,
        }
    }

    fn error(&self) -> Option<ErrorOf> {
        match self {
            Self::Ended(_) => None,
            Self::NotStarted(NotDone::Refused(error)) | Self::Lost(error) => Some(ErrorOf {
                code: error.code().map(|code| code.as_str().to_owned()),
                detail: error.to_string(),
            }),
            Self::NotStarted(NotDone::Unknown(_) | NotDone::Unheard(_)) | Self::HeldBack => {
                Some(ErrorOf {
                    code: None,
                    detail: self.words(),
                })
            }
        }
    }
}

/// Returns what the outcome alone would leave open.
fn ending(run: &Run) -> Option<String> {
    match run.outcome? {
        Outcome::Exited | Outcome::Signaled | Outcome::Cancelled | Outcome::TimedOut => None,
        Outcome::FailedToStart | Outcome::Refused | Outcome::Lost => {
            let reason = run.outcome_reason.and_then(word);
            run.detail
                .clone()
                .filter(|detail| !detail.is_empty())
                .or(reason)
        }
    }
}

fn word(reason: OutcomeReason) -> Option<String> {
    let word = serde_json::to_value(reason).ok()?;
    Some(word.as_str()?.replace('_', " "))
}

/// Says what became of everybody and returns the exit code: 0 where every node gave 0, else 1. What
/// a signal of ours has cancelled ends as that signal would have ended us.
pub(super) fn tell(
    context: &Context,
    nodes: Vec<Told>,
    ended_by: Option<i32>,
    json: bool,
) -> anyhow::Result<Exit> {
    let exits: Vec<_> = nodes
        .iter()
        .map(|node| node.became.as_ref().and_then(Became::exit))
        .collect();
    if json {
        let each: Vec<_> = nodes.into_iter().map(NodeResult::of).collect();
        context.output.json(&each)?;
    } else {
        context.output.note(&words(&nodes));
    }
    Ok(match ended_by {
        Some(signal) if exits.iter().any(|exit| *exit != Some(Exit::SUCCESS)) => {
            Exit::of_signal(signal)
        }
        _ if exits.iter().all(|exit| *exit == Some(Exit::SUCCESS)) => Exit::SUCCESS,
        _ => Exit::FAILURE,
    })
}

/// Returns a line with the counts, and one for each group that did not exit 0, with its names.
fn words(nodes: &[Told]) -> String {
    let mut groups: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    let mut succeeded = 0;
    for node in nodes {
        let Some(became) = &node.became else { continue };
        if became.exit() == Some(Exit::SUCCESS) {
            succeeded += 1;
        } else {
            groups.entry(became.words()).or_default().push(&node.label);
        }
    }
    let all = match nodes.len() {
        1 => "1 node".to_owned(),
        number => format!("{number} nodes"),
    };
    let mut counts = vec![format!("{succeeded} exited 0")];
    let mut by_kind: Vec<(String, usize)> = Vec::new();
    for (group, names) in &groups {
        let kind = kind_of(group);
        match by_kind.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, number)) => *number += names.len(),
            None => by_kind.push((kind, names.len())),
        }
    }
    counts.extend(
        by_kind
            .into_iter()
            .map(|(kind, number)| format!("{number} {kind}")),
    );
    let mut text = format!("{all}: {}", counts.join(", "));
    for (group, names) in &groups {
        write!(text, "\n  {}: {group}", listed(names)).expect("a string takes everything");
    }
    text
}

/// Returns what happened without the reason.
fn kind_of(group: &str) -> String {
    group.split(':').next().unwrap_or_default().to_owned()
}

fn listed(names: &[&str]) -> String {
    let shown = names
        .iter()
        .take(NAMES_MAX)
        .copied()
        .collect::<Vec<_>>()
        .join(", ");
    match names.len().saturating_sub(NAMES_MAX) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// Says which runs were left alone by a second Ctrl+C.
pub(super) fn left(nodes: &[Told]) -> Failure {
    let runs = nodes.iter().filter(|node| node.became.is_none());
    let runs = runs.filter_map(|node| {
        let run_id = node.run_id.as_deref()?;
        Some(format!("{} on {}", short(run_id), node.label))
    });
    let runs: Vec<_> = runs.collect();
    let runs: Vec<_> = runs.iter().map(String::as_str).collect();
    let said = match runs.len() {
        0 => failure("left; no run was known to be under way"),
        1 => failure(format!("left the run {}", listed(&runs))),
        number => failure(format!("left {number} runs: {}", listed(&runs))),
    };
    said.hint("they are being cancelled; what becomes of them: moltis runs list")
        .exit(Exit::CANCELLED)
}

/// Prints the ids of runs that nobody waits for, and who was skipped.
pub(super) fn detached(context: &Context, started: &FleetRuns, json: bool) -> anyhow::Result<Exit> {
    if json {
        let runs = started.items.iter().map(Detached::of);
        let skipped = started.skipped.iter().map(Detached::skipped);
        context
            .output
            .json(&runs.chain(skipped).collect::<Vec<_>>())?;
    } else {
        let ids: Vec<_> = started.items.iter().map(|run| run.id.as_str()).collect();
        if !ids.is_empty() {
            context.output.text(&ids.join("\n"))?;
        }
        for skipped in &started.skipped {
            let (name, why) = (&skipped.node_name, &skipped.detail);
            context.output.note(&format!("{name}: not started: {why}"));
        }
    }
    Ok(if started.skipped.is_empty() {
        Exit::SUCCESS
    } else {
        Exit::FAILURE
    })
}

/// One node in `--detach --json`: its run, or why there is none.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Detached<'a> {
    Run {
        run_id: &'a str,
        #[serde(flatten)]
        run: &'a Run,
        error: Option<ErrorOf>,
    },
    Skipped {
        run_id: Option<&'a str>,
        node: &'a str,
        node_name: &'a str,
        error: ErrorOf,
    },
}

impl<'a> Detached<'a> {
    fn of(run: &'a Run) -> Self {
        Self::Run {
            run_id: &run.id,
            run,
            error: None,
        }
    }

    fn skipped(skipped: &'a Skipped) -> Self {
        let code = serde_json::to_value(skipped.code).ok();
        Self::Skipped {
            run_id: None,
            node: &skipped.node,
            node_name: &skipped.node_name,
            error: ErrorOf {
                code: code.and_then(|code| code.as_str().map(str::to_owned)),
                detail: skipped.detail.clone(),
            },
        }
    }
}

/// One node in `--json`: the fields of a run's result, without an outcome where there is none, and
/// then with the reason.
#[derive(Debug, Serialize)]
struct NodeResult {
    run_id: Option<String>,
    node: String,
    node_name: String,
    outcome: Option<Outcome>,
    outcome_reason: Option<OutcomeReason>,
    exit_code: Option<i32>,
    signal: Option<i32>,
    detail: Option<String>,
    stdout: String,
    stderr: String,
    stdout_bytes: u64,
    stderr_bytes: u64,
    truncated: bool,
    duration_ms: Option<u64>,
    error: Option<ErrorOf>,
}

/// Why a node has no result.
#[derive(Debug, Serialize)]
struct ErrorOf {
    /// The gateway's code; `None` where it gave none.
    code: Option<String>,
    detail: String,
}

impl NodeResult {
    fn of(told: Told) -> Self {
        let [stdout, stderr] = match told.outputs {
            Outputs::Collected(collected) => collected.map(Collected::finish),
            Outputs::Lines(_) => <[(String, bool); 2]>::default(),
        };
        let error = told.became.as_ref().and_then(Became::error);
        let run = match &told.became {
            Some(Became::Ended(run)) => Some(&**run),
            _ => None,
        };
        Self {
            run_id: told.run_id,
            node: told.node_id,
            node_name: told.node_name,
            outcome: run.and_then(|run| run.outcome),
            outcome_reason: run.and_then(|run| run.outcome_reason),
            exit_code: run.and_then(|run| run.exit_code),
            signal: run.and_then(|run| run.signal),
            detail: run.and_then(|run| run.detail.clone()),
            stdout_bytes: run.map_or(0, |run| run.stdout_bytes),
            stderr_bytes: run.map_or(0, |run| run.stderr_bytes),
            duration_ms: run.and_then(|run| run.duration_ms),
            truncated: stdout.1 || stderr.1,
            stdout: stdout.0,
            stderr: stderr.0,
            error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(name: &str, became: Became) -> Told {
        Told {
            node_id: format!("id of {name}"),
            node_name: name.to_owned(),
            label: name.to_owned(),
            outputs: Outputs::Collected(<[Collected; 2]>::default()),
            run_id: None,
            became: Some(became),
            said_away: false,
            said_waits: false,
        }
    }

    fn run(outcome: &str, code: Option<i32>, detail: Option<&str>) -> Became {
        let run = serde_json::json!({
            "id": "00", "node": "n", "node_name": "n", "state": "ended", "outcome": outcome,
            "exit_code": code, "detail": detail, "tty": false, "requested_by": "operator",
            "created_at": "2026-01-02T03:04:05Z", "stdout_bytes": 0, "stderr_bytes": 0,
            "reachable": true, "unclaimed": false,
        });
        Became::Ended(serde_json::from_value(run).unwrap())
    }

    #[test]
    fn a_summary_counts_everybody_and_names_who_did_not_exit_0() {
        let nodes = [
            told("a", run("exited", Some(0), None)),
            told("b", run("exited", Some(3), None)),
            told("c", run("exited", Some(3), None)),
            told("d", run("failed_to_start", None, Some("`x` is not there"))),
            told(
                "e",
                run("failed_to_start", None, Some("`x` is a directory")),
            ),
            told("f", run("timed_out", None, None)),
            told("g", Became::HeldBack),
        ];
        assert_eq!(
            words(&nodes),
            "7 nodes: 1 exited 0, 2 exited 3, 2 failed to start, 1 not started, 1 timed out\n  \
             b, c: exited 3\n  \
             e: failed to start: `x` is a directory\n  \
             d: failed to start: `x` is not there\n  \
             g: not started\n  \
             f: timed out"
        );
        let one = [told("a", run("exited", Some(0), None))];
        assert_eq!(words(&one), "1 node: 1 exited 0");
    }

    #[test]
    fn of_very_many_names_some_are_said() {
        let names: Vec<_> = (0..25).map(|number| number.to_string()).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        assert!(listed(&names).ends_with("18, 19 and 5 more"));
        assert_eq!(listed(&names[..2]), "0, 1");
    }

    #[test]
    fn a_node_without_a_run_has_no_outcome_and_a_reason() {
        let result = NodeResult::of(told("a", Became::HeldBack));
        let json = serde_json::to_value(result).unwrap();
        assert_eq!(json["outcome"], serde_json::Value::Null);
        assert_eq!(json["error"]["detail"], "not started");
        assert_eq!(json["node_name"], "a");
        let ended = NodeResult::of(told("a", run("exited", Some(0), None)));
        let json = serde_json::to_value(ended).unwrap();
        assert_eq!(
            (&json["outcome"], &json["error"]),
            (&"exited".into(), &().into())
        );
    }
}
