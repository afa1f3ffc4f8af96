//! Readers of an answer that goes on for ever: who takes nothing, who is slow, who has nothing to take.

use std::convert::Infallible;

use axum::body::Body;
use axum::routing::get;
use futures_util::stream;
use tokio::net::TcpSocket;
use tokio::time::{Instant, sleep};

use super::*;
use crate::http::serve::Reception;
use crate::http::streams::held;
use crate::http::write_timeout::WRITE_TIME_MAX;
use crate::principal::Principal;

/// Bytes of one piece, which is much for a slow reader.
const PIECE: usize = 256 * 1024;

/// Serves bytes without end at `/much` and a body without bytes at `/quiet`.
fn router(streams: &Streams) -> Router {
    let answer = |streams: &Streams, body| {
        let place = streams.admit(&Principal::Operator).unwrap();
        held(axum::response::Response::new(body), Some(place))
    };
    let (much, quiet) = (streams.clone(), streams.clone());
    let much = move || async move {
        let pieces = stream::repeat_with(|| Ok::<_, Infallible>(vec![0; PIECE]));
        answer(&much, Body::from_stream(pieces))
    };
    let quiet = move || async move {
        let pieces = stream::pending::<Result<Vec<u8>, Infallible>>();
        answer(&quiet, Body::from_stream(pieces))
    };
    Router::new()
        .route("/much", get(much))
        .route("/quiet", get(quiet))
}

async fn open(address: SocketAddr, path: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(64 * 1024).unwrap();
    let mut stream = socket.connect(address).await.unwrap();
    let head = request("GET", path, &["host: localhost"]);
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

/// Takes what is there, at least a byte.
async fn take(stream: &TcpStream) -> usize {
    let mut taken = 0;
    let mut room = vec![0; PIECE];
    stream.readable().await.unwrap();
    while let Ok(bytes) = stream.try_read(&mut room) {
        assert_ne!(bytes, 0, "it was closed behind {taken} bytes");
        taken += bytes;
    }
    taken
}

#[tokio::test(start_paused = true)]
async fn who_takes_nothing_is_closed_and_who_is_slow_or_has_nothing_to_take_is_not() {
    let streams = Streams::of_output();
    let listener = Listener::tcp("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.address().unwrap();
    let stop = CancellationToken::new();
    let serving = serve::serve(
        listener,
        router(&streams),
        Reception::default(),
        stop.clone(),
    );
    let serving = TaskTracker::new().spawn(serving);
    let began = Instant::now();
    let mut stuck = open(address, "/much").await;
    let slow = open(address, "/much").await;
    let quiet = open(address, "/quiet").await;
    for stream in [&stuck, &slow, &quiet] {
        stream.readable().await.unwrap();
    }
    assert_eq!(streams.count(), 3);

    let slowly = async {
        for _ in 0..4 {
            sleep(WRITE_TIME_MAX / 10 * 9).await;
            assert!(take(&slow).await > 0);
        }
    };
    let given_up = async {
        while streams.count() == 3 && began.elapsed() < 2 * WRITE_TIME_MAX {
            sleep(Duration::from_secs(1)).await;
        }
        began.elapsed()
    };
    let ((), given_up) = tokio::join!(slowly, given_up);
    let in_time = WRITE_TIME_MAX..WRITE_TIME_MAX + Duration::from_secs(5);
    assert!(in_time.contains(&given_up), "{given_up:?}");
    stuck.read_to_end(&mut Vec::new()).await.ok(); // it is closed, with a reset or without
    assert_eq!(streams.count(), 2, "its place is free, and no other");
    assert!(take(&quiet).await > 0, "its head came, and no end");

    drop((slow, quiet));
    stop.cancel();
    serving.await.unwrap();
    assert_eq!(streams.count(), 0);
}
