//! The gateway's nodes: list, describe, rename, label, revoke, forget.

use hyper::Method;
use jiff::Timestamp;
use moltis_gateway::api::nodes::{Node, NodeDetail, NodeState, PatchNode, Policy};
use moltis_gateway::api::telemetry::{Platform, ProviderKind, Telemetry};
use moltis_gateway::api::{Empty, runs::Run};
use moltis_gateway::exec::Selector;
use serde::Serialize;

use super::Context;
use super::runs::{command_of, state_of};
use crate::api::address::escape;
use crate::api::{ApiError, Client};
use crate::args::node::{Describe, Forget, Label, List, Rename, Revoke};
use crate::args::values::LabelChange;
use crate::exit::Exit;
use crate::output::Output;
use crate::units::{ago, short, size, span};

/// `moltis node list`.
pub(super) async fn list(context: &Context, args: List) -> anyhow::Result<Exit> {
    let client = context.client(&args.remote)?;
    let mut query = Vec::new();
    if !args.all {
        query.push("state=online".to_owned());
    }
    if let Some(select) = &args.select {
        query.push(format!("select={}", escape(&select.to_string())));
    }
    let path = match query.join("&") {
        query if query.is_empty() => "nodes".to_owned(),
        query => format!("nodes?{query}"),
    };
    let nodes: Vec<Node> = client
        .list(&path, usize::MAX)
        .await
        .map_err(ApiError::into_failure)?;
    let output = context.output;
    if args.format.json {
        output.json(&nodes)?;
    } else if let (true, Some(select)) = (nodes.is_empty(), &args.select) {
        output.note(&if args.all {
            format!("no node matches `{select}`")
        } else {
            format!("no connected node matches `{select}`; offline ones: --all")
        });
        if let Some((key, fact)) = select.misspelt() {
            output.hint(&format!(
                "did you mean `{fact}`? `{key}` is taken for a label"
            ));
        }
    } else if nodes.is_empty() && args.all {
        output.note("no node has joined yet");
        output.hint("let one ask: moltis node pairing enable");
    } else if nodes.is_empty() {
        output.note("no node is connected; offline ones: moltis node list --all");
    } else {
        table(output, &nodes)?;
    }
    Ok(Exit::SUCCESS)
}

/// Prints a line for each node.
pub(super) fn table(output: Output, nodes: &[Node]) -> anyhow::Result<()> {
    let now = Timestamp::now();
    let heading = [
        "NAME",
        "ID",
        "STATE",
        "PLATFORM",
        "CPU",
        "MEMORY FREE",
        "LAST SEEN",
        "LABELS",
    ];
    output.table(&heading, nodes.iter().map(|node| row(node, now)).collect())
}

fn row(node: &Node, now: Timestamp) -> Vec<String> {
    let sample = node.telemetry.as_ref();
    let labels: Vec<_> = node
        .labels
        .iter()
        .map(|(k, v)| format!("{k}={v}"))
        .collect();
    vec![
        node.name.clone(),
        short(&node.id).to_owned(),
        node.state.as_str().to_owned(),
        format!("{}/{}", node.platform.os, node.platform.arch),
        sample.map_or_else(|| "-".to_owned(), cpu),
        sample.map_or_else(
            || "-".to_owned(),
            |sample| size(sample.memory_available_bytes),
        ),
        match (node.state, node.last_seen) {
            (NodeState::Online, _) => "now".to_owned(),
            (_, Some(then)) => ago(then, now),
            (_, None) => "never".to_owned(),
        },
        labels.join(","),
    ]
}

fn cpu(sample: &Telemetry) -> String {
    match sample.cpu_usage_percent {
        Some(percent) => format!("{percent:.0} % of {}", sample.cpu_count),
        None => format!("{} cores", sample.cpu_count),
    }
}

/// `moltis node describe`.
pub(super) async fn describe(context: &Context, args: Describe) -> anyhow::Result<Exit> {
    let client = context.client(&args.remote)?;
    let detail = detail(&client, &args.node).await?;
    if args.format.json {
        context.output.json(&detail)?;
    } else {
        let fields = fields(&detail, Timestamp::now());
        let fields: Vec<_> = fields.iter().map(|(k, v)| (*k, v.clone())).collect();
        context.output.fields(&fields)?;
    }
    Ok(Exit::SUCCESS)
}

async fn detail(client: &Client, node: &str) -> anyhow::Result<NodeDetail> {
    let path = format!("nodes/{}", escape(node));
    Ok(client.get(&path).await.map_err(ApiError::into_failure)?)
}

