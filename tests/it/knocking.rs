//! Coming into rooms that do not let everybody in: by knocking, and by being in another room.

use serde_json::{Value, json};
use test_kit::{TestUser, encode, on_each_database};

async fn knock(user: &TestUser, room: &str, body: &Value) -> test_kit::Answer {
    user.post(&format!("/knock/{}", encode(room)), body).await
}

async fn room_with(user: &TestUser, version: &str, join_rules: &Value) -> String {
    user.create_room_with(&json!({
        "room_version": version, "name": "a place",
        "initial_state": [{ "type": "m.room.join_rules", "content": join_rules }],
    }))
    .await
}

async fn member(user: &TestUser, room: &str, of: &TestUser) -> Value {
    user.get(&format!("/rooms/{}/state/m.room.member/{}", encode(room), encode(of.id()))).await.ok()
}

on_each_database! {
    /// Client-Server API, "Knocking on rooms", and "Stripped state".
    // shows: knockRoom, sync
    async fn who_knocks_sees_what_they_knock_at_until_they_are_answered(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = room_with(&alice, "11", &json!({ "join_rule": "knock" })).await;
        let start = bob.sync(None).await["next_batch"].as_str().unwrap().to_owned();
        let answer = knock(&bob, &room, &json!({ "reason": "it is cold" })).await.ok();
        assert_eq!(answer, json!({ "room_id": room }));
        let news = bob.sync(Some(&start)).await;
        let events = news["rooms"]["knock"][&room]["knock_state"]["events"].as_array().unwrap().clone();
        let of_type = |wanted: &str| events.iter().find(|event| event["type"] == wanted);
        assert_eq!(of_type("m.room.name").unwrap()["content"]["name"], "a place");
        let own = events.iter().find(|event| event["state_key"] == bob.id()).unwrap();
        assert_eq!((&own["content"]["membership"], &own["content"]["reason"]), (&json!("knock"), &json!("it is cold")));
        assert!(events.iter().all(|event| event["event_id"].is_null()), "stripped: {events:?}");
        assert!(bob.sync(None).await["rooms"]["knock"][&room].is_object(), "a first sync has it, too");
        for path in ["messages?dir=b", "state", "members"] {
            bob.get(&format!("/rooms/{}/{path}", encode(&room))).await.is_error(403, "M_FORBIDDEN");
        }

        // Withdrawn, refused, and asked in.
        let mut since = news["next_batch"].as_str().unwrap().to_owned();
        bob.leave(&room).await;
        for action in ["kick", "invite"] {
            let news = bob.sync(Some(&since)).await;
            assert!(news["rooms"]["leave"][&room].is_object(), "before {action}: {news}");
            knock(&bob, &room, &json!({})).await.ok();
            since = bob.sync(None).await["next_batch"].as_str().unwrap().to_owned();
            alice.in_room(&room, action, &json!({ "user_id": bob.id() })).await.ok();
        }
        assert!(bob.sync(Some(&since)).await["rooms"]["invite"][&room].is_object());
        knock(&bob, &room, &json!({})).await.is_error(403, "M_FORBIDDEN");
        bob.join(&room).await;
        knock(&bob, &room, &json!({})).await.is_error(403, "M_FORBIDDEN");
        // Who was in the room and has left knocks like anybody else.
        bob.leave(&room).await;
        bob.in_room(&room, "join", &json!({})).await.is_error(403, "M_FORBIDDEN");
        knock(&bob, &room, &json!({})).await.ok();
        alice.remove(&room, "ban", &bob).await;
        knock(&bob, &room, &json!({})).await.is_error(403, "M_FORBIDDEN");
        alice.remove(&room, "unban", &bob).await;
        knock(&bob, &room, &json!({})).await.ok();
    }

    // shows: knockRoom
    async fn one_knocks_where_the_version_of_the_room_knows_it(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        for (version, rule, may) in [
            ("6", "knock", false), ("7", "knock", true), ("11", "knock", true), ("12", "knock", true),
            ("9", "knock_restricted", false), ("10", "knock_restricted", true), ("12", "knock_restricted", true),
            ("11", "invite", false), ("11", "public", false), ("11", "restricted", false),
        ] {
            let room = room_with(&alice, version, &json!({ "join_rule": rule })).await;
            let answer = knock(&bob, &room, &json!({})).await;
            if may {
                assert_eq!(answer.ok()["room_id"], room);
                assert_eq!(member(&alice, &room, &bob).await["membership"], "knock");
            } else {
                answer.is_error(403, "M_FORBIDDEN");
            }
        }
        knock(&bob, "!nowhere:localhost", &json!({})).await.is_error(404, "M_NOT_FOUND");
        knock(&bob, "#nowhere:localhost", &json!({})).await.is_error(404, "M_NOT_FOUND");
        let path = format!("/knock/{}?via=localhost&server_name=localhost", encode("!nowhere:localhost"));
        bob.post(&path, &json!({})).await.is_error(404, "M_NOT_FOUND");
    }

    /// Client-Server API, "Restricted rooms".
    // shows: joinRoomById
    async fn who_is_in_an_allowed_room_is_let_in_by_one_who_may_invite(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let (carol, eve) = (server.user("carol").await, server.user("eve").await);
        let club = alice.create_public_room().await;
        for who in [&bob, &carol] {
            who.join(&club).await;
        }
        let allow = json!([{ "type": "m.room_membership", "room_id": club }]);
        for (version, rule) in [("8", "restricted"), ("9", "restricted"), ("10", "knock_restricted"), ("12", "restricted")] {
            let room = room_with(&alice, version, &json!({ "join_rule": rule, "allow": allow })).await;
            eve.in_room(&room, "join", &json!({})).await.is_error(403, "M_FORBIDDEN");
            bob.join(&room).await;
            let joined = member(&alice, &room, &bob).await;
            assert_eq!(joined["join_authorised_via_users_server"], alice.id(), "in version {version}");
            // Nobody says of themselves who let them in.
            let own = json!({ "membership": "join", "join_authorised_via_users_server": alice.id(), "displayname": "B" });
            bob.set_state(&room, "m.room.member", bob.id(), &own).await;
            assert_eq!(member(&alice, &room, &bob).await["join_authorised_via_users_server"], Value::Null);
            // Only who may invite lets in; when nobody here may, nobody comes in.
            let mut levels = alice.get(&format!("/rooms/{}/state/m.room.power_levels/", encode(&room))).await.ok();
            levels["invite"] = json!(60);
            alice.set_state(&room, "m.room.power_levels", "", &levels).await;
            carol.join(&room).await;
            assert_eq!(member(&alice, &room, &carol).await["join_authorised_via_users_server"], alice.id());
            carol.leave(&room).await;
            alice.leave(&room).await;
            carol.in_room(&room, "join", &json!({})).await.is_error(403, "M_FORBIDDEN");
        }
        // Before version 8 nobody knows the rule.
        let room = room_with(&alice, "7", &json!({ "join_rule": "restricted", "allow": allow })).await;
        bob.in_room(&room, "join", &json!({})).await.is_error(403, "M_FORBIDDEN");
        // Who leaves the club stays in the room, and does not come back.
        let room = room_with(&alice, "11", &json!({ "join_rule": "restricted", "allow": allow })).await;
        bob.join(&room).await;
        bob.leave(&club).await;
        bob.send_text(&room, "still here").await;
        bob.leave(&room).await;
        bob.in_room(&room, "join", &json!({})).await.is_error(403, "M_FORBIDDEN");
        alice.invite(&room, &bob).await;
        bob.join(&room).await;
        alice.remove(&room, "ban", &carol).await;
        carol.in_room(&room, "join", &json!({})).await.is_error(403, "M_FORBIDDEN");
    }

    /// Where every member may invite, whoever is there lets others in.
    async fn a_plain_member_lets_others_in_where_every_member_may_invite(server: TestServer) {
        let (alice, bob, carol) = (server.user("alice").await, server.user("bob").await, server.user("carol").await);
        let club = alice.create_public_room().await;
        bob.join(&club).await;
        carol.join(&club).await;
        let allow = json!([{ "type": "m.room_membership", "room_id": club }]);
        let room = room_with(&alice, "11", &json!({ "join_rule": "restricted", "allow": allow })).await;
        bob.join(&room).await;
        alice.leave(&room).await;
        carol.join(&room).await;
        assert_eq!(member(&bob, &room, &carol).await["join_authorised_via_users_server"], bob.id());
    }
}
