//! Joining rooms of a server that says what it likes. Server-Server API, "Joining Rooms".

use ruma::RoomVersionId;
use serde_json::{Value, json};
use test_kit::{
    Answer, Peer, PeerEvent, PeerRoom, ServerOptions, TestDatabase, TestFederation, TestServer, TestUser, encode,
    eventually,
};

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

/// Anybody can invite bob to a room that we do not know, and say what they like of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_version_that_somebody_told_keeps_nobody_out() {
    for database in TestDatabase::each().await {
        let is_shared = matches!(database.options, storage::Options::Postgres { .. });
        let mut federation = TestFederation::empty();
        federation.add("hs1", database, ServerOptions::default()).await;
        let (peer, eve) = (federation.peer("peer.test").await, federation.peer("eve.test").await);
        let bob = federation.user("hs1", "bob").await;
        let world = World { federation, peer, bob };
        let server = world.federation.server("hs1");
        let mut options = server.options().clone();
        options.more_listeners.clear();
        let second = if is_shared { Some(server.beside(options).await) } else { None };
        for (wrong, version) in [("1", "11"), ("11", "1"), ("10", "11")] {
            let mut room = world.peer.make_room(&version.try_into().unwrap(), HOST, &[]);
            let mut lie = eve.make_room(&wrong.try_into().unwrap(), "@eve:eve.test", &[]);
            lie.id = room.id.clone();
            let invite = lie.event(&eve, "m.room.member", Some(BOB), json!({"membership": "invite"}));
            let path = format!("/_matrix/federation/v2/invite/{}/{}", encode(&room.id), encode(&invite.id));
            let body = json!({"room_version": wrong, "event": invite.json, "invite_room_state": []});
            let since = world.bob.sync(None).await["next_batch"].as_str().unwrap().to_owned();
            eve.ask(server.http(), "hs1", "PUT", &path, &body).await.ok();
            for http in second.iter().map(TestServer::http).chain([server.http()]) {
                let bob = world.bob.at(http);
                eventually!(bob.sync(None).await["rooms"]["invite"][&room.id].is_object());
            }
            let state = room.state_events();
            world.peer.let_in(&room, BOB, &state, &state);
            world.join(&room).await.ok();
            let join =
                world.peer.asked().iter().rfind(|asked| asked.what.contains("/send_join/")).unwrap().body.clone();
            room.follow(&PeerEvent { id: test_kit::event_id(&room.version, &join), json: join });
            for (number, http) in [server.http()].into_iter().chain(second.iter().map(TestServer::http)).enumerate() {
                let said = room.text(&world.peer, &format!("at {number}"));
                room.follow(&said);
                let body = json!({"origin": "peer.test", "origin_server_ts": 1, "pdus": [said.json]});
                let path = format!("/_matrix/federation/v1/send/{wrong}.{version}.{number}");
                let answer = world.peer.ask(http, "hs1", "PUT", &path, &body).await.ok();
                assert_eq!(answer["pdus"][&said.id], json!({}), "{wrong} {version}: {answer}");
                // With what was told of the invitation.
                let news = world.bob.at(http).sync(Some(&since)).await;
                assert!(news["rooms"]["join"][&room.id].is_object(), "{wrong} {version}: {news}");
            }
        }
    }
}

/// A resident sends us what is said from the join on, and we may still be at work on its answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_said_in_a_room_while_it_is_being_joined_is_heard() {
    let world = world().await;
    let mut room = world.peer.make_room(&RoomVersionId::V11, HOST, &[]);
    let state = room.state_events();
    world.peer.let_in(&room, BOB, &state, &[]);
    let (joins, mut joined) = tokio::sync::mpsc::unbounded_channel();
    let (go_on, going_on) = std::sync::mpsc::channel();
    let going_on = std::sync::Mutex::new(going_on);
    let told = json!({"state": state.iter().map(|event| &event.json).collect::<Vec<_>>(), "auth_chain": []});
    world.peer.respond(&format!("PUT /_matrix/federation/v2/send_join/{}/", room.id), move |asked| {
        joins.send(asked.body.clone()).unwrap();
        going_on.lock().unwrap().recv().unwrap();
        (200, told.clone())
    });
    let id = room.id.clone();
    let greet = async {
        let json = joined.recv().await.unwrap();
        room.follow(&PeerEvent { id: test_kit::event_id(&room.version, &json), json });
        let welcome = room.text(&world.peer, "welcome");
        let body = json!({"origin": "peer.test", "origin_server_ts": 1, "pdus": [welcome.json]});
        let http = world.federation.server("hs1").http();
        let mut sent = Box::pin(world.peer.ask(http, "hs1", "PUT", "/_matrix/federation/v1/send/1", &body));
        // It is not answered before bob is in.
        let early = tokio::time::timeout(std::time::Duration::from_millis(300), &mut sent).await;
        assert!(early.is_err(), "{}", early.unwrap());
        go_on.send(()).unwrap();
        assert_eq!(sent.await.ok()["pdus"], json!({welcome.id: {}}));
    };
    let path = format!("/_matrix/client/v3/join/{}?via=peer.test", encode(&id));
    let nothing = json!({});
    let (answer, ()) = tokio::join!(world.bob.post(&path, &nothing), greet);
    answer.ok();
    assert_eq!(world.bob.texts(&id).await, ["welcome"]);
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