fn fields(detail: &NodeDetail, now: Timestamp) -> Vec<(&'static str, String)> {
    let node = &detail.node;
    let labels: Vec<_> = node
        .labels
        .iter()
        .map(|(k, v)| format!("{k}={v}"))
        .collect();
    let mut fields = vec![
        ("Name", node.name.clone()),
        ("Id", node.id.clone()),
        ("State", state(detail, now)),
        ("Key", node.fingerprint.clone()),
        ("Labels", or_none(&labels.join("\n"))),
        ("Platform", platform(&node.platform)),
        ("Version", detail.version.clone()),
        ("Paired", ago(detail.paired_at, now)),
        ("Commands run as", detail.user.clone()),
        ("Working directory", detail.working_dir.clone()),
        ("Longest time", longest(detail.timeout_seconds)),
        ("Policy", policy(detail.policy).to_owned()),
        ("Variables", or_none(&detail.env_allow.join(", "))),
    ];
    if let Some(sample) = &node.telemetry {
        fields.extend(sample_fields(sample, now));
    }
    fields.push(("Recent runs", recent(&detail.recent_runs)));
    fields
}

fn state(detail: &NodeDetail, now: Timestamp) -> String {
    match detail.node.state {
        NodeState::Online => {
            let since = detail.connected_since.map(|then| ago(then, now));
            let from = detail.remote_address.as_deref().unwrap_or("?");
            format!("online since {} from {from}", since.unwrap_or_default())
        }
        NodeState::Offline => match detail.node.last_seen {
            Some(then) => format!("offline, last seen {}", ago(then, now)),
            None => "offline, never seen".to_owned(),
        },
        NodeState::Revoked => match detail.revoked_at {
            Some(then) => format!("revoked {}", ago(then, now)),
            None => "revoked".to_owned(),
        },
    }
}

fn sample_fields(sample: &Telemetry, now: Timestamp) -> Vec<(&'static str, String)> {
    let of = |available, total| format!("{} free of {}", size(available), size(total));
    let stale = if sample.stale { " (stale)" } else { "" };
    let gpus = sample.gpus.iter().map(|gpu| {
        let used = size(gpu.memory_used_bytes);
        format!(
            "{}, {used} of {} used",
            gpu.name,
            size(gpu.memory_total_bytes)
        )
    });
    let runtimes = sample
        .runtimes
        .iter()
        .map(|r| format!("{} {}", r.name, r.version));
    let providers = sample.providers.iter().map(|provider| match provider.kind {
        ProviderKind::Ollama => format!("{}: {}", provider.name, provider.models.join(", ")),
        ProviderKind::ApiKey => format!(
            "{}: key in {}",
            provider.name,
            provider.variable.as_deref().unwrap_or("?")
        ),
    });
    let lines = |items: Vec<String>| or_none(&items.join("\n"));
    vec![
        ("Sampled", format!("{}{stale}", ago(sample.sampled_at, now))),
        (
            "CPU",
            format!("{}, load {:.2}", cpu(sample), sample.load_1m),
        ),
        (
            "Memory",
            of(sample.memory_available_bytes, sample.memory_total_bytes),
        ),
        (
            "Disk",
            of(sample.disk_available_bytes, sample.disk_total_bytes),
        ),
        (
            "Up for",
            span(std::time::Duration::from_secs(sample.uptime_seconds)),
        ),
        ("GPUs", lines(gpus.collect())),
        ("Runtimes", lines(runtimes.collect())),
        ("Model providers", lines(providers.collect())),
    ]
}

fn recent(runs: &[Run]) -> String {
    let lines: Vec<_> = runs
        .iter()
        .map(|run| format!("{}  {}  {}", short(&run.id), state_of(run), command_of(run)))
        .collect();
    or_none(&lines.join("\n"))
}

fn platform(platform: &Platform) -> String {
    format!(
        "{} ({}), kernel {}, host {}",
        platform.version, platform.arch, platform.kernel, platform.hostname
    )
}

fn longest(seconds: u64) -> String {
    match seconds {
        0 => "no limit".to_owned(),
        seconds => format!("{seconds} s"),
    }
}

fn policy(policy: Policy) -> &'static str {
    match policy {
        Policy::Full => "full",
        Policy::Off => "off",
        Policy::AllowList => "allow-list",
    }
}

fn or_none(text: &str) -> String {
    if text.is_empty() { "none" } else { text }.to_owned()
}

