//! Server-Server API, "EDUs": who is typing, has read and is there at another server, and messages between devices.

use model::Clock;
use serde_json::{Value, json};
use test_kit::{Answer, Peer, ServerOptions, TestDatabase, TestFederation, TestUser, encode, eventually};

/// A server with a room, in which a user of a peer is.
pub(super) struct World {
    pub(super) federation: TestFederation,
    pub(super) peer: Peer,
    pub(super) alice: TestUser,
    pub(super) room: String,
}

/// Who is in the room, of the peer.
pub(super) const BOB: &str = "@bob:peer.test";

impl World {
    pub(super) async fn each() -> Vec<Self> {
        Self::each_with(ServerOptions::default).await
    }

    /// One on each database that is there.
    pub(super) async fn each_with(options: impl Fn() -> ServerOptions) -> Vec<Self> {
        let mut worlds = Vec::new();
        for database in TestDatabase::each().await {
            let mut federation = TestFederation::empty();
            federation.add("hs1", database, options()).await;
            let alice = federation.user("hs1", "alice").await;
            let encryption = json!({"algorithm": "m.megolm.v1.aes-sha2"});
            let request = json!({
                "preset": "public_chat", "room_version": "11",
                "initial_state": [{"type": "m.room.encryption", "state_key": "", "content": encryption}],
            });
            let room = alice.create_room_with(&request).await;
            let peer = federation.peer("peer.test").await;
            let world = Self { federation, peer, alice, room };
            world.join().await;
            worlds.push(world);
        }
        worlds
    }

    /// Bob joins the room, as the peer says in a transaction.
    pub(super) async fn join(&self) {
        let state = self.alice.get(&format!("/rooms/{}/state", encode(&self.room))).await.ok();
        let state = state.as_array().cloned().unwrap_or_default();
        let is_auth = |event: &&Value| match event["type"].as_str() {
            Some("m.room.create" | "m.room.join_rules" | "m.room.power_levels") => true,
            Some("m.room.member") => event["state_key"] == BOB,
            _ => false,
        };
        let auth: Vec<&Value> = state.iter().filter(is_auth).map(|event| &event["event_id"]).collect();
        let newest = self.alice.get(&format!("/rooms/{}/messages?dir=b&limit=1", encode(&self.room))).await.ok();
        let join = json!({
            "type": "m.room.member", "state_key": BOB, "sender": BOB, "content": {"membership": "join"},
            "room_id": self.room, "depth": 50, "origin_server_ts": Clock::system().now_ms(),
            "auth_events": auth, "prev_events": [newest["chunk"][0]["event_id"]],
        });
        let join = self.peer.sign_event(&ruma::RoomVersionId::V11, join);
        let answer = self.transaction(&json!([join.json]), &json!([])).await.ok();
        assert_eq!(answer["pdus"], json!({ join.id: {} }), "{answer}");
    }

    /// Has the peer send EDUs, each with its type and content, in one transaction.
    pub(super) async fn send(&self, edus: &[(&str, Value)]) -> Answer {
        let edus: Vec<Value> =
            edus.iter().map(|(edu_type, content)| json!({"edu_type": edu_type, "content": content})).collect();
        self.send_raw(&json!(edus)).await
    }

    pub(super) async fn send_raw(&self, edus: &Value) -> Answer {
        self.transaction(&json!([]), edus).await
    }

    async fn transaction(&self, pdus: &Value, edus: &Value) -> Answer {
        let transaction = model::Random::system().alphanumeric(12);
        let path = format!("/_matrix/federation/v1/send/{transaction}");
        let body = json!({"origin": "peer.test", "origin_server_ts": 1, "pdus": pdus, "edus": edus});
        self.peer.ask(self.federation.server("hs1").http(), "hs1", "PUT", &path, &body).await
    }

    /// What alice is told of the room by her next sync, of a type of ephemeral events.
    async fn ephemeral(&self, since: &str, event_type: &str) -> Value {
        let sync = self.alice.sync(Some(since)).await;
        let events = &sync["rooms"]["join"][&self.room]["ephemeral"]["events"];
        let of_type = events.as_array().and_then(|events| events.iter().find(|event| event["type"] == event_type));
        of_type.map_or(Value::Null, |event| event["content"].clone())
    }

