//! The backup of a user's room keys, from one device to the next.

use serde_json::{Value, json};
use test_kit::{TestUser, encode, on_each_database};

fn key(text: &str) -> Value {
    json!({
        "first_message_index": 0, "forwarded_count": 0, "is_verified": true,
        "session_data": { "ephemeral": "AAAA", "ciphertext": text, "mac": "AAAA" },
    })
}

async fn new_backup(user: &TestUser, public_key: &str) -> String {
    let body = json!({
        "algorithm": "m.megolm_backup.v1.curve25519-aes-sha2",
        "auth_data": { "public_key": public_key, "signatures": { user.id(): { "ed25519:A": "signature" } } },
    });
    user.post("/room_keys/version", &body).await.ok()["version"].as_str().unwrap().to_owned()
}

on_each_database! {
    // shows: postRoomKeysVersion, getRoomKeysVersion, getRoomKeysVersionCurrent, putRoomKeysVersion, deleteRoomKeysVersion, putRoomKeys, putRoomKeysByRoomId, putRoomKeyBySessionId, getRoomKeys, getRoomKeysByRoomId, getRoomKeyBySessionId
    async fn a_new_device_finds_the_keys_of_an_old_one(server: TestServer) {
        let alice = server.user("alice").await;
        alice.get("/room_keys/version").await.is_error(404, "M_NOT_FOUND");
        let version = new_backup(&alice, "abcd").await;
        let (one, two) = ("!one:localhost", "!two:localhost");
        let keys = format!("/room_keys/keys?version={version}");
        let of_room = |room: &str| format!("/room_keys/keys/{}?version={version}", encode(room));
        let of_session = |room: &str, session: &str| {
            format!("/room_keys/keys/{}/{}?version={version}", encode(room), encode(session))
        };
        let body = json!({ "rooms": { one: { "sessions": { "a/b+c": key("1"), "d\"e": key("2") } } } });
        assert_eq!(alice.put(&keys, &body).await.ok()["count"], 2);
        let body = json!({ "sessions": { "a": key("3") } });
        assert_eq!(alice.put(&of_room(two), &body).await.ok()["count"], 3);
        let stored = alice.put(&of_session(two, "b"), &key("4")).await.ok();
        assert_eq!(stored["count"], 4, "{stored}");

        let phone = alice.log_in_again().await;
        let backup = phone.get("/room_keys/version").await.ok();
        assert_eq!(backup, phone.get(&format!("/room_keys/version/{version}")).await.ok());
        assert_eq!(backup["auth_data"]["public_key"], "abcd", "{backup}");
        assert_eq!((&backup["etag"], &backup["count"]), (&stored["etag"], &json!(4)), "{backup}");
        let all = phone.get(&keys).await.ok();
        let expected = json!({ "rooms": {
            one: { "sessions": { "a/b+c": key("1"), "d\"e": key("2") } },
            two: { "sessions": { "a": key("3"), "b": key("4") } },
        } });
        assert_eq!(all, expected);
        assert_eq!(phone.get(&of_room(one)).await.ok(), expected["rooms"][one]);
        assert_eq!(phone.get(&of_room("!none:localhost")).await.ok(), json!({ "sessions": {} }));
        assert_eq!(phone.get(&of_session(one, "a/b+c")).await.ok(), key("1"));
        phone.get(&of_session(one, "a")).await.is_error(404, "M_NOT_FOUND");

        let mut signed = backup.clone();
        signed["auth_data"]["signatures"][alice.id()]["ed25519:B"] = json!("another");
        phone.put(&format!("/room_keys/version/{version}"), &signed).await.ok();
        assert_eq!(alice.get("/room_keys/version").await.ok()["auth_data"], signed["auth_data"]);
        let newer = new_backup(&phone, "efgh").await;
        let refused = alice.put(&keys, &json!({ "rooms": {} })).await;
        assert_eq!(refused.json()["current_version"], json!(newer));
        refused.is_error(403, "M_WRONG_ROOM_KEYS_VERSION");
        alice.request("DELETE", &format!("/room_keys/version/{version}"), &Value::Null).await.ok();
        phone.get(&keys).await.is_error(404, "M_NOT_FOUND");
        assert_eq!(phone.get("/room_keys/version").await.ok()["version"], json!(newer));
    }

    // shows: deleteRoomKeys, deleteRoomKeysByRoomId, deleteRoomKeyBySessionId
    async fn keys_are_deleted_one_by_one_by_room_or_all(server: TestServer) {
        let alice = server.user("alice").await;
        let version = new_backup(&alice, "abcd").await;
        let sessions = json!({ "sessions": { "a": key("1"), "b": key("2") } });
        let body = json!({ "rooms": { "!one:localhost": sessions, "!two:localhost": sessions } });
        alice.put(&format!("/room_keys/keys?version={version}"), &body).await.ok();
        for (path, left) in [("/!one:localhost/a", 3), ("/!one:localhost", 2), ("", 0)] {
            let path = format!("/room_keys/keys{path}?version={version}");
            assert_eq!(alice.request("DELETE", &path, &Value::Null).await.ok()["count"], left, "{path}");
        }
        let keys = format!("/room_keys/keys?version={version}");
        assert_eq!(alice.get(&keys).await.ok(), json!({ "rooms": {} }));
        alice.get("/room_keys/keys").await.is_error(400, "M_MISSING_PARAM");
        let guest = server.guest().await;
        guest.get("/room_keys/version").await.is_error(403, "M_GUEST_ACCESS_FORBIDDEN");
    }
}
