//! What changes something answers in JSON too: the thing as it is now, or what is gone.

use crate::harness::Home;

#[test]
fn every_act_answers_with_one_document() {
    let (home, machine, other) = (Home::new(), Home::new(), Home::new());
    let gateway = home.gateway();
    home.ok(["node", "pairing", "enable"]);
    let node = machine.start([
        "node",
        "add",
        "--foreground",
        "--name",
        "box",
        "--host",
        &gateway.ws(),
    ]);
    node.stdout.wait_for("Connection code");
    let pending = home.json(["node", "pending", "--json"]);
    let id = pending[0]["id"].as_str().unwrap();
    let approved = home.json(["node", "approve", id, "--yes", "--json"]);
    assert_eq!(
        (&approved["name"], &approved["state"]),
        (&"box".into(), &"online".into())
    );

    let renamed = home.json(["node", "rename", "box", "kiln", "--json"]);
    assert_eq!(renamed["name"], "kiln");
    let labelled = home.json(["node", "label", "kiln", "gpu=true", "room=cellar", "--json"]);
    assert_eq!(
        labelled["labels"],
        serde_json::json!({"gpu": "true", "room": "cellar"})
    );
    let revoked = home.json(["node", "revoke", "kiln", "--json"]);
    assert_eq!(revoked["state"], "revoked");
    let forgotten = home.json(["node", "forget", "kiln", "--json"]);
    assert_eq!(forgotten["id"], approved["id"]);
    assert_eq!(forgotten["name"], "kiln");
    drop(node);

    let stranger = other.start([
        "node",
        "add",
        "--foreground",
        "--name",
        "door",
        "--host",
        &gateway.ws(),
    ]);
    stranger.stdout.wait_for("Connection code");
    let pending = home.json(["node", "pending", "--json"]);
    let id = pending[0]["id"].as_str().unwrap();
    let rejected = home.json(["node", "reject", id, "--yes", "--json"]);
    assert_eq!(
        (&rejected["id"], &rejected["name"]),
        (&pending[0]["id"], &"door".into())
    );

    let token = home.json([
        "token",
        "create",
        "--name",
        "ci",
        "--scope",
        "runs:read",
        "--json",
    ]);
    let gone = home.json(["token", "revoke", "ci", "--json"]);
    assert_eq!((&gone["id"], &gone["name"]), (&token["id"], &"ci".into()));

    let policy = machine.json(["node", "policy", "allow", "--json", "--", "/usr/bin/uptime"]);
    assert_eq!(policy["allow"], serde_json::json!([["/usr/bin/uptime"]]));
    let policy = machine.json(["node", "policy", "off", "--json"]);
    assert_eq!(policy["mode"], "off");
}
