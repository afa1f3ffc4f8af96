//! What is told when something is wrong here: a full disk, a panic, a connection too many, an
//! address that is not to be trusted, a request that a person cannot mean.

use axum::body::Body;
use axum::extract::{ConnectInfo, Request};
use axum::response::Response;
use http_body_util::BodyExt as _;
use moltis_proto::RequestId;
use tower::ServiceExt as _;

use super::*;
use crate::api::problem::Problem;
use crate::audit::Action as Audited;
use crate::http::peer::Peer;
use crate::store::pairings::tests::request as pairing_request;
use crate::store::testing::{self, entry};

async fn problem(response: Response) -> Problem {
    let body = response.into_body().collect().await.unwrap().to_bytes();
    serde_json::from_slice(&body).unwrap()
}

#[tokio::test]
async fn a_full_disk_is_told_to_who_writes_and_to_who_asks() {
    let door = Door::open(&[], "127.0.0.1:0").await;
    let ready = request("GET", "/readyz", &["host: localhost"]);
    assert_eq!(status(&door.unix(&ready).await), 200);
    testing::fill(door.gateway.store()).await;
    let headers = ["host: localhost", "content-type: application/json"];
    let mut refused = None;
    for number in 0..500 {
        let body = format!(r#"{{"name":"t{number}","scopes":["runs:read"]}}"#);
        let answer = door
            .unix(&send("POST", "/api/v1/tokens", &headers, &body))
            .await;
        if status(&answer) != 201 {
            refused = Some(answer);
            break;
        }
    }
    let refused = refused.expect("the disk is full");
    assert_eq!(code(&refused), "store_read_only");
    assert_eq!(status(&refused), 503);
    let answer = door.unix(&ready).await;
    assert_eq!(status(&answer), 503, "{answer}");
    assert_eq!(json(&answer)["ok"], false);
    let words = json(&answer)["problem"].to_string();
    assert!(words.contains("is full"), "{words}");
    // Once there is room again, the next write says so.
    testing::unfill(door.gateway.store()).await;
    assert_eq!(status(&door.unix(&ready).await), 200);
    door.shut().await;
}

async fn bad() -> &'static str {
    panic!("of a handler")
}

#[tokio::test]
async fn a_panic_of_a_handler_is_a_failure_of_ours() {
    let door = Door::open(&[], "127.0.0.1:0").await;
    let state = door.gateway.api().clone();
    let router = Router::new()
        .route("/", axum::routing::get(bad))
        .layer(from_fn_with_state(state, envelope::wrap));
    let asked = Request::builder().uri("/").body(Body::empty()).unwrap();
    let answer = router.oneshot(asked).await.unwrap();
    assert_eq!(answer.status(), 500);
    let id = answer.headers()["moltis-request-id"].clone();
    let problem = problem(answer).await;
    assert_eq!(
        (problem.status, problem.code.to_string()),
        (500, "internal".to_owned())
    );
    assert_eq!(problem.request_id, id.to_str().unwrap());
    assert!(!format!("{problem:?}").contains("of a handler"));
    door.shut().await;
}

/// The same as on a real network address, for machines that have none.
#[tokio::test]
async fn an_address_of_the_network_answers_nodes_and_health_only() {
    let door = Door::open(&[], "127.0.0.1:0").await;
    let ask = async |local: &str, path: &str| {
        let asked = Request::builder().uri(path).header("host", local);
        let mut asked = asked.body(Body::empty()).unwrap();
        asked.extensions_mut().insert(ConnectInfo(Peer::Tcp {
            remote: "192.0.2.9:7".parse().unwrap(),
            local: local.parse().unwrap(),
        }));
        door.gateway.router().oneshot(asked).await.unwrap()
    };
    for local in ["192.0.2.1:9090", "[2001:db8::1]:9090"] {
        for path in ["/", "/readyz", "/api/v1/nodes", "/api/v1/runs", "/nothing"] {
            let answer = ask(local, path).await;
            assert_eq!(
                problem(answer).await.code.to_string(),
                "tls_required",
                "{path}"
            );
        }
        assert_eq!(ask(local, "/healthz").await.status(), 200);
        assert_eq!(ask(local, "/ws").await.status(), 426);
    }
    for local in ["127.0.0.1:9090", "[::1]:9090", "[::ffff:127.0.0.1]:9090"] {
        assert_ne!(ask(local, "/").await.status(), 403, "{local}");
        let answer = ask(local, "/api/v1/nodes").await;
        assert_ne!(problem(answer).await.code.to_string(), "tls_required");
    }
    door.shut().await;
}

