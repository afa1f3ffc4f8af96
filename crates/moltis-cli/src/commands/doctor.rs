//! `moltis doctor`: what is wrong on this machine and at its gateway, and what to type next.
//!
//! Here it is looked: at files, at the node's own report, and at the gateway, which looks at itself.
//! What was seen of this machine is judged in [`checks`]. Nothing is changed.

mod checks;
mod services;

use jiff::Timestamp;
use moltis_gateway::api::doctor::{Finding, Level};
use moltis_gateway::api::problem::Code;
use moltis_gateway::doctor::{checks_of_a_running_gateway, examine_home};
use moltis_identity::{KeyFileError, NodeIdentity};
use moltis_node::keeper::connect;
use moltis_node::state::{self, Report};

use self::checks::{Facts, GatewayFacts, Keeper, NodeFacts, Presence, Process, Told};
use super::{Context, node};
use crate::api::{ApiError, LOOK_TIME};
use crate::args::doctor::Doctor;
use crate::config_file;
use crate::exit::Exit;
use crate::failure::{Failure, OrFail as _, failure};
use crate::paths::Home;

/// The order in which findings are told. One that is not named here comes last.
const ORDER: &[&str] = &[
    "config",
    "gateway",
    "listen",
    "pairing_window",
    "nodes",
    "clock",
    "file_modes",
    "service",
    "lingering",
    "database",
    "disk",
    "exec_route",
];

/// `moltis doctor`.
pub(super) async fn run(context: &Context, args: Doctor) -> anyhow::Result<Exit> {
    let home = context.home()?;
    let client = context.client(&args.remote)?.answered_within(LOOK_TIME);
    let remote = args.remote.gateway.filter(|url| !url.is_empty());
    let asked: Result<Vec<Finding>, ApiError> = client.list("doctor", usize::MAX).await;
    // A gateway of this home has looked at it; where none did, we do.
    let of_home = match (&remote, &asked) {
        (None, Ok(_)) => Vec::new(),
        _ => examine_home(home.dir()).await,
    };
    let (seen_there, gateway) = match asked {
        Ok(findings) => {
            let place = match &remote {
                Some(url) => format!("the gateway at {url}"),
                None => format!("the gateway at `{}`", home.show(&home.gateway_socket())),
            };
            (findings, GatewayFacts::Answers(place))
        }
        Err(error) => (Vec::new(), silent(&home, remote.is_some(), error)),
    };
    let facts = Facts {
        now: Timestamp::now(),
        config: (home.show(&home.config()), config(&home)),
        gateway,
        node: node_facts(&home).await,
        services: services::look(&home, &context.settings).await,
    };
    let mut seen_here = checks::examine(&facts);
    seen_here.extend(of_home);
    if remote.is_some() {
        seen_here.iter_mut().for_each(place_here);
    }
    let unasked = checks_of_a_running_gateway()
        .filter(|check| *check != "config")
        .filter(|check| seen_there.iter().all(|found| found.check != *check))
        .map(|check| checks::not_asked(&facts).of(check));
    let unasked: Vec<_> = unasked.collect();
    let findings = in_order(seen_there.into_iter().chain(seen_here).chain(unasked));
    if args.format.json {
        context.output.json(&findings)?;
    } else {
        context.output.findings(&findings)?;
    }
    let is_wrong = findings.iter().any(|found| found.level == Level::Error);
    Ok(if is_wrong {
        Exit::FAILURE
    } else {
        Exit::SUCCESS
    })
}

/// Joins the findings of each check, and sorts them.
fn in_order(all: impl IntoIterator<Item = Finding>) -> Vec<Finding> {
    let mut findings: Vec<Finding> = Vec::new();
    for found in all {
        match findings.iter().position(|one| one.check == found.check) {
            Some(at) => {
                let one = findings.remove(at);
                findings.insert(at, checks::joined(one, found));
            }
            None => findings.push(found),
        }
    }
    let place = |found: &Finding| ORDER.iter().position(|check| *check == found.check);
    findings.sort_by_key(|found| place(found).unwrap_or(ORDER.len()));
    findings
}

/// Tells what is of this machine from what is of a gateway elsewhere.
fn place_here(found: &mut Finding) {
    if found.check != "gateway" && found.level != Level::Ok {
        found.message = format!("on this machine: {}", found.message);
    }
}

/// A gateway that was named, or that has run here, should answer.
fn silent(home: &Home, is_remote: bool, error: ApiError) -> GatewayFacts {
    let is_expected = is_remote
        || !matches!(error, ApiError::NotReached { .. })
        || home.dir().join("gateway.db").exists();
    let told = if error.code() == Some(Code::NotFound) {
        let older = failure("the gateway is of an older version and cannot look at itself");
        Told::of(older.hint("update it, and restart it: commands that run go on"))
    } else {
        Told::of(error.into_failure())
    };
    if is_expected {
        GatewayFacts::Silent(told)
    } else {
        GatewayFacts::Absent(told)
    }
}

fn config(home: &Home) -> Result<Presence, Told> {
    let path = home.config();
    config_file::load(&path, &home.show(&path)).map_err(Told::of)?;
    Ok(if path.exists() {
        Presence::There
    } else {
        Presence::Missing
    })
}

async fn node_facts(home: &Home) -> NodeFacts {
    match load_node(home) {
        Ok(None) => NodeFacts::None,
        Ok(Some(gateway_url)) => NodeFacts::Joined {
            gateway_url,
            process: process(home),
            keeper: keeper(home).await,
        },
        Err(failure) => NodeFacts::Broken(Told::of(failure)),
    }
}

async fn keeper(home: &Home) -> Keeper {
    let found = connect::find(&home.node_runs()).await;
    match found.or_fail(|| "whether this node has a keeper is not known".to_owned()) {
        Ok(Some(_)) => Keeper::Runs,
        Ok(None) => Keeper::Missing,
        Err(failure) => Keeper::Unknown(Told::of(failure)),
    }
}

/// Returns the gateway that this machine has joined; `None` where it has not.
fn load_node(home: &Home) -> Result<Option<String>, Failure> {
    let Some(config) = node::load_config(home)? else {
        return Ok(None);
    };
    match NodeIdentity::load(&home.node_key()) {
        Ok(_) => Ok(Some(config.gateway_url.to_string())),
        Err(error @ KeyFileError::Missing { .. }) => Err(failure(error.to_string()).hint(format!(
            "join again: moltis node add --host {}",
            config.gateway_url
        ))),
        Err(error) => Err(failure(error.to_string())),
    }
}

fn process(home: &Home) -> Process {
    let path = home.node_state();
    let state = state::read_state(&path)
        .or_fail(|| format!("how the node stands is not known: `{}`", home.show(&path)));
    let report = match state {
        Ok(None) => return Process::Missing,
        Ok(Some(report)) => report,
        Err(failure) => return Process::Unknown(Told::of(failure)),
    };
    let Report {
        connected_since,
        last_error,
        waiting_with_code,
        ..
    } = report;
    match (connected_since, waiting_with_code) {
        (Some(since), _) => Process::Connected(
            i64::try_from(since)
                .ok()
                .and_then(|since| Timestamp::from_second(since).ok()),
        ),
        (None, Some(code)) => Process::Waiting { code },
        (None, None) => Process::Apart(last_error),
    }
}
