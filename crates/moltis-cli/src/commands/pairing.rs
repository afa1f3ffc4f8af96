//! Pairing as the operator does it: the window, who waits, approve and reject.
//!
//! What is approved is what was shown: fingerprint and code go back with the answer, and the
//! gateway refuses when they have changed.

use std::time::Duration;

use hyper::Method;
use jiff::Timestamp;
use moltis_gateway::api::Empty;
use moltis_gateway::api::nodes::{NodeDetail, NodeState};
use moltis_gateway::api::pairing::{
    Approve as ApproveBody, PairingCommand, PairingRequest, PairingStatus, SetPairing,
};
use moltis_gateway::api::problem::Code;

use tokio::time::{sleep, timeout};

use super::Context;
use super::nodes::Gone;
use crate::api::address::escape;
use crate::api::{ApiError, Client};
use crate::args::node::{Approve, Pairing, PairingDisable, PairingEnable, Pending, Reject};
use crate::exit::Exit;
use crate::failure::{Failure, failure};
use crate::output::Output;
use crate::units::{ago, short, until};

/// How long an approved node may take until it is online, and how often we look.
const ONLINE_TIME: Duration = Duration::from_secs(3);
/// See [`ONLINE_TIME`].
const ONLINE_PAUSE: Duration = Duration::from_millis(20);

/// `moltis node pairing …`.
pub(super) async fn window(context: &Context, args: Pairing) -> anyhow::Result<Exit> {
    match args {
        Pairing::Status(args) => {
            let client = context.client(&args.remote)?;
            let status: PairingStatus = client
                .get("pairing")
                .await
                .map_err(ApiError::into_failure)?;
            if args.format.json {
                context.output.json(&status)?;
            } else {
                context.output.text(&words(&status, Timestamp::now()))?;
            }
        }
        Pairing::Enable(args) => enable(context, args).await?,
        Pairing::Disable(args) => disable(context, args).await?,
    }
    Ok(Exit::SUCCESS)
}

fn words(status: &PairingStatus, now: Timestamp) -> String {
    match (status.enabled, status.expires_at) {
        (true, Some(then)) => format!("pairing is on for another {}", until(then, now)),
        (true, None) => "pairing is on".to_owned(),
        (false, _) => "pairing is off".to_owned(),
    }
}

async fn enable(context: &Context, args: PairingEnable) -> anyhow::Result<()> {
    let client = context.client(&args.remote)?;
    let body = SetPairing {
        enabled: true,
        for_seconds: Some(args.time.as_secs()),
    };
    let status: PairingStatus = client
        .send(Method::PUT, "pairing", &body)
        .await
        .map_err(ApiError::into_failure)?;
    let output = context.output;
    if args.format.json {
        return output.json(&status);
    }
    let line: PairingCommand = client
        .get("pairing/command")
        .await
        .map_err(ApiError::into_failure)?;
    output.text(&format!(
        "New nodes may ask to pair for {}. On the other machine:\n  {}",
        minutes(args.time),
        line.command
    ))?;
    if let Some(warning) = line.warning {
        output.warn(&warning);
    }
    Ok(())
}

fn minutes(time: Duration) -> String {
    let seconds = time.as_secs();
    match (seconds / 60, seconds % 60) {
        (1, 0) => "1 minute".to_owned(),
        (minutes, 0) => format!("{minutes} minutes"),
        _ => format!("{seconds} seconds"),
    }
}

async fn disable(context: &Context, args: PairingDisable) -> anyhow::Result<()> {
    let client = context.client(&args.remote)?;
    let body = SetPairing {
        enabled: false,
        for_seconds: None,
    };
    let status: PairingStatus = client
        .send(Method::PUT, "pairing", &body)
        .await
        .map_err(ApiError::into_failure)?;
    if args.format.json {
        context.output.json(&status)
    } else {
        context
            .output
            .note("pairing is off; requests that wait already can still be answered");
        Ok(())
    }
}

/// `moltis node pending`.
pub(super) async fn pending(context: &Context, args: Pending) -> anyhow::Result<Exit> {
    let client = context.client(&args.remote)?;
    let requests = requests(&client).await?;
    let output = context.output;
    if args.format.json {
        output.json(&requests)?;
    } else if requests.is_empty() {
        let status: PairingStatus = client
            .get("pairing")
            .await
            .map_err(ApiError::into_failure)?;
        output.note(&format!(
            "no request waits; {}",
            words(&status, Timestamp::now())
        ));
    } else {
        let now = Timestamp::now();
        let blocks: Vec<_> = requests.iter().map(|request| block(request, now)).collect();
        output.text(&blocks.join("\n\n"))?;
        output.hint("compare the code with the one on the machine, then: moltis node approve <id>");
    }
    Ok(Exit::SUCCESS)
}

