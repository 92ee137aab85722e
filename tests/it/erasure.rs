//! Users who asked to be forgotten. Client-Server API, "POST /account/deactivate", `erase`.

use serde_json::{Value, json};
use test_kit::{TestUser, encode, on_each_database};

async fn deactivate(user: &TestUser, erase: bool) {
    let auth = json!({
        "type": "m.login.password", "identifier": { "type": "m.id.user", "user": user.id() },
        "password": format!("{}'s password", user.localpart()),
    });
    user.post("/account/deactivate", &json!({ "erase": erase, "auth": auth })).await.ok();
}

/// Everything that a reader is shown of a room, on every way to it, with the way's name.
async fn shown(reader: &TestUser, room: &str, event: &str, erased: &str) -> Vec<(&'static str, Value)> {
    let id = encode(room);
    let get = async |path: &str| reader.get(&format!("/rooms/{id}{path}")).await.ok();
    let lazy = encode(r#"{"room":{"state":{"lazy_load_members":true}}}"#);
    vec![
        ("messages", get("/messages?dir=b&limit=100").await),
        ("messages, forward", get("/messages?dir=f&limit=100").await),
        ("context", get(&format!("/context/{}?limit=50", encode(event))).await),
        ("event", get(&format!("/event/{}", encode(event))).await),
        ("state", get("/state").await),
        ("state event", get(&format!("/state/m.room.member/{}", encode(erased))).await),
        ("state event, whole", get(&format!("/state/m.room.member/{}?format=event", encode(erased))).await),
        ("members", get("/members").await),
        ("initial sync", get("/initialSync").await),
        ("sync", reader.sync(None).await["rooms"].clone()),
        ("sync, full state", reader.get("/sync?full_state=true&timeout=0").await.ok()["rooms"].clone()),
        ("sync, lazy", reader.get(&format!("/sync?timeout=0&filter={lazy}")).await.ok()["rooms"].clone()),
    ]
}

on_each_database! {
    /// Who was in the room before the erasure sees everything on, who joins later nothing but that something was there.
    // shows: deactivateAccount, getRoomEvents, getEventContext, getOneRoomEvent, getRoomState, getRoomStateWithKey, getMembersByRoom, sync
    async fn an_erased_user_is_shown_redacted_to_who_joins_later(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        bob.put(&format!("/profile/{}/displayname", encode(bob.id())), &json!({ "displayname": "Bob Secret" })).await.ok();
        let room = alice.create_public_room().await;
        alice.send_text(&room, "from alice").await;
        bob.join(&room).await;
        let event = bob.send_text(&room, "a secret").await;
        let removed = bob.send_text(&room, "removed").await;
        let body = json!({ "reason": "this secret reason" });
        bob.put(&format!("/rooms/{}/redact/{}/r1", encode(&room), encode(&removed)), &body).await.ok();
        // Of state, too: what removed it stands beside it.
        let levels = format!("/rooms/{}/state/m.room.power_levels/", encode(&room));
        let mut powers = alice.get(&levels).await.ok();
        powers["users"][bob.id()] = json!(50);
        alice.set_state(&room, "m.room.power_levels", "", &powers).await;
        let members = alice.get(&format!("/rooms/{}/members", encode(&room))).await.ok();
        let own = members["chunk"].as_array().unwrap().iter().find(|event| event["state_key"] == alice.id()).unwrap();
        let own = encode(own["event_id"].as_str().unwrap());
        bob.put(&format!("/rooms/{}/redact/{own}/r2", encode(&room)), &body).await.ok();
        let (between, carol) = (server.user("between").await, server.user("carol").await);
        between.join(&room).await;
        let before = shown(&alice, &room, &event, bob.id()).await;
        deactivate(&bob, true).await;
        carol.join(&room).await;

        for reader in [&alice, &between] {
            for (way, answer) in shown(reader, &room, &event, bob.id()).await {
                let had = before.iter().any(|(name, old)| *name == way && old.to_string().contains("a secret"));
                assert!(!had || answer.to_string().contains("a secret"), "{way} for {}: {answer}", reader.id());
            }
            let texts = reader.texts(&room).await;
            assert_eq!(texts, ["from alice", "a secret"], "{}", reader.id());
        }
        for (way, answer) in shown(&carol, &room, &event, bob.id()).await {
            assert!(!answer.to_string().to_lowercase().contains("secret"), "{way}: {answer}");
        }
        assert_eq!(carol.texts(&room).await, ["from alice"]);
        let redacted = carol.get(&format!("/rooms/{}/event/{}", encode(&room), encode(&event))).await.ok();
        assert_eq!((&redacted["content"], &redacted["sender"]), (&json!({}), &json!(bob.id())), "{redacted}");
        let member = carol.get(&format!("/rooms/{}/state/m.room.member/{}", encode(&room), encode(bob.id()))).await.ok();
        assert_eq!(member, json!({ "membership": "leave" }));

        // Who goes and comes back was there.
        between.leave(&room).await;
        between.join(&room).await;
        assert_eq!(between.texts(&room).await, ["from alice", "a secret"]);
    }

    /// Otherwise everybody who deactivates an account would leave holes in other people's history.
    // shows: deactivateAccount
    async fn a_deactivated_user_who_did_not_ask_for_erasure_is_shown_on(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_public_room().await;
        bob.join(&room).await;
        bob.send_text(&room, "from bob").await;
        deactivate(&bob, false).await;
        let carol = server.user("carol").await;
        carol.join(&room).await;
        assert_eq!(carol.texts(&room).await, ["from bob"]);
    }

    /// A newcomer who thinks that an encrypted room is not would speak for all to hear.
    // shows: deactivateAccount, getRoomState
    async fn what_a_room_is_does_not_go_with_who_made_it(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = bob.create_room_with(&json!({
            "preset": "public_chat", "name": "the room",
            "initial_state": [{
                "type": "m.room.encryption", "state_key": "", "content": { "algorithm": "m.megolm.v1.aes-sha2" },
            }],
        })).await;
        alice.join(&room).await;
        deactivate(&bob, true).await;
        let carol = server.user("carol").await;
        carol.join(&room).await;
        let get = async |path: &str| carol.get(&format!("/rooms/{}/state/{path}", encode(&room))).await.ok();
        assert_eq!(get("m.room.encryption").await["algorithm"], "m.megolm.v1.aes-sha2");
        assert_eq!(get("m.room.name").await["name"], "the room");
        let sync = carol.sync(None).await["rooms"]["join"][&room].to_string();
        assert!(sync.contains("m.megolm.v1.aes-sha2"), "{sync}");
    }
}

/// A start reads from the database what a process knew by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn erasure_outlives_the_process() {
    let mut server = test_kit::TestServer::start().await;
    let (alice, bob, carol) = (server.user("alice").await, server.user("bob").await, server.user("carol").await);
    let room = alice.create_public_room().await;
    bob.join(&room).await;
    bob.send_text(&room, "a secret").await;
    deactivate(&bob, true).await;
    carol.join(&room).await;
    server.restart().await;
    let (alice, carol) = (alice.at(server.http()), carol.at(server.http()));
    assert_eq!(alice.texts(&room).await, ["a secret"]);
    assert!(carol.texts(&room).await.is_empty());
}
