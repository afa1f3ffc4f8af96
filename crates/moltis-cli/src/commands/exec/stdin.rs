//! Our stdin on its way to the command: a thread reads, a task sends, each byte once.
//!
//! What was sent is counted by the gateway; after a cut the task goes on at the byte that the
//! gateway has not taken. A command that does not read stops only this task.

use std::io::Read as _;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use moltis_gateway::api::problem::Code;
use moltis_gateway::api::runs::StdinAccepted;
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::api::{ApiError, Client};

/// Bytes that one read takes at the most.
const CHUNK: usize = 256 * 1024;

/// Chunks that wait to be sent.
const QUEUE: usize = 4;

/// Pause before something is sent again.
const PAUSE: Duration = Duration::from_millis(200);
/// Pause when the gateway took nothing because the command does not read.
const FULL_PAUSE: Duration = Duration::from_millis(10);

/// What Ctrl+C is on a raw terminal.
const INTERRUPT: u8 = 0x03;

/// What the follow loop is told.
#[derive(Debug)]
pub(super) enum Event {
    /// Ctrl+C was typed while the gateway is away: nobody else can hear it.
    Interrupt,
    /// The gateway refuses what we send, and it is not that the command has closed its stdin.
    Failed(ApiError),
}

/// Begins to send our stdin to a run. `away` says whether the gateway cannot be reached now.
/// Called inside a `LocalSet`.
pub(super) fn start(
    client: Rc<Client>,
    run_id: String,
    away: Arc<AtomicBool>,
) -> std::io::Result<mpsc::Receiver<Event>> {
    let (chunks, queue) = mpsc::channel(QUEUE);
    let (events, told) = mpsc::channel(4);
    let interrupts = events.clone();
    std::thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(move || read(&chunks, &interrupts, &away))?;
    send_all(client, run_id, queue, events);
    Ok(told)
}

/// Tells a run that nothing comes. Called inside a `LocalSet`.
pub(super) fn close(client: Rc<Client>, run_id: String) -> mpsc::Receiver<Event> {
    let (_, queue) = mpsc::channel(1);
    let (events, told) = mpsc::channel(1);
    send_all(client, run_id, queue, events);
    told
}

fn send_all(
    client: Rc<Client>,
    run_id: String,
    queue: mpsc::Receiver<Bytes>,
    events: mpsc::Sender<Event>,
) {
    tokio::task::spawn_local(async move {
        if let Err(error) = send(&client, &run_id, queue).await {
            events.send(Event::Failed(error)).await.ok(); // the follow loop has ended
        }
    });
}

fn read(chunks: &mpsc::Sender<Bytes>, interrupts: &mpsc::Sender<Event>, away: &AtomicBool) {
    let mut stdin = std::io::stdin().lock();
    let mut buffer = vec![0; CHUNK];
    loop {
        let length = match stdin.read(&mut buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => 0, // an error of our stdin is its end: there is nobody else to tell
        };
        let bytes = buffer.get(..length).unwrap_or_default();
        if bytes.is_empty() {
            return;
        }
        if away.load(Ordering::Relaxed) && bytes.contains(&INTERRUPT) {
            interrupts.blocking_send(Event::Interrupt).ok(); // the follow loop has ended
        } else if chunks.blocking_send(Bytes::copy_from_slice(bytes)).is_err() {
            return;
        }
    }
}

async fn send(
    client: &Client,
    run_id: &str,
    mut queue: mpsc::Receiver<Bytes>,
) -> Result<(), ApiError> {
    let mut offset = 0;
    loop {
        let chunk = queue.recv().await;
        let eof = chunk.is_none();
        let mut bytes = chunk.unwrap_or_default();
        loop {
            let path = format!("runs/{run_id}/stdin?offset={offset}&eof={eof}");
            let end = offset + bytes.len() as u64;
            match client.upload::<StdinAccepted>(&path, bytes.clone()).await {
                Ok(taken) => {
                    let new = taken.accepted.clamp(offset, end);
                    let moved = usize::try_from(new - offset).unwrap_or(bytes.len());
                    bytes.advance(moved);
                    offset = new;
                    if bytes.is_empty() {
                        break;
                    }
                    if moved == 0 {
                        sleep(FULL_PAUSE).await;
                    }
                }
                Err(error) if error.code() == Some(Code::RunEnded) => return Ok(()),
                Err(error) if error.passes() => sleep(PAUSE).await,
                Err(error) => return Err(error),
            }
        }
        if eof {
            return Ok(());
        }
    }
}
