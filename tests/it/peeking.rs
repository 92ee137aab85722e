//! Guests, and looking into rooms that the world may read.

use serde_json::{Value, json};
use test_kit::{TestUser, encode, on_each_database};

/// A room that the world may read, with a first message.
async fn readable_room(user: &TestUser) -> String {
    let room = user
        .create_room_with(&json!({
            "name": "a place", "initial_state": [
                { "type": "m.room.history_visibility", "content": { "history_visibility": "world_readable" } },
            ],
        }))
        .await;
    user.send_text(&room, "first").await;
    room
}

async fn set_visibility(user: &TestUser, room: &str, visibility: &str) {
    user.set_state(room, "m.room.history_visibility", "", &json!({ "history_visibility": visibility })).await;
}

async fn initial_sync(user: &TestUser, room: &str) -> test_kit::Answer {
    user.get(&format!("/rooms/{}/initialSync", encode(room))).await
}

async fn peek(user: &TestUser, room: &str, from: &str, timeout_ms: u64) -> test_kit::Answer {
    let from = if from.is_empty() { String::new() } else { format!("&from={}", encode(from)) };
    user.get(&format!("/events?room_id={}&timeout={timeout_ms}{from}", encode(room))).await
}

fn bodies(chunk: &Value) -> Vec<&str> {
    chunk.as_array().unwrap().iter().filter_map(|event| event["content"]["body"].as_str()).collect()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("{value} lacks {key}"))
}

