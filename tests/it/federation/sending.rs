//! Server-Server API, "Transactions", "PDUs" and "EDUs": what our users do comes to the other servers.

use std::{
    collections::HashSet,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU16, Ordering},
    },
};

use model::Clock;
use serde_json::{Value, json};
use test_kit::{
    Answer, Http, Peer, PeerRoom, ServerOptions, TestDatabase, TestFederation, TestUser, encode, eventually,
};

use crate::keys::Device;

pub(super) const BOB: &str = "@bob:peer.test";
/// After so many tries nothing is kept in memory for a server.
const TRIES_KEPT: usize = 5;

/// Waits until something is so, while time goes by fifty times as fast.
macro_rules! eventually_later {
    ($world:expr, $condition:expr) => {
        eventually!({
            $world.clock.advance_ms(1_000);
            $condition
        })
    };
}

pub(super) use eventually_later;

/// What a peer was sent, and with which status it answers.
#[derive(Clone, Default)]
pub(super) struct Inbox(Arc<Kept>);

#[derive(Default)]
struct Kept {
    status: AtomicU16,
    sent: Mutex<Vec<Transaction>>,
    is_held: Mutex<bool>,
    was_released: Condvar,
}

#[derive(Clone, Debug)]
pub(super) struct Transaction {
    path: String,
    pub(super) body: Value,
    was_taken: bool,
}

impl Inbox {
    pub(super) fn of(peer: &Peer) -> Self {
        let inbox = Self::default();
        inbox.answers(200);
        let of_peer = inbox.clone();
        peer.respond("PUT /_matrix/federation/v1/send/", move |asked| {
            let status = of_peer.0.status.load(Ordering::SeqCst);
            let (path, body) = (asked.what.clone(), asked.body.clone());
            of_peer.0.sent.lock().unwrap().push(Transaction { path, body, was_taken: status == 200 });
            let is_held = of_peer.0.is_held.lock().unwrap();
            drop(of_peer.0.was_released.wait_while(is_held, |is_held| *is_held).unwrap());
            (status, json!({"pdus": {}}))
        });
        inbox
    }

    /// Answers nothing for a while, or again.
    pub(super) fn hold(&self, is_held: bool) {
        *self.0.is_held.lock().unwrap() = is_held;
        self.0.was_released.notify_all();
    }

    pub(super) fn answers(&self, status: u16) {
        self.0.status.store(status, Ordering::SeqCst);
    }

    pub(super) fn all(&self) -> Vec<Transaction> {
        self.0.sent.lock().unwrap().clone()
    }

    fn taken(&self) -> Vec<Transaction> {
        self.all().into_iter().filter(|transaction| transaction.was_taken).collect()
    }

    pub(super) fn events(&self) -> Vec<Value> {
        let lists = self.taken().into_iter().map(|transaction| transaction.body["pdus"].as_array().unwrap().clone());
        lists.flatten().collect()
    }

    /// What the messages say that were taken, of one room.
    pub(super) fn texts(&self, room: &str) -> Vec<String> {
        let events = self.events().into_iter().filter(|event| event["room_id"] == room);
        events.filter_map(|event| Some(event["content"]["body"].as_str()?.to_owned())).collect()
    }

    /// The contents of the EDUs of a type that were taken.
    pub(super) fn edus(&self, edu_type: &str) -> Vec<Value> {
        let lists = self.taken().into_iter().filter_map(|transaction| transaction.body["edus"].as_array().cloned());
        let edus = lists.flatten().filter(|edu| edu["edu_type"] == edu_type);
        edus.map(|edu| edu["content"].clone()).collect()
    }

    /// Whether nothing is in more transactions or larger ones than may be.
    pub(super) fn check_bounds(&self) {
        for transaction in self.all() {
            let count = |list: &str| transaction.body[list].as_array().map_or(0, Vec::len);
            assert!(count("pdus") <= 50 && count("edus") <= 100, "{transaction:?}");
            assert_eq!(transaction.body["origin"], "hs1");
        }
    }
}

/// A server with a user, and a peer that takes what it is sent, or not.
pub(super) struct World {
    pub(super) federation: TestFederation,
    pub(super) peer: Peer,
    pub(super) inbox: Inbox,
    pub(super) alice: TestUser,
    pub(super) clock: Clock,
}

