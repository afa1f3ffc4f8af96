//! `cargo xtask api`: Schemathesis tries whatever can be made of the API's own document.
//!
//! It reads `openapi.json` from a real gateway with a real node and sends what fits the document and
//! what does not: no failure of the gateway, no answer that the document does not know, nothing
//! accepted that it forbids or refused that it allows, and nothing at all without a token.
//!
//! What it starts runs nowhere: its token is not the operator's, so `local` is closed to it, and the
//! node's owner lets nothing run. Both are checked, before and after.
//!
//! `cargo xtask test` tries it with a fixed seed, so that it passes or fails the same way everywhere, as
//! far as the time and the ids let it; everybody else draws one, which is told.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::http::Client;
use crate::stage::{self, NODE, Stage};
use crate::test::Untested;
use crate::tools::Venv;
use crate::workspace::ROOT;
use crate::{dice, process, say};

const SCHEMATHESIS: Venv = Venv {
    name: "schemathesis",
    requirements: &["xtask/schemathesis.txt"],
};

/// What would end the token or the node that everything else needs.
const LAST: [&str; 3] = ["revoke_token", "revoke_node", "forget_node"];

/// The answer that ends with the gateway.
const ENDLESS: &str = "follow_events";

const ALL_PHASES: &str = "examples,coverage,fuzzing,stateful";

/// How much is tried.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trial {
    /// Seconds for everything that a token may do.
    seconds: u64,
    /// `None` draws one.
    seed: Option<u64>,
}

impl Trial {
    /// What fits beside the other parts of `cargo xtask test`: a minute and a half in all.
    pub(crate) const SHORT: Self = Self {
        seconds: 50,
        seed: Some(1),
    };
    /// What `cargo xtask nightly` has time for.
    pub(crate) const LONG: Self = Self {
        seconds: 20 * 60,
        seed: None,
    };
}

/// Somebody who asks, and what they ask.
struct Pass<'a> {
    about: &'static str,
    token: Option<&'a str>,
    /// Which operations, and which checks.
    words: Vec<&'static str>,
    phases: &'static str,
    seconds: u64,
}

/// `cargo xtask api`: tries for a minute, or for the seconds that are named, and from the seed that
/// is named after them.
///
/// # Errors
///
/// When something is found, or nothing could be tried.
pub(crate) fn run(words: &[String]) -> anyhow::Result<()> {
    let mut trial = Trial {
        seed: None,
        ..Trial::SHORT
    };
    let number = |word: &String| {
        let number = word.parse::<u64>();
        number.with_context(|| format!("`{word}` is no number"))
    };
    match words {
        [] => {}
        [seconds] => trial.seconds = number(seconds)?,
        [seconds, seed] => {
            trial.seconds = number(seconds)?;
            trial.seed = Some(number(seed)?);
        }
        _ => bail!("`cargo xtask api` takes the seconds to try at most, and a seed"),
    }
    let untested = trial.run()?;
    for one in &untested {
        say::line(&one.to_string());
    }
    if untested.is_empty() {
        return Ok(());
    }
    bail!("nothing was tried")
}

impl Trial {
    /// Tries everything, and returns what could not be.
    ///
    /// # Errors
    ///
    /// When Schemathesis finds something, or something has run.
    pub(crate) fn run(self) -> anyhow::Result<Vec<Untested>> {
        let schemathesis = match SCHEMATHESIS.program("schemathesis") {
            Ok(program) => program,
            Err(error) => return Ok(vec![Untested::new("schemathesis", &format!("{error:#}"))]),
        };
        let mut stage = Stage::open_with(&stage::build("debug")?, &route())?;
        stage.join()?;
        stage.on_the_node(&["node", "policy", "off"])?;
        check_that_nothing_may_run(&stage)?;
        let seed = self.seed.unwrap_or_else(dice::drawn);
        say::line(&format!("from seed {seed}"));
        let worker = token(&stage, "worker", &scopes_but_admin(&stage)?)?;
        let ender = token(&stage, "ender", &scopes_but_admin(&stage)?)?;
        let operator = token(&stage, "operator", &["admin".to_owned()])?;
        let again = || format!("again: cargo xtask api {} {seed}", self.seconds);
        for pass in self.passes(&worker, &operator) {
            pass.run(&schemathesis, &stage, seed).with_context(again)?;
            stage.check_alive()?;
        }
        let last = self.last_pass(&ender);
        last.run(&schemathesis, &stage, seed).with_context(again)?;
        check_who_is_left(&mut stage)?;
        check_that_nothing_has_run(&stage)?;
        stage.close()?;
        Ok(Vec::new())
    }

    fn passes<'a>(self, worker: &'a str, operator: &'a str) -> Vec<Pass<'a>> {
        let mut everything = vec!["--exclude-operation-id", ENDLESS];
        for id in LAST {
            everything.extend(["--exclude-operation-id", id]);
        }
        let reads = ["--include-method", "GET", "--exclude-operation-id", ENDLESS];
        let strangers = ["--checks", "ignored_auth"];
        vec![
            Pass {
                about: "everything, with a token that may do all but what the operator alone may",
                token: Some(worker),
                words: everything,
                phases: ALL_PHASES,
                seconds: self.seconds,
            },
            Pass {
                about: "everything that is read, as the operator",
                token: Some(operator),
                words: reads.to_vec(),
                phases: "coverage,fuzzing",
                seconds: self.seconds / 4,
            },
            Pass {
                about: "everything, without a token",
                token: None,
                words: strangers.to_vec(),
                phases: "coverage,fuzzing",
                seconds: self.seconds / 5,
            },
        ]
    }

