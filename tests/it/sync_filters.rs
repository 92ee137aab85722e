//! Every field of a filter, and what a lazy client is told of members. Client-Server API, "Filtering".

use std::collections::BTreeSet;

use serde_json::{Value, json};
use test_kit::{TestUser, encode, eventually, on_each_database};

async fn sync_with(user: &TestUser, since: Option<&str>, query: &str, filter: &Value) -> Value {
    let since = since.map(|since| format!("&since={}", encode(since))).unwrap_or_default();
    user.get(&format!("/sync?set_presence=offline&filter={}{since}{query}", encode(&filter.to_string()))).await.ok()
}

fn token(sync: &Value) -> String {
    sync["next_batch"].as_str().unwrap().to_owned()
}

fn events(part: &Value) -> Vec<Value> {
    part["events"].as_array().cloned().unwrap_or_default()
}

/// What is seen of two rooms in an answer, as words.
fn seen(sync: &Value, rooms: [&str; 2]) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    for (room, name) in rooms.into_iter().zip(["a", "b"]) {
        let shown = &sync["rooms"]["join"][room];
        for event in events(&shown["timeline"]) {
            let word = event["content"]["body"].as_str().or(event["type"].as_str()).unwrap_or_default();
            seen.insert(format!("{word} {name}"));
        }
        for (part, mark) in [("state", "state"), ("ephemeral", ""), ("account_data", "")] {
            for event in events(&shown[part]) {
                seen.insert(format!("{mark}{} {name}", event["type"].as_str().unwrap_or_default()));
            }
        }
    }
    for event in events(&sync["account_data"]) {
        seen.insert(event["type"].as_str().unwrap_or_default().to_owned());
    }
    seen
}

/// The member events in the state of an answer's room.
fn members(sync: &Value, room: &str) -> Vec<String> {
    let state = events(&sync["rooms"]["join"][room]["state"]);
    let members = state.into_iter().filter(|event| event["type"] == "m.room.member");
    members.map(|event| event["state_key"].as_str().unwrap().to_owned()).collect()
}

const LAZY: &str = r#"{"room":{"state":{"lazy_load_members":true}}}"#;

