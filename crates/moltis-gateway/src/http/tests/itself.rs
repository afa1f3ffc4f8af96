//! What a gateway says of itself.

use super::*;

#[tokio::test]
async fn a_gateway_names_an_address_before_it_serves_there() {
    let door = Door::open(&[], "127.0.0.1:0").await;
    let further = Listener::tcp("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = further.address().unwrap().to_string();
    let ask = || async {
        let answer = door
            .unix(&request("GET", "/api/v1/gateway", &["host: localhost"]))
            .await;
        json(&answer)["addresses"].to_string()
    };
    let served = door.gateway.serve(further, &door.stop);
    assert!(ask().await.contains(&address), "nobody has polled it yet");
    drop(served);
    assert!(!ask().await.contains(&address));
    door.shut().await;
}
