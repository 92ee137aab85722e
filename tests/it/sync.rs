//! What a client is told, and when.

use serde_json::json;
use test_kit::{encode, on_each_database};

fn texts(sync: &serde_json::Value, room: &str) -> Vec<String> {
    let events = sync["rooms"]["join"][room]["timeline"]["events"].as_array().cloned().unwrap_or_default();
    events.iter().filter_map(|event| event["content"]["body"].as_str().map(str::to_owned)).collect()
}

on_each_database! {
    // shows: sync
    async fn a_message_reaches_a_waiting_sync_once(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_public_room().await;
        bob.join(&room).await;
        let since = bob.sync(None).await["next_batch"].as_str().unwrap().to_owned();
        let (sync, _) = tokio::join!(bob.sync_waiting(Some(&since), 30_000), alice.send_text(&room, "hello"));
        assert_eq!(texts(&sync, &room), ["hello"]);
        let next = sync["next_batch"].as_str().unwrap();
        let sync = bob.sync(Some(next)).await;
        assert!(texts(&sync, &room).is_empty(), "{sync}");
    }

    // shows: sync, getRoomEvents
    async fn a_limited_timeline_goes_on_where_its_prev_batch_says(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_public_room().await;
        bob.join(&room).await;
        let since = bob.sync(None).await["next_batch"].as_str().unwrap().to_owned();
        for number in 0..30 {
            alice.send_text(&room, &number.to_string()).await;
        }
        let filter = encode(&json!({ "room": { "timeline": { "limit": 10 } } }).to_string());
        let sync = bob.get(&format!("/sync?since={}&filter={filter}", encode(&since))).await.ok();
        let timeline = &sync["rooms"]["join"][&room]["timeline"];
        assert_eq!(timeline["limited"], true);
        let expected = |range: std::ops::Range<u32>| range.map(|number| number.to_string()).collect::<Vec<_>>();
        assert_eq!(texts(&sync, &room), expected(20..30));
        let from = encode(timeline["prev_batch"].as_str().unwrap());
        let path = format!("/rooms/{}/messages?dir=b&limit=20&from={from}&to={}", encode(&room), encode(&since));
        let page = bob.get(&path).await.ok();
        let events = page["chunk"].as_array().unwrap().iter().rev();
        let before: Vec<_> = events.filter_map(|event| event["content"]["body"].as_str().map(str::to_owned)).collect();
        assert_eq!(before, expected(0..20));
    }

    // shows: sync, inviteUser
    async fn an_invitation_shows_what_the_room_is(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_room_with(&json!({ "name": "a name" })).await;
        let since = bob.sync(None).await["next_batch"].as_str().unwrap().to_owned();
        alice.invite(&room, &bob).await;
        let sync = bob.sync_waiting(Some(&since), 30_000).await;
        let state = sync["rooms"]["invite"][&room]["invite_state"]["events"].as_array().unwrap();
        let has = |event_type: &str| state.iter().any(|event| event["type"] == event_type);
        assert!(has("m.room.name") && has("m.room.member") && has("m.room.join_rules"), "{sync}");
    }

    // shows: setTyping, sync
    async fn others_see_who_is_typing(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_public_room().await;
        bob.join(&room).await;
        let since = bob.sync(None).await["next_batch"].as_str().unwrap().to_owned();
        let path = format!("/rooms/{}/typing/{}", encode(&room), encode(alice.id()));
        alice.put(&path, &json!({ "typing": true })).await.ok();
        let sync = bob.sync_waiting(Some(&since), 30_000).await;
        let typing = json!({ "type": "m.typing", "content": { "user_ids": [alice.id()] } });
        assert_eq!(sync["rooms"]["join"][&room]["ephemeral"]["events"], json!([typing]));
        bob.put(&path, &json!({ "typing": true })).await.is_error(403, "M_FORBIDDEN");
    }

    // shows: postReceipt, setReadMarker, sync
    async fn others_see_what_was_read_but_not_what_was_read_privately(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_public_room().await;
        bob.join(&room).await;
        let first = alice.send_text(&room, "first").await;
        let second = alice.send_text(&room, "second").await;
        let since = alice.sync(None).await["next_batch"].as_str().unwrap().to_owned();
        let receipt = |kind: &str, event: &str| format!("/rooms/{}/receipt/{kind}/{}", encode(&room), encode(event));
        bob.post(&receipt("m.read.private", &second), &json!({})).await.ok();
        bob.post(&receipt("m.read", &first), &json!({})).await.ok();
        let sync = alice.sync_waiting(Some(&since), 30_000).await;
        let events = &sync["rooms"]["join"][&room]["ephemeral"]["events"];
        assert!(events[0]["content"][&first]["m.read"][bob.id()]["ts"].is_u64(), "{sync}");
        assert!(!events.to_string().contains("private"), "{sync}");
        let markers = json!({ "m.fully_read": second });
        bob.in_room(&room, "read_markers", &markers).await.ok();
        let sync = bob.sync(None).await;
        let data = sync["rooms"]["join"][&room]["account_data"]["events"].as_array().unwrap();
        assert!(data.contains(&json!({ "type": "m.fully_read", "content": { "event_id": second } })), "{sync}");
    }

    // shows: sendToDevice, sync
    async fn a_message_to_a_device_comes_until_it_was_seen(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let body = json!({ "messages": { bob.id(): { bob.device_id(): { "secret": 1 } } } });
        let path = "/sendToDevice/org.example.x/t1";
        alice.put(path, &body).await.ok();
        alice.put(path, &body).await.ok();
        let first = bob.sync(None).await;
        let events = json!([{ "type": "org.example.x", "sender": alice.id(), "content": { "secret": 1 } }]);
        assert_eq!(first["to_device"]["events"], events, "{first}");
        let again = bob.sync(None).await;
        assert_eq!(again["to_device"]["events"], events, "{again}");
        let next = bob.sync(first["next_batch"].as_str()).await;
        assert!(next["to_device"]["events"].as_array().is_none_or(Vec::is_empty), "{next}");
    }

    /// What a client holds stays good when the server was away.
    // shows: sync
    async fn a_restarted_server_loses_and_doubles_nothing(server: TestServer) {
        let mut server = server;
        let alice = server.user("alice").await;
        let room = alice.create_room().await;
        alice.send_text(&room, "before").await;
        let since = alice.sync(None).await["next_batch"].as_str().unwrap().to_owned();
        alice.send_text(&room, "between").await;
        server.restart().await;
        let alice = alice.at(server.http());
        alice.send_text(&room, "after").await;
        assert_eq!(texts(&alice.sync(Some(&since)).await, &room), ["between", "after"]);
        assert_eq!(alice.texts(&room).await, ["before", "between", "after"]);
    }
}
