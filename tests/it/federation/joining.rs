//! Server-Server API, "Joining Rooms", "Leaving Rooms (Rejecting Invites)", "Knocking upon a room", as our users do it with rooms of others.

use serde_json::{Value, json};
use test_kit::{TestFederation, TestUser, encode, eventually};

const VERSIONS: [&str; 12] = ["1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12"];

async fn join_by(user: &TestUser, room: &str, via: &str) -> test_kit::Answer {
    user.post(&format!("/_matrix/client/v3/join/{}?via={via}", encode(room)), &json!({})).await
}

/// The membership of each member of a room, as a user sees it.
async fn members(user: &TestUser, room: &str) -> Value {
    let answer = user.get(&format!("/_matrix/client/v3/rooms/{}/members", encode(room))).await.ok();
    let chunk = answer["chunk"].as_array().unwrap();
    chunk
        .iter()
        .map(|event| (event["state_key"].as_str().unwrap().to_owned(), event["content"]["membership"].clone()))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_joins_a_room_of_another_server_in_every_version() {
    let federation = TestFederation::of(2).await;
    let alice = federation.user("hs1", "alice").await;
    let bob = federation.user("hs2", "bob").await;
    for version in VERSIONS {
        let alias = format!("room{version}");
        let room = alice
            .create_room_with(&json!({
                "preset": "public_chat", "room_version": version, "room_alias_name": alias, "name": "Our room", "topic": "All",
            }))
            .await;
        alice.send_text(&room, "before").await;
        let since = bob.sync(None).await["next_batch"].as_str().unwrap().to_owned();
        let joined =
            bob.post(&format!("/_matrix/client/v3/join/{}", encode(&format!("#{alias}:hs1"))), &json!({})).await;
        assert_eq!(joined.ok()["room_id"], room, "version {version}");
        let everybody = json!({"@alice:hs1": "join", "@bob:hs2": "join"});
        assert_eq!(members(&bob, &room).await, everybody, "version {version}");
        assert_eq!(members(&alice, &room).await, everybody, "version {version}");
        let news = bob.sync(Some(&since)).await;
        let shown = &news["rooms"]["join"][&room];
        let own = &shown["timeline"]["events"][0];
        assert_eq!((&own["type"], &own["state_key"]), (&json!("m.room.member"), &json!("@bob:hs2")), "{shown:#}");
        let state = shown["state"]["events"].as_array().unwrap();
        let has = |event_type: &str, sender: &str| {
            state.iter().any(|event| event["type"] == event_type && event["sender"] == sender)
        };
        assert!(
            has("m.room.create", "@alice:hs1")
                && has("m.room.member", "@alice:hs1")
                && has("m.room.name", "@alice:hs1")
        );
        // What is here can be built upon at once.
        bob.send_text(&room, "here").await;
        assert_eq!(bob.texts(&room).await.last().unwrap(), "here");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_second_user_of_a_server_joins_without_asking() {
    let federation = TestFederation::of(2).await;
    let alice = federation.user("hs1", "alice").await;
    let (bob, carl) = (federation.user("hs2", "bob").await, federation.user("hs2", "carl").await);
    let room = alice.create_public_room().await;
    let (one, two) = tokio::join!(join_by(&bob, &room, "hs1"), join_by(&bob, &room, "hs1"));
    assert_eq!((one.ok()["room_id"].as_str(), two.ok()["room_id"].as_str()), (Some(&*room), Some(&*room)));
    // Whether somebody is banned is known when all members are here.
    assert_eq!(members(&bob, &room).await, json!({"@alice:hs1": "join", "@bob:hs2": "join"}));
    federation.cut("hs1", "hs2");
    join_by(&carl, &room, "hs1").await.ok();
    assert_eq!(members(&bob, &room).await, json!({"@alice:hs1": "join", "@bob:hs2": "join", "@carl:hs2": "join"}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_come_in_is_told_why_and_is_not_in_the_room() {
    let federation = TestFederation::of(2).await;
    let alice = federation.user("hs1", "alice").await;
    let bob = federation.user("hs2", "bob").await;
    let closed = alice.create_room().await;
    join_by(&bob, &closed, "hs1").await.is_error(403, "M_FORBIDDEN");
    join_by(&bob, "!nowhere:hs1", "hs1").await.is_error(404, "M_NOT_FOUND");
    join_by(&bob, "!nowhere:nobody.test", "nobody.test").await.is_error(502, "M_UNKNOWN");
    assert_eq!(bob.sync(None).await["rooms"], Value::Null);
    let guest = federation.server("hs2").guest().await;
    join_by(&guest, &closed, "hs1").await.is_error(403, "M_GUEST_ACCESS_FORBIDDEN");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_left_with_all_of_their_server_comes_back_to_the_room_as_it_is_by_then() {
    let federation = TestFederation::of(2).await;
    let alice = federation.user("hs1", "alice").await;
    let bob = federation.user("hs2", "bob").await;
    let room = alice.create_public_room().await;
    join_by(&bob, &room, "hs1").await.ok();
    bob.leave(&room).await;
    eventually!(members(&alice, &room).await["@bob:hs2"] == "leave");
    let dora = federation.user("hs1", "dora").await;
    dora.join(&room).await;
    alice.set_state(&room, "m.room.name", "", &json!({"name": "Renamed"})).await;
    let since = bob.sync(None).await["next_batch"].as_str().unwrap().to_owned();
    join_by(&bob, &room, "hs1").await.ok();
    let everybody = json!({"@alice:hs1": "join", "@bob:hs2": "join", "@dora:hs1": "join"});
    assert_eq!(members(&bob, &room).await, everybody);
    assert_eq!(members(&alice, &room).await, everybody);
    let news = bob.sync(Some(&since)).await;
    let state = news["rooms"]["join"][&room]["state"]["events"].as_array().unwrap().clone();
    assert!(state.iter().any(|event| event["content"]["name"] == "Renamed"), "{state:?}");
    let shown = &news["rooms"]["join"][&room]["summary"];
    assert_eq!(shown["m.joined_member_count"], 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_knock_on_a_room_of_another_server_shows_what_it_is_and_is_taken_back() {
    let federation = TestFederation::of(2).await;
    let alice = federation.user("hs1", "alice").await;
    let bob = federation.user("hs2", "bob").await;
    let knocking = json!([{"type": "m.room.join_rules", "state_key": "", "content": {"join_rule": "knock"}}]);
    let room = alice.create_room_with(&json!({"name": "Behind a door", "initial_state": knocking})).await;
    let path = format!("/_matrix/client/v3/knock/{}?via=hs1", encode(&room));
    bob.post(&path, &json!({"reason": "please"})).await.ok();
    let synced = bob.sync(None).await;
    let shown = synced["rooms"]["knock"][&room]["knock_state"]["events"].as_array().unwrap().clone();
    assert!(shown.iter().any(|event| event["content"]["name"] == "Behind a door"), "{synced:#}");
    assert!(shown.iter().all(|event| event.get("prev_events").is_none()));
    assert_eq!(members(&alice, &room).await["@bob:hs2"], "knock");
    bob.leave(&room).await;
    assert_eq!(members(&alice, &room).await["@bob:hs2"], "leave");
    let since = synced["next_batch"].as_str().unwrap();
    let news = bob.sync(Some(since)).await;
    assert!(news["rooms"]["leave"].get(&room).is_some(), "{news:#}");
    // Nobody who knows the room is needed to be rid of it.
    bob.post(&path, &json!({})).await.ok();
    federation.cut("hs1", "hs2");
    bob.leave(&room).await;
    assert!(bob.sync(None).await["rooms"].get("knock").is_none());
}