on_each_database! {
    // shows: sync, defineFilter
    async fn every_field_of_a_filter_of_rooms_has_its_effect(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let (a, b) = (alice.create_public_room().await, alice.create_public_room().await);
        bob.join(&a).await;
        bob.join(&b).await;
        let since = token(&bob.sync(None).await);
        alice.set_state(&a, "m.room.topic", "", &json!({ "topic": "a topic" })).await;
        let text = alice.send_text(&a, "text").await;
        alice.send(&a, "m.room.message", &json!({ "msgtype": "m.image", "body": "url", "url": "mxc://a/b" })).await;
        bob.send_text(&a, "own").await;
        alice.send_text(&b, "text").await;
        alice.put(&format!("/rooms/{}/typing/{}", encode(&a), encode(alice.id())), &json!({ "typing": true })).await.ok();
        alice.in_room(&a, &format!("receipt/m.read/{}", encode(&text)), &json!({})).await.ok();
        let of_bob = format!("/user/{}", encode(bob.id()));
        bob.put(&format!("{of_bob}/rooms/{}/tags/u.x", encode(&a)), &json!({})).await.ok();
        bob.put(&format!("{of_bob}/account_data/org.example.x"), &json!({ "x": 1 })).await.ok();

        let timeline = ["m.room.topic a", "text a", "url a", "own a"];
        let all: BTreeSet<String> = timeline.into_iter().chain(["text b", "m.typing a", "m.receipt a", "m.tag a", "org.example.x"]).map(str::to_owned).collect();
        assert_eq!(seen(&sync_with(&bob, Some(&since), "", &json!({})).await, [&a, &b]), all);
        let state = "statem.room.topic a";
        // What a filter of rooms takes away, and what it adds: state that the timeline does not tell is told as state.
        let of_rooms: Vec<(Value, Vec<&str>, Vec<&str>)> = vec![
            (json!({ "rooms": [a] }), vec!["text b"], vec![]),
            (json!({ "not_rooms": [b] }), vec!["text b"], vec![]),
            (json!({ "rooms": [a, b], "not_rooms": [b] }), vec!["text b"], vec![]),
            (json!({ "timeline": { "types": ["m.room.message"] } }), vec!["m.room.topic a"], vec![state]),
            (json!({ "timeline": { "types": ["m.room.*"] } }), vec![], vec![]),
            (json!({ "timeline": { "types": ["*.topic"] } }), vec!["text a", "url a", "own a", "text b"], vec![]),
            (json!({ "timeline": { "not_types": ["m.room.topic"] } }), vec!["m.room.topic a"], vec![state]),
            (json!({ "timeline": { "types": ["*"], "not_types": ["m.*.message"] } }), vec!["text a", "url a", "own a", "text b"], vec![]),
            (json!({ "timeline": { "senders": [bob.id()] } }), vec!["m.room.topic a", "text a", "url a", "text b"], vec![state]),
            (json!({ "timeline": { "not_senders": [bob.id()] } }), vec!["own a"], vec![]),
            (json!({ "timeline": { "senders": [bob.id()], "not_senders": [bob.id()] } }), vec!["m.room.topic a", "text a", "url a", "own a", "text b"], vec![state]),
            (json!({ "timeline": { "rooms": [b] } }), vec!["m.room.topic a", "text a", "url a", "own a"], vec![state]),
            (json!({ "timeline": { "not_rooms": [b] } }), vec!["text b"], vec![]),
            (json!({ "timeline": { "contains_url": true } }), vec!["m.room.topic a", "text a", "own a", "text b"], vec![state]),
            (json!({ "timeline": { "contains_url": false } }), vec!["url a"], vec![]),
            (json!({ "timeline": { "limit": 2 } }), vec!["m.room.topic a", "text a"], vec![state]),
            (json!({ "timeline": { "limit": 2 }, "state": { "types": [] } }), vec!["m.room.topic a", "text a"], vec![]),
            (json!({ "timeline": { "limit": 2 }, "state": { "types": ["m.room.t*"] } }), vec!["m.room.topic a", "text a"], vec![state]),
            (json!({ "timeline": { "limit": 2 }, "state": { "not_types": ["m.room.topic"] } }), vec!["m.room.topic a", "text a"], vec![]),
            (json!({ "timeline": { "limit": 2 }, "state": { "senders": [alice.id()] } }), vec!["m.room.topic a", "text a"], vec![state]),
            (json!({ "timeline": { "limit": 2 }, "state": { "not_senders": [alice.id()] } }), vec!["m.room.topic a", "text a"], vec![]),
            (json!({ "timeline": { "limit": 2 }, "state": { "rooms": [b] } }), vec!["m.room.topic a", "text a"], vec![]),
            (json!({ "timeline": { "limit": 2 }, "state": { "not_rooms": [a] } }), vec!["m.room.topic a", "text a"], vec![]),
            (json!({ "timeline": { "limit": 2 }, "state": { "contains_url": true } }), vec!["m.room.topic a", "text a"], vec![]),
            (json!({ "ephemeral": { "types": ["m.typing"] } }), vec!["m.receipt a"], vec![]),
            (json!({ "ephemeral": { "not_types": ["m.r*"] } }), vec!["m.receipt a"], vec![]),
            (json!({ "ephemeral": { "rooms": [b] } }), vec!["m.receipt a", "m.typing a"], vec![]),
            (json!({ "ephemeral": { "not_rooms": [a] } }), vec!["m.receipt a", "m.typing a"], vec![]),
            (json!({ "account_data": { "types": [] } }), vec!["m.tag a"], vec![]),
            (json!({ "account_data": { "not_types": ["m.tag"] } }), vec!["m.tag a"], vec![]),
            (json!({ "account_data": { "rooms": [b] } }), vec!["m.tag a"], vec![]),
            (json!({ "account_data": { "not_rooms": [a] } }), vec!["m.tag a"], vec![]),
        ];
        let global = [
            (json!({ "account_data": { "types": ["org.*"] } }), vec![], vec![]),
            (json!({ "account_data": { "types": ["m.*"] } }), vec!["org.example.x"], vec![]),
            (json!({ "account_data": { "not_types": ["org.example.x"] } }), vec!["org.example.x"], vec![]),
        ];
        let of_rooms = of_rooms.into_iter().map(|(filter, less, more)| (json!({ "room": filter }), less, more));
        let stored_at = format!("{of_bob}/filter");
        for (filter, less, more) in of_rooms.chain(global) {
            let mut expected = all.clone();
            expected.retain(|word| !less.contains(&word.as_str()));
            expected.extend(more.into_iter().map(str::to_owned));
            let stored = bob.post(&stored_at, &filter).await.ok();
            let by_id = bob.get(&format!("/sync?set_presence=offline&since={}&filter={}", encode(&since), stored["filter_id"].as_str().unwrap())).await.ok();
            for sync in [sync_with(&bob, Some(&since), "", &filter).await, by_id] {
                assert_eq!(seen(&sync, [&a, &b]), expected, "{filter}: {sync}");
            }
        }
    }

    // shows: sync
    async fn a_client_has_events_in_the_form_that_it_asks_for(server: TestServer) {
        let alice = server.user("alice").await;
        let room = alice.create_room_with(&json!({ "name": "a name" })).await;
        alice.send(&room, "m.room.message", &json!({ "msgtype": "m.text", "body": "hi", "x": { "y": 1, "z": 2 } })).await;
        let filter = json!({ "event_fields": ["type", "content.body", "content.x.y"], "room": { "timeline": { "limit": 1 } } });
        let shown = sync_with(&alice, None, "", &filter).await["rooms"]["join"][&room].clone();
        let event = &events(&shown["timeline"])[0];
        assert_eq!(event["content"], json!({ "body": "hi", "x": { "y": 1 } }), "{shown}");
        let keys: Vec<&String> = event.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["content", "event_id", "origin_server_ts", "sender", "type"], "{shown}");
        let name = events(&shown["state"]).into_iter().find(|event| event["type"] == "m.room.name").unwrap();
        assert_eq!((&name["content"], &name["state_key"]), (&json!({}), &json!("")), "{shown}");

        let filter = json!({ "event_format": "federation", "room": { "timeline": { "limit": 1 } } });
        let shown = sync_with(&alice, None, "", &filter).await["rooms"]["join"][&room].clone();
        for event in events(&shown["timeline"]).iter().chain(&events(&shown["state"])) {
            assert!(event["hashes"]["sha256"].is_string() && event["signatures"].is_object(), "{event}");
            assert!(event["auth_events"].is_array() && event["prev_events"].is_array(), "{event}");
        }
        assert_eq!(events(&shown["timeline"])[0]["content"]["body"], "hi");
    }

    /// Client-Server API, "Aggregations of child events": in a limited timeline; "Filtering", `event_fields`: as far as it is asked for.
    // shows: sync
    async fn what_relates_to_an_event_is_a_field_of_it(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_public_room().await;
        bob.join(&room).await;
        let since = token(&bob.sync(None).await);
        alice.send_text(&room, "before").await;
        let first = alice.send_text(&room, "old").await;
        let edit = json!({
            "msgtype": "m.text", "body": "* new", "m.new_content": { "msgtype": "m.text", "body": "new" },
            "m.relates_to": { "rel_type": "m.replace", "event_id": first },
        });
        let edit = alice.send(&room, "m.room.message", &edit).await;
        for (limit, fields, expected) in [
            (2, json!(["content", "unsigned.m\\.relations"]), vec!["m.relations"]),
            (2, json!(["content", "unsigned"]), vec!["age", "m.relations", "membership"]),
            (2, json!(["content", "unsigned.m.relations"]), vec![]),
            (2, json!(["content"]), vec![]),
            // Who is told everything puts it together.
            (3, json!(["content", "unsigned.m\\.relations"]), vec![]),
        ] {
            let filter = json!({ "event_fields": fields, "room": { "timeline": { "limit": limit } } });
            let sync = sync_with(&bob, Some(&since), "", &filter).await;
            let timeline = &sync["rooms"]["join"][&room]["timeline"];
            assert_eq!(timeline["limited"].as_bool().unwrap_or_default(), limit == 2, "{sync}");
            let event = events(timeline).into_iter().find(|event| event["event_id"] == *first).unwrap();
            assert_eq!(event["content"], json!({ "msgtype": "m.text", "body": "old" }), "{sync}");
            let unsigned = event["unsigned"].as_object().cloned().unwrap_or_default();
            let keys: Vec<&String> = unsigned.keys().collect();
            assert_eq!(keys, expected, "{fields}: {sync}");
            if let Some(relations) = unsigned.get("m.relations") {
                assert_eq!(relations["m.replace"]["event_id"], *edit, "{sync}");
                assert_eq!(relations["m.replace"]["content"]["m.new_content"]["body"], "new", "{sync}");
            }
        }
    }

    // shows: sync
    async fn a_lazy_client_is_told_of_a_member_once_and_again_when_the_answer_was_lost(server: TestServer) {
        let (alice, bob, carol) = (server.user("alice").await, server.user("bob").await, server.user("carol").await);
        let room = alice.create_public_room().await;
        bob.join(&room).await;
        carol.join(&room).await;
        alice.send_text(&room, "first").await;
        let lazy: Value = serde_json::from_str(LAZY).unwrap();
        let mut quiet = lazy.clone();
        quiet["room"]["timeline"] = json!({ "limit": 1 });
        let first = sync_with(&bob, None, "", &quiet).await;
        let told: BTreeSet<String> = members(&first, &room).into_iter().collect();
        let everyone: BTreeSet<String> = [&alice, &bob, &carol].map(|user| user.id().to_owned()).into();
        assert_eq!(told, everyone, "the sender, the user, and the heroes");

        // Not a hero, and not told yet.
        let dave = server.user("dave").await;
        dave.join(&room).await;
        let since = token(&sync_with(&bob, Some(&token(&first)), "", &json!({ "room": { "timeline": { "types": [] }, "state": { "types": [], "lazy_load_members": true } } })).await);
        alice.send_text(&room, "known").await;
        dave.send_text(&room, "new").await;
        let lost = sync_with(&bob, Some(&since), "", &lazy).await;
        assert_eq!(members(&lost, &room), [dave.id()], "{lost}");
        // The client asks again with the token that it has.
        let again = sync_with(&bob, Some(&since), "", &lazy).await;
        assert_eq!(members(&again, &room), [dave.id()], "{again}");
        dave.send_text(&room, "more").await;
        let next = sync_with(&bob, Some(&token(&again)), "", &lazy).await;
        assert_eq!(members(&next, &room), [""; 0], "{next}");
        let redundant = json!({ "room": { "state": { "lazy_load_members": true, "include_redundant_members": true } } });
        let next = sync_with(&bob, Some(&token(&again)), "", &redundant).await;
        assert_eq!(members(&next, &room), [dave.id()], "{next}");
        // Another device knows nothing of what this one was told.
        let phone = bob.log_in_again().await;
        let next = sync_with(&phone, Some(&token(&again)), "", &lazy).await;
        assert_eq!(members(&next, &room), [dave.id()], "{next}");
        let full = sync_with(&bob, Some(&token(&again)), "&full_state=true", &lazy).await;
        assert!(members(&full, &room).contains(&bob.id().to_owned()), "{full}");
    }

    // shows: sync
    async fn a_summary_comes_when_it_changed_and_only_then(server: TestServer) {
        let (alice, bob, carol) = (server.user("alice").await, server.user("bob").await, server.user("carol").await);
        let room = alice.create_public_room().await;
        bob.join(&room).await;
        let mut since = token(&bob.sync(None).await);
        let mut summary = async || {
            let sync = bob.sync(Some(&since)).await;
            since = token(&sync);
            sync["rooms"]["join"][&room]["summary"].clone()
        };
        alice.send_text(&room, "hello").await;
        assert!(summary().await.is_null());
        alice.put(&format!("/profile/{}/displayname", encode(alice.id())), &json!({ "displayname": "A" })).await.ok();
        let member = format!("/rooms/{}/state/m.room.member/{}", encode(&room), encode(alice.id()));
        eventually!(alice.get(&member).await.ok()["displayname"] == "A");
        assert!(summary().await.is_null(), "a name is no coming or going");
        carol.join(&room).await;
        let told = summary().await;
        assert_eq!((&told["m.joined_member_count"], &told["m.heroes"]), (&json!(3), &json!([alice.id(), carol.id()])));
        carol.leave(&room).await;
        let told = summary().await;
        assert_eq!((&told["m.joined_member_count"], &told["m.heroes"]), (&json!(2), &json!([alice.id()])));
        alice.set_state(&room, "m.room.name", "", &json!({ "name": "a name" })).await;
        assert!(summary().await["m.heroes"].is_null());
        alice.set_state(&room, "m.room.topic", "", &json!({ "topic": "a topic" })).await;
        assert!(summary().await.is_null());
    }

    // shows: sync
    async fn an_archived_room_is_shown_as_it_was_left(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_room_with(&json!({ "preset": "public_chat", "name": "before" })).await;
        bob.join(&room).await;
        bob.put(&format!("/user/{}/rooms/{}/tags/u.x", encode(bob.id()), encode(&room)), &json!({})).await.ok();
        alice.send_text(&room, "for bob").await;
        bob.leave(&room).await;
        alice.set_state(&room, "m.room.name", "", &json!({ "name": "after" })).await;
        alice.send_text(&room, "not for bob").await;
        assert!(bob.sync(None).await["rooms"]["leave"].is_null());
        let filter = json!({ "room": { "include_leave": true, "timeline": { "limit": 2 } } });
        for query in ["", "&use_state_after=true"] {
            let sync = sync_with(&bob, None, query, &filter).await;
            let shown = &sync["rooms"]["leave"][&room];
            let state = if query.is_empty() { &shown["state"] } else { &shown["state_after"] };
            let name = events(state).into_iter().find(|event| event["type"] == "m.room.name").unwrap();
            assert_eq!(name["content"]["name"], "before", "{sync}");
            let bodies: Vec<Value> = events(&shown["timeline"]).iter().map(|event| event["content"].clone()).collect();
            assert_eq!(bodies[0]["body"], "for bob", "{sync}");
            assert_eq!(bodies[1]["membership"], "leave", "{sync}");
            assert_eq!(events(&shown["account_data"])[0]["type"], "m.tag", "{sync}");
            assert!(!sync.to_string().contains("not for bob"));
        }
    }

    // shows: getRoomEvents, getEventContext
    async fn pages_and_contexts_are_filtered_as_timelines_are(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_room_with(&json!({ "preset": "public_chat", "name": "a name" })).await;
        bob.join(&room).await;
        alice.send(&room, "m.room.message", &json!({ "msgtype": "m.image", "body": "url", "url": "mxc://a/b" })).await;
        let middle = alice.send_text(&room, "middle").await;
        bob.send_text(&room, "own").await;
        let bodies = |chunk: &Value| -> Vec<String> {
            let events = chunk.as_array().cloned().unwrap_or_default();
            events.iter().filter_map(|event| event["content"]["body"].as_str().map(str::to_owned)).collect()
        };
        for (filter, expected) in [
            (json!({ "types": ["m.room.message"] }), vec!["own", "middle", "url"]),
            (json!({ "types": ["m.room.mess*"], "senders": [alice.id()] }), vec!["middle", "url"]),
            (json!({ "not_senders": [alice.id()] }), vec!["own"]),
            (json!({ "contains_url": true }), vec!["url"]),
            (json!({ "contains_url": false, "not_senders": [bob.id()] }), vec!["middle"]),
            (json!({ "not_types": ["m.room.message"] }), vec![]),
            (json!({ "not_rooms": [room] }), vec![]),
            (json!({ "rooms": [room], "limit": 2 }), vec!["own", "middle"]),
        ] {
            let query = format!("filter={}", encode(&filter.to_string()));
            let page = bob.get(&format!("/rooms/{}/messages?dir=b&limit=50&{query}", encode(&room))).await.ok();
            assert_eq!(bodies(&page["chunk"]), expected, "{filter}");
            let context = format!("/rooms/{}/context/{}?limit=50&{query}", encode(&room), encode(&middle));
            let context = bob.get(&context).await.ok();
            assert_eq!(context["event"]["content"]["body"], "middle", "the event itself is not filtered: {filter}");
            let around = [bodies(&context["events_before"]), bodies(&context["events_after"])].concat();
            if filter["limit"].is_null() {
                assert!(around.iter().all(|body| expected.contains(&body.as_str())), "{filter}: {around:?}");
            } else {
                assert_eq!(around, ["url", "own"], "{filter}");
            }
        }
        let no_state = encode(&json!({ "not_types": ["m.room.name"] }).to_string());
        let path = format!("/rooms/{}/context/{}?limit=5&filter={no_state}", encode(&room), encode(&middle));
        let state = bob.get(&path).await.ok()["state"].clone();
        let types: Vec<&str> = state.as_array().unwrap().iter().filter_map(|event| event["type"].as_str()).collect();
        assert!(types.contains(&"m.room.create") && !types.contains(&"m.room.name"), "{types:?}");
    }

    /// Kicked, banned, back again: what happened between two answers.
    // shows: sync
    async fn who_comes_and_goes_between_two_syncs_is_told_where_they_are_now(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_public_room().await;
        let place = |sync: &Value| {
            ["join", "invite", "knock", "leave"].into_iter().find(|kind| sync["rooms"][*kind][&room].is_object())
        };
        for (steps, expected) in [
            (vec!["join"], Some("join")),
            (vec!["leave", "join"], Some("join")),
            (vec!["kick"], Some("leave")),
            (vec!["join", "ban"], Some("leave")),
            (vec!["unban"], Some("leave")),
            (vec!["invite"], Some("invite")),
            (vec!["leave"], Some("leave")),
            (vec!["invite", "leave"], Some("leave")),
            (vec!["invite", "join"], Some("join")),
            (vec![], None),
            (vec!["ban", "unban", "join"], Some("join")),
        ] {
            let since = token(&bob.sync(None).await);
            for step in &steps {
                match *step {
                    "join" => bob.join(&room).await,
                    "leave" => bob.leave(&room).await,
                    "invite" => alice.invite(&room, &bob).await,
                    action => alice.remove(&room, action, &bob).await,
                }
            }
            let first = bob.sync(Some(&since)).await;
            assert_eq!(place(&first), expected, "{steps:?}: {first}");
            // The same token gives the same again.
            let again = bob.sync(Some(&since)).await;
            assert_eq!(place(&again), expected, "{steps:?}: {again}");
            let next = bob.sync(Some(&token(&first))).await;
            assert_eq!(place(&next), None, "{steps:?}: {next}");
        }
    }
}
