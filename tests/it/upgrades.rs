//! Rooms that take the place of others.

use serde_json::{Value, json};
use test_kit::{TestUser, encode, on_each_database};

async fn upgrade(user: &TestUser, room: &str, body: &Value) -> String {
    let answer = user.in_room(room, "upgrade", body).await.ok();
    answer["replacement_room"].as_str().unwrap().to_owned()
}

async fn state(user: &TestUser, room: &str, event_type: &str, key: &str) -> Value {
    user.get(&format!("/rooms/{}/state/{event_type}/{}", encode(room), encode(key))).await.json()
}

on_each_database! {
    // shows: upgradeRoom
    async fn an_upgraded_space_keeps_its_rooms_and_keeps_out_whom_it_banned(server: TestServer) {
        let (alice, bob, eve) = (server.user("alice").await, server.user("bob").await, server.user("eve").await);
        for (from, to) in [("10", "11"), ("11", "12"), ("12", "12")] {
            let body = json!({
                "room_version": from, "preset": "public_chat", "creation_content": { "type": "m.space" },
                "visibility": "public",
            });
            let space = alice.create_room_with(&body).await;
            bob.join(&space).await;
            let (child, removed) = (alice.create_public_room().await, alice.create_public_room().await);
            let invalid = "!invalid:localhost";
            alice.set_state(&space, "m.space.child", invalid, &json!({ "via": [] })).await;
            alice.set_state(&space, "m.space.child", &child, &json!({ "via": ["localhost"], "order": "a" })).await;
            alice.set_state(&space, "m.space.child", &removed, &json!({})).await;
            alice.in_room(&space, "ban", &json!({ "user_id": eve.id(), "reason": "noise" })).await.ok();
            alice.in_room(&space, "ban", &json!({ "user_id": "@far:example.org" })).await.ok();
            let new = upgrade(&alice, &space, &json!({ "new_version": to })).await;
            assert_eq!(state(&alice, &new, "m.room.create", "").await["type"], "m.space");
            assert_eq!(state(&alice, &new, "m.space.child", &child).await, json!({ "via": ["localhost"], "order": "a" }));
            for gone in [&*removed, invalid] {
                assert_eq!(state(&alice, &new, "m.space.child", gone).await["errcode"], "M_NOT_FOUND");
            }
            let ban = state(&alice, &new, "m.room.member", eve.id()).await;
            assert_eq!(ban, json!({ "membership": "ban", "reason": "noise" }));
            assert_eq!(state(&alice, &new, "m.room.member", "@far:example.org").await["membership"], "ban");
            eve.in_room(&new, "join", &json!({})).await.is_error(403, "M_FORBIDDEN");
            bob.join(&new).await;
            let listed = alice.get("/publicRooms").await.ok().to_string();
            assert!(listed.contains(&new) && !listed.contains(&space), "{listed}");
        }
    }

    // shows: upgradeRoom
    async fn a_banned_user_with_the_power_of_the_upgrader_does_not_stop_the_upgrade(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_room_with(&json!({ "room_version": "11", "preset": "public_chat" })).await;
        alice.in_room(&room, "ban", &json!({ "user_id": bob.id() })).await.ok();
        let mut levels = state(&alice, &room, "m.room.power_levels", "").await;
        levels["users"][bob.id()] = json!(100);
        alice.set_state(&room, "m.room.power_levels", "", &levels).await;
        let new = upgrade(&alice, &room, &json!({ "new_version": "11" })).await;
        assert_eq!(state(&alice, &new, "m.room.member", bob.id()).await["errcode"], "M_NOT_FOUND");
        // Above all levels, the upgrader of a room of version 12 can ban anyone.
        let new = upgrade(&alice, &room, &json!({ "new_version": "12" })).await;
        assert_eq!(state(&alice, &new, "m.room.member", bob.id()).await["membership"], "ban");
        // But not one of its creators.
        let new = upgrade(&alice, &room, &json!({ "new_version": "12", "additional_creators": [bob.id()] })).await;
        assert_eq!(state(&alice, &new, "m.room.member", bob.id()).await["errcode"], "M_NOT_FOUND");
    }

    /// Client-Server API, "Room Upgrades": the creators of a room of version 12 are those whom the upgrade names.
    // shows: upgradeRoom
    async fn the_creators_of_the_new_room_are_named_by_the_upgrade(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_room_with(&json!({ "room_version": "12", "preset": "public_chat" })).await;
        bob.join(&room).await;
        let mut levels = state(&alice, &room, "m.room.power_levels", "").await;
        assert_eq!(levels["events"]["m.room.tombstone"], 150);
        levels["users"][bob.id()] = json!(100);
        alice.set_state(&room, "m.room.power_levels", "", &levels).await;
        // The power of all other state is not enough for an upgrade.
        bob.in_room(&room, "upgrade", &json!({ "new_version": "12" })).await.is_error(403, "M_FORBIDDEN");
        let both = upgrade(&alice, &room, &json!({ "new_version": "12", "additional_creators": [bob.id()] })).await;
        let create = state(&alice, &both, "m.room.create", "").await;
        assert_eq!(create["additional_creators"], json!([bob.id()]));
        assert_eq!(create["predecessor"], json!({ "room_id": room }));
        assert!(!both.contains(':'), "a room of version 12 is named by a hash: {both}");
        assert_eq!(state(&alice, &both, "m.room.power_levels", "").await["users"], json!({}));
        bob.join(&both).await;
        // Bob may upgrade now; without being named, Alice is nobody special after that.
        let bobs = upgrade(&bob, &both, &json!({ "new_version": "12" })).await;
        assert_eq!(state(&bob, &bobs, "m.room.create", "").await["additional_creators"], Value::Null);
        // A version without them ignores them.
        let older = upgrade(&bob, &bobs, &json!({ "new_version": "11", "additional_creators": [alice.id()] })).await;
        assert_eq!(state(&bob, &older, "m.room.create", "").await["additional_creators"], Value::Null);
        assert_eq!(state(&bob, &older, "m.room.power_levels", "").await["users"][bob.id()], 150);
        bob.in_room(&older, "upgrade", &json!({ "new_version": "12", "additional_creators": ["nobody"] })).await
            .is_error(400, "M_BAD_JSON");
    }

    // shows: upgradeRoom
    async fn a_room_that_is_upgraded_again_leads_to_the_newest(server: TestServer) {
        let (alice, eve) = (server.user("alice").await, server.user("eve").await);
        let body = json!({ "room_version": "10", "preset": "public_chat", "room_alias_name": "place" });
        let room = alice.create_room_with(&body).await;
        let first = upgrade(&alice, &room, &json!({ "new_version": "11" })).await;
        let second = upgrade(&alice, &room, &json!({ "new_version": "12" })).await;
        assert_eq!(state(&alice, &room, "m.room.tombstone", "").await["replacement_room"], second);
        // The alias went with the first.
        assert_eq!(alice.get("/directory/room/%23place%3Alocalhost").await.ok()["room_id"], first);
        assert_eq!(state(&alice, &first, "m.room.canonical_alias", "").await["alias"], "#place:localhost");
        assert_eq!(state(&alice, &room, "m.room.canonical_alias", "").await, json!({}));
        eve.in_room(&room, "upgrade", &json!({ "new_version": "12" })).await.is_error(403, "M_FORBIDDEN");
        eve.in_room("!nowhere:localhost", "upgrade", &json!({ "new_version": "12" })).await.is_error(403, "M_FORBIDDEN");
        alice.in_room(&room, "upgrade", &json!({ "new_version": "nonsense" })).await
            .is_error(400, "M_UNSUPPORTED_ROOM_VERSION");
        alice.in_room(&room, "upgrade", &json!({})).await.is_error(400, "M_BAD_JSON");
    }
}
