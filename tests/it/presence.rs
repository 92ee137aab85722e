//! Who is shown to be there, and to whom.

use serde_json::{Value, json};
use test_kit::{Answer, TestUser, encode, eventually, on_each_database};

fn status_path(user: &TestUser) -> String {
    format!("/presence/{}/status", encode(user.id()))
}

async fn set(user: &TestUser, body: &Value) -> Answer {
    user.put(&status_path(user), body).await
}

/// A sync by which others see that the user is there.
async fn sync_openly(user: &TestUser, since: Option<&str>, query: &str) -> Value {
    let since = since.map(|since| format!("&since={}", encode(since))).unwrap_or_default();
    user.get(&format!("/sync?{query}{since}")).await.ok()
}

/// What an answer says of somebody's presence.
fn shown<'a>(sync: &'a Value, user: &TestUser) -> Option<&'a Value> {
    let events = sync["presence"]["events"].as_array()?;
    let mut of_user = events.iter().filter(|event| event["sender"] == user.id());
    let event = of_user.next()?;
    assert!(of_user.next().is_none(), "told twice: {sync}");
    assert_eq!(event["type"], "m.presence");
    Some(&event["content"])
}

fn token(sync: &Value) -> String {
    sync["next_batch"].as_str().unwrap().to_owned()
}

