//! Rooms that the server makes encrypted.

use serde_json::{Value, json};
use swiftchat::config::Encryption;
use test_kit::{ServerOptions, TestServer, TestUser, encode};

/// A server with a policy, and somebody there.
async fn world(policy: Encryption) -> (TestServer, TestUser) {
    let mut options = ServerOptions::default();
    options.config.rooms.encryption = policy;
    let server = TestServer::with(options).await;
    let alice = server.user("alice").await;
    (server, alice)
}

/// How a new room is encrypted.
async fn encryption_of(user: &TestUser, room: &Value) -> Option<Value> {
    let room = user.create_room_with(room).await;
    let answer = user.get(&format!("/rooms/{}/state/m.room.encryption", encode(&room))).await;
    (answer.status == 200).then(|| answer.ok())
}

// shows: createRoom
#[tokio::test]
async fn rooms_are_encrypted_from_the_start_where_the_policy_says_so() {
    let megolm = || Some(json!({ "algorithm": "m.megolm.v1.aes-sha2" }));
    let direct = json!({ "is_direct": true, "preset": "trusted_private_chat" });
    for (policy, of_plain, of_direct) in [
        (Encryption::Off, None, None),
        (Encryption::DirectChats, None, megolm()),
        (Encryption::All, megolm(), megolm()),
    ] {
        let (_server, alice) = world(policy).await;
        assert_eq!(encryption_of(&alice, &json!({})).await, of_plain, "{policy:?}");
        assert_eq!(encryption_of(&alice, &direct).await, of_direct, "{policy:?}");
        let space = json!({ "creation_content": { "type": "m.space" } });
        assert_eq!(encryption_of(&alice, &space).await, None, "{policy:?}");
    }
}

/// Client-Server API, "m.room.encryption": a client may rotate keys more often.
#[tokio::test]
async fn a_room_keeps_the_encryption_that_its_maker_asked_for() {
    let (_server, alice) = world(Encryption::All).await;
    let own = json!({ "algorithm": "m.megolm.v1.aes-sha2", "rotation_period_msgs": 5 });
    let room = json!({ "initial_state": [{ "type": "m.room.encryption", "content": own }] });
    assert_eq!(encryption_of(&alice, &room).await, Some(own));
}
