//! Server-Server API, "Transactions" and "EDUs": what is sent after an outage, what is left to others, and what nobody is sent.

use model::Clock;
use ruma::RoomVersionId;
use serde_json::{Value, json};
use test_kit::{ServerOptions, TestDatabase, TestFederation, TestUser, encode, eventually};

use super::sending::{BOB, Inbox, World, eventually_later, numbered, say};

async fn read(user: &TestUser, room: &str, kind: &str, event: &str, body: &Value) {
    let path = format!("/rooms/{}/receipt/{kind}/{}", encode(room), encode(event));
    user.post(&path, body).await.ok();
}

/// Others would see for ever that somebody has not read what they have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receipts_that_a_server_missed_are_told_when_it_is_back() {
    for database in TestDatabase::each().await {
        let mut world = World::on(database).await;
        let admin = world.federation.server("hs1").admin("root").await;
        let (room, own) = (world.shared_room().await, world.alice.create_room().await);
        let root = world.alice.send_text(&room, "root").await;
        let body =
            json!({"msgtype": "m.text", "body": "two", "m.relates_to": {"rel_type": "m.thread", "event_id": root}});
        let in_thread = world.alice.send(&room, "m.room.message", &body).await;
        let last = world.alice.send_text(&room, "last").await;
        let in_own = world.alice.send_text(&own, "three").await;
        read(&world.alice, &room, "m.read", &root, &json!({})).await;
        eventually!(world.inbox.edus("m.receipt").len() == 1);
        world.inbox.answers(503);
        // While it is tried still, and when it is not any more.
        read(&world.alice, &room, "m.read", &in_thread, &json!({"thread_id": root})).await;
        world.wait_until_given_up().await;
        read(&world.alice, &room, "m.read", &last, &json!({})).await;
        read(&world.alice, &room, "m.read.private", &in_thread, &json!({"thread_id": root})).await;
        read(&world.alice, &own, "m.read", &in_own, &json!({})).await;
        eventually!(!world.destination(&admin).await["last_successful_stream_ordering"].is_null());
        world.restart().await;
        world.inbox.answers(200);
        world.reset(&admin).await.ok();
        eventually_later!(world, world.inbox.edus("m.receipt").len() >= 3);
        let edus = world.inbox.edus("m.receipt");
        let told: Vec<&Value> = edus[1..].iter().map(|edu| &edu[&*room]["m.read"][world.alice.id()]).collect();
        let is_whole = |receipt: &&&Value| receipt["data"].get("thread_id").is_none();
        let (whole, threaded): (Vec<&Value>, Vec<&Value>) = told.iter().partition(is_whole);
        assert_eq!((whole.len(), threaded.len()), (1, 1), "{edus:?}");
        assert_eq!(whole[0]["event_ids"], json!([last]));
        assert_eq!((&threaded[0]["event_ids"], &threaded[0]["data"]["thread_id"]), (&json!([in_thread]), &json!(root)));
        assert!(!edus.iter().any(|edu| edu.to_string().contains(&*own) || edu.to_string().contains("private")));
        eventually!(world.destination(&admin).await["last_successful_stream_ordering"].is_null());
        // It is told the next one as it comes, and none again.
        say(&world.alice, &room, 0..1).await;
        eventually!(world.inbox.texts(&room).contains(&"message 0".to_owned()));
        assert_eq!(world.inbox.edus("m.receipt").len(), 3);
    }
}

/// Server-Server API, "Joining Rooms": the resident sends the join to the servers of the room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_joins_through_another_server_is_told_by_that_one() {
    for database in TestDatabase::each().await {
        let mut federation = TestFederation::empty();
        federation.add("hs1", database, ServerOptions::default()).await;
        let (alice, carol) = (federation.user("hs1", "alice").await, federation.user("hs1", "carol").await);
        let peer = federation.peer("peer.test").await;
        let inbox = Inbox::of(&peer);
        let room = peer.make_room(&RoomVersionId::V11, BOB, &[]);
        peer.let_in(&room, alice.id(), &room.state_events(), &room.state_events());
        alice.post(&format!("/_matrix/client/v3/join/{}?via=peer.test", encode(&room.id)), &json!({})).await.ok();
        // From here on this server is in the room itself, and tells who comes by it.
        carol.join(&room.id).await;
        carol.send_text(&room.id, "hello").await;
        eventually!(inbox.texts(&room.id) == ["hello"]);
        let events = inbox.events();
        let members: Vec<&Value> = events.iter().filter_map(|event| event.get("state_key")).collect();
        assert_eq!(members, [carol.id()], "{events:?}");
        // The devices of who came are told by us alone.
        eventually!(inbox.edus("m.device_list_update").iter().any(|edu| edu["user_id"] == alice.id()));
    }
}

