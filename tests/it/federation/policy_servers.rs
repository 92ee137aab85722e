//! Server-Server API, "Policy Servers": a server looks at each event before anybody sees it.

use model::KeyPair;
use ruma::{CanonicalJsonObject, RoomVersionId, signatures::sign_event};
use serde_json::{Value, json};
use storage::testing::TestDatabase;
use test_kit::encode;

use super::guest::{Guest, REM};

const SIGN: &str = "POST /_matrix/policy/v1/sign";

/// The key with which the peer recommends events; not the one that it publishes.
fn policy_key() -> KeyPair {
    KeyPair::from_text("ed25519 policy_server YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1").unwrap()
}

/// The signature of the policy server on an event, as it answers it.
fn recommendation(event: &Value) -> Value {
    let mut object: CanonicalJsonObject = serde_json::from_value(event.clone()).unwrap();
    object.remove("signatures");
    sign_event("peer.test", &policy_key(), &mut object, &RoomVersionId::V11.rules().unwrap().redaction).unwrap();
    serde_json::to_value(&object["signatures"]).unwrap()
}

/// A room whose policy server the peer is: it wants no spam.
async fn guarded(database: TestDatabase) -> Guest {
    let guest = Guest::new(database).await;
    guest.peer.respond(SIGN, |asked| {
        let event = &asked.body;
        if event["content"]["body"] == "spam" {
            return (400, json!({"errcode": "M_FORBIDDEN", "error": "no spam here"}));
        }
        (200, recommendation(event))
    });
    set_policy(&guest, json!({"via": "peer.test", "public_keys": {"ed25519": policy_key().public_key()}})).await;
    guest
}

async fn set_policy(guest: &Guest, content: Value) {
    guest.alice.put(&format!("/rooms/{}/state/m.room.policy/", encode(&guest.room)), &content).await.ok();
}

/// How often the policy server was asked.
fn asked(guest: &Guest) -> usize {
    guest.peer.asked().iter().filter(|asked| asked.what == SIGN).count()
}

async fn say(guest: &Guest, body: &str) -> test_kit::Answer {
    let path = format!("/rooms/{}/send/m.room.message/{body}{}", encode(&guest.room), asked(guest));
    guest.alice.put(&path, &json!({"msgtype": "m.text", "body": body})).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_policy_server_refuses_is_not_sent_and_its_words_are_passed_on() {
    for database in TestDatabase::each().await {
        let guest = guarded(database).await;
        assert_eq!(asked(&guest), 0, "the policy itself needs no signature");
        say(&guest, "hello").await.ok();
        let refused = say(&guest, "spam").await;
        refused.is_error(400, "M_FORBIDDEN");
        assert_eq!(refused.json()["error"], "no spam here");
        say(&guest, "again").await.ok();
        assert_eq!(guest.texts().await, ["hello", "again"]);
        assert_eq!(asked(&guest), 3);
        let event = &guest.peer.asked().into_iter().find(|asked| asked.what == SIGN).unwrap().body;
        assert_eq!((&event["type"], &event["sender"]), (&json!("m.room.message"), &json!(guest.alice.id())));
        // State, too, and what is called like the policy but is not it.
        guest.alice.put(&format!("/rooms/{}/state/m.room.policy/x", encode(&guest.room)), &json!({})).await.ok();
        assert_eq!(asked(&guest), 4);
    }
}

/// Whoever does not ask the policy server cannot have others see what it would refuse.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_without_the_recommendation_is_not_seen_unless_it_gets_one() {
    for database in TestDatabase::each().await {
        let mut guest = guarded(database).await;
        let mut good = guest.message("signed").await;
        let signature = recommendation(&good.pdu)["peer.test"]["ed25519:policy_server"].clone();
        good.pdu["signatures"]["peer.test"]["ed25519:policy_server"] = signature.clone();
        guest.send_one(&good).await;
        assert_eq!(asked(&guest), 0, "it was recommended");
        let unsigned = guest.message("unsigned").await;
        guest.send_one(&unsigned).await;
        assert_eq!(asked(&guest), 1);
        // A signature of another event is none.
        let tip = guest.tip.clone();
        let mut spam = guest.message("spam").await;
        spam.pdu["signatures"]["peer.test"]["ed25519:policy_server"] = signature;
        guest.send_one(&spam).await;
        assert_eq!(asked(&guest), 2);
        assert_eq!(guest.texts().await, ["signed", "unsigned"]);
        // The room goes on, not upon what was refused.
        guest.tip = tip;
        let last = guest.message("last").await;
        guest.send_one(&last).await;
        say(&guest, "alice").await.ok();
        assert_eq!(guest.texts().await, ["signed", "unsigned", "last", "alice"]);
    }
}

/// Its words about us are no answer to a client, and a key that is not in the policy recommends nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_server_that_does_not_sign_stops_the_room_until_it_is_switched_off() {
    let mut guest = guarded(TestDatabase::sqlite()).await;
    for (status, body) in [
        (401, json!({"errcode": "M_UNKNOWN_TOKEN", "error": "who are you?"})),
        (404, json!({"errcode": "M_UNRECOGNIZED", "error": "what?"})),
        (500, json!({})),
        (200, json!({"peer.test": {"ed25519:policy_server": "A".repeat(86)}})),
        (200, json!({})),
    ] {
        guest.peer.respond(SIGN, move |_| (status, body.clone()));
        say(&guest, "hello").await.is_error(502, "M_UNKNOWN");
    }
    assert_eq!(guest.texts().await, Vec::<String>::new());
    // It may be switched off without it.
    set_policy(&guest, json!({})).await;
    say(&guest, "free").await.ok();
    set_policy(&guest, json!({"via": "peer.test", "public_keys": {"ed25519": policy_key().public_key()}})).await;
    say(&guest, "hello").await.is_error(502, "M_UNKNOWN");
    // And it goes itself by leaving: a room cannot force a server to be its policy server.
    guest.tip = super::guest::newest(&guest.alice, &guest.room).await;
    let auth = guest.auth("m.room.message").await;
    let fields =
        json!({"type": "m.room.member", "state_key": REM, "content": {"membership": "leave"}, "auth_events": auth});
    let mut leave = guest.make(fields).await;
    leave.pdu["signatures"]["peer.test"]["ed25519:policy_server"] =
        recommendation(&leave.pdu)["peer.test"]["ed25519:policy_server"].clone();
    guest.send_one(&leave).await;
    say(&guest, "gone").await.ok();
    assert_eq!(guest.texts().await, ["free", "gone"]);
}