impl World {
    pub(super) async fn on(database: TestDatabase) -> Self {
        let mut federation = TestFederation::empty();
        let clock = Clock::manual(Clock::system().now_ms());
        federation.add("hs1", database, ServerOptions { clock: clock.clone(), ..ServerOptions::default() }).await;
        let (alice, peer) = (federation.user("hs1", "alice").await, federation.peer("peer.test").await);
        let inbox = Inbox::of(&peer);
        Self { federation, peer, inbox, alice, clock }
    }

    pub(super) async fn new() -> Self {
        Self::on(TestDatabase::sqlite()).await
    }

    pub(super) fn http(&self) -> &Http {
        self.federation.server("hs1").http()
    }

    /// A room of alice, into which a user of the peer came.
    pub(super) async fn shared_room(&self) -> String {
        let room = self.alice.create_public_room().await;
        self.join(&room, BOB).await;
        room
    }

    pub(super) async fn join(&self, room: &str, user: &str) -> PeerRoom {
        self.peer.join(self.http(), "hs1", room, user).await
    }

    /// Makes the server give up on the peer, which does not take anything: it has been tried often.
    pub(super) async fn wait_until_given_up(&self) {
        let tries = || self.inbox.all().iter().filter(|transaction| !transaction.was_taken).count();
        eventually_later!(self, tries() > TRIES_KEPT);
    }

    pub(super) async fn restart(&mut self) {
        self.federation.server_mut("hs1").restart().await;
        self.alice = self.alice.at(self.http());
    }

    /// How it stands with the peer, for an administrator.
    pub(super) async fn destination(&self, admin: &TestUser) -> Value {
        let path = "/_synapse/admin/v1/federation/destinations/peer.test";
        let answer = self.http().request("GET", path, Some(admin.token()), &Value::Null).await;
        if answer.status.is_success() { answer.json() } else { Value::Null }
    }

    pub(super) async fn reset(&self, admin: &TestUser) -> Answer {
        let path = "/_synapse/admin/v1/federation/destinations/peer.test/reset_connection";
        self.http().request("POST", path, Some(admin.token()), &json!({})).await
    }
}

pub(super) fn numbered(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|number| format!("message {number}")).collect()
}

pub(super) async fn say(user: &TestUser, room: &str, range: std::ops::Range<usize>) {
    for text in numbered(range) {
        user.send_text(room, &text).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_our_users_send_arrives_in_order_and_once() {
    for database in TestDatabase::each().await {
        let world = World::on(database).await;
        let (room, own) = (world.shared_room().await, world.alice.create_room().await);
        say(&world.alice, &own, 0..3).await;
        say(&world.alice, &room, 0..120).await;
        eventually!(world.inbox.texts(&room).len() >= 120);
        assert_eq!(world.inbox.texts(&room), numbered(0..120));
        assert_eq!(world.inbox.texts(&own), Vec::<String>::new(), "a room that the peer is not in");
        assert!(world.inbox.events().iter().all(|event| event["sender"] == world.alice.id()), "its own events");
        world.inbox.check_bounds();
    }
}

/// Server-Server API, "Joining Rooms": who lets somebody in tells the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_in_by_our_help_is_told_to_the_other_servers() {
    let world = World::new().await;
    let room = world.shared_room().await;
    let other = world.federation.peer("other.test").await;
    let others = Inbox::of(&other);
    other.join(world.http(), "hs1", &room, "@carol:other.test").await;
    let is_hers = |event: &Value| event["state_key"] == "@carol:other.test";
    eventually!(world.inbox.events().iter().any(is_hers));
    world.alice.send_text(&room, "welcome").await;
    eventually!(others.texts(&room) == ["welcome"] && world.inbox.texts(&room) == ["welcome"]);
    assert!(!others.events().iter().any(is_hers), "what came from there does not go back");
    assert_eq!(world.inbox.events().iter().filter(|event| is_hers(event)).count(), 1);
}

/// Server-Server API, "Transactions": who gets a transaction again must know it by its id.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_is_the_same_until_it_is_taken_and_what_waits_is_packed() {
    let world = World::new().await;
    let room = world.shared_room().await;
    world.inbox.answers(500);
    say(&world.alice, &room, 0..1).await;
    eventually!(!world.inbox.all().is_empty());
    say(&world.alice, &room, 1..61).await;
    eventually_later!(world, world.inbox.all().len() >= 2);
    world.inbox.answers(200);
    eventually_later!(world, world.inbox.texts(&room).len() >= 61);
    assert_eq!(world.inbox.texts(&room), numbered(0..61));
    let (all, taken) = (world.inbox.all(), world.inbox.taken());
    assert!(
        all.iter().filter(|sent| !sent.was_taken).all(|sent| sent.path == taken[0].path && sent.body == taken[0].body)
    );
    let sizes: Vec<usize> = taken.iter().map(|sent| sent.body["pdus"].as_array().unwrap().len()).collect();
    assert_eq!(sizes, [1, 50, 10]);
    let paths: HashSet<&String> = taken.iter().map(|sent| &sent.path).collect();
    assert_eq!(paths.len(), 3);
}