/// `moltis node rename`.
pub(super) async fn rename(context: &Context, args: Rename) -> anyhow::Result<Exit> {
    let client = context.client(&args.remote)?;
    let change = PatchNode {
        name: Some(args.name),
        labels: None,
    };
    let before = detail(&client, &args.node).await?;
    let node = patch(&client, &before.node.id, &change).await?;
    if args.format.json {
        context.output.json(&node)?;
        return Ok(Exit::SUCCESS);
    }
    context.output.note(&format!(
        "node {} is now called {}",
        short(&node.node.id),
        node.node.name
    ));
    Ok(Exit::SUCCESS)
}

/// `moltis node label`.
pub(super) async fn label(context: &Context, args: Label) -> anyhow::Result<Exit> {
    let client = context.client(&args.remote)?;
    let before = detail(&client, &args.node).await?;
    let mut labels = before.node.labels;
    for change in args.changes {
        match change {
            LabelChange::Set(key, value) => {
                if Selector::is_reserved(&key) {
                    context.output.note(&format!(
                        "in a selector `{key}` alone is no label: this label is `label:{key}` there"
                    ));
                }
                labels.insert(key, value);
            }
            LabelChange::Remove(key) => {
                if labels.remove(&key).is_none() {
                    context.output.note(&format!("there was no label `{key}`"));
                }
            }
        }
    }
    let change = PatchNode {
        name: None,
        labels: Some(labels),
    };
    let node = patch(&client, &before.node.id, &change).await?;
    if args.format.json {
        context.output.json(&node)?;
        return Ok(Exit::SUCCESS);
    }
    let node = node.node;
    let labels: Vec<_> = node
        .labels
        .iter()
        .map(|(k, v)| format!("{k}={v}"))
        .collect();
    let labels = or_none(&labels.join(", "));
    context
        .output
        .note(&format!("labels of {}: {labels}", node.name));
    Ok(Exit::SUCCESS)
}

async fn patch(client: &Client, node: &str, change: &PatchNode) -> anyhow::Result<NodeDetail> {
    let path = format!("nodes/{}", escape(node));
    let changed = client.send(Method::PATCH, &path, change).await;
    Ok(changed.map_err(ApiError::into_failure)?)
}

/// `moltis node revoke`.
pub(super) async fn revoke(context: &Context, args: Revoke) -> anyhow::Result<Exit> {
    let client = context.client(&args.remote)?;
    let path = format!("nodes/{}", escape(&args.node));
    let before: NodeDetail = client.get(&path).await.map_err(ApiError::into_failure)?;
    // By its id: a name may be another node's in the next moment.
    let path = format!("nodes/{}/revoke", escape(&before.node.id));
    let revoked = client.send(Method::POST, &path, &Empty {}).await;
    let node: NodeDetail = revoked.map_err(ApiError::into_failure)?;
    let output = context.output;
    if args.format.json {
        output.json(&node)?;
        return Ok(Exit::SUCCESS);
    }
    let (name, id) = (&node.node.name, short(&node.node.id));
    let key = &node.node.fingerprint;
    output.note(&match before.node.state {
        NodeState::Revoked => {
            format!("{name} ({id}) was revoked already: its key {key} stays refused")
        }
        _ => format!("revoked {name} ({id}): its key {key} is refused from now on"),
    });
    output.hint(&format!(
        "to let this key ask again: moltis node forget {}",
        short(&node.node.id)
    ));
    Ok(Exit::SUCCESS)
}

/// What an answer without a body was about, as JSON.
#[derive(Debug, Serialize)]
pub(super) struct Gone {
    pub(super) id: String,
    pub(super) name: String,
}

/// `moltis node forget`.
pub(super) async fn forget(context: &Context, args: Forget) -> anyhow::Result<Exit> {
    let client = context.client(&args.remote)?;
    let node = detail(&client, &args.node).await?.node;
    // By its id where that is enough: a revoked one's may be another node's by now.
    let word = match node.state {
        NodeState::Revoked => &node.fingerprint,
        NodeState::Online | NodeState::Offline => &node.id,
    };
    let path = format!("nodes/{}", escape(word));
    let forgotten = client.tell(Method::DELETE, &path, &Empty {}).await;
    forgotten.map_err(ApiError::into_failure)?;
    let Node { id, name, .. } = node;
    if args.format.json {
        context.output.json(&Gone { id, name })?;
    } else {
        context
            .output
            .note(&format!("forgot {name} ({})", short(&id)));
    }
    Ok(Exit::SUCCESS)
}