    pub(super) async fn token(&self) -> String {
        self.alice.sync(None).await["next_batch"].as_str().expect("a token").to_owned()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_typing_at_another_server_is_shown() {
    // Time stands still unless it is moved.
    let options = || ServerOptions { clock: Clock::manual(Clock::system().now_ms()), ..ServerOptions::default() };
    for world in World::each_with(options).await {
        let typing = |typing: bool| ("m.typing", json!({"room_id": world.room, "user_id": BOB, "typing": typing}));
        let since = world.token().await;
        world.send(&[typing(true)]).await.ok();
        assert_eq!(world.ephemeral(&since, "m.typing").await, json!({"user_ids": [BOB]}));
        let since = world.token().await;
        world.send(&[typing(false)]).await.ok();
        assert_eq!(world.ephemeral(&since, "m.typing").await, json!({"user_ids": []}));
        // A server that says no more has gone.
        world.send(&[typing(true)]).await.ok();
        let since = world.token().await;
        world.federation.server("hs1").clock().advance_ms(61_000);
        eventually!(world.ephemeral(&since, "m.typing").await == json!({"user_ids": []}));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_far_others_have_read_is_shown() {
    for world in World::each().await {
        let root = world.alice.send_text(&world.room, "root").await;
        let later = world.alice.send_text(&world.room, "later").await;
        let receipt = |event: &str, data: Value| {
            let read = json!({"m.read": {BOB: {"data": data, "event_ids": [event]}}});
            ("m.receipt", json!({ world.room.clone(): read }))
        };
        let since = world.token().await;
        world
            .send(&[receipt(&root, json!({"ts": 5})), receipt(&later, json!({"ts": 6, "thread_id": root}))])
            .await
            .ok();
        let shown = world.ephemeral(&since, "m.receipt").await;
        assert_eq!(shown[&root]["m.read"][BOB], json!({"ts": 5}), "{shown}");
        assert_eq!(shown[&later]["m.read"][BOB], json!({"ts": 6, "thread_id": root}), "{shown}");
        // It never goes back.
        let since = world.token().await;
        world.send(&[receipt(&later, json!({"ts": 7}))]).await.ok();
        world.send(&[receipt(&root, json!({"ts": 8}))]).await.ok();
        let shown = world.ephemeral(&since, "m.receipt").await;
        assert_eq!(shown[&later]["m.read"][BOB]["ts"], 7, "{shown}");
        assert_eq!(shown[&root], Value::Null, "{shown}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_there_at_another_server_is_shown_to_who_shares_a_room() {
    for mut world in World::each().await {
        let push = |push: Value| ("m.presence", json!({ "push": push }));
        let stranger = world.federation.user("hs1", "stranger").await;
        let since = world.token().await;
        let online = json!({
            "user_id": BOB, "presence": "online", "last_active_ago": 1_000, "currently_active": true, "status_msg": "here",
        });
        // What is wrong with one is not the others' fault; and some do not say when somebody was active.
        let away = json!({"user_id": "@carol:peer.test", "presence": "offline"});
        world.send(&[push(json!([{"user_id": 1}, away, {"user_id": BOB, "presence": "odd"}, online]))]).await.ok();
        let sync = world.alice.sync(Some(&since)).await;
        let event = &sync["presence"]["events"][0];
        assert_eq!((&event["sender"], &event["content"]["presence"]), (&json!(BOB), &json!("online")), "{sync}");
        assert_eq!(event["content"]["status_msg"], "here");
        assert_eq!(event["content"]["currently_active"], true);
        let path = format!("/presence/{}/status", encode(BOB));
        assert_eq!(world.alice.get(&path).await.ok()["presence"], "online");
        stranger.get(&path).await.is_error(403, "M_FORBIDDEN");
        world.send(&[push(json!([{"user_id": BOB, "presence": "unavailable", "last_active_ago": 60_000}]))]).await.ok();
        let status = world.alice.get(&path).await.ok();
        assert_eq!((&status["presence"], &status["status_msg"]), (&json!("unavailable"), &Value::Null), "{status}");
        world.federation.server_mut("hs1").restart().await;
        world.alice = world.alice.at(world.federation.server("hs1").http());
        eventually!(world.alice.get(&path).await.ok()["presence"] == "online");
        world.send(&[push(json!([{"user_id": BOB, "presence": "offline"}]))]).await.ok();
        assert_eq!(world.alice.get(&path).await.ok()["presence"], "offline");
    }
}

/// A server speaks of its own users, where they are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_server_says_of_others_is_not_believed() {
    for world in World::each().await {
        let carol = world.federation.user("hs1", "carol").await;
        let (alice, elsewhere) = (&world.alice, carol.create_public_room().await);
        carol.join(&world.room).await;
        let event = alice.send_text(&world.room, "hello").await;
        let nobody = "!nobody:nowhere.test".to_owned();
        let mut edus = Vec::new();
        let places = [(&world.room, "@eve:other.test"), (&world.room, carol.id()), (&world.room, "@dave:peer.test")];
        for (room, user) in places.into_iter().chain([(&elsewhere, BOB), (&nobody, BOB)]) {
            edus.push(("m.typing", json!({"room_id": room, "user_id": user, "typing": true})));
            let read = json!({"m.read": {user: {"data": {"ts": 1}, "event_ids": [event]}}});
            edus.push(("m.receipt", json!({ room.clone(): read })));
            let push = json!([{"user_id": user, "presence": "online", "last_active_ago": 1, "status_msg": "forged"}]);
            edus.push(("m.presence", json!({ "push": push })));
        }
        // A thread that is none would be a row for each name that somebody thinks of.
        let read = json!({"m.read": {BOB: {"data": {"ts": 1, "thread_id": "$nothing"}, "event_ids": [event]}}});
        edus.push(("m.receipt", json!({ world.room.clone(): read })));
        let since = world.token().await;
        world.send(&edus).await.ok();
        let sync = alice.sync(Some(&since)).await;
        assert_eq!(sync["rooms"], Value::Null, "{sync}");
        let carols = carol.sync(None).await["rooms"]["join"][&elsewhere]["ephemeral"]["events"].clone();
        assert!(carols.as_array().is_none_or(Vec::is_empty), "{carols}");
        for user in ["@dave:peer.test", "@eve:other.test"] {
            alice.get(&format!("/presence/{}/status", encode(user))).await.is_error(403, "M_FORBIDDEN");
        }
        let status = alice.get(&format!("/presence/{}/status", encode(carol.id()))).await.ok();
        assert_eq!(status["status_msg"], Value::Null, "{status}");
    }
}

/// Server-Server API, "Server Access Control Lists (ACLs)": typing and receipts of a room too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_the_room_denies_is_not_heard_there() {
    for world in World::each().await {
        let event = world.alice.send_text(&world.room, "hello").await;
        let acl = json!({"allow": ["*"], "deny": ["peer.test"]});
        world.alice.set_state(&world.room, "m.room.server_acl", "", &acl).await;
        let since = world.token().await;
        let read = json!({"m.read": {BOB: {"data": {"ts": 1}, "event_ids": [event]}}});
        let typing = json!({"room_id": world.room, "user_id": BOB, "typing": true});
        world.send(&[("m.typing", typing), ("m.receipt", json!({ world.room.clone(): read }))]).await.ok();
        let sync = world.alice.sync(Some(&since)).await;
        assert_eq!(sync["rooms"], Value::Null, "{sync}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_from_another_server_reaches_the_device_once() {
    for world in World::each().await {
        let alice = &world.alice;
        let message = |sender: &str, id: &str, device: &str| {
            let messages = json!({ alice.id(): { device: {"text": id} } });
            ("m.direct_to_device", json!({"sender": sender, "type": "m.test", "message_id": id, "messages": messages}))
        };
        let since = world.token().await;
        world.send(&[message(BOB, "one", alice.device_id()), message("@eve:other.test", "forged", "*")]).await.ok();
        world.send(&[message(BOB, "one", alice.device_id()), message("@stranger:peer.test", "two", "*")]).await.ok();
        let events = alice.sync(Some(&since)).await["to_device"]["events"].clone();
        let expected = json!([
            {"type": "m.test", "sender": BOB, "content": {"text": "one"}},
            {"type": "m.test", "sender": "@stranger:peer.test", "content": {"text": "two"}},
        ]);
        assert_eq!(events, expected);
    }
}

/// Whatever comes: a transaction has an answer, and what is good in it counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_megabyte_of_edus_is_taken_for_what_it_is() {
    for world in World::each().await {
        let alice = &world.alice;
        let large = "x".repeat(20_000);
        let mut edus: Vec<Value> = (0..90)
            .map(|n| match n % 9 {
                0 => json!({"edu_type": "m.typing", "content": {"room_id": large, "user_id": BOB, "typing": true}}),
                1 => json!({"edu_type": "m.receipt", "content": {"m.read": large}}),
                2 => json!({"edu_type": "m.presence", "content": {"push": [large, {"user_id": large}, 1, null]}}),
                3 => json!({"edu_type": "m.device_list_update", "content": {"user_id": BOB, "device_id": large, "stream_id": -1}}),
                4 => json!({"edu_type": "m.signing_key_update", "content": {"user_id": BOB, "master_key": {"keys": large}}}),
                5 => json!({"edu_type": "m.direct_to_device", "content": {
                    "sender": BOB, "type": "m.test", "message_id": large, "messages": {alice.id(): {"*": {"x": large}}}}}),
                6 => json!({"edu_type": large, "content": {}}),
                7 => json!({"content": large}),
                _ => json!(large),
            })
            .collect();
        let push: Vec<Value> =
            (0..20_000).map(|n| json!({"user_id": format!("@u{n}:peer.test"), "presence": "online"})).collect();
        edus.push(json!({"edu_type": "m.presence", "content": {"push": push}}));
        let messages = json!({ alice.id(): { "*": {"text": "last"} } });
        edus.push(json!({"edu_type": "m.direct_to_device", "content": {
            "sender": BOB, "type": "m.test", "message_id": "last", "messages": messages}}));
        let since = world.token().await;
        world.send_raw(&json!(edus)).await.ok();
        eventually!(alice.sync(Some(&since)).await["to_device"]["events"][0]["content"]["text"] == "last");
    }
}
