//! Joining rooms of a server that says what it likes. Server-Server API, "Joining Rooms".

use ruma::RoomVersionId;
use serde_json::{Value, json};
use test_kit::{Answer, Peer, PeerEvent, PeerRoom, TestFederation, TestUser, encode};

const HOST: &str = "@host:peer.test";
const BOB: &str = "@bob:hs1";

struct World {
    federation: TestFederation,
    peer: Peer,
    bob: TestUser,
}

async fn world() -> World {
    let federation = TestFederation::of(1).await;
    let peer = federation.peer("peer.test").await;
    let bob = federation.user("hs1", "bob").await;
    World { federation, peer, bob }
}

impl World {
    async fn join(&self, room: &PeerRoom) -> Answer {
        self.bob.post(&format!("/_matrix/client/v3/join/{}?via=peer.test", encode(&room.id)), &json!({})).await
    }

    /// Bob is in no room, and nothing of this one is shown.
    async fn is_out(&self, room: &PeerRoom) {
        let path = format!("/_matrix/client/v3/rooms/{}/state", encode(&room.id));
        self.bob.get(&path).await.is_error(403, "M_FORBIDDEN");
        assert_eq!(self.bob.sync(None).await["rooms"], Value::Null);
    }

    async fn names(&self, room: &PeerRoom) -> Value {
        let path = format!("/_matrix/client/v3/rooms/{}/state/m.room.name", encode(&room.id));
        self.bob.get(&path).await.ok()["name"].clone()
    }
}

