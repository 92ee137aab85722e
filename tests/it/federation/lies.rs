//! Servers that say what is not so: of rooms that are not theirs, of events of other rooms, in names that are none.

use ruma::RoomVersionId;
use serde_json::{Value, json};
use test_kit::{Answer, Peer, PeerRoom, TestDatabase, TestFederation, TestUser, encode};

use super::{guest::Guest, world::server_and_peer};

const HOST: &str = "@host:peer.test";
const ALICE: &str = "@alice:hs1";

/// A room of the honest peer, in which alice is let in.
fn honest_room(peer: &Peer, version: &RoomVersionId) -> PeerRoom {
    let room = peer.make_room(version, HOST, &[("m.room.name", "", json!({"name": "Theirs"}))]);
    peer.let_in(&room, ALICE, &room.state_events(), &room.state_events());
    room
}

/// A liar invites alice to a room that is not theirs, which has that version as they say.
async fn lie_about(federation: &TestFederation, liar: &Peer, room: &PeerRoom, version: &RoomVersionId) -> Answer {
    let mut said = room.clone();
    said.version = version.clone();
    said.user = format!("@liar:{}", liar.name());
    // As the version has it.
    said.tips = Vec::new();
    said.state.clear();
    let event = said.event(liar, "m.room.member", Some(ALICE), json!({"membership": "invite"}));
    let body = json!({"room_version": version, "event": event.json, "invite_room_state": []});
    let path = format!("/_matrix/federation/v2/invite/{}/{}", encode(&room.id), encode(&event.id));
    liar.ask(federation.server("hs1").http(), "hs1", "PUT", &path, &body).await
}

async fn join(alice: &TestUser, room: &PeerRoom) -> Answer {
    alice.post(&format!("/_matrix/client/v3/join/{}?via=peer.test", encode(&room.id)), &json!({})).await
}

async fn name_of(alice: &TestUser, room: &str) -> Value {
    alice.get(&format!("/_matrix/client/v3/rooms/{}/state/m.room.name", encode(room))).await.ok()["name"].clone()
}

/// Whoever first speaks of a room does not decide which version it has: everybody here would be kept out of it for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_is_joined_though_somebody_lied_about_its_version() {
    for database in TestDatabase::each().await {
        let (federation, peer, alice) = server_and_peer(database).await;
        let liar = federation.peer("liar.test").await;
        for (real, said) in [
            (RoomVersionId::V11, RoomVersionId::V1),
            (RoomVersionId::V1, RoomVersionId::V11),
            (RoomVersionId::V10, RoomVersionId::V9),
        ] {
            let room = honest_room(&peer, &real);
            lie_about(&federation, &liar, &room, &said).await.ok();
            assert_eq!(join(&alice, &room).await.ok()["room_id"], room.id, "{real} for {said}");
            assert_eq!(name_of(&alice, &room.id).await, "Theirs");
            alice.send_text(&room.id, "hello").await;
            // Now the room is here, and nobody changes what it is.
            assert!(!lie_about(&federation, &liar, &room, &said).await.status.is_success());
            assert_eq!(alice.texts(&room.id).await, ["hello"]);
            alice.sync(None).await;
        }
    }
}

/// A resident that names another version than the room was made with is not believed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_is_not_joined_as_one_of_another_version() {
    let (_federation, peer, alice) = server_and_peer(TestDatabase::sqlite()).await;
    // These make the same ids of the same events.
    let mut room = peer.make_room(&RoomVersionId::V7, HOST, &[("m.room.name", "", json!({"name": "Theirs"}))]);
    let state = room.state_events();
    room.version = RoomVersionId::V6;
    peer.let_in(&room, ALICE, &state, &state);
    join(&alice, &room).await.is_error(502, "M_UNKNOWN");
    room.version = RoomVersionId::V7;
    peer.let_in(&room, ALICE, &state, &state);
    join(&alice, &room).await.ok();
    assert_eq!(name_of(&alice, &room.id).await, "Theirs");
}