on_each_database! {
    // shows: roomInitialSync, peekEvents
    async fn who_never_joined_follows_a_room_that_the_world_may_read(server: TestServer) {
        let (alice, bob, guest) = (server.user("alice").await, server.user("bob").await, server.guest().await);
        let room = readable_room(&alice).await;
        for who in [&bob, &guest] {
            let snapshot = initial_sync(who, &room).await.ok();
            assert_eq!((&snapshot["membership"], &snapshot["visibility"]), (&Value::Null, &json!("private")));
            assert_eq!(bodies(&snapshot["messages"]["chunk"]), ["first"]);
            // Oldest first, from when the world may read it.
            assert_eq!(snapshot["messages"]["chunk"][0]["type"], "m.room.history_visibility");
            assert!(snapshot["state"].as_array().unwrap().iter().any(|event| event["content"]["name"] == "a place"));
            let end = text(&snapshot["messages"], "end");
            let nothing = peek(who, &room, end, 0).await.ok();
            assert_eq!((&nothing["chunk"], text(&nothing, "end")), (&json!([]), end));
            // The message that comes while they wait, and then nothing twice.
            let (news, _) = tokio::join!(peek(who, &room, end, 20_000), alice.send_text(&room, "second"));
            let news = news.ok();
            assert_eq!((bodies(&news["chunk"]), text(&news, "start")), (vec!["second"], end));
            assert_eq!(news["chunk"][0]["room_id"], room);
            assert_eq!(peek(who, &room, text(&news, "end"), 0).await.ok()["chunk"], json!([]));
            // Without a token they follow from now on.
            assert_eq!(peek(who, &room, "", 0).await.ok()["chunk"], json!([]));
            alice.redact(&room, text(&news["chunk"][0], "event_id")).await;
        }
        peek(&bob, &room, "nonsense", 0).await.is_error(400, "M_INVALID_PARAM");
        peek(&bob, &room, "s1_fffffff", 0).await.is_error(400, "M_INVALID_PARAM");
        bob.get("/events").await.is_error(400, "M_MISSING_PARAM");
    }

    /// Client-Server API, "Room Previews": only what was said while the world might read it.
    // shows: peekEvents, roomInitialSync
    async fn a_stranger_sees_what_was_said_while_the_world_might_read(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = readable_room(&alice).await;
        let end = text(&initial_sync(&bob, &room).await.ok()["messages"], "end").to_owned();
        set_visibility(&alice, &room, "shared").await;
        let secret = alice.send_text(&room, "between us").await;
        for answer in [
            initial_sync(&bob, &room).await,
            peek(&bob, &room, &end, 0).await,
            bob.get(&format!("/rooms/{}/messages?dir=b", encode(&room))).await,
            bob.get(&format!("/rooms/{}/state", encode(&room))).await,
            bob.get(&format!("/rooms/{}/members", encode(&room))).await,
            bob.get(&format!("/rooms/{}/aliases", encode(&room))).await,
        ] {
            answer.is_error(403, "M_FORBIDDEN");
        }
        set_visibility(&alice, &room, "world_readable").await;
        alice.send_text(&room, "third").await;
        assert_eq!(bodies(&initial_sync(&bob, &room).await.ok()["messages"]["chunk"]), ["first", "third"]);
        assert_eq!(bodies(&peek(&bob, &room, &end, 0).await.ok()["chunk"]), ["third"]);
        assert_eq!(bob.texts(&room).await, ["first", "third"]);
        bob.get(&format!("/rooms/{}/event/{}", encode(&room), encode(&secret))).await.is_error(404, "M_NOT_FOUND");
        bob.get(&format!("/rooms/{}/context/{}", encode(&room), encode(&secret))).await.is_error(404, "M_NOT_FOUND");
        // A member sees all of it.
        assert_eq!(alice.texts(&room).await, ["first", "between us", "third"]);
    }

    // shows: peekEvents
    async fn a_look_ends_when_the_room_closes(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = readable_room(&alice).await;
        let end = text(&initial_sync(&bob, &room).await.ok()["messages"], "end").to_owned();
        let closes = set_visibility(&alice, &room, "joined");
        let (waiting, ()) = tokio::join!(peek(&bob, &room, &end, 20_000), closes);
        // They saw it close, or came too late for that.
        if waiting.status.is_success() {
            assert_eq!(waiting.ok()["chunk"][0]["type"], "m.room.history_visibility");
        } else {
            waiting.is_error(403, "M_FORBIDDEN");
        }
        alice.send_text(&room, "between us").await;
        peek(&bob, &room, &end, 0).await.is_error(403, "M_FORBIDDEN");
    }

    // shows: roomInitialSync
    async fn a_member_gets_the_snapshot_of_a_room_and_who_has_left_that_of_then(server: TestServer) {
        let (alice, bob, eve) = (server.user("alice").await, server.user("bob").await, server.user("eve").await);
        let body = json!({ "preset": "public_chat", "name": "then", "visibility": "public" });
        let room = alice.create_room_with(&body).await;
        bob.join(&room).await;
        let tags = format!("/user/{}/rooms/{}/tags/m.favourite", encode(bob.id()), encode(&room));
        bob.put(&tags, &json!({})).await.ok();
        let snapshot = initial_sync(&bob, &room).await.ok();
        assert_eq!((&snapshot["membership"], &snapshot["visibility"]), (&json!("join"), &json!("public")));
        assert_eq!(snapshot["account_data"], json!([{ "type": "m.tag", "content": { "tags": { "m.favourite": {} } } }]));
        bob.leave(&room).await;
        alice.set_state(&room, "m.room.name", "", &json!({ "name": "now" })).await;
        let left = initial_sync(&bob, &room).await.ok();
        assert_eq!(left["membership"], "leave");
        let name = left["state"].as_array().unwrap().iter().find(|event| event["type"] == "m.room.name").unwrap();
        assert_eq!(name["content"]["name"], "then");
        initial_sync(&eve, &room).await.is_error(403, "M_FORBIDDEN");
        initial_sync(&eve, "!nowhere:localhost").await.is_error(403, "M_FORBIDDEN");
    }

    /// Client-Server API, "Guest Access": the list of what guests may ask for, and nothing else.
    async fn guests_may_ask_for_what_is_listed(server: TestServer) {
        let (alice, guest) = (server.user("alice").await, server.guest().await);
        let room = readable_room(&alice).await;
        let event = alice.send_text(&room, "seen").await;
        alice.set_state(&room, "m.room.join_rules", "", &json!({ "join_rule": "public" })).await;
        alice.set_state(&room, "m.room.guest_access", "", &json!({ "guest_access": "can_join" })).await;
        let (room, me, event) = (encode(&room), encode(guest.id()), encode(&event));
        let null = Value::Null;
        let device = encode(guest.device_id());
        for (method, path, body) in [
            ("GET", format!("/rooms/{room}/state"), null.clone()),
            ("GET", format!("/rooms/{room}/context/{event}"), null.clone()),
            ("GET", format!("/rooms/{room}/event/{event}"), null.clone()),
            ("GET", format!("/rooms/{room}/state/m.room.name/"), null.clone()),
            ("GET", format!("/rooms/{room}/messages?dir=b"), null.clone()),
            ("GET", format!("/rooms/{room}/members"), null.clone()),
            ("GET", format!("/rooms/{room}/initialSync"), null.clone()),
            ("GET", "/sync".to_owned(), null.clone()),
            ("GET", format!("/events?room_id={room}"), null.clone()),
            ("POST", format!("/rooms/{room}/join"), json!({})),
            ("PUT", format!("/rooms/{room}/send/org.example.any/t1"), json!({})),
            ("PUT", "/sendToDevice/m.dummy/t2".to_owned(), json!({ "messages": {} })),
            ("POST", format!("/rooms/{room}/leave"), json!({})),
            ("PUT", format!("/profile/{me}/displayname"), json!({ "displayname": "a guest" })),
            ("DELETE", format!("/profile/{me}/displayname"), null.clone()),
            ("GET", "/devices".to_owned(), null.clone()),
            ("GET", format!("/devices/{device}"), null.clone()),
            ("PUT", format!("/devices/{device}"), json!({ "display_name": "a phone" })),
            ("GET", "/account/whoami".to_owned(), null.clone()),
            ("POST", "/keys/upload".to_owned(), json!({})),
            ("POST", "/keys/query".to_owned(), json!({ "device_keys": {} })),
            ("POST", "/keys/claim".to_owned(), json!({ "one_time_keys": {} })),
        ] {
            let answer = guest.request(method, &path, &body).await;
            assert_eq!(answer.status, 200, "{method} {path}: {answer}");
        }
        // Sending state is allowed too; the room decides.
        guest.request("POST", &format!("/rooms/{room}/join"), &json!({})).await.ok();
        guest.put(&format!("/rooms/{room}/state/m.room.name/"), &json!({ "name": "x" })).await.is_error(403, "M_FORBIDDEN");
        for (method, path, body) in [
            ("POST", "/createRoom".to_owned(), json!({})),
            ("POST", format!("/rooms/{room}/invite"), json!({ "user_id": alice.id() })),
            ("POST", format!("/rooms/{room}/kick"), json!({ "user_id": alice.id() })),
            ("POST", format!("/rooms/{room}/upgrade"), json!({ "new_version": "12" })),
            ("POST", format!("/knock/{room}"), json!({})),
            ("PUT", format!("/rooms/{room}/redact/{event}/t3"), json!({})),
            ("PUT", format!("/rooms/{room}/typing/{me}"), json!({ "typing": true })),
            ("GET", "/joined_rooms".to_owned(), null.clone()),
            ("GET", format!("/rooms/{room}/joined_members"), null.clone()),
            ("GET", format!("/rooms/{room}/aliases"), null.clone()),
            ("PUT", "/directory/room/%23guests%3Alocalhost".to_owned(), json!({ "room_id": "!x:localhost" })),
            ("PUT", format!("/directory/list/room/{room}"), json!({ "visibility": "public" })),
            ("POST", "/publicRooms".to_owned(), json!({})),
            ("PUT", format!("/profile/{me}/avatar_url"), json!({ "avatar_url": "mxc://localhost/x" })),
            ("PUT", format!("/user/{me}/account_data/m.x"), json!({})),
            ("GET", "/pushrules/".to_owned(), null.clone()),
            ("GET", "/capabilities".to_owned(), null.clone()),
        ] {
            guest.request(method, &path, &body).await.is_error(403, "M_GUEST_ACCESS_FORBIDDEN");
        }
    }
}