on_each_database! {
    // shows: setPresence, getPresence, sync
    async fn a_member_sees_how_others_are(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_public_room().await;
        bob.join(&room).await;
        alice.put(&format!("/profile/{}/displayname", encode(alice.id())), &json!({ "displayname": "Alice" })).await.ok();
        // It comes into the room by itself, and would end the wait below.
        let member = format!("/rooms/{}/state/m.room.member/{}", encode(&room), encode(alice.id()));
        eventually!(alice.get(&member).await.ok()["displayname"] == "Alice");
        let sync = bob.sync(None).await;
        assert_eq!(shown(&sync, &alice), None, "nobody is there yet: {sync}");
        let since = token(&sync);
        let at_work = json!({ "presence": "online", "status_msg": "at work" });
        let (sync, _) = tokio::join!(bob.sync_waiting(Some(&since), 30_000), set(&alice, &at_work));
        let content = shown(&sync, &alice).unwrap();
        assert_eq!(content["presence"], "online");
        assert_eq!(content["status_msg"], "at work");
        assert_eq!(content["displayname"], "Alice");
        assert_eq!(content["currently_active"], true);
        assert!(content["last_active_ago"].is_u64(), "{sync}");
        let since = token(&sync);
        let sync = bob.sync(Some(&since)).await;
        assert_eq!(shown(&sync, &alice), None, "told once: {sync}");

        let status = bob.get(&status_path(&alice)).await.ok();
        assert_eq!((&status["presence"], &status["status_msg"]), (&json!("online"), &json!("at work")), "{status}");
        set(&alice, &json!({ "presence": "unavailable" })).await.ok();
        let sync = bob.sync(Some(&since)).await;
        let content = shown(&sync, &alice).unwrap();
        assert_eq!(content["presence"], "unavailable");
        assert!(content["status_msg"].is_null() && content["currently_active"].is_null(), "{sync}");
        set(&alice, &json!({ "presence": "offline" })).await.ok();
        assert_eq!(bob.get(&status_path(&alice)).await.ok()["presence"], "offline");
        let new = bob.sync(None).await;
        assert_eq!(shown(&new, &alice), None, "who knows nothing need not hear of who is not there: {new}");
    }

    // shows: sync, getPresence
    async fn who_syncs_is_online_as_they_say(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_public_room().await;
        bob.join(&room).await;
        let presence = async || bob.get(&status_path(&alice)).await.ok()["presence"].clone();
        sync_openly(&alice, None, "set_presence=offline").await;
        assert_eq!(presence().await, "offline");
        alice.send_text(&room, "hidden").await;
        assert_eq!(presence().await, "offline", "who does not want to be seen is not seen by what they do");
        sync_openly(&alice, None, "set_presence=unavailable").await;
        assert_eq!(presence().await, "unavailable");
        alice.send_text(&room, "hello").await;
        assert_eq!(presence().await, "online", "who does something is there");
        sync_openly(&alice, None, "set_presence=unavailable").await;
        assert_eq!(presence().await, "online", "that the device goes on to sync as before says nothing new");
        set(&alice, &json!({ "presence": "unavailable" })).await.ok();
        assert_eq!(presence().await, "unavailable");
        sync_openly(&alice, None, "").await;
        assert_eq!(presence().await, "online");
        // The most present device counts.
        let phone = alice.log_in_again().await;
        set(&alice, &json!({ "presence": "unavailable" })).await.ok();
        sync_openly(&phone, None, "").await;
        assert_eq!(presence().await, "online");
        alice.get("/sync?set_presence=busy").await.is_error(400, "M_INVALID_PARAM");
    }

    // shows: getPresence, setPresence, sync
    async fn a_stranger_sees_nobody(server: TestServer) {
        let (alice, bob, eve) = (server.user("alice").await, server.user("bob").await, server.user("eve").await);
        let room = alice.create_public_room().await;
        bob.join(&room).await;
        eve.create_room().await;
        let since = token(&eve.sync(None).await);
        set(&alice, &json!({ "presence": "online" })).await.ok();
        assert_eq!(shown(&eve.sync(Some(&since)).await, &alice), None);
        assert_eq!(shown(&eve.sync(None).await, &alice), None);
        eve.get(&status_path(&alice)).await.is_error(403, "M_FORBIDDEN");
        eve.get("/presence/@nobody:nowhere.test/status").await.is_error(403, "M_FORBIDDEN");
        eve.put(&status_path(&alice), &json!({ "presence": "offline" })).await.is_error(403, "M_FORBIDDEN");
        assert_eq!(alice.get(&status_path(&alice)).await.ok()["presence"], "online");
        eve.get(&status_path(&eve)).await.ok();

        // From the moment that they share a room, and no longer.
        let since = token(&eve.sync(None).await);
        eve.join(&room).await;
        let sync = eve.sync(Some(&since)).await;
        assert_eq!(shown(&sync, &alice).unwrap()["presence"], "online", "{sync}");
        let since = token(&sync);
        eve.leave(&room).await;
        set(&alice, &json!({ "presence": "unavailable" })).await.ok();
        assert_eq!(shown(&eve.sync(Some(&since)).await, &alice), None);
        eve.get(&status_path(&alice)).await.is_error(403, "M_FORBIDDEN");
    }

    // shows: setPresence, getPresence
    async fn what_is_said_of_presence_is_bounded(server: TestServer) {
        let alice = server.user("alice").await;
        set(&alice, &json!({ "presence": "busy" })).await.is_error(400, "M_INVALID_PARAM");
        set(&alice, &json!({})).await.is_error(400, "M_BAD_JSON");
        let long = json!({ "presence": "online", "status_msg": "x".repeat(1_025) });
        set(&alice, &long).await.is_error(400, "M_INVALID_PARAM");
        set(&alice, &json!({ "presence": "online", "status_msg": "x".repeat(1_024) })).await.ok();
        set(&alice, &json!({ "presence": "online", "status_msg": "zero \u{0}" })).await.ok();
    }

    // shows: sync
    async fn a_filter_says_whose_presence_is_wanted(server: TestServer) {
        let (alice, bob, carol) = (server.user("alice").await, server.user("bob").await, server.user("carol").await);
        let room = alice.create_public_room().await;
        bob.join(&room).await;
        carol.join(&room).await;
        let since = token(&bob.sync(None).await);
        for user in [&alice, &carol] {
            set(user, &json!({ "presence": "online" })).await.ok();
        }
        for (filter, sees_alice, sees_carol) in [
            (json!({}), true, true),
            (json!({ "types": ["m.presence"] }), true, true),
            (json!({ "types": ["m.*"] }), true, true),
            (json!({ "types": [] }), false, false),
            (json!({ "not_types": ["m.presence"] }), false, false),
            (json!({ "not_types": ["*"] }), false, false),
            (json!({ "senders": [alice.id()] }), true, false),
            (json!({ "senders": [] }), false, false),
            (json!({ "not_senders": [alice.id()] }), false, true),
            (json!({ "senders": [alice.id()], "not_senders": [alice.id()] }), false, false),
        ] {
            let encoded = encode(&json!({ "presence": filter }).to_string());
            for since in [Some(&*since), None] {
                let sync = sync_openly(&bob, since, &format!("set_presence=offline&filter={encoded}")).await;
                let seen = (shown(&sync, &alice).is_some(), shown(&sync, &carol).is_some());
                assert_eq!(seen, (sees_alice, sees_carol), "{filter}: {sync}");
            }
        }
        // Some at a time, and nobody is left out.
        let one = encode(&json!({ "presence": { "limit": 1 } }).to_string());
        let first = sync_openly(&bob, Some(&since), &format!("set_presence=offline&filter={one}")).await;
        let second = sync_openly(&bob, Some(&token(&first)), &format!("set_presence=offline&filter={one}")).await;
        let told = |sync: &Value| (shown(sync, &alice).is_some(), shown(sync, &carol).is_some());
        assert_eq!((told(&first), told(&second)), ((true, false), (false, true)), "{first} {second}");
    }

    /// Otherwise a client would show somebody online for ever who went away with the server.
    // shows: setPresence, sync
    async fn a_status_message_and_who_was_there_survive_a_restart(server: TestServer) {
        let mut server = server;
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_public_room().await;
        bob.join(&room).await;
        set(&alice, &json!({ "presence": "online", "status_msg": "in the garden" })).await.ok();
        let sync = bob.sync(None).await;
        assert_eq!(shown(&sync, &alice).unwrap()["presence"], "online");
        server.restart().await;
        let (alice, bob) = (alice.at(server.http()), bob.at(server.http()));
        assert_eq!(bob.get(&status_path(&alice)).await.ok()["status_msg"], "in the garden");
        sync_openly(&alice, None, "").await;
        let sync = bob.sync(Some(&token(&sync))).await;
        let content = shown(&sync, &alice).unwrap();
        assert_eq!((&content["presence"], &content["status_msg"]), (&json!("online"), &json!("in the garden")), "{sync}");
    }

    // shows: setProfileField, sync
    async fn a_change_of_name_shows_in_presence(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_public_room().await;
        bob.join(&room).await;
        set(&alice, &json!({ "presence": "online" })).await.ok();
        let since = token(&bob.sync(None).await);
        alice.put(&format!("/profile/{}/displayname", encode(alice.id())), &json!({ "displayname": "Al" })).await.ok();
        let sync = bob.sync(Some(&since)).await;
        assert_eq!(shown(&sync, &alice).unwrap()["displayname"], "Al", "{sync}");
    }
}