    /// Its token and the node may be gone afterwards: a beginning of an id is enough to name them.
    fn last_pass(self, ender: &str) -> Pass<'_> {
        let each = LAST.iter().flat_map(|id| ["--include-operation-id", id]);
        Pass {
            about: "what ends nodes and tokens",
            token: Some(ender),
            words: each.collect(),
            phases: ALL_PHASES,
            seconds: self.seconds / 5,
        }
    }
}

impl Pass<'_> {
    fn run(&self, schemathesis: &Path, stage: &Stage, seed: u64) -> anyhow::Result<()> {
        let seconds = self.seconds.max(1);
        say::line(&format!("{}: at most {seconds} s", self.about));
        let mut command = Command::new(schemathesis);
        // It keeps what it has found beside where it runs.
        command.current_dir(stage.folder());
        command.arg("--config-file");
        command.arg(ROOT.join("xtask/schemathesis.toml"));
        let document = format!("http://{}/api/v1/openapi.json", stage.address());
        command.args(["run", &document, "--no-color", "--warnings", "off"]);
        command.arg("--continue-on-failure");
        command.args(["--request-timeout", &stage::STEP.as_secs().to_string()]);
        command.args(["--phases", self.phases, "--seed", &seed.to_string()]);
        command.args(["--max-time", &seconds.to_string()]);
        if let Some(token) = self.token {
            command.args(["--header", &format!("Authorization: Bearer {token}")]);
        }
        command.args(&self.words);
        let limit = Duration::from_secs(seconds) * 2 + stage::STEP;
        let output = process::output(&mut command, limit)?;
        let tried = output
            .stdout
            .lines()
            .find(|line| line.contains(" generated"));
        say::line(&format!("  {}", tried.unwrap_or_default().trim()));
        if output.status.success() {
            return Ok(());
        }
        say::line(&output.stdout);
        say::line(&output.stderr);
        bail!("Schemathesis does not pass: {}", self.about)
    }
}

/// The configuration with which a request that names no place is one for the node. It names the
/// node by its id, as Schemathesis may find the node and call it something else.
fn route() -> String {
    format!("[tools.exec]\nhost = \"node\"\nnode = \"{NODE}\"\n")
}

/// Returns every scope of the document but `admin`, which may run things on the gateway's machine.
fn scopes_but_admin(stage: &Stage) -> anyhow::Result<Vec<String>> {
    let mut client = Client::connect(&stage.gateway_home().join("gateway.sock"))?;
    let (_, document) = client.call("GET", "/api/v1/openapi.json", &Value::Null)?;
    let scopes = document["components"]["schemas"]["Scope"]["oneOf"].as_array();
    let scopes = scopes.context("the document has no scopes")?;
    let names = scopes.iter().filter_map(|scope| scope["const"].as_str());
    Ok(names
        .filter(|name| *name != "admin")
        .map(ToOwned::to_owned)
        .collect())
}

fn token(stage: &Stage, name: &str, scopes: &[String]) -> anyhow::Result<String> {
    let mut words = vec!["token", "create", "--name", name];
    for scope in scopes {
        words.extend(["--scope", scope]);
    }
    Ok(stage.text(&words)?.trim().to_owned())
}

/// A node whose settings have changed connects anew, and is away for a moment.
fn check_that_nothing_may_run(stage: &Stage) -> anyhow::Result<()> {
    stage.node_when(|_| {
        let node = stage.json(&["node", "describe", NODE, "--json"]);
        node.is_ok_and(|node| node["state"] == "online" && node["policy"] == "off")
    })?;
    let tried = stage.text(&["node", "exec", NODE, "--", "true"]);
    match tried {
        Err(error) if format!("{error:#}").contains("policy") => Ok(()),
        Err(error) => Err(error.context("the node refuses for another reason than its policy")),
        Ok(_) => bail!("the node runs what it is asked: nothing is tried on it"),
    }
}

/// The node ends where a request has revoked it, and nowhere else.
fn check_who_is_left(stage: &mut Stage) -> anyhow::Result<()> {
    let nodes = stage.json(&["node", "list", "--all", "--json"])?;
    let mut nodes = nodes.as_array().into_iter().flatten();
    if nodes.any(|node| node["id"] == NODE && node["state"] != "revoked") {
        return stage.check_alive();
    }
    say::line("  the node was revoked");
    stage.check_gateway_alive()
}

/// Every run was refused by the node or cancelled before it came there, and none was on the gateway's
/// own machine.
fn check_that_nothing_has_run(stage: &Stage) -> anyhow::Result<()> {
    let runs = stage.json(&["runs", "list", "--json", "--limit", "100000"])?;
    let runs = runs.as_array().context("`runs list --json` is no array")?;
    let refused = |run: &&Value| run["node"] != "local" && run["outcome"] == "refused";
    if let Some(run) = runs.iter().find(|run| !refused(run)) {
        bail!("something has run: {run}");
    }
    // The first was ours; the document's own examples of a command are the next.
    if runs.len() < 2 {
        bail!("no request has come as far as the node");
    }
    say::line(&format!(
        "{} runs, all of them refused by the node",
        runs.len()
    ));
    Ok(())
}
