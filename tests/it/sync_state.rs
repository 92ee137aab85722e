//! What a client is told of the state of its rooms, and of what it may not see.

use serde_json::{Value, json};
use test_kit::{TestUser, encode, on_each_database};

fn texts(room: &Value) -> Vec<String> {
    let events = room["timeline"]["events"].as_array().cloned().unwrap_or_default();
    events.iter().filter_map(|event| event["content"]["body"].as_str().map(str::to_owned)).collect()
}

/// The state events of both parts of an answer's room, as `type state_key`.
fn state_keys(room: &Value, parts: &[&str]) -> Vec<String> {
    let events = parts.iter().flat_map(|part| room[*part]["events"].as_array().cloned().unwrap_or_default());
    let named = |event: Value| Some(format!("{} {}", event["type"].as_str()?, event["state_key"].as_str()?));
    events.filter_map(named).collect()
}

async fn token(user: &TestUser) -> String {
    user.sync(None).await["next_batch"].as_str().unwrap().to_owned()
}

async fn sync_with(user: &TestUser, since: Option<&str>, query: &str, filter: &Value) -> Value {
    let since = since.map(|since| format!("&since={}", encode(since))).unwrap_or_default();
    user.get(&format!("/sync?filter={}{since}{query}", encode(&filter.to_string()))).await.ok()
}

