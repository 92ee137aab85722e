//! Server-Server API, "Device Management", "End-to-End Encryption": the devices and keys of users, both ways.

use model::{Clock, KeyPair, Random};
use ruma::{
    CanonicalJsonValue,
    serde::{Base64, base64::Standard},
    signatures::KeyPair as _,
};
use serde_json::{Value, json};
use test_kit::{Peer, ServerOptions, TestUser, encode, eventually};

use super::edus::{BOB, World};

const DEVICES: &str = "GET /_matrix/federation/v1/user/devices/@bob:peer.test";
const QUERY: &str = "POST /_matrix/federation/v1/user/keys/query";
const CLAIM: &str = "POST /_matrix/federation/v1/user/keys/claim";

/// Keys of a device; their signatures are the clients' to check.
fn keys(user: &str, device: &str) -> Value {
    json!({
        "user_id": user, "device_id": device, "algorithms": ["m.olm.v1.curve25519-aes-sha2"],
        "keys": { format!("ed25519:{device}"): "A".repeat(43) }, "signatures": {},
    })
}

fn list(stream_id: u32, devices: &[&str]) -> Value {
    let devices: Vec<Value> = devices
        .iter()
        .map(|id| json!({"device_id": id, "keys": keys(BOB, id), "device_display_name": format!("Bob's {id}")}))
        .collect();
    json!({"user_id": BOB, "stream_id": stream_id, "devices": devices})
}

fn update(stream_id: u32, prev_id: &[u32], device: &str) -> (&'static str, Value) {
    let content = json!({
        "user_id": BOB, "device_id": device, "stream_id": stream_id, "prev_id": prev_id, "keys": keys(BOB, device),
    });
    ("m.device_list_update", content)
}

/// How often a peer was asked this.
fn times_asked(peer: &Peer, what: &str) -> usize {
    peer.asked().iter().filter(|asked| asked.what == what).count()
}

/// The answer to the question for somebody's keys.
async fn query(user: &TestUser, whom: &str) -> Value {
    user.post("/keys/query", &json!({"device_keys": {whom: []}, "timeout": 20_000})).await.ok()
}

/// The ids of Bob's devices as they are shown.
async fn devices_of_bob(user: &TestUser) -> Vec<String> {
    let answer = query(user, BOB).await;
    let devices = answer["device_keys"][BOB].as_object().cloned().unwrap_or_default();
    devices.into_iter().map(|(id, _)| id).collect()
}

/// Whether a user is told to ask for Bob's keys.
async fn is_told(user: &TestUser, since: &str) -> bool {
    let sync = user.sync(Some(since)).await;
    sync["device_lists"]["changed"].as_array().is_some_and(|changed| changed.contains(&json!(BOB)))
}

/// A server whose time stands still unless the test moves it: it does not ask again before its time.
async fn worlds() -> Vec<World> {
    World::each_with(|| ServerOptions { clock: Clock::manual(Clock::system().now_ms()), ..ServerOptions::default() })
        .await
}

