//! Joining a room whose members come afterwards. Server-Server API, "PUT /send_join/{roomId}/{eventId}", `omit_members`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use model::Clock;
use ruma::{RoomId, RoomVersionId};
use serde_json::{Value, json};
use test_kit::{
    Answer, Peer, PeerEvent, PeerRoom, ServerOptions, TestDatabase, TestFederation, TestUser, encode, eventually,
};

use super::sending::Inbox;

const HOST: &str = "@host:peer.test";
const BOB: &str = "@bob:hs1";
const BANNED: &str = "@banned:peer.test";

/// Lets an answer go out, or holds it back.
#[derive(Clone, Default)]
pub(super) struct Gate(Arc<AtomicBool>);

impl Gate {
    pub(super) fn open(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    fn wait(&self) {
        // A test that fails does not open it.
        for _ in 0..4_000 {
            if self.0.load(Ordering::SeqCst) {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// One of our servers with a user who joins, and a server in the test's hands with a room of many members.
struct World {
    federation: TestFederation,
    peer: Peer,
    bob: TestUser,
    resident: Resident,
    inbox: Inbox,
    clock: Clock,
    sent: AtomicUsize,
}

/// A room as its server tells of it.
pub(super) struct Resident {
    pub(super) room: PeerRoom,
    /// The whole state.
    state: Vec<PeerEvent>,
    /// And what allows it.
    chain: Vec<PeerEvent>,
}

impl Resident {
    /// A room of that many members beside its host, and of somebody who was banned from it.
    pub(super) fn of(peer: &Peer, members: usize) -> Self {
        let name = ("m.room.name", "", json!({"name": "Theirs"}));
        let mut room = peer.make_room(&RoomVersionId::V11, HOST, &[name]);
        let mut chain = room.state_events();
        for number in 0..members {
            let event = join_of(peer, &room, &member(number));
            room.follow(&event);
        }
        let joined = join_of(peer, &room, BANNED);
        chain.push(joined.clone());
        room.follow(&joined);
        let ban = room.event(peer, "m.room.member", Some(BANNED), json!({"membership": "ban"}));
        room.follow(&ban);
        Self { state: room.state_events(), room, chain }
    }

    /// The server lets a user in, and tells no members then.
    pub(super) fn let_in(&self, peer: &Peer, user: &str) {
        let is_member = |event: &PeerEvent| event.json["type"] == "m.room.member";
        let (members, others): (Vec<PeerEvent>, Vec<PeerEvent>) = self.state.iter().cloned().partition(is_member);
        // The rules ask for them.
        let host: Vec<PeerEvent> = members.into_iter().filter(|event| event.json["state_key"] == HOST).collect();
        peer.let_in(&self.room, user, &others, &host);
        let told = json!({
            "state": list(&others), "auth_chain": list(&host), "members_omitted": true,
            "servers_in_room": ["peer.test", "hs1", "other.test", "not a name", "x".repeat(300)],
        });
        peer.respond(&format!("PUT /_matrix/federation/v2/send_join/{}/", self.room.id), move |_| (200, told.clone()));
    }

    /// A server tells the whole state to who asks for it, when the gate is open.
    pub(super) fn tell_state(&self, peer: &Peer, gate: &Gate) {
        let told = json!({"pdu_ids": ids(&self.state), "auth_chain_ids": ids(&self.chain)});
        let of_gate = gate.clone();
        peer.respond("GET /_matrix/federation/v1/state_ids/", move |_| {
            of_gate.wait();
            (200, told.clone())
        });
        let told = json!({"pdus": list(&self.state), "auth_chain": list(&self.chain)});
        let of_gate = gate.clone();
        peer.respond("GET /_matrix/federation/v1/state/", move |_| {
            of_gate.wait();
            (200, told.clone())
        });
        let all: Vec<PeerEvent> = self.state.iter().chain(&self.chain).cloned().collect();
        let told = json!({"auth_chain": list(&all)});
        peer.respond("GET /_matrix/federation/v1/event_auth/", move |_| (200, told.clone()));
        peer.respond("GET /_matrix/federation/v1/event/", move |asked| {
            match all.iter().find(|event| asked.what.contains(&encode(&event.id))) {
                Some(event) => (200, json!({"origin": "peer.test", "origin_server_ts": 1, "pdus": [event.json]})),
                None => (404, json!({"errcode": "M_NOT_FOUND", "error": "none"})),
            }
        });
    }
}

fn ids(events: &[PeerEvent]) -> Vec<String> {
    events.iter().map(|event| event.id.clone()).collect()
}

fn list(events: &[PeerEvent]) -> Vec<Value> {
    events.iter().map(|event| event.json.clone()).collect()
}

fn member(number: usize) -> String {
    format!("@member{number}:peer.test")
}

impl World {
    async fn on(database: TestDatabase, members: usize) -> Self {
        let clock = Clock::manual(Clock::system().now_ms());
        let mut federation = TestFederation::empty();
        federation.add("hs1", database, ServerOptions { clock: clock.clone(), ..ServerOptions::default() }).await;
        let peer = federation.peer("peer.test").await;
        let bob = federation.user("hs1", "bob").await;
        let (resident, inbox) = (Resident::of(&peer, members), Inbox::of(&peer));
        Self { federation, peer, bob, resident, inbox, clock, sent: AtomicUsize::new(0) }
    }

    fn room(&self) -> &PeerRoom {
        &self.resident.room
    }

    /// The peer lets Bob in, and tells no members then; they are behind the gate.
    fn let_in(&self, gate: &Gate) {
        self.resident.let_in(&self.peer, BOB);
        self.resident.tell_state(&self.peer, gate);
    }

    async fn join(&self) {
        join(&self.bob, self.room()).await.ok();
    }

    /// What the peer's users do, upon what the room was before Bob came and this join of his.
    async fn from(&self, user: &str) -> PeerRoom {
        let mut room = self.room().clone();
        user.clone_into(&mut room.user);
        let path = format!("/rooms/{}/messages?dir=b&limit=1", encode(&room.id));
        let newest = self.bob.get(&path).await.ok()["chunk"][0]["event_id"].as_str().unwrap().to_owned();
        room.tips = vec![newest];
        room.depth += 20;
        room
    }

    async fn send_edus(&self, edus: &Value) {
        let body = json!({"origin": "peer.test", "origin_server_ts": 1, "pdus": [], "edus": edus});
        let path = format!("/_matrix/federation/v1/send/t{}", self.sent.fetch_add(1, Ordering::SeqCst));
        self.peer.ask(self.federation.server("hs1").http(), "hs1", "PUT", &path, &body).await.ok();
    }

    async fn send(&self, event: &PeerEvent) -> Value {
        let body = json!({"origin": "peer.test", "origin_server_ts": 1, "pdus": [event.json], "edus": []});
        let path = format!("/_matrix/federation/v1/send/t{}", self.sent.fetch_add(1, Ordering::SeqCst));
        let http = self.federation.server("hs1").http();
        self.peer.ask(http, "hs1", "PUT", &path, &body).await.ok()["pdus"][&event.id].clone()
    }

    /// Whether all members of the room are here.
    async fn is_whole(&self) -> bool {
        let storage = self.federation.server("hs1").storage().await;
        let room = storage.find_room(&RoomId::parse(&*self.room().id).unwrap()).await.unwrap().unwrap();
        let is_partial = storage.is_partial(room.nr).await.unwrap();
        storage.close().await;
        !is_partial
    }

    /// All that is derived from the state is as the state says.
    async fn is_sound(&self) {
        let storage = self.federation.server("hs1").storage().await;
        let room = storage.find_room(&RoomId::parse(&*self.room().id).unwrap()).await.unwrap().unwrap();
        assert_eq!(storage.wrong_projections(room.nr).await.unwrap(), Vec::<String>::new());
        storage.close().await;
    }

    /// The state as Bob sees it, by ids.
    async fn shown(&self) -> Vec<String> {
        let state = self.bob.get(&format!("/rooms/{}/state", encode(&self.room().id))).await.ok();
        ids_of(&state)
    }

    /// The state that a server has which was told everything.
    async fn expected(&self) -> Vec<String> {
        let path = format!("/rooms/{}/state/m.room.member/{BOB}?format=event", encode(&self.room().id));
        let own = self.bob.get(&path).await.ok()["event_id"].as_str().unwrap().to_owned();
        let mut expected: Vec<String> = self.resident.state.iter().map(|event| event.id.clone()).chain([own]).collect();
        expected.sort_unstable();
        expected
    }

    fn says(&self, user: &TestUser, what: &str) -> impl Future<Output = String> {
        let (user, room, what) = (user.clone(), self.room().id.clone(), what.to_owned());
        async move { user.send_text(&room, &what).await }
    }
}

async fn join(user: &TestUser, room: &PeerRoom) -> Answer {
    user.post(&format!("/_matrix/client/v3/join/{}?via=peer.test", encode(&room.id)), &json!({})).await
}

fn join_of(peer: &Peer, room: &PeerRoom, user: &str) -> PeerEvent {
    let mut theirs = room.clone();
    user.clone_into(&mut theirs.user);
    theirs.event(peer, "m.room.member", Some(user), json!({"membership": "join"}))
}

fn ids_of(events: &Value) -> Vec<String> {
    let events = events.as_array().unwrap().iter();
    let mut ids: Vec<String> = events.map(|event| event["event_id"].as_str().unwrap().to_owned()).collect();
    ids.sort_unstable();
    ids
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_is_used_before_its_members_are_here_and_is_whole_afterwards() {
    for database in TestDatabase::each().await {
        let world = World::on(database, 700).await;
        let gate = Gate::default();
        world.let_in(&gate);
        let since = world.bob.sync(None).await["next_batch"].as_str().unwrap().to_owned();
        world.join().await;
        let news = world.bob.sync(Some(&since)).await;
        let shown = &news["rooms"]["join"][&world.room().id];
        let has_name = |event: &Value| event["content"]["name"] == "Theirs";
        assert!(shown["state"]["events"].as_array().unwrap().iter().any(has_name), "{shown:#}");

        // Both talk; of who talks clients learn the name.
        world.says(&world.bob, "I am here").await;
        eventually!(world.inbox.texts(&world.room().id) == ["I am here"]);
        let mut theirs = world.from(&member(3)).await;
        let hello = theirs.text(&world.peer, "hello");
        assert_eq!(world.send(&hello).await, json!({}));
        theirs.follow(&hello);
        let renamed = json!({"membership": "join", "displayname": "Three"});
        let renamed = theirs.event(&world.peer, "m.room.member", Some(&member(3)), renamed);
        assert_eq!(world.send(&renamed).await, json!({}));
        assert_eq!(world.bob.texts(&world.room().id).await, ["I am here", "hello"]);
        let since = news["next_batch"].as_str().unwrap();
        let news = world.bob.sync(Some(since)).await;
        let shown = &news["rooms"]["join"][&world.room().id];
        let told = ["state", "timeline"].into_iter().filter_map(|part| shown[part]["events"].as_array()).flatten();
        assert!(told.into_iter().any(|event| event["state_key"] == member(3)), "{shown:#}");
        // Of somebody else it is seen that they type and read, though nothing else is known of them.
        let reader = member(4);
        let receipt = json!({&world.room().id: {"m.read": {&reader: {"data": {"ts": 1}, "event_ids": [&hello.id]}}}});
        world
            .send_edus(&json!([
                {"edu_type": "m.typing", "content": {"room_id": &world.room().id, "user_id": &reader, "typing": true}},
                {"edu_type": "m.receipt", "content": receipt},
            ]))
            .await;
        let since = news["next_batch"].as_str().unwrap();
        let news = world.bob.sync(Some(since)).await;
        let shown = news["rooms"]["join"][&world.room().id]["ephemeral"]["events"].as_array().unwrap().clone();
        let content = |kind: &str| shown.iter().find(|event| event["type"] == kind).map(|event| &event["content"]);
        assert_eq!(content("m.typing"), Some(&json!({"user_ids": [&reader]})));
        assert!(content("m.receipt").unwrap()[&hello.id]["m.read"][&reader].is_object());
        world.is_sound().await;
        assert!(!world.is_whole().await);

        // Who wants to know all members waits for them.
        let path = format!("/rooms/{}/members", encode(&world.room().id));
        let members = tokio::spawn({
            let (bob, path) = (world.bob.clone(), path.clone());
            async move { bob.get(&path).await.ok() }
        });
        gate.open();
        let members = members.await.unwrap();
        assert_eq!(members["chunk"].as_array().unwrap().len(), 700 + 3);
        assert!(world.is_whole().await);
        let mut expected = world.expected().await;
        expected.retain(|id| *id != world.room().state_event("m.room.member", &member(3)).id);
        expected.push(renamed.id.clone());
        expected.sort_unstable();
        assert_eq!(world.shown().await, expected);
        world.is_sound().await;

        // Clients that had the room learn who was in it.
        let since = news["next_batch"].as_str().unwrap();
        let news = world.bob.sync(Some(since)).await;
        let shown = &news["rooms"]["join"][&world.room().id];
        assert_eq!(
            shown["state"]["events"].as_array().unwrap().len(),
            700 + 1,
            "all but Bob, and who renamed themselves"
        );
        assert_eq!(shown["summary"]["m.joined_member_count"], 702);
        assert!(news["device_lists"]["changed"].as_array().unwrap().contains(&json!(member(5))));
        // Those who want members as they are needed are not told all of them, nor is what was then asked for anything but whole.
        let lazy = encode(r#"{"room":{"state":{"lazy_load_members":true}}}"#);
        let news = world.bob.get(&format!("/sync?since={}&filter={lazy}", encode(since))).await.ok();
        let shown = &news["rooms"]["join"][&world.room().id];
        assert_eq!(shown["state"].get("events").map_or(0, |events| events.as_array().unwrap().len()), 0, "{shown:#}");
        assert_eq!(shown["summary"]["m.joined_member_count"], 702);
        let then = world.bob.get(&format!("{path}?at={}", encode(since))).await.ok();
        assert_eq!(then["chunk"].as_array().unwrap().len(), 700 + 3);
        // What comes now is measured by all of it.
        let mut theirs = world.from(BANNED).await;
        theirs.follow(&world.resident.chain.last().unwrap().clone());
        theirs.tips = world.from(BANNED).await.tips;
        let spam = theirs.text(&world.peer, "spam");
        assert!(world.send(&spam).await["error"].is_string());
        world.says(&world.bob, "all of you").await;
        eventually!(world.inbox.texts(&world.room().id) == ["I am here", "all of you"]);
    }
}

/// A server that has missed a ban goes on as if there was none, and so do we, until we know better.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_somebody_said_whose_ban_was_not_known_is_gone_when_it_is() {
    for database in TestDatabase::each().await {
        let world = World::on(database, 40).await;
        let gate = Gate::default();
        world.let_in(&gate);
        world.join().await;
        let mut theirs = world.from(BANNED).await;
        let joined = world.resident.chain.last().unwrap().clone();
        theirs.state.insert(("m.room.member".to_owned(), BANNED.to_owned()), joined.clone());
        let spam = theirs.text(&world.peer, "spam");
        assert_eq!(world.send(&spam).await, json!({}));
        theirs.follow(&spam);
        let renamed = json!({"membership": "join", "displayname": "Spam"});
        let renamed = theirs.event(&world.peer, "m.room.member", Some(BANNED), renamed);
        assert_eq!(world.send(&renamed).await, json!({}));
        theirs.follow(&renamed);
        assert_eq!(world.bob.texts(&world.room().id).await, ["spam"]);
        world.says(&world.bob, "who are you?").await;
        world.is_sound().await;

        gate.open();
        eventually!(world.is_whole().await);
        // A moment later than the database the process knows it, too.
        eventually!(world.bob.texts(&world.room().id).await == ["who are you?"]);
        assert_eq!(world.shown().await, world.expected().await);
        world.is_sound().await;
        let again = theirs.text(&world.peer, "again");
        assert!(world.send(&again).await["error"].is_string());
        world.says(&world.bob, "gone").await;
        let own = world.from(HOST).await;
        let answer = own.text(&world.peer, "thank you");
        assert_eq!(world.send(&answer).await, json!({}));
        assert_eq!(world.bob.texts(&world.room().id).await, ["who are you?", "gone", "thank you"]);
    }
}

/// Neither of them takes the whole state before it is here: what was said before, and what comes by a way around the join.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_said_before_and_beside_the_join_is_read_before_all_members_are_here() {
    for database in TestDatabase::each().await {
        let mut world = World::on(database, 40).await;
        let gate = Gate::default();
        let mut theirs = world.room().clone();
        theirs.user = member(2);
        let old = theirs.text(&world.peer, "old");
        theirs.follow(&old);
        world.resident.room.follow(&old);
        world.let_in(&gate);
        let told = json!({"origin": "peer.test", "origin_server_ts": 1, "pdus": [old.json]});
        world.peer.respond("GET /_matrix/federation/v1/backfill/", move |_| (200, told.clone()));
        world.join().await;
        theirs.user = member(4);
        let beside = theirs.text(&world.peer, "beside");
        assert_eq!(world.send(&beside).await, json!({}));
        world.says(&world.bob, "behind").await;
        let mut expected = ["old", "beside", "behind"].map(ToOwned::to_owned).to_vec();
        let texts = async || {
            let path = format!("/rooms/{}/messages?dir=b&limit=50", encode(&world.room().id));
            let page = world.bob.get(&path).await.ok();
            let bodies = page["chunk"].as_array().unwrap().iter().filter_map(|event| event["content"]["body"].as_str());
            let mut texts: Vec<String> = bodies.map(ToOwned::to_owned).collect();
            texts.reverse();
            texts
        };
        assert_eq!(texts().await, expected);
        assert!(!world.is_whole().await);
        world.is_sound().await;
        gate.open();
        eventually!(world.is_whole().await);
        assert_eq!(texts().await, expected);
        assert_eq!(world.shown().await, world.expected().await);
        world.is_sound().await;
        // All of it is one room again.
        let after = world.from(&member(4)).await.text(&world.peer, "after");
        assert_eq!(world.send(&after).await, json!({}));
        expected.push("after".to_owned());
        assert_eq!(texts().await, expected);
    }
}

/// Whom it may let in, and what there was, others are not told before it is known.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_depends_on_members_waits_for_them_or_is_refused() {
    let world = World::on(TestDatabase::sqlite(), 40).await;
    let gate = Gate::default();
    world.let_in(&gate);
    world.join().await;
    let (http, room) = (world.federation.server("hs1").http(), encode(&world.room().id));
    let stranger = world.federation.peer("stranger.test").await;
    stranger.make(http, "hs1", "join", &world.room().id, "@eve:stranger.test").await.is_error(404, "M_NOT_FOUND");
    // A member of the peer is known, so it may read; but not a state that is not whole.
    let hello = world.from(HOST).await.text(&world.peer, "hello");
    assert_eq!(world.send(&hello).await, json!({}));
    let ask = async |path: &str| world.peer.ask(http, "hs1", "GET", path, &Value::Null).await;
    let of_state = format!("/_matrix/federation/v1/state_ids/{room}?event_id={}", encode(&hello.id));
    ask(&of_state).await.is_error(403, "M_FORBIDDEN");
    ask(&format!("/_matrix/federation/v1/event/{}", encode(&hello.id))).await.ok();
    // A server that was only said to be in the room sees nothing.
    let other = world.federation.peer("other.test").await;
    let path = format!("/_matrix/federation/v1/event/{}", encode(&hello.id));
    other.ask(http, "hs1", "GET", &path, &Value::Null).await.is_error(404, "M_NOT_FOUND");

    // Of our own users, too, nobody acts upon what is not known.
    let carl = world.federation.user("hs1", "carl").await;
    let waiting: Vec<_> = [
        tokio::spawn({
            let (carl, room) = (carl.clone(), world.room().clone());
            async move { join(&carl, &room).await.ok() }
        }),
        tokio::spawn({
            let (bob, path) = (world.bob.clone(), format!("/rooms/{room}/state/m.room.member/{}", member(7)));
            async move { bob.get(&path).await.ok() }
        }),
        tokio::spawn({
            let (bob, path) = (world.bob.clone(), format!("/rooms/{room}/joined_members"));
            async move { bob.get(&path).await.ok() }
        }),
    ]
    .into();
    world.says(&world.bob, "patience").await;
    assert!(!world.is_whole().await && waiting.iter().all(|task| !task.is_finished()));
    gate.open();
    for task in waiting {
        task.await.unwrap();
    }
    ask(&of_state).await.ok();
    let kick = json!({"user_id": member(7)});
    world.bob.post(&format!("/rooms/{room}/kick"), &kick).await.is_error(403, "M_FORBIDDEN");
    world.is_sound().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_goes_on_with_what_was_begun() {
    for database in TestDatabase::each().await {
        let mut world = World::on(database, 40).await;
        let gate = Gate::default();
        world.let_in(&gate);
        world.join().await;
        world.says(&world.bob, "before").await;
        world.federation.server_mut("hs1").restart().await;
        world.bob = world.bob.at(world.federation.server("hs1").http());
        assert!(!world.is_whole().await);
        world.says(&world.bob, "after").await;
        gate.open();
        eventually!({
            world.clock.advance_ms(1_000);
            world.is_whole().await
        });
        assert_eq!(world.shown().await, world.expected().await);
        assert_eq!(world.bob.texts(&world.room().id).await, ["before", "after"]);
        world.is_sound().await;
    }
}

/// What it was told wrong, or not at all, is asked again, of others too; the room is used meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_server_tells_the_members_when_who_let_us_in_does_not() {
    let world = World::on(TestDatabase::sqlite(), 40).await;
    let gate = Gate::default();
    gate.open();
    world.let_in(&gate);
    world.peer.answer(&format!("GET /_matrix/federation/v1/state_ids/{}*", world.room().id), 500, &json!({}));
    let other = world.federation.peer("other.test").await;
    world.resident.tell_state(&other, &gate);
    world.join().await;
    eventually!({
        world.clock.advance_ms(1_000);
        world.is_whole().await
    });
    assert_eq!(world.shown().await, world.expected().await);
    world.is_sound().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_state_leaves_the_room_as_it_is() {
    let world = World::on(TestDatabase::sqlite(), 40).await;
    let gate = Gate::default();
    gate.open();
    world.let_in(&gate);
    let others: Vec<PeerEvent> =
        world.resident.state.iter().filter(|event| event.json["type"] != "m.room.create").cloned().collect();
    let ids = |ids: Value| json!({"pdu_ids": ids, "auth_chain_ids": []});
    let path = format!("GET /_matrix/federation/v1/state_ids/{}*", world.room().id);
    let wrong = [
        json!("garbage"),
        ids(json!([])),
        ids(json!(others.iter().map(|event| event.id.clone()).collect::<Vec<_>>())),
        ids(json!((0..200_000).map(|number| format!("$nothing{number}")).collect::<Vec<_>>())),
    ];
    let mut tries = 0;
    for answer in &wrong {
        world.peer.answer(&path, 200, answer);
        if tries == 0 {
            world.join().await;
        }
        let asked = || world.peer.asked().iter().filter(|asked| asked.what.contains("/state_ids/")).count();
        tries = asked();
        eventually!({
            world.clock.advance_ms(10_000);
            asked() > tries + 1
        });
        world.says(&world.bob, "still here").await;
        assert!(!world.is_whole().await);
    }
    let right = json!({
        "pdu_ids": world.resident.state.iter().map(|event| event.id.clone()).collect::<Vec<_>>(),
        "auth_chain_ids": world.resident.chain.iter().map(|event| event.id.clone()).collect::<Vec<_>>(),
    });
    world.peer.answer(&path, 200, &right);
    eventually!({
        world.clock.advance_ms(10_000);
        world.is_whole().await
    });
    assert_eq!(world.shown().await, world.expected().await);
    world.is_sound().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_meanwhile_is_out_and_comes_back_to_all_of_it() {
    let world = World::on(TestDatabase::sqlite(), 40).await;
    let gate = Gate::default();
    world.let_in(&gate);
    world.join().await;
    world.bob.leave(&world.room().id).await;
    gate.open();
    eventually!({
        world.clock.advance_ms(1_000);
        world.is_whole().await
    });
    // Now the state is told with all members.
    world.peer.let_in(world.room(), BOB, &world.resident.state, &world.resident.chain);
    world.join().await;
    assert_eq!(world.shown().await, world.expected().await);
    world.is_sound().await;
}

/// What came in a stay that ended too early never gets its whole state: where somebody goes on from there, that is asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_back_goes_on_from_what_was_never_whole() {
    let world = World::on(TestDatabase::sqlite(), 40).await;
    let gate = Gate::default();
    gate.open();
    world.let_in(&gate);
    let path = format!("GET /_matrix/federation/v1/state_ids/{}*", world.room().id);
    world.peer.answer(&path, 500, &json!({}));
    world.join().await;
    world.says(&world.bob, "bye").await;
    world.bob.leave(&world.room().id).await;
    let mut theirs = world.from(HOST).await;
    eventually!({
        world.clock.advance_ms(1_000);
        world.is_whole().await
    });
    let resident = &world.resident;
    world.peer.answer(&path, 200, &json!({"pdu_ids": ids(&resident.state), "auth_chain_ids": ids(&resident.chain)}));
    world.peer.let_in(world.room(), BOB, &resident.state, &resident.chain);
    world.join().await;
    theirs.depth += 20;
    let answer = theirs.text(&world.peer, "come back");
    assert_eq!(world.send(&answer).await, json!({}));
    world.is_sound().await;
}

/// Two of ours: the room is whole in the end, and nothing said meanwhile is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_of_another_of_our_servers_comes_without_members_first() {
    let federation = TestFederation::of(2).await;
    let (alice, bob) = (federation.user("hs1", "alice").await, federation.user("hs2", "bob").await);
    let room = alice.create_public_room().await;
    for number in 0..20 {
        federation.user("hs1", &format!("u{number}")).await.join(&room).await;
    }
    bob.post(&format!("/_matrix/client/v3/join/{}?via=hs1", encode(&room)), &json!({})).await.ok();
    let mut said = Vec::new();
    for number in 0..10 {
        bob.send_text(&room, &format!("bob {number}")).await;
        alice.send_text(&room, &format!("alice {number}")).await;
        said.extend([format!("alice {number}"), format!("bob {number}")]);
    }
    said.sort_unstable();
    let sorted = async |user: &TestUser| {
        let mut texts = user.texts(&room).await;
        texts.sort_unstable();
        texts
    };
    eventually!(sorted(&bob).await == said && sorted(&alice).await == said);
    let path = format!("/rooms/{}/members", encode(&room));
    let (theirs, ours) = (alice.get(&path).await.ok(), bob.get(&path).await.ok());
    assert_eq!(ids_of(&theirs["chunk"]), ids_of(&ours["chunk"]));
    let storage = federation.server("hs2").storage().await;
    let nr = storage.find_room(&RoomId::parse(&*room).unwrap()).await.unwrap().unwrap().nr;
    assert_eq!(storage.wrong_projections(nr).await.unwrap(), Vec::<String>::new());
    storage.close().await;
}