/// Others wait behind it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_is_called_wrong_again_and_again_is_given_up() {
    let world = World::new().await;
    let room = world.shared_room().await;
    world.inbox.answers(400);
    say(&world.alice, &room, 0..1).await;
    eventually_later!(world, world.inbox.all().len() >= 5);
    world.inbox.answers(200);
    say(&world.alice, &room, 1..2).await;
    eventually_later!(world, world.inbox.texts(&room) == numbered(1..2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_not_taken_is_sent_after_a_restart() {
    for database in TestDatabase::each().await {
        let mut world = World::on(database).await;
        let room = world.shared_room().await;
        world.inbox.answers(500);
        say(&world.alice, &room, 0..3).await;
        eventually!(!world.inbox.all().is_empty());
        world.restart().await;
        say(&world.alice, &room, 3..5).await;
        world.inbox.answers(200);
        eventually_later!(world, world.inbox.texts(&room).len() >= 5);
        assert_eq!(world.inbox.texts(&room), numbered(0..5));
        world.restart().await;
        say(&world.alice, &room, 5..6).await;
        eventually!(world.inbox.texts(&room).len() >= 6);
        assert_eq!(world.inbox.texts(&room), numbered(0..6), "what was taken is not sent again after a restart");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_away_gets_all_that_it_missed_once_an_administrator_says_so() {
    for database in TestDatabase::each().await {
        let mut world = World::on(database).await;
        let admin = world.federation.server("hs1").admin("root").await;
        let rooms = [world.shared_room().await, world.shared_room().await];
        world.inbox.answers(503);
        say(&world.alice, &rooms[0], 0..1).await;
        world.wait_until_given_up().await;
        for room in &rooms {
            say(&world.alice, room, 1..71).await;
        }
        eventually!(world.destination(&admin).await["rooms_behind"] == 2);
        let known = world.destination(&admin).await;
        assert!(known["failure_ts"].is_i64() && known["last_error"].as_str().unwrap().contains("refused"), "{known}");
        world.reset(&world.alice).await.is_error(403, "M_FORBIDDEN");
        world.restart().await;
        world.inbox.answers(200);
        world.reset(&admin).await.ok();
        // What began before the reset may end in a short pause.
        eventually_later!(world, rooms.iter().all(|room| world.inbox.texts(room).len() >= 70));
        assert_eq!(world.inbox.texts(&rooms[0]), numbered(0..71));
        assert_eq!(world.inbox.texts(&rooms[1]), numbered(1..71));
        world.inbox.check_bounds();
        eventually!(world.destination(&admin).await["last_successful_stream_ordering"].is_null());
        eventually!(world.destination(&admin).await["failure_ts"].is_null());
        say(&world.alice, &rooms[1], 71..72).await;
        eventually!(world.inbox.texts(&rooms[1]) == numbered(1..72));
    }
}

/// Months of history are nothing that a server wants to be sent: it asks for what it wants.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_long_time_the_newest_of_each_room_is_sent() {
    let world = World::new().await;
    let rooms = [world.shared_room().await, world.shared_room().await];
    world.inbox.answers(503);
    say(&world.alice, &rooms[0], 0..1).await;
    world.wait_until_given_up().await;
    for room in &rooms {
        say(&world.alice, room, 0..40).await;
    }
    world.inbox.answers(200);
    world.clock.advance_ms(3 * 24 * 3_600_000);
    eventually_later!(world, rooms.iter().all(|room| world.inbox.texts(room).contains(&"message 39".to_owned())));
    say(&world.alice, &rooms[1], 40..41).await;
    eventually!(world.inbox.texts(&rooms[1]).contains(&"message 40".to_owned()));
    assert_eq!(world.inbox.texts(&rooms[0]), numbered(30..40));
    assert_eq!(world.inbox.texts(&rooms[1]), numbered(30..41));
}

/// A server that asks us something is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_of_a_server_ends_the_pause() {
    let world = World::new().await;
    let room = world.shared_room().await;
    world.inbox.answers(503);
    say(&world.alice, &room, 0..1).await;
    world.wait_until_given_up().await;
    world.inbox.answers(200);
    let path = "/_matrix/federation/v1/query/profile?user_id=%40alice%3Ahs1";
    world.peer.ask(world.http(), "hs1", "GET", path, &Value::Null).await;
    eventually!(world.inbox.texts(&room) == numbered(0..1));
}

/// The last of a server to be banned or kicked must learn of it, though nobody of the server is in the room any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_learns_that_its_last_user_was_removed() {
    let mut world = World::new().await;
    let rooms = [world.shared_room().await, world.shared_room().await];
    let kick = json!({"user_id": BOB});
    let is_kick = |room: &str| {
        let events = world.inbox.events();
        events.iter().filter(|event| event["room_id"] == room && event["content"]["membership"] == "leave").count()
    };
    world.alice.in_room(&rooms[0], "kick", &kick).await.ok();
    eventually!(is_kick(&rooms[0]) == 1);
    say(&world.alice, &rooms[0], 0..1).await;
    // While it gives no answer, and over a restart.
    world.inbox.answers(503);
    say(&world.alice, &rooms[1], 0..1).await;
    world.wait_until_given_up().await;
    world.alice.in_room(&rooms[1], "kick", &kick).await.ok();
    say(&world.alice, &rooms[1], 1..2).await;
    let third = world.alice.create_public_room().await;
    world.restart().await;
    world.inbox.answers(200);
    let is_kick = |room: &str| {
        let events = world.inbox.events();
        events.iter().filter(|event| event["room_id"] == room && event["content"]["membership"] == "leave").count()
    };
    eventually_later!(world, is_kick(&rooms[1]) == 1);
    world.join(&third, BOB).await;
    say(&world.alice, &third, 0..1).await;
    eventually!(world.inbox.texts(&third) == numbered(0..1));
    assert_eq!(is_kick(&rooms[0]), 1);
    assert!(world.inbox.texts(&rooms[0]).is_empty(), "what was said after the kick");
    assert!(!world.inbox.texts(&rooms[1]).contains(&"message 1".to_owned()), "what was said after the kick");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_to_devices_arrive_in_spite_of_an_outage_and_a_restart() {
    for database in TestDatabase::each().await {
        let mut world = World::on(database).await;
        let bob = TestUser::of(world.http(), &json!({"user_id": BOB, "device_id": "BOBS", "access_token": "none"}));
        let send = async |alice: &TestUser, number: usize| {
            let messages = json!({"messages": {
                bob.id(): {"BOBS": {"number": number}, "*": {"for": "all"}}, "@carol:peer.test": {"HERS": {"number": number}},
                "@dave:nowhere.test": {"HIS": {}},
            }});
            alice.put(&format!("/sendToDevice/m.room_key/n{number}"), &messages).await.ok();
        };
        send(&world.alice, 1).await;
        // The same request again.
        send(&world.alice, 1).await;
        eventually!(world.inbox.edus("m.direct_to_device").len() == 1);
        world.inbox.answers(503);
        send(&world.alice, 2).await;
        world.wait_until_given_up().await;
        for number in 3..60 {
            send(&world.alice, number).await;
        }
        world.restart().await;
        world.inbox.answers(200);
        eventually_later!(world, world.inbox.edus("m.direct_to_device").len() >= 59);
        let edus = world.inbox.edus("m.direct_to_device");
        let numbers: Vec<i64> = edus.iter().filter_map(|edu| edu["messages"][BOB]["BOBS"]["number"].as_i64()).collect();
        assert_eq!(numbers, (1..60).collect::<Vec<_>>());
        let ids: HashSet<&str> = edus.iter().map(|edu| edu["message_id"].as_str().unwrap()).collect();
        assert_eq!(ids.len(), 59);
        let edu = &edus[0];
        assert_eq!((&edu["sender"], &edu["type"]), (&json!(world.alice.id()), &json!("m.room_key")));
        assert_eq!(edu["messages"][BOB]["*"]["for"], "all");
        assert_eq!(edu["messages"]["@carol:peer.test"]["HERS"]["number"], 1);
        assert!(edu["messages"].get("@dave:nowhere.test").is_none());
        world.inbox.check_bounds();
    }
}

/// Floats have no canonical form: what has one cannot be signed, and the other server would not believe it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_to_a_device_elsewhere_must_be_canonical() {
    let world = World::new().await;
    let messages = json!({"messages": {BOB: {"BOBS": {"number": 1.5}}}});
    world.alice.put("/sendToDevice/m.room_key/n1", &messages).await.is_error(400, "M_BAD_JSON");
    let messages = json!({"messages": {BOB: {"BOBS": {"text": "x".repeat(70_000)}}}});
    world.alice.put("/sendToDevice/m.room_key/n2", &messages).await.is_error(413, "M_TOO_LARGE");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn typing_receipts_and_presence_are_told_to_those_who_may_know() {
    let world = World::new().await;
    let (room, own) = (world.shared_room().await, world.alice.create_room().await);
    let text = world.alice.send_text(&room, "one").await;
    let body = json!({"msgtype": "m.text", "body": "two", "m.relates_to": {"rel_type": "m.thread", "event_id": text}});
    let in_thread = world.alice.send(&room, "m.room.message", &body).await;
    let in_own = world.alice.send_text(&own, "three").await;
    let typing = async |room: &str, typing: bool| {
        let path = format!("/rooms/{}/typing/{}", encode(room), encode(world.alice.id()));
        world.alice.put(&path, &json!({"typing": typing, "timeout": 30_000})).await.ok();
    };
    typing(&own, true).await;
    typing(&room, true).await;
    eventually!(
        world.inbox.edus("m.typing") == [json!({"room_id": room, "user_id": world.alice.id(), "typing": true})]
    );
    typing(&room, false).await;
    eventually!(world.inbox.edus("m.typing").last().is_some_and(|edu| edu["typing"] == false));
    let read = async |room: &str, kind: &str, event: &str, body: Value| {
        let path = format!("/rooms/{}/receipt/{kind}/{}", encode(room), encode(event));
        world.alice.post(&path, &body).await.ok();
    };
    read(&room, "m.read.private", &text, json!({})).await;
    read(&own, "m.read", &in_own, json!({})).await;
    read(&room, "m.read", &in_thread, json!({"thread_id": text})).await;
    read(&room, "m.read", &text, json!({})).await;
    let receipts = || -> Vec<Value> {
        world.inbox.edus("m.receipt").iter().map(|edu| edu[&*room]["m.read"][world.alice.id()].clone()).collect()
    };
    eventually!(receipts().len() == 2);
    let (threaded, whole) = (&receipts()[0], &receipts()[1]);
    assert_eq!((&threaded["event_ids"], &threaded["data"]["thread_id"]), (&json!([in_thread]), &json!(text)));
    assert_eq!((&whole["event_ids"], whole["data"].get("thread_id")), (&json!([text]), None));
    assert!(whole["data"]["ts"].is_i64());
    let path = format!("/presence/{}/status", encode(world.alice.id()));
    world.alice.put(&path, &json!({"presence": "online", "status_msg": "here"})).await.ok();
    eventually!(world.inbox.edus("m.presence").iter().any(|edu| {
        let update = &edu["push"][0];
        update["user_id"] == world.alice.id() && update["presence"] == "online" && update["status_msg"] == "here"
    }));
    assert!(world.inbox.edus("m.typing").iter().all(|edu| edu["room_id"] == room));
    assert!(world.inbox.edus("m.receipt").iter().all(|edu| edu.get(&*own).is_none()));
    world.inbox.check_bounds();
}

/// They are old news once it gives answers again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_gives_no_answer_is_not_told_later_who_typed() {
    let world = World::new().await;
    let room = world.shared_room().await;
    world.inbox.answers(503);
    say(&world.alice, &room, 0..1).await;
    eventually!(!world.inbox.all().is_empty());
    let path = format!("/rooms/{}/typing/{}", encode(&room), encode(world.alice.id()));
    world.alice.put(&path, &json!({"typing": true, "timeout": 5_000})).await.ok();
    world.clock.advance_ms(10_000);
    world.inbox.answers(200);
    say(&world.alice, &room, 1..2).await;
    eventually_later!(world, world.inbox.texts(&room) == numbered(0..2));
    assert!(world.inbox.edus("m.typing").iter().all(|edu| edu["typing"] == false));
}

/// Server-Server API, "Device Management".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_servers_are_told_of_new_devices_and_of_newcomers() {
    for database in TestDatabase::each().await {
        let world = World::on(database).await;
        let room = world.shared_room().await;
        let device = Device::of(&world.alice);
        world.alice.post("/keys/upload", &json!({"device_keys": device.keys()})).await.ok();
        let told = |user: &TestUser| {
            let edus = world.inbox.edus("m.device_list_update");
            edus.into_iter().filter(|edu| edu["user_id"] == user.id()).collect::<Vec<_>>()
        };
        eventually!(told(&world.alice).len() == 1);
        let update = &told(&world.alice)[0];
        assert_eq!(update["device_id"], world.alice.device_id());
        assert_eq!(update["keys"]["keys"], device.keys()["keys"]);
        assert!(update["stream_id"].as_i64().is_some_and(|id| id > 0) && update.get("prev_id").is_none(), "{update}");
        // One who is alone with their keys until they come.
        let carol = world.federation.user("hs1", "carol").await;
        carol.post("/keys/upload", &json!({"device_keys": Device::of(&carol).keys()})).await.ok();
        carol.join(&room).await;
        eventually!(told(&carol).len() == 1);
        // While it gives no answer many changes become one.
        world.inbox.answers(503);
        say(&world.alice, &room, 0..1).await;
        world.wait_until_given_up().await;
        for number in 0..3 {
            let path = format!("/devices/{}", encode(world.alice.device_id()));
            world.alice.put(&path, &json!({"display_name": format!("name {number}")})).await.ok();
        }
        world.inbox.answers(200);
        eventually_later!(world, told(&world.alice).len() == 2);
        assert!(told(&world.alice)[1].get("prev_id").is_none(), "changes are missing before it");
        assert!(!world.inbox.edus("m.device_list_update").iter().any(|edu| edu.to_string().contains("name 2")));
    }
}