/// Where ids are no hashes, an event that is here may be of another room, where its sender may do what they may not in this one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_of_another_room_is_no_state_of_this_one() {
    for database in TestDatabase::each().await {
        let (federation, peer, alice) = server_and_peer(database).await;
        let liar = federation.peer("liar.test").await;
        // The liar's own room, which alice joins: there the liar may name the room.
        let mut own = liar.make_room(&RoomVersionId::V1, "@liar:liar.test", &[]);
        let name = own.event(&liar, "m.room.name", Some(""), json!({"name": "Forged"}));
        own.follow(&name);
        liar.let_in(&own, ALICE, &own.state_events(), &own.state_events());
        let path = format!("/_matrix/client/v3/join/{}?via=liar.test", encode(&own.id));
        alice.post(&path, &json!({})).await.ok();
        // The room of the honest host, in which the liar is a guest, and tells alice what it is like: with an event of the same id.
        let mut room = peer.make_room(&RoomVersionId::V1, HOST, &[("m.room.name", "", json!({"name": "Theirs"}))]);
        let mut guest = room.clone();
        guest.user = "@liar:liar.test".to_owned();
        let joined = guest.event(&liar, "m.room.member", Some("@liar:liar.test"), json!({"membership": "join"}));
        room.follow(&joined);
        let mut forged = name.json.clone();
        forged["room_id"] = json!(room.id);
        forged["auth_events"] = joined.json["auth_events"].clone();
        forged.as_object_mut().unwrap().remove("signatures");
        let forged = liar.sign_event(&RoomVersionId::V1, forged);
        assert_eq!(forged.id, name.id);
        let state = room.state_events().into_iter().filter(|event| event.json["type"] != "m.room.name");
        let state: Vec<_> = state.chain([forged]).collect();
        liar.let_in(&room, ALICE, &state, &state);
        let path = format!("/_matrix/client/v3/join/{}?via=liar.test", encode(&room.id));
        alice.post(&path, &json!({})).await.ok();
        let path = format!("/_matrix/client/v3/rooms/{}/state/m.room.name", encode(&room.id));
        alice.get(&path).await.is_error(404, "M_NOT_FOUND");
        assert_eq!(name_of(&alice, &own.id).await, "Forged", "where it is an event of the room, it stays one");
    }
}

/// What is no event id by its length is kept and shown to nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_beyond_measure_are_no_names() {
    for database in TestDatabase::each().await {
        let mut guest = Guest::new(database).await;
        let first = guest.message("first").await;
        guest.send_one(&first).await;
        let long = format!("${}", model::Random::system().alphanumeric(20_000));
        let receipt = |event_id: &str, thread: Option<&str>| {
            let mut data = json!({"ts": 1});
            if let Some(thread) = thread {
                data["thread_id"] = json!(thread);
            }
            json!({"edu_type": "m.receipt", "content": {&guest.room: {"m.read": {
                "@rem:peer.test": {"event_ids": [event_id], "data": data},
            }}}})
        };
        let edus = vec![
            receipt(&long, None),
            receipt(&long, Some(&long)),
            receipt(&long, Some("main")),
            json!({"edu_type": "m.presence", "content": {"push": [{
                "user_id": "@rem:peer.test", "presence": "online", "status_msg": "x".repeat(100_000),
            }]}}),
        ];
        guest.transaction("receipts", Vec::new(), edus).await.ok();
        let shown = guest.alice.sync(None).await.to_string();
        assert!(shown.len() < 50_000, "{} bytes", shown.len());
        assert!(!shown.contains(&long[..100]));
        // Events may say what they like; it is their ids that are looked up and kept.
        for content in [
            json!({"body": "a", "m.relates_to": {"rel_type": "m.thread", "event_id": long}}),
            json!({"body": "b", "m.relates_to": {"rel_type": "m.replace", "event_id": long}, "m.new_content": {"body": "c"}}),
            json!({"body": "d", "m.relates_to": {"rel_type": long, "event_id": first.id}}),
            json!({"body": "e", "m.relates_to": {"rel_type": "m.annotation", "event_id": first.id, "key": long}}),
            json!({"body": "f", "m.relates_to": {"m.in_reply_to": {"event_id": long}}}),
        ] {
            let made = guest.make(json!({"content": content})).await;
            guest.follow(&made);
            guest.send_one(&made).await;
        }
        let redaction = guest.make(json!({"type": "m.room.redaction", "content": {"redacts": long}})).await;
        guest.follow(&redaction);
        guest.send_one(&redaction).await;
        for fields in [
            json!({"prev_events": [long]}),
            json!({"auth_events": [long]}),
            json!({"type": "t".repeat(256)}),
            json!({"type": "org.example", "state_key": "k".repeat(256)}),
        ] {
            let made = guest.make(fields).await;
            let answer = guest.send(std::slice::from_ref(&made)).await.ok();
            assert!(answer["pdus"].as_object().unwrap().values().all(|result| result["error"].is_string()), "{answer}");
        }
        let last = guest.message("last").await;
        guest.send_one(&last).await;
        assert!(guest.texts().await.contains(&"last".to_owned()));
        guest.alice.sync(None).await;
    }
}