fn versions() -> impl Iterator<Item = RoomVersionId> {
    (1..=12).map(|number: u8| RoomVersionId::try_from(number.to_string()).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_state_that_is_told_is_the_state_of_the_room() {
    let world = world().await;
    for version in versions() {
        let more =
            [("m.room.name", "", json!({"name": "Theirs"})), ("org.example", "key", json!({"a": [1, null, "é"]}))];
        let room = world.peer.make_room(&version, HOST, &more);
        let state = room.state_events();
        world.peer.let_in(&room, BOB, &state, &state);
        let since = world.bob.sync(None).await["next_batch"].as_str().unwrap().to_owned();
        assert_eq!(world.join(&room).await.ok()["room_id"], room.id, "version {version}");
        let path = format!("/_matrix/client/v3/rooms/{}/state", encode(&room.id));
        let shown = world.bob.get(&path).await.ok();
        let mut ids: Vec<&str> =
            shown.as_array().unwrap().iter().filter_map(|event| event["event_id"].as_str()).collect();
        ids.sort_unstable();
        let mut told: Vec<&str> = state.iter().map(|event| &*event.id).collect();
        let news = world.bob.sync(Some(&since)).await;
        let timeline = news["rooms"]["join"][&room.id]["timeline"]["events"].as_array().unwrap().clone();
        assert_eq!(timeline.len(), 1, "version {version}");
        told.push(timeline[0]["event_id"].as_str().unwrap());
        told.sort_unstable();
        assert_eq!(ids, told, "version {version}");
        // What was said before is not here.
        assert!(news["rooms"]["join"][&room.id]["timeline"]["prev_batch"].is_string());
    }
}

/// One thing is wrong with what the resident tells, each time another one: nobody comes in, and nothing is left of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_that_does_not_let_bob_in_does_not_let_him_in() {
    let world = world().await;
    let peer = &world.peer;
    let stranger = world.federation.peer("stranger.test").await;
    let room_of = |more: &[(&str, &str, Value)]| peer.make_room(&RoomVersionId::V11, HOST, more);
    let without = |room: &PeerRoom, event_type: &str| -> Vec<PeerEvent> {
        room.state_events().into_iter().filter(|event| event.json["type"] != event_type).collect()
    };
    let mut tries: Vec<(&str, PeerRoom, Vec<PeerEvent>, Vec<PeerEvent>)> = Vec::new();

    let room = room_of(&[]);
    tries.push(("nothing", room.clone(), Vec::new(), Vec::new()));
    tries.push(("no create event", room.clone(), without(&room, "m.room.create"), room.state_events()));
    // Of this one nothing was told before.
    let unknown = room_of(&[]);
    tries.push(("no auth chain", unknown.clone(), without(&unknown, "m.room.member"), Vec::new()));
    let banned = room_of(&[("m.room.member", BOB, json!({"membership": "ban"}))]);
    tries.push(("he is banned", banned.clone(), banned.state_events(), banned.state_events()));
    let closed = room_of(&[("m.room.join_rules", "", json!({"join_rule": "invite"}))]);
    tries.push(("he is not invited", closed.clone(), closed.state_events(), closed.state_events()));
    // The rules that would let him in are signed by nobody who may.
    let mut forged = closed.clone();
    let mut open = forged.event(peer, "m.room.join_rules", Some(""), json!({"join_rule": "public"})).json;
    open.as_object_mut().unwrap().remove("signatures");
    let open = stranger.sign_event(&RoomVersionId::V11, open);
    forged.follow(&open);
    tries.push(("a forged signature", closed.clone(), forged.state_events(), forged.state_events()));
    // Somebody made the rules who had no power to.
    let mut weak = closed.clone();
    let member = weak.event(peer, "m.room.member", Some("@weak:peer.test"), json!({"membership": "invite"}));
    weak.follow(&member);
    weak.user = "@weak:peer.test".to_owned();
    let member = weak.event(peer, "m.room.member", Some("@weak:peer.test"), json!({"membership": "join"}));
    weak.follow(&member);
    let open = weak.event(peer, "m.room.join_rules", Some(""), json!({"join_rule": "public"}));
    weak.follow(&open);
    let chain: Vec<PeerEvent> = weak.state_events().into_iter().chain(closed.state_events()).collect();
    tries.push(("rules without power", weak.clone(), weak.state_events(), chain));
    let twice: Vec<PeerEvent> = closed.state_events().into_iter().chain(room_of(&[]).state_events()).collect();
    tries.push(("events of another room", closed.clone(), twice.clone(), twice));
    let mut doubled = room.clone();
    let name = doubled.event(peer, "m.room.join_rules", Some(""), json!({"join_rule": "public", "again": true}));
    doubled.follow(&name);
    let both: Vec<PeerEvent> = doubled.state_events().into_iter().chain(room.state_events()).collect();
    tries.push(("two events for one key", room.clone(), both.clone(), both));

    for (what, room, state, chain) in tries {
        peer.let_in(&room, BOB, &state, &chain);
        let answer = world.join(&room).await;
        assert!(answer.status.as_u16() == 502 || answer.status.as_u16() == 403, "{what}: {answer}");
        world.is_out(&room).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_that_lied_once_is_joined_when_it_tells_the_truth() {
    let world = world().await;
    let room = world.peer.make_room(&RoomVersionId::V12, HOST, &[("m.room.name", "", json!({"name": "Theirs"}))]);
    world.peer.let_in(&room, BOB, &[], &[]);
    world.join(&room).await.is_error(502, "M_UNKNOWN");
    let state = room.state_events();
    world.peer.let_in(&room, BOB, &state, &[]);
    world.join(&room).await.ok();
    assert_eq!(world.names(&room).await, "Theirs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_of_a_version_that_nobody_knows_is_not_joined() {
    let world = world().await;
    let room = world.peer.make_room(&RoomVersionId::V11, HOST, &[]);
    let event = json!({"type": "m.room.member", "prev_events": [], "auth_events": [], "depth": 1});
    for version in ["org.example.unknown", "3000"] {
        let made = json!({"room_version": version, "event": event});
        world.peer.answer(&format!("GET /_matrix/federation/v1/make_join/{}/{BOB}*", room.id), 200, &made);
        world.join(&room).await.is_error(400, "M_UNSUPPORTED_ROOM_VERSION");
    }
    world.peer.answer(
        &format!("GET /_matrix/federation/v1/make_join/{}/{BOB}*", room.id),
        400,
        &json!({"errcode": "M_INCOMPATIBLE_ROOM_VERSION", "error": "too new for you", "room_version": "3000"}),
    );
    world.join(&room).await.is_error(400, "M_UNSUPPORTED_ROOM_VERSION");
    world.is_out(&room).await;
}
