//! Profiles and where they show.

use serde_json::{Value, json};
use test_kit::{TestUser, encode, eventually, on_each_database};

fn path(user: &TestUser) -> String {
    format!("/profile/{}", encode(user.id()))
}

async fn set(user: &TestUser, field: &str, value: &Value) -> test_kit::Answer {
    user.put(&format!("{}/{field}", path(user)), &json!({ field: value })).await
}

/// The content of a member event.
async fn member(reader: &TestUser, room: &str, user: &TestUser) -> Value {
    reader.get(&format!("/rooms/{}/state/m.room.member/{}", encode(room), encode(user.id()))).await.ok()
}

/// How many member events of a user the timeline has.
async fn member_events(reader: &TestUser, room: &str, user: &TestUser) -> usize {
    let page = reader.get(&format!("/rooms/{}/messages?dir=f&limit=100", encode(room))).await.ok();
    let events = page["chunk"].as_array().unwrap();
    events.iter().filter(|event| event["type"] == "m.room.member" && event["state_key"] == user.id()).count()
}

on_each_database! {
    // shows: setProfileField, getProfileField, getUserProfile, deleteProfileField
    async fn a_field_has_a_name_of_the_grammar_and_a_value_of_any_kind(server: TestServer) {
        let alice = server.user("alice").await;
        let own = path(&alice);
        for (field, value) in [
            ("displayname", json!("Alice")),
            ("avatar_url", json!("mxc://localhost/rabbit")),
            ("m.tz", json!("Europe/Berlin")),
            ("m.unknown_to_us", json!({ "a": [1, null] })),
            ("org.example.nothing", Value::Null),
            ("org.example.text-with_all.9", json!("ü\u{1F600}\u{0}")),
            ("org.example.number", json!(1.5)),
        ] {
            set(&alice, field, &value).await.ok();
            // Anybody may look, also without a token.
            let stable = format!("/_matrix/client/v3{own}/{field}");
            let unstable = format!("/_matrix/client/unstable/uk.tcpip.msc4133{own}/{field}");
            for path in [stable, unstable] {
                let looked = server.http().request("GET", &path, None, &Value::Null).await;
                assert_eq!(looked.ok(), json!({ field: &value }));
            }
            assert_eq!(alice.get(&own).await.ok()[field], value);
        }
        let longest = format!("a{}", "b".repeat(254));
        set(&alice, &longest, &json!(1)).await.ok();
        set(&alice, &format!("{longest}b"), &json!(1)).await.is_error(400, "M_KEY_TOO_LARGE");
        for name in ["Org.example.x", ".x", "1.x", "org.example.%C3%A4", "org.example%20x"] {
            let body = json!({ "Org.example.x": 1, ".x": 1, "1.x": 1, "org.example.ä": 1, "org.example x": 1 });
            alice.put(&format!("{own}/{name}"), &body).await.is_error(400, "M_INVALID_PARAM");
            alice.request("DELETE", &format!("{own}/{name}"), &Value::Null).await.is_error(400, "M_INVALID_PARAM");
        }
        for (field, value) in [
            ("displayname", json!(1)),
            ("displayname", Value::Null),
            ("displayname", json!("x".repeat(2_000))),
            ("avatar_url", json!("https://localhost/rabbit")),
            ("avatar_url", json!({})),
            ("m.tz", json!(7)),
            ("m.tz", json!("")),
        ] {
            let answer = set(&alice, field, &value).await;
            assert_eq!(answer.status, 400, "{field} {value}: {answer}");
        }
        // MSC4426.
        for field in ["m.status", "org.matrix.msc4426.status"] {
            let status = |text: usize, emoji: usize| json!({ "text": "x".repeat(text), "emoji": "y".repeat(emoji) });
            set(&alice, field, &status(256, 32)).await.ok();
            set(&alice, field, &status(257, 32)).await.is_error(400, "M_TOO_LARGE");
            set(&alice, field, &status(1, 33)).await.is_error(400, "M_TOO_LARGE");
        }
        alice.put(&format!("{own}/m.tz"), &json!({})).await.is_error(400, "M_MISSING_PARAM");
        alice.put(&format!("{own}/m.tz"), &json!([])).await.is_error(400, "M_BAD_JSON");
        assert_eq!(alice.get(&own).await.ok()["displayname"], "Alice", "what was refused changed nothing");
        // Deleting twice is no error.
        for _ in 0..2 {
            alice.request("DELETE", &format!("{own}/m.tz"), &Value::Null).await.ok();
            alice.get(&format!("{own}/m.tz")).await.is_error(404, "M_NOT_FOUND");
        }
        let capabilities = alice.get("/capabilities").await.ok();
        assert_eq!(capabilities["capabilities"]["m.profile_fields"], json!({ "enabled": true }));
    }

    /// How clients take a name or a picture away, before and beside `DELETE`.
    // shows: setProfileField, deleteProfileField
    async fn an_empty_name_or_picture_is_none(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_public_room().await;
        set(&alice, "displayname", &json!("Alice")).await.ok();
        set(&alice, "avatar_url", &json!("mxc://localhost/rabbit")).await.ok();
        let shown = json!({ "membership": "join", "displayname": "Alice", "avatar_url": "mxc://localhost/rabbit" });
        eventually!(member(&alice, &room, &alice).await == shown);
        set(&alice, "displayname", &json!("")).await.ok();
        alice.request("DELETE", &format!("{}/avatar_url", path(&alice)), &Value::Null).await.ok();
        assert_eq!(bob.get(&path(&alice)).await.ok(), json!({}));
        bob.get(&format!("{}/displayname", path(&alice))).await.is_error(404, "M_NOT_FOUND");
        eventually!(member(&alice, &room, &alice).await == json!({ "membership": "join" }));
    }

    // shows: setProfileField, getUserProfile
    async fn a_profile_is_its_users_alone(server: TestServer) {
        let (alice, bob, guest) = (server.user("alice").await, server.user("bob").await, server.guest().await);
        set(&alice, "m.tz", &json!("UTC")).await.ok();
        let of_alice = format!("{}/m.tz", path(&alice));
        for stranger in [&bob, &guest] {
            let put = stranger.put(&of_alice, &json!({ "m.tz": "x" })).await;
            assert_eq!(put.status, 403, "{put}");
            assert_eq!(stranger.request("DELETE", &of_alice, &Value::Null).await.status, 403);
            assert_eq!(stranger.get(&of_alice).await.ok(), json!({ "m.tz": "UTC" }));
        }
        let path_of_alice = format!("/_matrix/client/v3{of_alice}");
        let nobody = server.http().request("PUT", &path_of_alice, None, &json!({ "m.tz": "x" })).await;
        nobody.is_error(401, "M_MISSING_TOKEN");
        // Guests have a name, and nothing else. Client-Server API, "Guest Access".
        set(&guest, "displayname", &json!("a guest")).await.ok();
        for field in ["avatar_url", "m.tz", "org.example.x"] {
            set(&guest, field, &json!("mxc://localhost/x")).await.is_error(403, "M_GUEST_ACCESS_FORBIDDEN");
            let path = format!("{}/{field}", path(&guest));
            guest.request("DELETE", &path, &Value::Null).await.is_error(403, "M_GUEST_ACCESS_FORBIDDEN");
        }
        guest.request("DELETE", &format!("{}/displayname", path(&guest)), &Value::Null).await.ok();
        // Who has gone has none.
        let auth = json!({
            "type": "m.login.password", "password": "alice's password",
            "identifier": { "type": "m.id.user", "user": alice.id() },
        });
        alice.post("/account/deactivate", &json!({ "auth": auth })).await.ok();
        bob.get(&path(&alice)).await.is_error(404, "M_NOT_FOUND");
        bob.get(&of_alice).await.is_error(404, "M_NOT_FOUND");
        set(&alice, "m.tz", &json!("UTC")).await.is_error(401, "M_UNKNOWN_TOKEN");
    }

    /// Of changes that fit one by one but not together one is refused, however close they come.
    // shows: setProfileField
    async fn a_profile_stays_under_64_kib(server: TestServer) {
        let alice = server.user("alice").await;
        set(&alice, "displayname", &json!("A")).await.ok();
        for round in 0..5 {
            let fields = [format!("org.example.left{round}"), format!("org.example.right{round}")];
            let value = json!("x".repeat(40_000));
            let (left, right) = tokio::join!(set(&alice, &fields[0], &value), set(&alice, &fields[1], &value));
            let mut statuses = [left.status, right.status];
            statuses.sort_unstable();
            assert_eq!(statuses, [200, 400], "{left} {right}");
            for (field, answer) in fields.iter().zip([left, right]) {
                if answer.status == 400 {
                    answer.is_error(400, "M_PROFILE_TOO_LARGE");
                }
                alice.request("DELETE", &format!("{}/{field}", path(&alice)), &Value::Null).await.ok();
            }
        }
        // To the byte: {"displayname":"A","org.example.x":"…"}
        let space = 65_535 - r#"{"displayname":"A","org.example.x":""}"#.len();
        set(&alice, "org.example.x", &json!("x".repeat(space + 1))).await.is_error(400, "M_PROFILE_TOO_LARGE");
        set(&alice, "org.example.x", &json!("x".repeat(space))).await.ok();
        let body = alice.get(&path(&alice)).await.ok();
        assert_eq!(body.to_string().len(), 65_535);
        set(&alice, "displayname", &json!("AB")).await.is_error(400, "M_PROFILE_TOO_LARGE");
        set(&alice, "displayname", &json!("B")).await.ok();
    }

    /// MSC4133, "Propagation of Profile Fields": only name and picture are in member events.
    // shows: setProfileField
    async fn only_name_and_picture_reach_rooms(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let rooms = [alice.create_public_room().await, alice.create_public_room().await, bob.create_public_room().await];
        alice.join(&rooms[2]).await;
        let before = member_events(&bob, &rooms[2], &alice).await;
        set(&alice, "m.tz", &json!("UTC")).await.ok();
        set(&alice, "org.example.x", &json!("displayname")).await.ok();
        set(&alice, "displayname", &json!("Alice")).await.ok();
        for room in &rooms {
            eventually!(member(&alice, room, &alice).await == json!({ "membership": "join", "displayname": "Alice" }));
        }
        // The same again is no news.
        set(&alice, "displayname", &json!("Alice")).await.ok();
        set(&alice, "avatar_url", &json!("mxc://localhost/rabbit")).await.ok();
        let shown = json!({ "membership": "join", "displayname": "Alice", "avatar_url": "mxc://localhost/rabbit" });
        eventually!(member(&bob, &rooms[2], &alice).await == shown);
        assert_eq!(member_events(&bob, &rooms[2], &alice).await, before + 2);
        // Who joins later shows it from the start.
        let later = bob.create_public_room().await;
        alice.join(&later).await;
        assert_eq!(member(&bob, &later, &alice).await, shown);
    }
}