on_each_database! {
    // shows: sync
    async fn who_was_away_between_two_syncs_is_not_told_what_was_said_meanwhile(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_public_room().await;
        alice.set_state(&room, "m.room.history_visibility", "", &json!({ "history_visibility": "joined" })).await;
        bob.join(&room).await;
        let since = token(&bob).await;
        bob.leave(&room).await;
        alice.send_text(&room, "not for bob").await;
        bob.join(&room).await;
        alice.send_text(&room, "for bob").await;
        let sync = bob.sync(Some(&since)).await;
        assert_eq!(texts(&sync["rooms"]["join"][&room]), ["for bob"], "{sync}");
    }

    // shows: sync
    async fn who_never_was_in_a_room_is_told_nothing_of_it(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_room().await;
        let since = token(&bob).await;
        alice.send_text(&room, "secret").await;
        alice.invite(&room, &bob).await;
        bob.leave(&room).await;
        let left = json!({ "room": { "include_leave": true } });
        for sync in [bob.sync(Some(&since)).await, sync_with(&bob, None, "", &left).await] {
            let shown = &sync["rooms"]["leave"][&room];
            assert!(shown.is_object(), "{sync}");
            assert!(texts(shown).is_empty(), "{sync}");
        }
    }

    /// Otherwise their client would send in the clear.
    // shows: sync
    async fn who_joins_is_told_the_state_that_the_history_visibility_hides(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice
            .create_room_with(&json!({ "preset": "public_chat", "name": "a name", "initial_state": [
                { "type": "m.room.history_visibility", "content": { "history_visibility": "joined" } },
                { "type": "m.room.encryption", "content": { "algorithm": "m.megolm.v1.aes-sha2" } },
            ] }))
            .await;
        let since = token(&bob).await;
        bob.join(&room).await;
        for sync in [bob.sync(Some(&since)).await, bob.sync(None).await] {
            let keys = state_keys(&sync["rooms"]["join"][&room], &["state", "timeline"]);
            for wanted in ["m.room.encryption ", "m.room.name ", "m.room.history_visibility ", "m.room.create "] {
                assert!(keys.iter().any(|key| key == wanted), "{wanted} is missing: {sync}");
            }
        }
    }

    // shows: sync, redactEvent
    async fn what_was_redacted_since_is_shown_redacted(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_public_room().await;
        bob.join(&room).await;
        let since = token(&bob).await;
        let event = alice.send_text(&room, "a password").await;
        alice.redact(&room, &event).await;
        let sync = bob.sync(Some(&since)).await;
        let shown = &sync["rooms"]["join"][&room]["timeline"]["events"][0];
        assert_eq!((&shown["event_id"], &shown["content"]), (&json!(event), &json!({})), "{sync}");
        assert!(shown["unsigned"]["redacted_because"].is_object(), "{sync}");
        assert!(!sync.to_string().contains("a password"));
    }

    // shows: sync
    async fn a_lazy_client_is_told_of_members_in_a_gap_and_of_who_was_removed(server: TestServer) {
        let (alice, bob, carol) = (server.user("alice").await, server.user("bob").await, server.user("carol").await);
        let room = alice.create_public_room().await;
        bob.join(&room).await;
        let since = token(&bob).await;
        carol.join(&room).await;
        for number in 0..12 {
            alice.send_text(&room, &number.to_string()).await;
        }
        let lazy = json!({ "room": { "state": { "lazy_load_members": true } } });
        let sync = sync_with(&bob, Some(&since), "", &lazy).await;
        let shown = &sync["rooms"]["join"][&room];
        assert_eq!(shown["timeline"]["limited"], true);
        let keys = state_keys(shown, &["state"]);
        assert!(keys.contains(&format!("m.room.member {}", carol.id())), "{sync}");
        assert_eq!(shown["summary"]["m.joined_member_count"], 3, "{sync}");
        assert_eq!(sync["device_lists"]["changed"], json!([carol.id()]), "{sync}");

        let since = sync["next_batch"].as_str().unwrap();
        alice.remove(&room, "kick", &carol).await;
        let sync = sync_with(&bob, Some(since), "&use_state_after=true", &lazy).await;
        let after = &sync["rooms"]["join"][&room]["state_after"]["events"];
        let of_carol = after.as_array().unwrap().iter().find(|event| event["state_key"] == carol.id());
        assert_eq!(of_carol.unwrap()["content"]["membership"], "leave", "{sync}");
    }

    // shows: sync
    async fn a_lazy_client_is_told_the_members_after_whom_a_room_is_called(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_room_with(&json!({ "preset": "trusted_private_chat", "invite": [bob.id()] })).await;
        bob.join(&room).await;
        for number in 0..12 {
            alice.send_text(&room, &number.to_string()).await;
        }
        let lazy = json!({ "room": { "state": { "lazy_load_members": true } } });
        let sync = sync_with(&alice, None, "", &lazy).await;
        let shown = &sync["rooms"]["join"][&room];
        assert_eq!(shown["summary"]["m.heroes"], json!([bob.id()]), "{sync}");
        assert!(state_keys(shown, &["state"]).contains(&format!("m.room.member {}", bob.id())), "{sync}");
    }

    // shows: sync
    async fn state_that_the_filter_keeps_out_of_the_timeline_is_told_as_state(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_public_room().await;
        bob.join(&room).await;
        let since = token(&bob).await;
        alice.set_state(&room, "m.room.topic", "", &json!({ "topic": "news" })).await;
        alice.send_text(&room, "hello").await;
        let messages = json!({ "room": { "timeline": { "types": ["m.room.message"] } } });
        let sync = sync_with(&bob, Some(&since), "", &messages).await;
        let shown = &sync["rooms"]["join"][&room];
        assert_eq!(texts(shown), ["hello"]);
        assert_eq!(state_keys(shown, &["state"]), ["m.room.topic "], "{sync}");
    }

    /// Without them a client believes that it has no keys left.
    // shows: sync
    async fn an_empty_answer_has_the_counts_of_keys(server: TestServer) {
        let alice = server.user("alice").await;
        let since = token(&alice).await;
        let sync = alice.sync_waiting(Some(&since), 1).await;
        assert_eq!(sync["device_one_time_keys_count"], json!({ "signed_curve25519": 0 }), "{sync}");
        assert_eq!(sync["device_unused_fallback_key_types"], json!([]), "{sync}");
    }

    // shows: sync, forgetRoom
    async fn a_forgotten_room_is_shown_no_more(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_public_room().await;
        bob.join(&room).await;
        bob.leave(&room).await;
        let left = json!({ "room": { "include_leave": true } });
        assert!(sync_with(&bob, None, "", &left).await["rooms"]["leave"][&room].is_object());
        bob.in_room(&room, "forget", &json!({})).await.ok();
        let sync = sync_with(&bob, None, "", &left).await;
        assert!(sync["rooms"]["leave"][&room].is_null(), "{sync}");
    }

    /// What comes first is the newest state, however many messages wait for the device.
    // shows: sync, sendToDevice
    async fn many_messages_to_a_device_do_not_hold_the_rooms_back(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        for number in 0..120 {
            let body = json!({ "messages": { bob.id(): { bob.device_id(): { "number": number } } } });
            alice.put(&format!("/sendToDevice/org.example.x/{number}"), &body).await.ok();
        }
        let room = bob.create_room_with(&json!({ "name": "new" })).await;
        let first = bob.sync(None).await;
        assert!(!state_keys(&first["rooms"]["join"][&room], &["state", "timeline"]).is_empty(), "{first}");
        let second = bob.sync(first["next_batch"].as_str()).await;
        let numbers = [&first, &second].into_iter().flat_map(|sync| sync["to_device"]["events"].as_array().unwrap());
        let numbers: Vec<_> = numbers.map(|event| event["content"]["number"].as_u64().unwrap()).collect();
        assert_eq!(numbers, (0..120).collect::<Vec<_>>());
        let third = bob.sync(second["next_batch"].as_str()).await;
        assert!(third["to_device"]["events"].as_array().is_none_or(Vec::is_empty), "{third}");
    }

    // shows: sync
    async fn who_shares_no_encrypted_room_any_more_is_told_of(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let encryption = json!({ "type": "m.room.encryption", "content": { "algorithm": "m.megolm.v1.aes-sha2" } });
        let room = alice.create_room_with(&json!({ "preset": "public_chat", "initial_state": [encryption] })).await;
        bob.join(&room).await;
        let since = token(&bob).await;
        alice.leave(&room).await;
        let sync = bob.sync(Some(&since)).await;
        assert_eq!(sync["device_lists"]["left"], json!([alice.id()]), "{sync}");
        assert!(sync["device_lists"]["changed"].as_array().is_none_or(Vec::is_empty), "{sync}");
    }
}