/// One sends at a time, and what one leaves behind the other takes up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_processes_one_sends_to_a_server() {
    let Some(database) = TestDatabase::postgres().await else { return };
    let mut world = World::on(database).await;
    let room = world.shared_room().await;
    let server = world.federation.server("hs1");
    let mut options = server.options().clone();
    options.more_listeners.clear();
    let second = server.beside(options).await;
    let elsewhere = world.alice.at(second.http());
    for number in 0..20 {
        let user = if number % 2 == 0 { &world.alice } else { &elsewhere };
        say(user, &room, number..number + 1).await;
        // Shares go over from the one to the other meanwhile.
        world.clock.advance_ms(1_000);
    }
    eventually!(world.inbox.texts(&room).len() >= 20);
    assert_eq!(world.inbox.texts(&room), numbered(0..20));
    second.shutdown().await;
    world.clock.advance_ms(5_000);
    say(&world.alice, &room, 20..30).await;
    eventually!(world.inbox.texts(&room).len() >= 30);
    assert_eq!(world.inbox.texts(&room), numbered(0..30));
    world.restart().await;
    say(&world.alice, &room, 30..31).await;
    eventually!(world.inbox.texts(&room).len() >= 31);
    assert_eq!(world.inbox.texts(&room), numbered(0..31));
}
