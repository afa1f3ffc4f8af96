//! A session in `moltis.node.v1+json`: the same, in other words and with shorter chunks.

use bytes::Bytes;
use moltis_gateway::exec::StartError;
use moltis_gateway::principal::Principal;
use moltis_proto::limits::CHUNK_BYTES_MAX_JSON;
use moltis_proto::run::{Command, Outcome, RunState, Stream};
use moltis_proto::{FromKeeper, Payload, RunId, ToKeeper};

use crate::gateway::{TestGateway, shell, told};
use crate::hostile::{PROTOCOL, ended};
use crate::raw::{BOOT, Device, JOURNAL, RawNode, listed};

const JSON: &str = "moltis.node.v1+json";

fn output(run_id: RunId, offset: usize, bytes: &[u8]) -> FromKeeper {
    FromKeeper::Output {
        run_id,
        stream: Stream::Stdout,
        offset: offset as u64,
        bytes: Payload(Bytes::copy_from_slice(bytes)),
    }
}

/// Every byte there is, so that base64 has something to do.
fn bytes(len: usize) -> Vec<u8> {
    (0..=u8::MAX).cycle().take(len).collect()
}

/// Waits until this much of stdout is acknowledged.
async fn acknowledged(node: &mut RawNode, end: usize) {
    loop {
        match node.hear_run().await {
            ToKeeper::Ack { stdout, .. } if stdout == end as u64 => return,
            ToKeeper::Ack { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_session_in_json() {
    let gateway = TestGateway::start().await;
    let device = Device::speaking("box", JSON);
    device.pair(&gateway).await;
    let mut node = device.ready(&gateway).await;
    let granted = node.windows.unwrap().chunk_bytes_max as usize;
    assert_eq!(granted, CHUNK_BYTES_MAX_JSON);
    let line = "echo \"\u{1f980}\" 'and' \\ backslashes";
    let handle = gateway.start_run(shell(line).on("box")).await;
    let ToKeeper::Start { run_id, spec, .. } = node.hear_run().await else {
        panic!("no start");
    };
    assert_eq!(spec.command, Command::Shell(line.to_owned()));
    node.say(FromKeeper::Started { run_id, pid: 1 }).await;
    let all = bytes(5 * granted);
    for (number, chunk) in all.chunks(granted).take(3).enumerate() {
        node.say(output(run_id, number * granted, chunk)).await;
    }
    acknowledged(&mut node, 3 * granted).await;
    // The line is cut, and the next connection goes on where the store stands.
    let digest = handle.record().digest;
    node.drop_line(&gateway, &device).await;
    let running = listed(run_id, digest, RunState::Running { pid: 1 });
    let mut node = device.ready_with(&gateway, vec![running]).await;
    let ToKeeper::Resume { stdout, .. } = node.hear_run().await else {
        panic!("no resume");
    };
    assert_eq!(stdout, 3 * granted as u64);
    for (number, chunk) in all.chunks(granted).enumerate().skip(3) {
        node.say(output(run_id, number * granted, chunk)).await;
    }
    node.say(ended(run_id, all.len() as u64)).await;
    let told = told(&handle).await;
    assert!(told.stdout == all);
    assert_eq!(
        told.record.ending.as_ref().unwrap().outcome,
        Outcome::Exited
    );
    loop {
        match node.hear_run().await {
            ToKeeper::Forget { run_id: forgotten } => break assert_eq!(forgotten, run_id),
            ToKeeper::Ack { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_that_is_longer_than_json_carries_closes() {
    let gateway = TestGateway::start().await;
    let device = Device::speaking("box", JSON);
    device.pair(&gateway).await;
    let mut node = device.ready(&gateway).await;
    let _handle = gateway.start_run(shell("true").on("box")).await;
    let ToKeeper::Start { run_id, .. } = node.hear_run().await else {
        panic!("no start");
    };
    node.say(FromKeeper::Started { run_id, pid: 1 }).await;
    let long = bytes(CHUNK_BYTES_MAX_JSON + 1);
    node.say(output(run_id, 0, &long)).await;
    assert_eq!(node.closed().await, PROTOCOL);
}

#[tokio::test(flavor = "multi_thread")]
async fn whether_a_command_fits_is_measured_in_the_words_of_its_node() {
    let gateway = TestGateway::start().await;
    // Each quote is one byte in postcard, and two in JSON.
    let line = format!("echo '{}'", "\"".repeat(40_000));
    let brief = Device::new("brief");
    brief.pair(&gateway).await;
    let mut node = brief.connect(&gateway).await;
    node.list(BOOT, JOURNAL, Vec::new()).await;
    gateway.online(brief.id()).await;
    gateway.start_run(shell(&line).on("brief")).await;
    let wordy = Device::speaking("wordy", JSON);
    wordy.pair(&gateway).await;
    let _node = wordy.ready(&gateway).await;
    let request = shell(&line).on("wordy");
    let refused = gateway.gateway.runs().start(request, &Principal::Operator);
    let error = refused.await.unwrap_err();
    assert!(matches!(error, StartError::Spec(_)), "{error}");
}