/// An event of 65,536 bytes is one too many, and what is nested as deep as can be read is shown like any other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_at_the_bounds_of_size_and_depth_have_a_defined_answer() {
    let mut guest = Guest::new(TestDatabase::sqlite()).await;
    let empty = guest.make(json!({"content": {"body": ""}})).await;
    let room_left = 65_536 - serde_json::to_string(&empty.pdu).unwrap().len();
    for (bytes, is_taken) in [(room_left - 2, true), (room_left + 1, false)] {
        let made = guest.make(json!({"content": {"body": "x".repeat(bytes)}})).await;
        let answer = guest.send(std::slice::from_ref(&made)).await.ok();
        assert_eq!(answer["pdus"][made.id.as_str()] == json!({}), is_taken, "{bytes}: {answer}");
        if is_taken {
            guest.follow(&made);
        }
    }
    for levels in [90, 120, 126, 200, 20_000] {
        let nested = format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        let body = format!(
            r#"{{"edus":[],"origin":"peer.test","origin_server_ts":1,"pdus":[{{"content":{{"a":{nested}}},"room_id":"{}"}}]}}"#,
            guest.room
        );
        let path = format!("/_matrix/federation/v1/send/depth{levels}");
        let header = guest.peer.header_of_text("hs1", "PUT", &path, Some(&body));
        let http = guest.federation.server("hs1").http();
        let answer = http.send("PUT", path.as_bytes(), Some(&header), Some("application/json"), body).await.unwrap();
        assert!(!answer.status.is_server_error(), "{levels}: {answer}");
    }
    guest.still_works().await;
}

/// 51 events, 101 EDUs: the specification has numbers for them. A megabyte of EDUs is nothing that breaks a room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_have_their_bounds() {
    let mut guest = Guest::new(TestDatabase::sqlite()).await;
    let pdus: Vec<Value> = (0..51).map(|number| json!({"room_id": guest.room, "n": number})).collect();
    guest.transaction("pdus", pdus, Vec::new()).await.is_error(400, "M_INVALID_PARAM");
    let edu = json!({"edu_type": "m.typing", "content": {"room_id": guest.room, "user_id": "@rem:peer.test", "typing": true}});
    guest.transaction("edus", Vec::new(), vec![edu.clone(); 101]).await.is_error(400, "M_INVALID_PARAM");
    guest.transaction("hundred", Vec::new(), vec![edu; 100]).await.ok();
    let large = json!({"edu_type": "m.typing", "content": {"room_id": guest.room, "user_id": "@rem:peer.test",
                                                          "typing": true, "more": "x".repeat(20_000)}});
    guest.transaction("megabytes", Vec::new(), vec![large; 100]).await.ok();
    guest.still_works().await;
}