impl World {
    fn advance_ms(&self, ms: i64) {
        self.federation.server("hs1").clock().advance_ms(ms);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_devices_of_who_shares_a_room_are_asked_for_once_and_followed() {
    for world in worlds().await {
        let (alice, peer) = (&world.alice, &world.peer);
        let mut answer = list(5, &["A"]);
        answer["master_key"] = json!({"user_id": BOB, "usage": ["master"], "keys": {"ed25519:AAAA": "AAAA"}});
        let public = peer.key().public_key();
        let signing =
            |usage: &str| json!({"user_id": BOB, "usage": [usage], "keys": { format!("ed25519:{public}"): public }});
        answer["self_signing_key"] = signing("self_signing");
        peer.answer(DEVICES, 200, &answer);
        // 1. Asked for once.
        let found = query(alice, BOB).await;
        let mut expected = keys(BOB, "A");
        expected["unsigned"] = json!({"device_display_name": "Bob's A"});
        assert_eq!(found["device_keys"], json!({ BOB: {"A": expected} }), "{found}");
        assert_eq!(found["self_signing_keys"], json!({ BOB: signing("self_signing") }));
        assert_eq!((&found["failures"], &found["master_keys"]), (&json!({}), &json!({})), "a key that is none");
        query(alice, BOB).await;
        assert_eq!(times_asked(peer, DEVICES), 1);
        // 2. Followed, and told.
        let since = world.token().await;
        world.send(&[update(6, &[5], "B"), update(7, &[6], "C")]).await.ok();
        assert!(is_told(alice, &since).await);
        assert_eq!(devices_of_bob(alice).await, ["A", "B", "C"]);
        let since = world.token().await;
        let mut gone = update(9, &[7], "B");
        gone.1["deleted"] = json!(true);
        world.send(&[gone.clone(), gone.clone()]).await.ok();
        world.send(&[gone]).await.ok();
        assert!(is_told(alice, &since).await);
        assert_eq!(devices_of_bob(alice).await, ["A", "C"]);
        // 3. Cross-signing keys, which have no number.
        let since = world.token().await;
        let content = json!({"user_id": BOB, "master_key": signing("master")});
        world.send(&[("m.signing_key_update", content)]).await.ok();
        assert!(is_told(alice, &since).await);
        assert_eq!(query(alice, BOB).await["master_keys"], json!({ BOB: signing("master") }));
        assert_eq!(times_asked(peer, DEVICES), 1);
    }
}

/// Whether to believe it is for the clients: they compare with what they verified. A server speaks of its own users only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signing_key_that_a_server_replaces_is_passed_on_but_nobody_elses() {
    for world in worlds().await {
        let (alice, peer) = (&world.alice, &world.peer);
        let master = |user: &str| {
            let public = KeyPair::generate(&Random::system()).public_key();
            json!({"user_id": user, "usage": ["master"], "keys": { format!("ed25519:{public}"): public }})
        };
        let (first, second, own) = (master(BOB), master(BOB), master(alice.id()));
        let mut answer = list(5, &["A"]);
        answer["master_key"] = first.clone();
        peer.answer(DEVICES, 200, &answer);
        assert_eq!(query(alice, BOB).await["master_keys"][BOB], first);
        alice.post("/keys/device_signing/upload", &json!({"master_key": own})).await.ok();
        let since = world.token().await;
        let says = |user: &str, key: &Value| ("m.signing_key_update", json!({"user_id": user, "master_key": key}));
        let eve = "@eve:other.test";
        // Of others, under the name of another, and one that is none.
        world.send(&[says(alice.id(), &master(alice.id())), says(eve, &master(eve)), says(BOB, &own)]).await.ok();
        world.send(&[says(BOB, &json!({"user_id": BOB, "usage": ["master"], "keys": {"ed25519:A": "A"}}))]).await.ok();
        assert_eq!(query(alice, BOB).await["master_keys"][BOB], first);
        assert_eq!(query(alice, alice.id()).await["master_keys"][alice.id()], own);
        assert_eq!(alice.sync(Some(&since)).await["device_lists"], Value::Null);
        world.send(&[says(BOB, &second)]).await.ok();
        assert!(is_told(alice, &since).await);
        assert_eq!(query(alice, BOB).await["master_keys"][BOB], second);
        assert_eq!(query(alice, alice.id()).await["master_keys"][alice.id()], own);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_gap_all_devices_are_asked_for_and_clients_are_told() {
    for world in worlds().await {
        let (alice, peer) = (&world.alice, &world.peer);
        peer.answer(DEVICES, 200, &list(5, &["A"]));
        assert_eq!(devices_of_bob(alice).await, ["A"]);
        world.advance_ms(5_000);
        let since = world.token().await;
        peer.answer(DEVICES, 200, &list(9, &["A", "C"]));
        world.send(&[update(9, &[8], "C")]).await.ok();
        eventually!(is_told(alice, &since).await);
        assert_eq!(devices_of_bob(alice).await, ["A", "C"]);
        assert_eq!(times_asked(peer, DEVICES), 2);
        // What follows on the answer is taken without a question.
        world.send(&[update(10, &[9], "D")]).await.ok();
        assert_eq!(devices_of_bob(alice).await, ["A", "C", "D"]);
        assert_eq!(times_asked(peer, DEVICES), 2);
    }
}

/// Nobody may miss a device for good because a server was away for a while, ours or the other one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_silent_server_missed_to_say_is_asked_for_until_it_answers() {
    for mut world in worlds().await {
        let peer = &world.peer;
        peer.answer(DEVICES, 500, &json!({}));
        let answer = query(&world.alice, BOB).await;
        assert!(answer["failures"]["peer.test"].is_object(), "{answer}");
        assert_eq!(answer["device_keys"], json!({}), "{answer}");
        assert_eq!(times_asked(peer, DEVICES), 1);
        query(&world.alice, BOB).await;
        assert_eq!(times_asked(peer, DEVICES), 1, "not each time that somebody wants it");
        let since = world.token().await;
        world.federation.server_mut("hs1").restart().await;
        world.alice = world.alice.at(world.federation.server("hs1").http());
        peer.answer(DEVICES, 200, &list(5, &["A"]));
        eventually!({
            world.advance_ms(10_000);
            times_asked(peer, DEVICES) == 2
        });
        eventually!(is_told(&world.alice, &since).await);
        assert_eq!(devices_of_bob(&world.alice).await, ["A"]);
    }
}

/// A server that contradicts itself costs a question every few seconds, whatever it sends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn updates_that_never_fit_cost_few_questions() {
    for world in worlds().await {
        let (alice, peer) = (&world.alice, &world.peer);
        peer.answer(DEVICES, 200, &list(1, &["A"]));
        assert_eq!(devices_of_bob(alice).await, ["A"]);
        for round in 0..20_u32 {
            let flood: Vec<_> = (0..100_u32)
                .map(|n| {
                    let id = 1_000 * (round + 1) + n;
                    // Cycles, itself, nothing before it.
                    update(id, &[id + 1, id, id.saturating_sub(7)][..n as usize % 4], "Z")
                })
                .collect();
            world.send(&flood).await.ok();
        }
        assert_eq!(times_asked(peer, DEVICES), 1, "time stands still");
        world.advance_ms(5_000);
        eventually!(times_asked(peer, DEVICES) == 2);
        eventually!(devices_of_bob(alice).await == ["A"]);
        assert_eq!(times_asked(peer, DEVICES), 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_say_something_else_are_no_answers() {
    for world in worlds().await {
        let (alice, peer) = (&world.alice, &world.peer);
        let mut of_another = list(1, &["A"]);
        of_another["user_id"] = json!("@carol:peer.test");
        for answer in [of_another, json!({"user_id": BOB}), json!([]), json!({"x": "x".repeat(5 << 20)})] {
            peer.answer(DEVICES, 200, &answer);
            let found = query(alice, BOB).await;
            assert!(found["failures"]["peer.test"].is_object(), "{found}");
            world.advance_ms(30_000);
        }
        // Of what is mixed, what is Bob's own is taken.
        let mut mixed = list(3, &["A", "B"]);
        mixed["devices"][1]["keys"]["user_id"] = json!("@carol:peer.test");
        peer.answer(DEVICES, 200, &mixed);
        eventually!({
            world.advance_ms(30_000);
            devices_of_bob(alice).await == ["A"]
        });
    }
}

/// Clients ask for none of a server's users for a while when it is said to have failed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_user_with_very_many_devices_some_are_kept_and_the_server_has_not_failed() {
    for world in worlds().await {
        let (alice, peer) = (&world.alice, &world.peer);
        let ids: Vec<String> = (0..1_500).map(|n| format!("D{n}")).collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        peer.answer(DEVICES, 200, &list(1, &ids));
        for stream_id in 2..4 {
            let found = query(alice, BOB).await;
            assert_eq!(found["failures"], json!({}));
            assert_eq!(found["device_keys"][BOB].as_object().map(serde_json::Map::len), Some(1_000));
            world.send(&[update(stream_id, &[stream_id - 1], "Z")]).await.ok();
        }
        assert_eq!(times_asked(peer, DEVICES), 1);
    }
}

/// A key of another server is not to be trusted to be one: at some texts vodozemac panics.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signing_keys_that_are_none_are_left_out_of_the_answer() {
    for world in worlds().await {
        let (alice, peer) = (&world.alice, &world.peer);
        let carol = "@carol:peer.test";
        for public in ["A".repeat(44), "A".repeat(42) + "==", "A".repeat(42) + "="] {
            let key = json!({ format!("ed25519:{public}"): public });
            let master = |user: &str| json!({"user_id": user, "usage": ["master"], "keys": key});
            let said = json!({"device_keys": {carol: {"C": keys(carol, "C")}}, "master_keys": {carol: master(carol)}});
            peer.answer(QUERY, 200, &said);
            let mut of_bob = list(5, &["A"]);
            of_bob["master_key"] = master(BOB);
            peer.answer(DEVICES, 200, &of_bob);
            let found = alice.post("/keys/query", &json!({"device_keys": {carol: [], BOB: []}})).await.ok();
            assert_eq!((&found["master_keys"], &found["failures"]), (&json!({}), &json!({})), "{found}");
            assert!(
                found["device_keys"][carol]["C"].is_object() && found["device_keys"][BOB]["A"].is_object(),
                "{found}"
            );
            world.send(&[("m.signing_key_update", json!({"user_id": BOB, "master_key": master(BOB)}))]).await.ok();
            let own = json!({"master_key": master(alice.id())});
            alice.post("/keys/device_signing/upload", &own).await.is_error(400, "M_INVALID_PARAM");
        }
    }
}

/// Who is in no room with us tells us of no changes: nothing of them is kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_strangers_the_keys_are_asked_for_each_time() {
    for world in worlds().await {
        let (alice, peer) = (&world.alice, &world.peer);
        let (carol, dave) = ("@carol:peer.test", "@dave:peer.test");
        let mut named = keys(carol, "C");
        named["unsigned"] = json!({"device_display_name": "Carol's"});
        let answer = json!({"device_keys": {
            carol: {"C": named, "X": keys(carol, "C"), "N": keys(carol, "N")}, "@eve:other.test": {"E": keys("@eve:other.test", "E")},
            dave: {},
        }});
        peer.answer(QUERY, 200, &answer);
        let wanted = json!({"device_keys": {carol: ["C", "X"], dave: []}});
        for times in 1..=2 {
            let found = alice.post("/keys/query", &wanted).await.ok();
            assert_eq!(found["device_keys"], json!({carol: {"C": named}, dave: {}}), "{found}");
            assert_eq!(times_asked(peer, QUERY), times);
        }
        let asked = peer.asked().into_iter().find(|asked| asked.what == QUERY).expect("a question");
        assert_eq!(asked.body, json!({"device_keys": {carol: ["C", "X"], dave: []}}));
        // Nothing is kept of what they say of themselves either.
        let since = world.token().await;
        let content =
            json!({"user_id": carol, "device_id": "C", "stream_id": 2, "prev_id": [], "keys": keys(carol, "C")});
        world.send(&[("m.device_list_update", content)]).await.ok();
        assert_eq!(alice.sync(Some(&since)).await["device_lists"], Value::Null);
    }
}

/// With nobody left in a common room, nobody tells us what changes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_left_the_last_common_room_is_not_followed_any_more() {
    for world in worlds().await {
        let (alice, peer) = (&world.alice, &world.peer);
        peer.answer(DEVICES, 200, &list(5, &["A"]));
        assert_eq!(devices_of_bob(alice).await, ["A"]);
        let since = world.token().await;
        alice.in_room(&world.room, "kick", &json!({"user_id": BOB})).await.ok();
        let sync = alice.sync(Some(&since)).await;
        assert_eq!(sync["device_lists"]["left"], json!([BOB]), "{sync}");
        let answer = json!({"device_keys": {BOB: {"Q": keys(BOB, "Q")}}});
        peer.answer(QUERY, 200, &answer);
        assert_eq!(devices_of_bob(alice).await, ["Q"], "asked anew");
        // Back in the room there may be others.
        peer.answer(DEVICES, 200, &list(8, &["A", "B"]));
        world.join().await;
        assert!(is_told(alice, &since).await);
        eventually!(devices_of_bob(alice).await == ["A", "B"]);
        assert_eq!(times_asked(peer, DEVICES), 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_time_keys_are_claimed_from_the_server_of_the_device() {
    for world in worlds().await {
        let (alice, peer) = (&world.alice, &world.peer);
        let key = json!({"key": "zKbLg+NrIjpnagy+pIY6uPL4ZwEG2v+8F9lmgsnlZzs", "signatures": {}});
        let given = json!({"one_time_keys": {
            BOB: {
                "A": {"signed_curve25519:AAA": key, "other:BBB": key},
                "NOT_ASKED": {"signed_curve25519:CCC": key},
            },
            "@eve:other.test": {"A": {"signed_curve25519:DDD": key}},
        }});
        peer.answer(CLAIM, 200, &given);
        let claim = json!({"one_time_keys": {
            BOB: {"A": "signed_curve25519", "B": "signed_curve25519"}, "@eve:nowhere.test": {"E": "signed_curve25519"},
        }});
        let claimed = alice.post("/keys/claim", &claim).await.ok();
        assert_eq!(claimed["one_time_keys"], json!({BOB: {"A": {"signed_curve25519:AAA": key}}}), "{claimed}");
        assert!(claimed["failures"]["nowhere.test"].is_object(), "{claimed}");
        assert_eq!(claimed["failures"].as_object().map(serde_json::Map::len), Some(1), "{claimed}");
        let asked = peer.asked().into_iter().find(|asked| asked.what == CLAIM).expect("a question");
        assert_eq!(asked.body, json!({"one_time_keys": {BOB: {"A": "signed_curve25519", "B": "signed_curve25519"}}}));
    }
}

// shows: server-server:getUserDevices, server-server:claimUserEncryptionKeys, server-server:queryUserEncryptionKeys
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_keys_of_our_users_are_given_to_servers() {
    for world in worlds().await {
        let (alice, peer) = (&world.alice, &world.peer);
        let http = world.federation.server("hs1").http();
        let ask = async |method: &str, path: &str, body: &Value| {
            peer.ask(http, "hs1", method, &format!("/_matrix/federation/v1/user/{path}"), body).await
        };
        let device = crate::keys::Device::of(alice);
        let one_time = device.sign(json!({"key": "A".repeat(43)}));
        let upload = json!({"device_keys": device.keys(), "one_time_keys": {"signed_curve25519:1": one_time}});
        alice.post("/keys/upload", &upload).await.ok();
        let path = format!("devices/{}", encode(alice.id()));
        let first = ask("GET", &path, &Value::Null).await.ok();
        let devices = json!([{"device_id": alice.device_id(), "keys": device.keys()}]);
        assert_eq!((&first["user_id"], &first["devices"]), (&json!(alice.id()), &devices), "{first}");
        // 1. Another state of the list has another name.
        alice.put(&format!("/devices/{}", alice.device_id()), &json!({"display_name": "secret"})).await.ok();
        let second = ask("GET", &path, &Value::Null).await.ok();
        assert!(first["stream_id"].as_i64() < second["stream_id"].as_i64(), "{first} {second}");
        assert!(!second.to_string().contains("secret"), "names are for people: {second}");
        // 2. By user and device.
        let nobody = "@nobody:hs1";
        let wanted = json!({"device_keys": {alice.id(): [], nobody: [], BOB: []}});
        let found = ask("POST", "keys/query", &wanted).await.ok();
        assert_eq!(found["device_keys"], json!({alice.id(): {alice.device_id(): device.keys()}}), "{found}");
        let none = ask("POST", "keys/query", &json!({"device_keys": {alice.id(): ["OTHER"]}})).await.ok();
        assert_eq!(none["device_keys"], json!({alice.id(): {}}), "{none}");
        // 3. Once.
        let claim = json!({"one_time_keys": {alice.id(): {alice.device_id(): "signed_curve25519"}, BOB: {"A": "x"}}});
        let claimed = ask("POST", "keys/claim", &claim).await.ok();
        let given = json!({alice.id(): {alice.device_id(): {"signed_curve25519:1": one_time}}});
        assert_eq!(claimed["one_time_keys"], given, "{claimed}");
        assert_eq!(ask("POST", "keys/claim", &claim).await.ok()["one_time_keys"], json!({}));
        // 4. Of nobody else.
        for user in [nobody, BOB, "@alice:elsewhere.test"] {
            ask("GET", &format!("devices/{}", encode(user)), &Value::Null).await.is_error(404, "M_NOT_FOUND");
        }
        let many: serde_json::Map<String, Value> = (0..10_001).map(|n| (format!("@u{n}:hs1"), json!([]))).collect();
        ask("POST", "keys/query", &json!({"device_keys": many})).await.is_error(400, "M_INVALID_PARAM");
        let many: serde_json::Map<String, Value> = (0..5_001).map(|n| (format!("D{n}"), json!("x"))).collect();
        ask("POST", "keys/claim", &json!({"one_time_keys": {alice.id(): many}})).await.is_error(400, "M_INVALID_PARAM");
        let bare = http.request("GET", &format!("/_matrix/federation/v1/user/{path}"), None, &Value::Null).await;
        bare.is_error(401, "M_UNAUTHORIZED");
    }
}

/// Who verifies somebody elsewhere signs their master key, whether it is kept here or not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_key_of_another_server_is_signed_and_shown_so() {
    for world in worlds().await {
        let (alice, peer) = (&world.alice, &world.peer);
        let carol = "@carol:peer.test";
        let master = |user: &str| {
            let public = peer.key().public_key();
            json!({"user_id": user, "usage": ["master"], "keys": { format!("ed25519:{public}"): public }})
        };
        let mut of_bob = list(5, &["A"]);
        of_bob["master_key"] = master(BOB);
        peer.answer(DEVICES, 200, &of_bob);
        peer.answer(QUERY, 200, &json!({"device_keys": {carol: {}}, "master_keys": {carol: master(carol)}}));
        let own = CrossSigning::upload(alice).await;
        let signed = [BOB, carol].map(|user| (user, own.sign(alice, master(user))));
        let target = peer.key().public_key();
        let body = json!({BOB: {&target: signed[0].1}, carol: {&target: signed[1].1}});
        let answer = alice.post("/keys/signatures/upload", &body).await.ok();
        assert_eq!(answer["failures"], json!({}), "{answer}");
        for (user, signed) in signed {
            let shown = query(alice, user).await["master_keys"][user].clone();
            assert_eq!(shown["signatures"][alice.id()], signed["signatures"][alice.id()], "{shown}");
            let other = world.federation.user("hs1", &format!("other{}", user.len())).await;
            let shown = query(&other, user).await["master_keys"][user].clone();
            assert_eq!(shown["signatures"][alice.id()], Value::Null, "nobody else's business");
        }
        let forged = json!({BOB: {&target: {"user_id": BOB, "usage": ["master"], "keys": {}}}});
        let answer = alice.post("/keys/signatures/upload", &forged).await.ok();
        assert_eq!(answer["failures"][BOB][&target]["errcode"], "M_INVALID_SIGNATURE", "{answer}");
    }
}

/// The cross-signing keys of a user of ours.
pub(super) struct CrossSigning {
    master: KeyPair,
    self_signing: KeyPair,
    user_signing: KeyPair,
}

impl CrossSigning {
    pub(super) async fn upload(user: &TestUser) -> Self {
        let [master, self_signing, user_signing] = [(); 3].map(|()| KeyPair::generate(&Random::system()));
        let own = Self { master, self_signing, user_signing };
        let signed = |pair, usage| signed_by(&own.master, user, key(user, pair, usage));
        let body = json!({
            "master_key": own.master(user), "self_signing_key": signed(&own.self_signing, "self_signing"),
            "user_signing_key": signed(&own.user_signing, "user_signing"),
        });
        user.post("/keys/device_signing/upload", &body).await.ok();
        own
    }

    /// The master key by its name.
    pub(super) fn master_key(&self) -> String {
        self.master.public_key()
    }

    /// The master key of `user`, whose keys these are.
    pub(super) fn master(&self, user: &TestUser) -> Value {
        key(user, &self.master, "master")
    }

    /// Somebody's master key with a signature of the user.
    pub(super) fn sign(&self, user: &TestUser, object: Value) -> Value {
        signed_by(&self.user_signing, user, object)
    }

    /// A device of the user with their signature.
    pub(super) fn sign_own(&self, user: &TestUser, object: Value) -> Value {
        signed_by(&self.self_signing, user, object)
    }
}

fn key(user: &TestUser, pair: &KeyPair, usage: &str) -> Value {
    let public = pair.public_key();
    json!({"user_id": user.id(), "usage": [usage], "keys": { format!("ed25519:{public}"): public }})
}

fn signed_by(pair: &KeyPair, user: &TestUser, mut object: Value) -> Value {
    let mut bare = object.clone();
    bare.as_object_mut().expect("an object").remove("signatures");
    let text = CanonicalJsonValue::try_from(bare).expect("canonical JSON").to_string();
    let signature = Base64::<Standard>::new(pair.sign(text.as_bytes()).as_bytes().to_vec()).encode();
    object["signatures"][user.id()][format!("ed25519:{}", pair.public_key())] = json!(signature);
    object
}