/// A server with which the configuration does not let this one federate is not tried, and nothing is kept for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_denied_server_costs_nothing() {
    for database in TestDatabase::each().await {
        let mut world = World::on(database).await;
        let admin = world.federation.server("hs1").admin("root").await;
        let room = world.shared_room().await;
        let other = world.federation.peer("other.test").await;
        let others = Inbox::of(&other);
        other.join(world.http(), "hs1", &room, "@carol:other.test").await;
        say(&world.alice, &room, 0..1).await;
        eventually!(others.texts(&room) == numbered(0..1) && world.inbox.texts(&room) == numbered(0..1));
        let options = world.federation.server_mut("hs1").options_mut();
        options.config.federation.deny_servers = vec!["peer.test".to_owned()];
        world.restart().await;
        let before = world.inbox.all().len();
        let to_devices = json!({"messages": {BOB: {"*": {"n": 1}}, "@carol:other.test": {"*": {"n": 1}}}});
        world.alice.put("/sendToDevice/m.test/1", &to_devices).await.ok();
        let event = world.alice.send_text(&room, "message 1").await;
        read(&world.alice, &room, "m.read", &event, &json!({})).await;
        eventually!(others.edus("m.direct_to_device").len() == 1 && others.edus("m.receipt").len() == 1);
        eventually!(others.texts(&room) == numbered(0..2));
        // Time for another look or two at what is to be sent.
        say(&world.alice, &room, 2..3).await;
        eventually!(others.texts(&room) == numbered(0..3));
        let known = world.destination(&admin).await;
        assert_eq!((&known["failure_ts"], &known["waiting_edus"]), (&Value::Null, &json!(0)), "{known}");
        assert_eq!(known["last_successful_stream_ordering"], Value::Null, "{known}");
        assert_eq!(world.inbox.all().len(), before);
    }
}

/// It may be days until it is tried, for which what it is to get must not stay in memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_found_away_before_anything_was_sent_to_it_is_behind_at_once() {
    let mut federation = TestFederation::empty();
    let clock = Clock::manual(Clock::system().now_ms());
    for name in ["hs1", "hs2"] {
        let options = ServerOptions { clock: clock.clone(), ..ServerOptions::default() };
        federation.add(name, TestDatabase::sqlite(), options).await;
    }
    let (alice, bob) = (federation.user("hs1", "alice").await, federation.user("hs2", "bob").await);
    let admin = federation.server("hs1").admin("root").await;
    let room = alice.create_public_room().await;
    bob.post(&format!("/_matrix/client/v3/join/{}?via=hs1", encode(&room)), &json!({})).await.ok();
    alice.send_text(&room, "message 0").await;
    eventually!(bob.texts(&room).await == numbered(0..1));
    let known = async || {
        let path = "/_synapse/admin/v1/federation/destinations/hs2";
        let answer = federation.server("hs1").http().request("GET", path, Some(admin.token()), &Value::Null).await;
        answer.ok()
    };
    assert_eq!(known().await["failure_ts"], Value::Null);
    federation.cut("hs1", "hs2");
    for number in 0..9 {
        clock.advance_ms(600_000);
        let user = format!("@user{number}:hs2");
        alice.get(&format!("/_matrix/client/v3/profile/{}", encode(&user))).await;
    }
    eventually!(known().await["retry_interval"].as_i64().is_some_and(|ms| ms > 100_000));
    alice.send_text(&room, "message 1").await;
    eventually!(known().await["rooms_behind"] == 1);
    federation.heal("hs1", "hs2");
    eventually!({
        clock.advance_ms(60_000);
        bob.texts(&room).await == numbered(0..2)
    });
}

/// One user with very many devices is more than one EDU, and no transaction is larger than others take.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_to_very_many_devices_of_one_user_go_in_pieces() {
    for database in TestDatabase::each().await {
        let world = World::on(database).await;
        let text = "x".repeat(20_000);
        world.inbox.answers(503);
        for request in 0..8 {
            let devices: serde_json::Map<String, Value> =
                (0..45).map(|n| (format!("D{request}_{n}"), json!({"text": text}))).collect();
            let path = format!("/sendToDevice/m.test/{request}");
            world.alice.put(&path, &json!({"messages": {BOB: devices}})).await.ok();
        }
        eventually!(!world.inbox.all().is_empty());
        world.inbox.answers(200);
        let devices = || -> usize {
            let edus = world.inbox.edus("m.direct_to_device");
            edus.iter().filter_map(|edu| edu["messages"][BOB].as_object()).map(serde_json::Map::len).sum()
        };
        eventually_later!(world, devices() >= 360);
        assert_eq!(devices(), 360);
        for edu in world.inbox.edus("m.direct_to_device") {
            assert!(edu.to_string().len() < 64 << 10);
        }
        for transaction in world.inbox.all() {
            assert!(transaction.body.to_string().len() < 3 << 20);
        }
        world.inbox.check_bounds();
    }
}
