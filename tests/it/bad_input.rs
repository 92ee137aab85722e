//! What is wrong is told as the specification says, and leaves nothing behind.

use serde_json::{Value, json};
use test_kit::{encode, on_each_database};

on_each_database! {
    async fn a_body_that_is_wrong_is_told_in_what_way(server: TestServer) {
        let alice = server.user("alice").await;
        let room = alice.create_room().await;
        let path = format!("/_matrix/client/v3/rooms/{}/send/m.room.message/", encode(&room));
        let nested = format!("{{\"a\":{}1{}}}", "[".repeat(5_000), "]".repeat(5_000));
        let large = format!("{{\"body\":\"{}\"}}", "x".repeat(66_000));
        let cases: [(&[u8], u16, &str); 9] = [
            (b"{", 400, "M_NOT_JSON"),
            (b"{\"body\":\"\xff\"}", 400, "M_NOT_JSON"),
            (b"{\"a\":1} {}", 400, "M_NOT_JSON"),
            (nested.as_bytes(), 400, "M_BAD_JSON"),
            (b"[]", 400, "M_BAD_JSON"),
            (b"{\"a\":1.5}", 400, "M_BAD_JSON"),
            (b"{\"a\":9007199254740992}", 400, "M_BAD_JSON"),
            (b"{\"a\":-9007199254740992}", 400, "M_BAD_JSON"),
            (large.as_bytes(), 413, "M_TOO_LARGE"),
        ];
        for (number, (body, status, code)) in cases.into_iter().enumerate() {
            let path = format!("{path}t{number}");
            let kind = Some("application/json");
            let answer = server.http().send("PUT", path.as_bytes(), Some(alice.token()), kind, body.to_vec()).await;
            let answer = answer.unwrap();
            let start = String::from_utf8_lossy(&body[..body.len().min(40)]);
            assert_eq!((answer.status.as_u16(), answer.errcode().as_str()), (status, code), "for {start}: {answer}");
        }
        assert!(alice.texts(&room).await.is_empty());
    }

    async fn a_body_for_administrators_is_read_as_every_other_one(server: TestServer) {
        let alice = server.user("alice").await;
        let large = format!("{{\"nonce\":\"{}\"}}", "x".repeat(20_000));
        let cases: [(&[u8], u16, &str); 3] = [
            (b"{", 400, "M_NOT_JSON"),
            (b"[1]", 400, "M_BAD_JSON"),
            (large.as_bytes(), 413, "M_TOO_LARGE"),
        ];
        for path in ["register", "registration_tokens/new"] {
            let path = format!("/_synapse/admin/v1/{path}");
            for (body, status, code) in cases {
                let kind = Some("application/json");
                let answer = server.http().send("POST", path.as_bytes(), Some(alice.token()), kind, body.to_vec()).await;
                answer.unwrap().is_error(status, code);
            }
        }
    }

    async fn an_unknown_path_and_a_wrong_method_are_unrecognized(server: TestServer) {
        let alice = server.user("alice").await;
        alice.get("/no_such_thing").await.is_error(404, "M_UNRECOGNIZED");
        alice.get("/_matrix/client/v99/sync").await.is_error(404, "M_UNRECOGNIZED");
        alice.request("PATCH", "/sync", &Value::Null).await.is_error(405, "M_UNRECOGNIZED");
        alice.request("DELETE", "/createRoom", &Value::Null).await.is_error(405, "M_UNRECOGNIZED");
    }

    async fn a_token_is_needed_and_must_be_one_of_ours(server: TestServer) {
        let get = async |token| {
            server.http().request("GET", "/_matrix/client/v3/account/whoami", token, &Value::Null).await
        };
        get(None).await.is_error(401, "M_MISSING_TOKEN");
        get(Some("made up")).await.is_error(401, "M_UNKNOWN_TOKEN");
        get(Some("")).await.is_error(401, "M_MISSING_TOKEN");
    }

    async fn a_room_that_nobody_knows_tells_nothing(server: TestServer) {
        let (alice, eve) = (server.user("alice").await, server.user("eve").await);
        let room = alice.create_room().await;
        for path in ["state", "members", "joined_members", "messages?dir=b"] {
            // Who is not in a room must not learn whether it exists.
            let there = eve.get(&format!("/rooms/{}/{path}", encode(&room))).await;
            let nowhere = eve.get(&format!("/rooms/%21nowhere%3Alocalhost/{path}")).await;
            there.is_error(403, "M_FORBIDDEN");
            nowhere.is_error(403, "M_FORBIDDEN");
        }
        eve.try_send(&room, "m.room.message", &json!({})).await.is_error(403, "M_FORBIDDEN");
        assert_eq!(eve.in_room("!nowhere:localhost", "join", &json!({})).await.status.as_u16(), 404);
    }

    async fn what_is_too_long_is_refused(server: TestServer) {
        let alice = server.user("alice").await;
        let room = alice.create_room().await;
        let long = "x".repeat(256);
        let refused = [
            alice.try_send(&room, &long, &json!({})).await,
            alice.try_set_state(&room, "org.example.x", &long, &json!({})).await,
            alice.in_room(&room, "invite", &json!({ "user_id": format!("@{long}:localhost") })).await,
            alice.post("/createRoom", &json!({ "room_alias_name": long })).await,
        ];
        for answer in refused {
            assert!(matches!(answer.status.as_u16(), 400 | 413), "{answer}");
            assert!(matches!(answer.errcode().as_str(), "M_INVALID_PARAM" | "M_BAD_JSON" | "M_TOO_LARGE"), "{answer}");
        }
    }

    async fn a_missing_or_strange_parameter_is_named(server: TestServer) {
        let alice = server.user("alice").await;
        let room = alice.create_room().await;
        let messages = format!("/rooms/{}/messages", encode(&room));
        alice.get(&messages).await.is_error(400, "M_MISSING_PARAM");
        alice.get(&format!("{messages}?dir=x")).await.is_error(400, "M_INVALID_PARAM");
        alice.get(&format!("{messages}?dir=b&limit=many")).await.is_error(400, "M_INVALID_PARAM");
        alice.get(&format!("{messages}?dir=b&from=nonsense")).await.is_error(400, "M_INVALID_PARAM");
        alice.get("/sync?since=nonsense").await.is_error(400, "M_INVALID_PARAM");
    }
}
