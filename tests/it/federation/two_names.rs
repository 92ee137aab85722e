//! One deployment with two names is two servers to all others. Server-Server API, "Authentication", "Transactions".

use std::collections::BTreeSet;

use http::{HeaderValue, Request};
use model::Clock;
use ruma::{
    RoomVersionId, ServerName, api::federation::authentication::XMatrix, serde::Base64, signatures::PublicKeyMap,
};
use serde_json::{Value, json};
use test_kit::{
    Answer, Asked, Http, Peer, PeerEvent, PeerRoom, ServerOptions, TestDatabase, TestFederation, TestUser, encode,
    event_id, eventually, register,
};

use super::scenario::{Scene, Side, WHOLE};
use crate::keys::Device;

const NAMES: [&str; 2] = ["one.test", "two.test"];
const SENDING: &str = "PUT /_matrix/federation/v1/send/";
const HOST: &str = "@host:peer.test";

/// A federation with our two names, found by the first.
async fn with_two_names(federation: &mut TestFederation, database: TestDatabase, mut options: ServerOptions) {
    options.config.server.names = NAMES.map(|name| name.try_into().unwrap()).to_vec();
    federation.add(NAMES[0], database, options).await;
}

/// PostgreSQL, if there is one for tests.
async fn postgres() -> TestDatabase {
    TestDatabase::postgres().await.unwrap_or_else(TestDatabase::sqlite)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_of_each_name_share_rooms_with_another_server() {
    for (version, database) in [(12, TestDatabase::sqlite()), (11, postgres().await)] {
        let mut federation = TestFederation::of(1).await;
        with_two_names(&mut federation, database, ServerOptions::default()).await;
        let other = Side::of("hs1", federation.server("hs1").http());
        for name in NAMES {
            let ours = Side::of(name, federation.server(NAMES[0]).http());
            Scene { version, maker: ours, guest: other.clone() }.play_both_ways(WHOLE).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_of_both_names_share_rooms_and_nothing_of_it_goes_over_the_network() {
    let mut federation = TestFederation::empty();
    with_two_names(&mut federation, TestDatabase::sqlite(), ServerOptions::default()).await;
    // Whoever looks for one of the names is led to these.
    let (first, second) = (federation.peer(NAMES[0]).await, federation.peer(NAMES[1]).await);
    let [maker, guest] = NAMES.map(|name| Side::of(name, federation.server(NAMES[0]).http()));
    Scene { version: 12, maker, guest }.play_both_ways(WHOLE).await;
    let asked: Vec<String> = [first, second].iter().flat_map(Peer::asked).map(|asked| asked.what).collect();
    assert_eq!(asked, [""; 0]);
}

/// Alice of the first name, bob of the second, and a server in the test's hands with a room that it lets them into.
struct World {
    federation: TestFederation,
    peer: Peer,
    alice: TestUser,
    bob: TestUser,
    room: PeerRoom,
}

impl World {
    async fn on(database: TestDatabase, options: ServerOptions) -> Self {
        let mut federation = TestFederation::empty();
        with_two_names(&mut federation, database, options).await;
        let peer = federation.peer("peer.test").await;
        let http = federation.server(NAMES[0]).http();
        let alice = register(&http.for_host(NAMES[0]), "alice").await;
        let bob = register(&http.for_host(NAMES[1]), "bob").await;
        let room = peer.make_room(&RoomVersionId::V11, HOST, &[]);
        peer.serve_room(&room, &[]);
        Self { federation, peer, alice, bob, room }
    }

    fn http(&self) -> &Http {
        self.federation.server(NAMES[0]).http()
    }

    /// Alice joins through the peer, and bob the room that is here by then.
    async fn join(&mut self) {
        let path = format!("/join/{}?via=peer.test", encode(&self.room.id));
        self.alice.post(&path, &json!({})).await.ok();
        let joins = self.peer.asked();
        let join = joins.iter().find(|asked| asked.what.contains("/send_join/")).unwrap().body.clone();
        self.room.follow(&PeerEvent { id: event_id(&self.room.version, &join), json: join });
        self.bob.post(&path, &json!({})).await.ok();
        let bob = self.bob.id().to_owned();
        eventually!(self.events().iter().any(|event| event["state_key"] == bob));
        let join = self.events().into_iter().find(|event| event["state_key"] == bob).unwrap();
        self.room.follow(&PeerEvent { id: event_id(&self.room.version, &join), json: join });
    }

    /// The transactions that the peer was sent.
    fn transactions(&self) -> Vec<Asked> {
        self.peer.asked().into_iter().filter(|asked| asked.what.starts_with(SENDING)).collect()
    }

    /// What is in a list of all transactions.
    fn sent(&self, list: &str) -> Vec<Value> {
        let lists = self.transactions().into_iter().filter_map(|asked| asked.body[list].as_array().cloned());
        lists.flatten().collect()
    }

    fn events(&self) -> Vec<Value> {
        self.sent("pdus")
    }

    fn texts(&self) -> Vec<String> {
        self.events().iter().filter_map(|event| Some(event["content"]["body"].as_str()?.to_owned())).collect()
    }

    fn is_told(&self, edu_type: &str, of: &TestUser) -> bool {
        let is_it = |edu: &Value| edu["edu_type"] == edu_type && edu["content"].to_string().contains(of.id());
        self.sent("edus").iter().any(is_it)
    }

    async fn ask(&self, destination: &str, method: &str, path: &str, body: &Value) -> Answer {
        self.peer.ask(self.http(), destination, method, path, body).await
    }

    /// The peer sends a transaction with this id to one of the names.
    async fn send(&self, destination: &str, transaction: &str, pdus: &[&PeerEvent], edus: &Value) -> Value {
        let pdus: Vec<&Value> = pdus.iter().map(|event| &event.json).collect();
        let body = json!({"origin": "peer.test", "origin_server_ts": 1, "pdus": pdus, "edus": edus});
        self.ask(destination, "PUT", &format!("/_matrix/federation/v1/send/{transaction}"), &body).await.ok()
    }

    /// The keys of both names, as each publishes them.
    async fn keys(&self) -> PublicKeyMap {
        let mut keys = PublicKeyMap::new();
        for name in NAMES {
            let http = self.http().for_host(name);
            let published = http.request("GET", "/_matrix/key/v2/server", None, &Value::Null).await.ok();
            for (id, key) in published["verify_keys"].as_object().unwrap() {
                let key = Base64::parse(key["key"].as_str().unwrap()).unwrap();
                keys.entry(name.to_owned()).or_default().insert(id.clone(), key);
            }
        }
        keys
    }
}

/// Who signed a request to the peer, which is found to be signed so.
fn signer(asked: &Asked, keys: &PublicKeyMap) -> String {
    let header = XMatrix::try_from(&HeaderValue::from_str(&asked.authorization).unwrap()).unwrap();
    let destination = <&ServerName>::try_from("peer.test").unwrap();
    assert_eq!(header.destination.as_deref(), Some(destination), "{asked:?}");
    let (method, path) = asked.what.split_once(' ').unwrap();
    let body = if asked.body.is_null() { Vec::new() } else { serde_json::to_vec(&asked.body).unwrap() };
    let request = Request::builder().method(method).uri(path).body(body).unwrap();
    header.verify_http_request(&request, destination, keys).unwrap();
    header.origin.to_string()
}

/// The name of ours that says something in a transaction.
fn name_in(said: &Value) -> BTreeSet<&'static str> {
    let said = said.to_string();
    NAMES.into_iter().filter(|name| said.contains(&format!(":{name}"))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_users_do_is_said_by_their_own_name_and_once() {
    for database in TestDatabase::each().await {
        let mut world = World::on(database, ServerOptions::default()).await;
        world.join().await;
        let (alice, bob) = (&world.alice, &world.bob);
        let room = encode(&world.room.id);
        let mut said = Vec::new();
        for number in 0..10 {
            for user in [alice, bob] {
                let text = format!("{number} of {}", user.id());
                user.send_text(&world.room.id, &text).await;
                said.push(text);
            }
        }
        for user in [alice, bob] {
            user.put(
                &format!("/rooms/{room}/typing/{}", encode(user.id())),
                &json!({"typing": true, "timeout": 20_000}),
            )
            .await
            .ok();
            let newest = user.get(&format!("/rooms/{room}/messages?dir=b&limit=1")).await.ok();
            let newest = newest["chunk"][0]["event_id"].as_str().unwrap().to_owned();
            user.post(&format!("/rooms/{room}/receipt/m.read/{}", encode(&newest)), &json!({})).await.ok();
            user.put(&format!("/presence/{}/status", encode(user.id())), &json!({"presence": "online"})).await.ok();
            user.post("/keys/upload", &json!({"device_keys": Device::of(user).keys()})).await.ok();
            let message = json!({"messages": {HOST: {"PHONE": {"hello": "there"}}}});
            user.put("/sendToDevice/m.test/1", &message).await.ok();
        }
        let kinds = ["m.typing", "m.receipt", "m.presence", "m.device_list_update", "m.direct_to_device"];
        eventually!(kinds.iter().all(|kind| world.is_told(kind, alice) && world.is_told(kind, bob)));
        eventually!(world.texts().len() >= said.len());

        let keys = world.keys().await;
        for asked in world.peer.asked().iter().filter(|asked| !asked.authorization.is_empty()) {
            let signer = signer(asked, &keys);
            if !asked.what.starts_with(SENDING) {
                // Whoever wants to know something asks: here alice, who joined first.
                assert_eq!(signer, NAMES[0], "{}", asked.what);
                continue;
            }
            assert_eq!(asked.body["origin"], signer);
            for event in asked.body["pdus"].as_array().unwrap() {
                assert!(event["sender"].as_str().unwrap().ends_with(&format!(":{signer}")), "{event}");
            }
            for edu in asked.body["edus"].as_array().into_iter().flatten() {
                assert_eq!(name_in(edu), BTreeSet::from([&*signer]), "{edu}");
            }
        }
        let mut texts = world.texts();
        for user in [alice, bob] {
            let of_user = |texts: &[String]| -> Vec<String> {
                texts.iter().filter(|text| text.ends_with(user.id())).cloned().collect()
            };
            assert_eq!(of_user(&texts), of_user(&said), "in order");
        }
        texts.sort();
        said.sort();
        assert_eq!(texts, said, "each once");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_server_sends_to_both_names_is_taken_in_once() {
    for database in TestDatabase::each().await {
        let mut world = World::on(database, ServerOptions::default()).await;
        world.join().await;
        let since: Vec<String> = [world.alice.sync(None).await, world.bob.sync(None).await]
            .iter()
            .map(|answer| answer["next_batch"].as_str().unwrap().to_owned())
            .collect();
        let mut room = world.room.clone();
        let first = room.text(&world.peer, "to both");
        room.follow(&first);
        let second = room.text(&world.peer, "to the second only");
        // As other servers do, which tell each destination of its own users, under one id.
        let message = |user: &TestUser| {
            let messages = json!({user.id(): {"*": {"hello": user.id()}}});
            let content = json!({"sender": HOST, "type": "m.test", "message_id": "m1", "messages": messages});
            json!([{"edu_type": "m.direct_to_device", "content": content}])
        };
        // One id for two transactions: they are not the same.
        let answer = world.send(NAMES[0], "t1", &[&first], &message(&world.alice)).await;
        assert_eq!(answer["pdus"], json!({first.id.clone(): {}}));
        let answer = world.send(NAMES[1], "t1", &[&first, &second], &message(&world.bob)).await;
        assert_eq!(answer["pdus"], json!({first.id.clone(): {}, second.id.clone(): {}}));
        // And each once.
        world.send(NAMES[0], "t2", &[&first], &message(&world.alice)).await;
        world.send(NAMES[1], "t2", &[&second], &message(&world.bob)).await;
        for (user, since) in [&world.alice, &world.bob].into_iter().zip(since) {
            assert_eq!(user.texts(&world.room.id).await, ["to both", "to the second only"]);
            let news = user.sync(Some(&since)).await;
            let got: Vec<&Value> = news["to_device"]["events"]
                .as_array()
                .unwrap()
                .iter()
                .map(|event| &event["content"]["hello"])
                .collect();
            assert_eq!(got, [user.id()], "{}", user.id());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_name_answers_for_itself_only() {
    let world = World::on(TestDatabase::sqlite(), ServerOptions::default()).await;
    let (alice, bob) = (&world.alice, &world.bob);
    alice.post("/keys/upload", &json!({"device_keys": Device::of(alice).keys()})).await.ok();
    let room = |user: &TestUser, alias: &str| {
        let body = json!({"preset": "public_chat", "room_alias_name": alias, "visibility": "public", "name": alias});
        let user = user.clone();
        async move { user.create_room_with(&body).await }
    };
    let (of_alice, of_bob) = (room(alice, "hall").await, room(bob, "yard").await);

    for (name, other) in [("three.test", "peer.test"), ("peer.test", "one.test")] {
        let path = format!("/_matrix/federation/v1/query/profile?user_id={}", encode(alice.id()));
        let answer = world.ask(name, "GET", &path, &Value::Null).await;
        assert_eq!(answer.status.as_u16(), 401, "{name} is none of ours, nor {other}: {answer}");
    }
    let paths = [
        format!("/_matrix/federation/v1/query/profile?user_id={}", encode(alice.id())),
        format!("/_matrix/federation/v1/query/directory?room_alias={}", encode("#hall:one.test")),
        format!("/_matrix/federation/v1/user/devices/{}", encode(alice.id())),
        format!("/_matrix/federation/v1/make_join/{}/{}?ver=12&ver=11", encode(&of_alice), encode(HOST)),
    ];
    for path in paths {
        world.ask(NAMES[0], "GET", &path, &Value::Null).await.ok();
        world.ask(NAMES[1], "GET", &path, &Value::Null).await.is_error(404, "M_NOT_FOUND");
    }
    let query = json!({"device_keys": {alice.id(): []}});
    for (name, is_known) in [(NAMES[0], true), (NAMES[1], false)] {
        let answer = world.ask(name, "POST", "/_matrix/federation/v1/user/keys/query", &query).await.ok();
        assert_eq!(answer["device_keys"][alice.id()].is_object(), is_known, "{name}: {answer}");
    }
    for (name, room) in [(NAMES[0], &of_alice), (NAMES[1], &of_bob)] {
        let answer = world.ask(name, "GET", "/_matrix/federation/v1/publicRooms", &Value::Null).await.ok();
        let listed: Vec<&Value> = answer["chunk"].as_array().unwrap().iter().map(|entry| &entry["room_id"]).collect();
        assert_eq!(listed, [room], "{name}");
    }
    let http = world.http().for_host(NAMES[1]);
    let version = http.request("GET", "/_matrix/federation/v1/version", None, &Value::Null).await.ok();
    assert_eq!(version["server"]["name"], "SwiftChat");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invitation_is_signed_by_the_name_of_who_is_invited() {
    for database in TestDatabase::each().await {
        let world = World::on(database, ServerOptions::default()).await;
        for (user, own, other) in [(&world.alice, NAMES[0], NAMES[1]), (&world.bob, NAMES[1], NAMES[0])] {
            let room = world.peer.make_room(
                &RoomVersionId::V11,
                HOST,
                &[("m.room.join_rules", "", json!({"join_rule": "invite"}))],
            );
            let event = room.event(&world.peer, "m.room.member", Some(user.id()), json!({"membership": "invite"}));
            let path = format!("/_matrix/federation/v2/invite/{}/{}", encode(&room.id), encode(&event.id));
            let body = json!({"room_version": "11", "event": event.json, "invite_room_state": []});
            let refused = world.ask(other, "PUT", &path, &body).await;
            assert!(refused.status.is_client_error(), "{refused}");
            let answer = world.ask(own, "PUT", &path, &body).await.ok();
            let signers: BTreeSet<&String> = answer["event"]["signatures"].as_object().unwrap().keys().collect();
            assert_eq!(signers, BTreeSet::from([&own.to_owned(), &"peer.test".to_owned()]));
            let told = user.sync(None).await;
            assert!(told["rooms"]["invite"][&room.id].is_object(), "{told}");

            // It is turned down in the same name.
            world.peer.answer(
                &format!("GET /_matrix/federation/v1/make_leave/{}/{}", room.id, user.id()),
                404,
                &json!({"errcode": "M_NOT_FOUND", "error": "gone"}),
            );
            user.leave(&room.id).await;
            let asked = world.peer.asked();
            let leave = asked.iter().find(|asked| asked.what.contains("make_leave") && asked.what.contains(own));
            let leave = leave.unwrap_or_else(|| panic!("the peer is asked: {asked:?}"));
            assert_eq!(signer(leave, &world.keys().await), own);
        }
    }
}

/// A server that denies one of the names does not keep it from hearing the other one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_is_refused_does_not_hold_up_the_other() {
    let clock = Clock::manual(Clock::system().now_ms());
    let options = ServerOptions { clock: clock.clone(), ..ServerOptions::default() };
    let mut world = World::on(TestDatabase::sqlite(), options).await;
    world.join().await;
    let is_denied = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let denied = is_denied.clone();
    world.peer.respond(SENDING, move |asked| {
        let denies = denied.load(std::sync::atomic::Ordering::SeqCst) && asked.body["origin"] == NAMES[1];
        if denies { (403, json!({"errcode": "M_FORBIDDEN", "error": "not you"})) } else { (200, json!({"pdus": {}})) }
    });
    let tries =
        |world: &World| world.transactions().iter().filter(|asked| asked.body.to_string().contains("of bob")).count();
    world.bob.send_text(&world.room.id, "of bob").await;
    for round in 1..=4 {
        eventually!(tries(&world) == round);
        // It is some time until the next try: meanwhile alice is heard.
        let text = format!("of alice {round}");
        world.alice.send_text(&world.room.id, &text).await;
        eventually!(world.texts().contains(&text));
        assert_eq!(tries(&world), round, "that another name is heard is no reason to try again");
        clock.advance_ms(20_000);
    }
    is_denied.store(false, std::sync::atomic::Ordering::SeqCst);
    let before = tries(&world);
    eventually!({
        clock.advance_ms(5_000);
        tries(&world) > before
    });
    world.bob.send_text(&world.room.id, "and more of bob").await;
    eventually!(world.texts().contains(&"and more of bob".to_owned()));
}