#[tokio::test]
async fn a_request_to_pair_that_is_not_meant_or_too_old_is_not_approved() {
    let now: Timestamp = NOW.parse().unwrap();
    let door = Door::open_after(async |dir| {
        let store = Store::open(dir).await.unwrap();
        let (mut one, mut two, mut old) =
            (pairing_request(1), pairing_request(2), pairing_request(3));
        one.id = RequestId::from_bytes([0xab; 16]);
        let mut id = [0xab; 16];
        id[15] = 0;
        two.id = RequestId::from_bytes(id);
        for fresh in [&mut one, &mut two] {
            (fresh.first_seen_at, fresh.last_seen_at) = (now, now);
        }
        let long_ago = now - jiff::SignedDuration::from_hours(2);
        (old.first_seen_at, old.last_seen_at) = (long_ago, long_ago);
        for request in [one, two, old] {
            let audit = entry(Audited::PairingRequest);
            store.add_request(&request, audit).await.unwrap();
        }
        store.close().await;
    })
    .await;
    let headers = ["host: localhost", "content-type: application/json"];
    let key = Fingerprint::of(&pairing_request(3).node_key);
    let body = format!(r#"{{"fingerprint":"{key}","connection_code":"7Q4M-2XKD-P9VA"}}"#);
    let approve = async |id: &str| {
        let path = format!("/api/v1/pairing/requests/{id}/approve");
        door.unix(&send("POST", &path, &headers, &body)).await
    };
    let answer = approve("abababab").await;
    assert_eq!(code(&answer), "ambiguous");
    let candidates = json(&answer)["candidates"].as_array().unwrap().len();
    assert_eq!(candidates, 2, "{answer}");
    let old = pairing_request(3).id.to_string();
    assert_eq!(code(&approve(&old).await), "request_expired");
    assert_eq!(code(&approve("ffffffff").await), "not_found");
    door.shut().await;
}

#[tokio::test]
async fn a_connection_too_many_is_told_to_come_later_and_another_one_takes_its_place() {
    let listener = Listener::tcp("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.address().unwrap();
    let stop = CancellationToken::new();
    let router = Router::new().route("/", axum::routing::get(async || "here"));
    let serving = TaskTracker::new().spawn(serve::serve(
        listener,
        router,
        serve::Reception {
            guests: guests::Guests::new(2, 9),
            ..serve::Reception::default()
        },
        stop.clone(),
    ));
    let ask = async |stream: &mut TcpStream| {
        let asked = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
        stream.write_all(asked).await.ok();
        let mut first = [0; 12];
        stream.read_exact(&mut first).await.is_ok() && first == *b"HTTP/1.1 200"
    };
    let mut guests = Vec::new();
    for _ in 0..2 {
        let mut guest = TcpStream::connect(address).await.unwrap();
        assert!(ask(&mut guest).await);
        guests.push(guest);
    }
    let mut third = TcpStream::connect(address).await.unwrap();
    let mut told = String::new();
    third.read_to_string(&mut told).await.unwrap();
    assert!(told.starts_with("HTTP/1.1 503 "), "{told}");
    assert!(told.contains("\r\nretry-after: "), "{told}");
    drop(guests);
    let room = async {
        loop {
            let mut next = TcpStream::connect(address).await.unwrap();
            if ask(&mut next).await {
                return;
            }
        }
    };
    let room = tokio::time::timeout(Duration::from_secs(20), room).await;
    room.expect("room comes free");
    stop.cancel();
    serving.await.unwrap();
}
