//! Rooms: who is in them, what they are, what was said.

use serde_json::{Value, json};
use test_kit::{TestUser, encode, on_each_database};

async fn members(user: &TestUser, room: &str) -> Vec<String> {
    let answer = user.get(&format!("/rooms/{}/joined_members", encode(room))).await.ok();
    answer["joined"].as_object().unwrap().keys().cloned().collect()
}

on_each_database! {
    // shows: createRoom, inviteUser, joinRoomById, getJoinedMembersByRoom, getJoinedRooms
    async fn only_who_was_invited_joins_a_private_room(server: TestServer) {
        let (alice, bob, eve) = (server.user("alice").await, server.user("bob").await, server.user("eve").await);
        let room = alice.create_room().await;
        alice.invite(&room, &bob).await;
        bob.join(&room).await;
        eve.in_room(&room, "join", &json!({})).await.is_error(403, "M_FORBIDDEN");
        assert_eq!(members(&alice, &room).await, [alice.id(), bob.id()]);
        assert_eq!(bob.get("/joined_rooms").await.ok(), json!({ "joined_rooms": [room] }));
        eve.get(&format!("/rooms/{}/joined_members", encode(&room))).await.is_error(403, "M_FORBIDDEN");
    }

    // shows: createRoom
    async fn a_room_of_every_version_can_be_talked_in(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        for version in 1..=12 {
            let body = json!({ "preset": "public_chat", "room_version": version.to_string() });
            let room = alice.create_room_with(&body).await;
            bob.join(&room).await;
            alice.send_text(&room, "hello").await;
            let event = bob.send_text(&room, "hello yourself").await;
            bob.redact(&room, &event).await;
            assert_eq!(bob.texts(&room).await, ["hello"], "in room version {version}");
        }
        alice.post("/createRoom", &json!({ "room_version": "99" })).await.is_error(400, "M_UNSUPPORTED_ROOM_VERSION");
    }

    // shows: sendMessage, getOneRoomEvent
    async fn a_repeated_transaction_is_one_event(server: TestServer) {
        let alice = server.user("alice").await;
        let room = alice.create_room().await;
        let path = format!("/rooms/{}/send/m.room.message/once", encode(&room));
        let content = json!({ "msgtype": "m.text", "body": "once" });
        let first = alice.put(&path, &content).await.ok();
        let second = alice.put(&path, &content).await.ok();
        assert_eq!(first, second);
        assert_eq!(alice.texts(&room).await, ["once"]);
        // Another device has transactions of its own.
        let third = alice.log_in_again().await.put(&path, &content).await.ok();
        assert_ne!(first, third);
        let event = first["event_id"].as_str().unwrap();
        let event = alice.get(&format!("/rooms/{}/event/{}", encode(&room), encode(event))).await.ok();
        assert_eq!((&event["content"], &event["sender"]), (&content, &json!(alice.id())));
    }

    // shows: kick, ban, unban
    async fn who_is_banned_stays_out_until_unbanned(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_public_room().await;
        bob.join(&room).await;
        alice.remove(&room, "kick", &bob).await;
        bob.join(&room).await;
        alice.remove(&room, "ban", &bob).await;
        bob.in_room(&room, "join", &json!({})).await.is_error(403, "M_FORBIDDEN");
        bob.try_send(&room, "m.room.message", &json!({ "body": "x" })).await.is_error(403, "M_FORBIDDEN");
        assert_eq!(members(&alice, &room).await, [alice.id()]);
        alice.remove(&room, "unban", &bob).await;
        bob.join(&room).await;
        assert_eq!(members(&alice, &room).await, [alice.id(), bob.id()]);
        bob.in_room(&room, "ban", &json!({ "user_id": alice.id() })).await.is_error(403, "M_FORBIDDEN");
    }

    // shows: leaveRoom, forgetRoom, getJoinedRooms
    async fn a_room_is_left_before_it_is_forgotten(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_public_room().await;
        bob.join(&room).await;
        assert_eq!(bob.in_room(&room, "forget", &json!({})).await.status.as_u16(), 400);
        bob.leave(&room).await;
        bob.in_room(&room, "forget", &json!({})).await.ok();
        assert_eq!(bob.get("/joined_rooms").await.ok(), json!({ "joined_rooms": [] }));
        bob.get(&format!("/rooms/{}/messages?dir=b", encode(&room))).await.is_error(403, "M_FORBIDDEN");
    }

    // shows: setRoomStateWithKey, getRoomStateWithKey, getRoomState
    async fn state_is_set_by_who_has_the_power(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_public_room().await;
        bob.join(&room).await;
        alice.set_state(&room, "m.room.name", "", &json!({ "name": "a name" })).await;
        bob.try_set_state(&room, "m.room.name", "", &json!({ "name": "b" })).await.is_error(403, "M_FORBIDDEN");
        let path = format!("/rooms/{}/state", encode(&room));
        assert_eq!(bob.get(&format!("{path}/m.room.name/")).await.ok(), json!({ "name": "a name" }));
        bob.get(&format!("{path}/m.room.topic/")).await.is_error(404, "M_NOT_FOUND");
        let state = bob.get(&path).await.ok();
        let types: Vec<&str> = state.as_array().unwrap().iter().filter_map(|event| event["type"].as_str()).collect();
        assert_eq!(types.iter().filter(|event_type| **event_type == "m.room.member").count(), 2);
        assert!(types.contains(&"m.room.name") && types.contains(&"m.room.create"), "{types:?}");
    }

    // shows: redactEvent, getOneRoomEvent
    async fn a_redacted_message_says_nothing_any_more(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_public_room().await;
        bob.join(&room).await;
        let event = alice.send_text(&room, "a secret").await;
        let redact = format!("/rooms/{}/redact/{}/x", encode(&room), encode(&event));
        bob.put(&redact, &json!({})).await.is_error(403, "M_FORBIDDEN");
        alice.redact(&room, &event).await;
        let seen = bob.get(&format!("/rooms/{}/event/{}", encode(&room), encode(&event))).await.ok();
        assert_eq!(seen["content"], json!({}));
        assert!(seen["unsigned"]["redacted_because"].is_object(), "{seen}");
    }

    // shows: setRoomAlias, getRoomIdByAlias, getLocalAliases, deleteRoomAlias, joinRoom
    async fn a_room_is_found_by_its_alias(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_public_room().await;
        let path = "/directory/room/%23place%3Alocalhost";
        alice.put(path, &json!({ "room_id": room })).await.ok();
        assert_eq!(alice.put(path, &json!({ "room_id": room })).await.status.as_u16(), 409);
        assert_eq!(bob.get(path).await.ok()["room_id"], room);
        assert_eq!(bob.post("/join/%23place%3Alocalhost", &json!({})).await.ok()["room_id"], room);
        let aliases = bob.get(&format!("/rooms/{}/aliases", encode(&room))).await.ok();
        assert_eq!(aliases, json!({ "aliases": ["#place:localhost"] }));
        bob.request("DELETE", path, &Value::Null).await.is_error(403, "M_FORBIDDEN");
        alice.request("DELETE", path, &Value::Null).await.ok();
        bob.get(path).await.is_error(404, "M_NOT_FOUND");
    }

    // shows: getRoomEvents, getEventContext
    async fn history_is_paged_both_ways_without_a_hole(server: TestServer) {
        let alice = server.user("alice").await;
        let room = alice.create_room().await;
        let mut sent = Vec::new();
        for number in 0..25 {
            sent.push(alice.send_text(&room, &number.to_string()).await);
        }
        for (direction, mut expected) in [("f", sent.clone()), ("b", sent.iter().rev().cloned().collect())] {
            let (mut found, mut from) = (Vec::new(), String::new());
            for _ in 0..30 {
                let path = format!("/rooms/{}/messages?dir={direction}&limit=4{from}", encode(&room));
                let page = alice.get(&path).await.ok();
                let events = page["chunk"].as_array().unwrap().iter();
                let messages = events.filter(|event| event["type"] == "m.room.message");
                found.extend(messages.filter_map(|event| event["event_id"].as_str().map(str::to_owned)));
                let Some(end) = page["end"].as_str() else { break };
                from = format!("&from={}", encode(end));
            }
            assert_eq!(found, std::mem::take(&mut expected), "in direction {direction}");
        }
        let path = format!("/rooms/{}/context/{}?limit=4", encode(&room), encode(&sent[10]));
        let context = alice.get(&path).await.ok();
        let ids = |key: &str| -> Vec<String> {
            let events = context[key].as_array().unwrap().iter();
            events.filter_map(|event| event["event_id"].as_str().map(str::to_owned)).collect()
        };
        assert_eq!(context["event"]["event_id"], sent[10]);
        assert_eq!(ids("events_before"), [sent[9].clone(), sent[8].clone()]);
        assert_eq!(ids("events_after"), [sent[11].clone(), sent[12].clone()]);
    }

    // shows: getRoomEvents, getOneRoomEvent
    async fn what_was_said_before_joining_is_seen_as_the_history_visibility_says(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        for (visibility, seen) in [("shared", vec!["before", "after"]), ("joined", vec!["after"])] {
            let state = json!([{ "type": "m.room.history_visibility", "content": { "history_visibility": visibility } }]);
            let body = json!({ "preset": "public_chat", "initial_state": state });
            let room = alice.create_room_with(&body).await;
            let before = alice.send_text(&room, "before").await;
            bob.join(&room).await;
            alice.send_text(&room, "after").await;
            assert_eq!(bob.texts(&room).await, seen, "with {visibility}");
            let path = format!("/rooms/{}/event/{}", encode(&room), encode(&before));
            let status = bob.get(&path).await.status.as_u16();
            assert_eq!(status, if visibility == "shared" { 200 } else { 404 }, "with {visibility}");
        }
    }

    // shows: setRoomVisibilityOnDirectory, getRoomVisibilityOnDirectory, getPublicRooms, queryPublicRooms
    async fn the_directory_lists_rooms_that_were_put_there(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_room_with(&json!({ "preset": "public_chat", "name": "a place" })).await;
        let path = format!("/directory/list/room/{}", encode(&room));
        assert_eq!(bob.get(&path).await.ok(), json!({ "visibility": "private" }));
        assert_eq!(bob.get("/publicRooms").await.ok()["chunk"], json!([]));
        bob.put(&path, &json!({ "visibility": "public" })).await.is_error(403, "M_FORBIDDEN");
        alice.put(&path, &json!({ "visibility": "public" })).await.ok();
        let listed = bob.get("/publicRooms").await.ok();
        assert_eq!(listed["chunk"][0]["room_id"], room);
        assert_eq!(listed["chunk"][0]["num_joined_members"], 1);
        let search = async |term: &str| bob.post("/publicRooms", &json!({ "filter": { "generic_search_term": term } })).await.ok();
        assert_eq!(search("PLACE").await["chunk"][0]["name"], "a place");
        assert_eq!(search("elsewhere").await["chunk"], json!([]));
    }

    // shows: knockRoom, inviteUser
    async fn who_knocks_is_let_in_by_an_invitation(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_room().await;
        let knock = format!("/knock/{}", encode(&room));
        bob.post(&knock, &json!({})).await.is_error(403, "M_FORBIDDEN");
        alice.set_state(&room, "m.room.join_rules", "", &json!({ "join_rule": "knock" })).await;
        assert_eq!(bob.post(&knock, &json!({ "reason": "please" })).await.ok()["room_id"], room);
        let path = format!("/rooms/{}/state/m.room.member/{}", encode(&room), encode(bob.id()));
        let member = alice.get(&path).await.ok();
        assert_eq!((&member["membership"], &member["reason"]), (&json!("knock"), &json!("please")));
        bob.in_room(&room, "join", &json!({})).await.is_error(403, "M_FORBIDDEN");
        alice.invite(&room, &bob).await;
        bob.join(&room).await;
    }

    // shows: upgradeRoom, getRoomStateWithKey
    async fn an_upgraded_room_leads_to_its_successor(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let body = json!({ "preset": "public_chat", "room_version": "10", "name": "a place" });
        let room = alice.create_room_with(&body).await;
        bob.join(&room).await;
        bob.in_room(&room, "upgrade", &json!({ "new_version": "12" })).await.is_error(403, "M_FORBIDDEN");
        let answer = alice.in_room(&room, "upgrade", &json!({ "new_version": "12" })).await.ok();
        let successor = answer["replacement_room"].as_str().unwrap();
        let state = async |room: &str, event_type: &str| {
            alice.get(&format!("/rooms/{}/state/{event_type}/", encode(room))).await.ok()
        };
        assert_eq!(state(&room, "m.room.tombstone").await["replacement_room"], successor);
        assert_eq!(state(successor, "m.room.create").await["room_version"], "12");
        assert_eq!(state(successor, "m.room.create").await["predecessor"]["room_id"], room);
        assert_eq!(state(successor, "m.room.name").await["name"], "a place");
        bob.try_send(&room, "m.room.message", &json!({ "body": "x" })).await.is_error(403, "M_FORBIDDEN");
        bob.join(successor).await;
    }

    // shows: getMembersByRoom
    async fn members_are_listed_by_what_they_are(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_room().await;
        alice.invite(&room, &bob).await;
        let list = async |query: &str| -> Vec<String> {
            let answer = alice.get(&format!("/rooms/{}/members{query}", encode(&room))).await.ok();
            let mut keys: Vec<String> =
                answer["chunk"].as_array().unwrap().iter().map(|event| event["state_key"].as_str().unwrap().to_owned()).collect();
            keys.sort();
            keys
        };
        assert_eq!(list("").await, [alice.id(), bob.id()]);
        assert_eq!(list("?membership=invite").await, [bob.id()]);
        assert_eq!(list("?not_membership=invite").await, [alice.id()]);
    }

    // shows: getMembersByRoom
    async fn members_at_a_token_are_those_before_it(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_public_room().await;
        bob.join(&room).await;
        // The token lies right before the newest event, which is the join.
        let filter = encode(r#"{"room":{"timeline":{"limit":1}}}"#);
        let answer = alice.get(&format!("/sync?filter={filter}")).await.ok();
        let timeline = &answer["rooms"]["join"][&room]["timeline"];
        assert_eq!(timeline["events"][0]["state_key"], bob.id());
        let count = async |token: &Value| {
            let at = encode(token.as_str().unwrap());
            let answer = alice.get(&format!("/rooms/{}/members?at={at}", encode(&room))).await.ok();
            answer["chunk"].as_array().unwrap().len()
        };
        assert_eq!(count(&timeline["prev_batch"]).await, 1);
        assert_eq!(count(&answer["next_batch"]).await, 2);
    }

    /// Client-Server API, "Room history visibility": a token of any time is quickly written.
    // shows: getMembersByRoom
    async fn members_are_not_shown_of_a_time_that_is_hidden(server: TestServer) {
        let (alice, bob, eve) = (server.user("alice").await, server.user("bob").await, server.user("eve").await);
        let room = alice.create_public_room().await;
        let visibility = async |value: &str| {
            let content = json!({ "history_visibility": value });
            alice.set_state(&room, "m.room.history_visibility", "", &content).await;
        };
        let now = async || alice.sync(None).await["next_batch"].as_str().unwrap().to_owned();
        let members = async |user: &TestUser, at: &str| {
            user.get(&format!("/rooms/{}/members?at={}", encode(&room), encode(at))).await
        };
        visibility("joined").await;
        let before = now().await;
        bob.join(&room).await;
        let first = now().await;
        bob.leave(&room).await;
        alice.send_text(&room, "between us").await;
        let between = now().await;
        bob.join(&room).await;
        let second = now().await;
        for hidden in [&before, &between] {
            members(&bob, hidden).await.is_error(403, "M_FORBIDDEN");
            members(&alice, hidden).await.ok();
        }
        for seen in [&first, &second] {
            assert_eq!(members(&bob, seen).await.ok()["chunk"].as_array().unwrap().len(), 2);
        }
        visibility("world_readable").await;
        // Far ahead is now.
        for seen in [&*now().await, "t1_fffffff_0"] {
            assert_eq!(members(&eve, seen).await.ok()["chunk"].as_array().unwrap().len(), 2);
        }
        for hidden in [before, first, between, second] {
            members(&eve, &hidden).await.is_error(403, "M_FORBIDDEN");
        }
    }

    // shows: getRoomEvents
    async fn a_page_starts_at_the_token_that_was_given(server: TestServer) {
        let alice = server.user("alice").await;
        let room = alice.create_room().await;
        let token = alice.sync(None).await["next_batch"].as_str().unwrap().to_owned();
        let path = format!("/rooms/{}/messages?dir=b", encode(&room));
        assert_eq!(alice.get(&format!("{path}&from={}", encode(&token))).await.ok()["start"], token);
        assert!(alice.get(&path).await.ok()["start"].is_string());
    }

    // shows: inviteBy3PID
    async fn nobody_is_invited_by_address_without_an_identity_server(server: TestServer) {
        let alice = server.user("alice").await;
        let room = alice.create_room().await;
        let body = json!({
            "id_server": "id.example.org", "id_access_token": "x", "medium": "email", "address": "bob@example.org",
        });
        let answer = alice.in_room(&room, "invite", &body).await;
        assert!(answer.status.is_client_error() && !answer.errcode().is_empty(), "{answer}");
        assert_eq!(members(&alice, &room).await, [alice.id()]);
        let state = alice.get(&format!("/rooms/{}/state", encode(&room))).await.ok();
        assert!(!state.to_string().contains("m.room.third_party_invite"), "{state}");
    }
}