async fn requests(client: &Client) -> anyhow::Result<Vec<PairingRequest>> {
    let requests = client.list("pairing/requests", usize::MAX).await;
    Ok(requests.map_err(ApiError::into_failure)?)
}

/// All that a person should see before answering. What the machine says of itself is marked as
/// such.
fn block(request: &PairingRequest, now: Timestamp) -> String {
    let platform = &request.platform;
    let labels: Vec<_> = request
        .labels
        .iter()
        .map(|(k, v)| format!("{k}={v}"))
        .collect();
    let mut lines = vec![
        ("Request", short(&request.id).to_owned()),
        ("Claimed name", request.name.clone()),
        ("Claimed id", request.node_id.clone()),
        (
            "Claimed platform",
            format!(
                "{} ({}), host {}",
                platform.version, platform.arch, platform.hostname
            ),
        ),
        ("Address", request.remote_address.clone()),
        ("Key", request.fingerprint.clone()),
        ("Connection code", request.connection_code.clone()),
        (
            "Asked",
            format!(
                "{}, expires in {}",
                ago(request.requested_at, now),
                until(request.expires_at, now)
            ),
        ),
    ];
    if !labels.is_empty() {
        lines.push(("Labels", labels.join(", ")));
    }
    lines.extend(
        request
            .warnings
            .iter()
            .map(|warning| ("Warning", warning.clone())),
    );
    let lines: Vec<_> = lines
        .iter()
        .map(|(name, value)| format!("{name:18}{}", crate::visible::inline(value)))
        .collect();
    lines.join("\n")
}

/// `moltis node approve`.
pub(super) async fn approve(context: &Context, args: Approve) -> anyhow::Result<Exit> {
    let client = context.client(&args.remote)?;
    let output = context.output;
    let request = find(&client, &args.id).await?;
    if let Some(expected) = &args.fingerprint
        && *expected != request.fingerprint
    {
        return Err(failure(format!(
            "request {} has the key `{}`, and you named `{expected}`",
            short(&request.id),
            request.fingerprint
        ))
        .hint("look again: moltis node pending")
        .into());
    }
    output.note(&block(&request, Timestamp::now()));
    let question = format!(
        "Does the machine show {}? Approve it?",
        request.connection_code
    );
    if !args.yes && !confirm(output, question).await? {
        output.note("nothing was approved");
        return Ok(Exit::FAILURE);
    }
    let body = ApproveBody {
        fingerprint: request.fingerprint.clone(),
        connection_code: request.connection_code.clone(),
    };
    let path = format!("pairing/requests/{}/approve", escape(&request.id));
    let approved = client.send(Method::POST, &path, &body).await;
    let node: NodeDetail = approved.map_err(|error| answered(error, &request.id))?;
    if !args.format.json {
        output.text(&format!(
            "approved {} as node {}",
            node.node.name, node.node.id
        ))?;
    }
    let online = comes(&client, &node.node.id).await;
    if online.is_none() {
        output.note("it is not connected now; it works as soon as it is");
    }
    if args.format.json {
        output.json(&online.unwrap_or(node))?;
    }
    Ok(Exit::SUCCESS)
}

/// Asks, while the connection to the gateway stays alive.
async fn confirm(output: Output, question: String) -> anyhow::Result<bool> {
    tokio::task::spawn_blocking(move || output.confirm(&question, "--yes")).await?
}

/// Waits a moment for a node that was waiting itself, so that the next command finds it online, and
/// returns it as it then is.
async fn comes(client: &Client, node: &str) -> Option<NodeDetail> {
    let path = format!("nodes/{}", escape(node));
    let online = async {
        loop {
            match client.get::<NodeDetail>(&path).await {
                Ok(detail) if detail.node.state == NodeState::Online => return Some(detail),
                Ok(_) => sleep(ONLINE_PAUSE).await,
                Err(_) => return None,
            }
        }
    };
    timeout(ONLINE_TIME, online).await.unwrap_or(None)
}

