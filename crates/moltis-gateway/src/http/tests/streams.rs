//! Streams of events whose readers do not read.

use tokio::net::TcpSocket;

use super::*;
use crate::events::Event;

/// Readers that never read.
const STUCK: usize = 32;

/// Fewer than the ring keeps, so that each of them can come back.
const STORM: u64 = 12_000;

/// Opens a stream on a socket that holds little.
async fn open(door: &Door, token: &str, last: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(door.address).await.unwrap();
    let head = format!(
        "GET /api/v1/events HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\n\
         last-event-id: {last}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

/// Returns the numbers of the events in a body as it came, chunks and all.
fn numbers(body: &[u8]) -> Vec<u64> {
    let body = std::str::from_utf8(body).unwrap();
    let blocks = body
        .split("\n\n")
        .filter(|block| block.contains("\ndata: "));
    let id = |block: &str| {
        block
            .split_once("id: ")
            .unwrap()
            .1
            .lines()
            .next()
            .unwrap()
            .to_owned()
    };
    blocks
        .map(|block| id(block).split_once('-').unwrap().1.parse().unwrap())
        .collect()
}

/// Reads on until `wanted` events have come.
async fn read(stream: &mut TcpStream, body: &mut Vec<u8>, wanted: usize) {
    let reading = async {
        while numbers(body).len() < wanted {
            assert_ne!(stream.read_buf(body).await.unwrap(), 0);
        }
    };
    let read = tokio::time::timeout(Duration::from_secs(30), reading).await;
    read.expect("events come");
}

/// KiB of memory that this process uses; 0 where the system does not tell.
fn memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = resident.and_then(|resident| resident.split_whitespace().next()?.parse().ok());
    kib.unwrap_or(0)
}

/// Rings so often that a reader which does not read is stuck.
fn storm(door: &Door) {
    for _ in 0..STORM {
        door.gateway.events().send(Event::PairingChanged);
    }
}

/// Waits until so many streams are left.
async fn left(door: &Door, count: usize) {
    let streams = door.gateway.api().streams();
    let waiting = async {
        while streams.count() != count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(30), waiting).await;
    waited.unwrap_or_else(|_| panic!("{} streams are left", streams.count()));
}

#[tokio::test]
async fn a_stream_that_nobody_reads_ends_with_its_token_too() {
    let door = Door::open(&[], "127.0.0.1:0").await;
    let (mine, other) = (
        door.token("mine", "nodes:admin").await,
        door.token("other", "nodes:admin").await,
    );
    let stuck = open(&door, &mine, "").await;
    let mut reader = open(&door, &other, "").await;
    left(&door, 2).await;
    storm(&door);
    let all = usize::try_from(STORM).unwrap();
    read(&mut reader, &mut Vec::new(), all).await;
    let revoke = request("DELETE", "/api/v1/tokens/mine", &["host: localhost"]);
    assert_eq!(status(&door.unix(&revoke).await), 204);
    left(&door, 1).await;
    door.gateway.events().send(Event::PairingChanged);
    read(&mut reader, &mut Vec::new(), 1).await;
    drop((stuck, reader));
    left(&door, 0).await;
    door.shut().await;
}

#[tokio::test]
async fn who_never_reads_costs_nobody_anything_is_closed_and_may_come_back() {
    let door = Door::open(&[], "127.0.0.1:0").await;
    let token = door.token("reader", "nodes:admin").await;
    let streams = door.gateway.api().streams();
    let mut stuck = Vec::new();
    for _ in 0..STUCK {
        stuck.push(open(&door, &token, "").await);
    }
    let mut reader = open(&door, &token, "").await;
    left(&door, STUCK + 1).await;
    let before = memory();
    let mut sent = 0;
    while sent < STORM {
        for _ in 0..500 {
            door.gateway.events().send(Event::PairingChanged);
        }
        let mut body = Vec::new();
        read(&mut reader, &mut body, 500).await;
        assert_eq!(numbers(&body), (sent + 1..=sent + 500).collect::<Vec<_>>());
        sent += 500;
    }
    // Each would have 1.4 MB waiting for it.
    let grown = memory().saturating_sub(before);
    assert!(grown < 16 * 1024, "{grown} KiB for {STUCK} readers");

    tokio::time::pause();
    while streams.count() > 1 {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    tokio::time::resume();
    let mut body = Vec::new();
    let mut first = stuck.remove(0);
    let ended = tokio::time::timeout(Duration::from_secs(30), first.read_to_end(&mut body));
    // What the system had taken may be lost with the connection.
    ended.await.expect("the connection is closed").ok();
    let whole = &body[..body.windows(2).rposition(|end| end == b"\n\n").unwrap() + 2];
    let seen = numbers(whole);
    let last = *seen.last().unwrap();
    assert_eq!(seen, (1..=last).collect::<Vec<_>>());
    assert!(last < STORM);
    let id = format!("{:08x}-{last}", door.gateway.api().incarnation());
    let mut again = open(&door, &token, &id).await;
    let mut body = Vec::new();
    let rest = usize::try_from(STORM - last).unwrap();
    read(&mut again, &mut body, rest).await;
    assert_eq!(numbers(&body), (last + 1..=STORM).collect::<Vec<_>>());
    drop((stuck, reader, again));
    left(&door, 0).await;
    door.shut().await;
}