/// `moltis node reject`.
pub(super) async fn reject(context: &Context, args: Reject) -> anyhow::Result<Exit> {
    let client = context.client(&args.remote)?;
    let output = context.output;
    let request = find(&client, &args.id).await?;
    output.note(&block(&request, Timestamp::now()));
    if !args.yes && !confirm(output, "Reject it?".to_owned()).await? {
        output.note("nothing was rejected");
        return Ok(Exit::FAILURE);
    }
    let path = format!("pairing/requests/{}/reject", escape(&request.id));
    let rejected = client.tell(Method::POST, &path, &Empty {}).await;
    rejected.map_err(|error| answered(error, &request.id))?;
    if args.format.json {
        let PairingRequest { id, name, .. } = request;
        output.json(&Gone { id, name })?;
    } else {
        output.text(&format!("rejected {}", short(&request.id)))?;
    }
    Ok(Exit::SUCCESS)
}

fn answered(error: ApiError, id: &str) -> Failure {
    let changed = error.code() == Some(Code::RequestChanged);
    let failure = error.into_failure();
    if changed {
        failure.hint(format!(
            "look again: moltis node pending, then moltis node approve {}",
            short(id)
        ))
    } else {
        failure
    }
}

/// Finds the one request that a prefix names.
async fn find(client: &Client, id: &str) -> anyhow::Result<PairingRequest> {
    let wanted = id.trim().to_ascii_lowercase();
    let mut matching = requests(client).await?;
    matching.retain(|request| !wanted.is_empty() && request.id.starts_with(&wanted));
    match matching.len() {
        1 => Ok(matching.remove(0)),
        0 => Err(unknown(client, &wanted).await.into()),
        _ => {
            let candidates: Vec<_> = matching
                .iter()
                .map(|request| format!("{} ({})", request.id, request.name))
                .collect();
            Err(failure(format!("`{wanted}` could mean several requests"))
                .hint(format!("it could be {}", candidates.join(", ")))
                .into())
        }
    }
}

/// Says why a request does not wait. The gateway remembers answered and expired ones.
async fn unknown(client: &Client, id: &str) -> Failure {
    let here = || {
        failure(format!(
            "no request `{}` waits here",
            crate::visible::inline(id)
        ))
        .hint("what waits: moltis node pending")
    };
    if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return here();
    }
    let nothing_seen = ApproveBody {
        fingerprint: String::new(),
        connection_code: String::new(),
    };
    let path = format!("pairing/requests/{}/approve", escape(id));
    let told = client
        .send::<serde_json::Value>(Method::POST, &path, &nothing_seen)
        .await;
    match told {
        Err(error)
            if matches!(
                error.code(),
                Some(Code::RequestExpired | Code::AlreadyAnswered)
            ) =>
        {
            error.into_failure().hint("what waits: moltis node pending")
        }
        _ => here(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_shows_everything_and_marks_what_is_claimed() {
        let request: PairingRequest = serde_json::from_value(serde_json::json!({
            "id": "3f9c11223344556677889900aabbccdd", "name": "Build\u{202e}Server",
            "node_id": "b8", "labels": {"gpu": "true"},
            "platform": {"os": "linux", "arch": "x86_64", "version": "Debian 12",
                "kernel": "6.1", "hostname": "box"},
            "fingerprint": "SHA256:abc", "connection_code": "7Q4M-2XKD-P9VA",
            "remote_address": "192.168.1.7:5555", "requested_at": "2026-01-02T03:04:05Z",
            "expires_at": "2026-01-02T04:04:05Z",
            "warnings": ["another node has this name"],
        }))
        .unwrap();
        let now = "2026-01-02T03:06:05Z".parse().unwrap();
        insta::assert_snapshot!("pairing_request", block(&request, now));
    }

    #[test]
    fn the_window_is_told_in_words() {
        assert_eq!(minutes(Duration::from_mins(10)), "10 minutes");
        assert_eq!(minutes(Duration::from_mins(1)), "1 minute");
        assert_eq!(minutes(Duration::from_secs(90)), "90 seconds");
        let now = "2026-01-02T03:06:05Z".parse().unwrap();
        let status = PairingStatus {
            enabled: true,
            expires_at: Some("2026-01-02T03:16:05Z".parse().unwrap()),
        };
        assert_eq!(words(&status, now), "pairing is on for another 10 min");
    }
}
