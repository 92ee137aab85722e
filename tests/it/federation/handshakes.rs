//! Server-Server API, "Joining Rooms", "Leaving Rooms (Rejecting Invites)", "Knocking upon a room": the side of who is in the room.

use serde_json::{Value, json};
use test_kit::{
    Answer, Http, Peer, PeerEvent, ServerOptions, TestDatabase, TestFederation, TestUser, encode, event_id,
};

use super::world::server_and_peer;

const BOB: &str = "@bob:peer.test";

struct World {
    federation: TestFederation,
    peer: Peer,
    alice: TestUser,
}

impl World {
    async fn on(database: TestDatabase) -> Self {
        let (federation, peer, alice) = server_and_peer(database).await;
        Self { federation, peer, alice }
    }

    async fn new() -> Self {
        Self::on(TestDatabase::sqlite()).await
    }

    fn http(&self) -> &Http {
        self.federation.server("hs1").http()
    }

    async fn make(&self, action: &str, room: &str, user: &str) -> Answer {
        self.peer.make(self.http(), "hs1", action, room, user).await
    }

    async fn submit(&self, action: &str, room: &str, event: &PeerEvent) -> Answer {
        self.peer.submit(self.http(), "hs1", action, room, event).await
    }

    /// Asks for a template, and sends the event of it.
    async fn shake(&self, action: &str, room: &str, user: &str) -> Answer {
        let template = self.make(action, room, user).await;
        if !template.status.is_success() {
            return template;
        }
        let (_, event) = self.peer.signed_template(&template.json());
        self.submit(action, room, &event).await
    }

    /// A room of alice with these join rules.
    async fn room(&self, version: &str, join_rules: Value) -> String {
        let state = json!([{"type": "m.room.join_rules", "state_key": "", "content": join_rules}]);
        self.alice.create_room_with(&json!({"room_version": version, "initial_state": state})).await
    }

    /// What a user is to a room, as alice sees it.
    async fn membership(&self, room: &str, user: &str) -> String {
        let path = format!("/rooms/{}/state/m.room.member/{}", encode(room), encode(user));
        self.alice.get(&path).await.json()["membership"].as_str().unwrap_or_default().to_owned()
    }
}

fn public() -> Value {
    json!({"join_rule": "public"})
}

/// The types and state keys of events.
fn keys(events: &Value) -> Vec<(String, String)> {
    let text = |event: &Value, field: &str| event[field].as_str().unwrap_or("-").to_owned();
    let mut keys: Vec<_> =
        events.as_array().unwrap().iter().map(|event| (text(event, "type"), text(event, "state_key"))).collect();
    keys.sort();
    keys
}

// shows: server-server:makeJoin, server-server:sendJoinV2, server-server:makeLeave, server-server:sendLeaveV2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_of_another_server_come_in_and_go_in_every_version() {
    for database in TestDatabase::each().await {
        let world = World::on(database).await;
        for version in ["1", "2", "3", "5", "6", "9", "10", "11", "12"] {
            let room = world.room(version, public()).await;
            let joined = world.peer.join(world.http(), "hs1", &room, BOB).await;
            assert_eq!(joined.version.as_str(), version);
            let answer = &joined.answer;
            assert!(answer.get("members_omitted").is_none() && answer.get("servers_in_room").is_none());
            let own = &joined.state[&("m.room.member".to_owned(), BOB.to_owned())];
            assert_eq!(answer["event"], own.json, "version {version}");
            let state = keys(&answer["state"]);
            assert_eq!(state.len(), 6, "{state:?}");
            let of_state = |key: &str, state_key: &str| state.contains(&(key.to_owned(), state_key.to_owned()));
            assert!(of_state("m.room.create", "") && of_state("m.room.member", "@alice:hs1"));
            assert!(!of_state("m.room.member", BOB), "the state is that before the join");
            let chain = keys(&answer["auth_chain"]);
            // Since version 12 the create event allows all others without being named.
            let mut expected =
                vec![("m.room.join_rules", ""), ("m.room.member", "@alice:hs1"), ("m.room.power_levels", "")];
            if version != "12" {
                expected.insert(0, ("m.room.create", ""));
            }
            let expected: Vec<_> = expected.into_iter().map(|(kind, key)| (kind.to_owned(), key.to_owned())).collect();
            assert_eq!(chain, expected, "version {version}");
            assert_eq!(world.membership(&room, BOB).await, "join");
            world.shake("leave", &room, BOB).await.ok();
            assert_eq!(world.membership(&room, BOB).await, "leave");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_template_is_given_to_who_may_send_the_event() {
    let world = World::new().await;
    let room = world.room("10", public()).await;
    let template = world.make("join", &room, BOB).await.ok();
    let event = &template["event"];
    assert_eq!((&template["room_version"], &event["type"]), (&json!("10"), &json!("m.room.member")));
    assert_eq!((&event["sender"], &event["state_key"], &event["room_id"]), (&json!(BOB), &json!(BOB), &json!(room)));
    assert_eq!((&event["content"], &event["origin"]), (&json!({"membership": "join"}), &json!("hs1")));
    assert!(event.get("hashes").is_none() && event.get("signatures").is_none(), "{event}");

    world.make("join", &room, "@bob:other.test").await.is_error(403, "M_FORBIDDEN");
    world.make("join", "!nothing:hs1", BOB).await.is_error(404, "M_NOT_FOUND");
    let old = format!("/_matrix/federation/v1/make_join/{}/{}", encode(&room), encode(BOB));
    for versions in ["", "?ver=1", "?ver=9&ver=11"] {
        let path = format!("{old}{versions}");
        let answer = world.peer.ask(world.http(), "hs1", "GET", &path, &Value::Null).await;
        answer.is_error(400, "M_INCOMPATIBLE_ROOM_VERSION");
        assert_eq!(answer.json()["room_version"], "10");
    }
    // Who is not in the room leaves nothing, and nobody knocks where it is open.
    world.make("leave", &room, BOB).await.is_error(403, "M_FORBIDDEN");
    world.make("knock", &room, BOB).await.is_error(403, "M_FORBIDDEN");

    world.alice.in_room(&room, "ban", &json!({"user_id": BOB})).await.ok();
    world.make("join", &room, BOB).await.is_error(403, "M_FORBIDDEN");
    let private = world.room("10", json!({"join_rule": "invite"})).await;
    world.make("join", &private, BOB).await.is_error(403, "M_FORBIDDEN");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_a_room_denies_are_not_talked_to() {
    let world = World::new().await;
    let room = world.room("11", public()).await;
    let template = world.make("join", &room, BOB).await.ok();
    let (_, join) = world.peer.signed_template(&template);
    let joined = world.peer.join(world.http(), "hs1", &room, "@carol:peer.test").await;
    let leave = joined.event(&world.peer, "m.room.member", Some("@carol:peer.test"), json!({"membership": "leave"}));
    world.alice.set_state(&room, "m.room.server_acl", "", &json!({"allow": ["*"], "deny": ["peer.test"]})).await;
    for action in ["join", "leave", "knock"] {
        world.make(action, &room, "@carol:peer.test").await.is_error(403, "M_FORBIDDEN");
    }
    world.submit("join", &room, &join).await.is_error(403, "M_FORBIDDEN");
    world.submit("leave", &room, &leave).await.is_error(403, "M_FORBIDDEN");
    assert_eq!(world.membership(&room, BOB).await, "");
    assert_eq!(world.membership(&room, "@carol:peer.test").await, "join");
}

/// Another name of the same process is another server: it is not in the rooms of the first one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_is_not_in_the_room_lets_nobody_in() {
    let mut options = ServerOptions::default();
    options.config.server.names = ["hs1", "two.test"].map(|name| name.try_into().unwrap()).to_vec();
    let mut federation = TestFederation::empty();
    federation.add("hs1", TestDatabase::sqlite(), options).await;
    let (alice, peer) = (federation.user("hs1", "alice").await, federation.peer("peer.test").await);
    let room = alice.create_public_room().await;
    let http = federation.server("hs1").http();
    peer.make(http, "two.test", "join", &room, BOB).await.is_error(404, "M_NOT_FOUND");
    peer.make(http, "hs1", "join", &room, BOB).await.ok();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_is_not_the_one_of_the_template_is_not_taken_in() {
    for database in TestDatabase::each().await {
        let world = World::on(database).await;
        for version in ["1", "6", "12"] {
            let room = world.room(version, public()).await;
            let other_room = world.room(version, public()).await;
            let template = world.make("join", &room, BOB).await.ok();
            let (room_version, good) = world.peer.signed_template(&template);
            let resigned = |change: &dyn Fn(&mut Value)| {
                let mut event = template["event"].clone();
                change(&mut event);
                world.peer.sign_event(&room_version, event)
            };
            for (event, why) in [
                (resigned(&|event| event["type"] = json!("m.room.topic")), "another type"),
                (resigned(&|event| event["content"]["membership"] = json!("leave")), "another membership"),
                (resigned(&|event| event["content"] = json!({})), "no membership"),
                (resigned(&|event| event["sender"] = json!("@alice:hs1")), "another's sender"),
                (resigned(&|event| event["sender"] = json!("@carol:peer.test")), "another sender"),
                (resigned(&|event| event["state_key"] = json!("@carol:peer.test")), "another state key"),
                (resigned(&|event| event["room_id"] = json!(other_room)), "another room"),
                (resigned(&|event| event["prev_events"] = json!([])), "no past"),
                (resigned(&|event| event["depth"] = json!(-1)), "a depth below zero"),
                (resigned(&|event| event["depth"] = json!("1")), "a depth that is none"),
                (resigned(&|event| drop(event.as_object_mut().unwrap().remove("auth_events"))), "no auth events"),
                (PeerEvent { id: "$other".to_owned(), ..good.clone() }, "another id"),
            ] {
                let answer = world.submit("join", &room, &event).await;
                let status = answer.status.as_u16();
                assert!(matches!(status, 400 | 403), "{why} in version {version}: {answer}");
            }
            let mut altered = good.clone();
            altered.json["content"]["displayname"] = json!("Bob");
            altered.id = event_id(&room_version, &altered.json);
            world.submit("join", &room, &altered).await.is_error(400, "M_INVALID_PARAM");
            let mut unsigned = good.clone();
            unsigned.json["signatures"] = json!({});
            world.submit("join", &room, &unsigned).await.is_error(400, "M_INVALID_PARAM");
            world.submit("leave", &room, &good).await.is_error(400, "M_INVALID_PARAM");
            world.submit("knock", &room, &good).await.is_error(400, "M_INVALID_PARAM");
            for not_an_event in [json!([]), json!({}), json!({"depth": "1"})] {
                let event = PeerEvent { id: good.id.clone(), json: not_an_event };
                let answer = world.submit("join", &room, &event).await;
                assert_eq!(answer.status.as_u16(), 400, "{answer}");
            }
            assert_eq!(world.membership(&room, BOB).await, "", "version {version}");
            world.submit("join", &room, &good).await.ok();
            assert_eq!(world.membership(&room, BOB).await, "join");
        }
    }
}

/// The answer may have been lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_that_comes_twice_is_answered_twice() {
    let world = World::new().await;
    let room = world.room("12", public()).await;
    let template = world.make("join", &room, BOB).await.ok();
    let (_, join) = world.peer.signed_template(&template);
    let first = world.submit("join", &room, &join).await.ok();
    let second = world.submit("join", &room, &join).await.ok();
    assert_eq!(keys(&first["state"]), keys(&second["state"]));
    assert_eq!(first["event"], second["event"]);
}

/// Server-Server API, "Soft failure": the event is allowed by its past, and not by the room of now.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_that_has_closed_since_the_template_lets_nobody_in() {
    for database in TestDatabase::each().await {
        let world = World::on(database).await;
        let room = world.room("12", public()).await;
        let (_, join) = world.peer.signed_template(&world.make("join", &room, BOB).await.ok());
        world.alice.set_state(&room, "m.room.join_rules", "", &json!({"join_rule": "invite"})).await;
        // Also not when it is tried again.
        for _ in 0..2 {
            world.submit("join", &room, &join).await.is_error(403, "M_FORBIDDEN");
        }
        assert_eq!(world.membership(&room, BOB).await, "");

        let room = world.room("12", public()).await;
        let (_, join) = world.peer.signed_template(&world.make("join", &room, BOB).await.ok());
        world.alice.in_room(&room, "ban", &json!({"user_id": BOB})).await.ok();
        world.submit("join", &room, &join).await.is_error(403, "M_FORBIDDEN");
        assert_eq!(world.membership(&room, BOB).await, "ban");
    }
}

/// Server-Server API, "Restricted rooms".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restricted_room_lets_in_who_fulfils_a_condition() {
    for database in TestDatabase::each().await {
        let world = World::on(database).await;
        for (version, rule) in [("8", "restricted"), ("10", "knock_restricted"), ("12", "restricted")] {
            let condition = world.room(version, public()).await;
            let restricted = |rooms: &[&str]| {
                let allow = rooms.iter().map(|room| json!({"type": "m.room_membership", "room_id": room}));
                json!({"join_rule": rule, "allow": allow.collect::<Vec<_>>()})
            };
            let room = world.room(version, restricted(&[&condition])).await;
            world.shake("join", &room, BOB).await.is_error(403, "M_FORBIDDEN");
            world.peer.join(world.http(), "hs1", &condition, BOB).await;
            let template = world.make("join", &room, BOB).await.ok();
            assert_eq!(template["event"]["content"]["join_authorised_via_users_server"], "@alice:hs1");
            let (_, join) = world.peer.signed_template(&template);
            let answer = world.submit("join", &room, &join).await.ok();
            let signatures = answer["event"]["signatures"].as_object().unwrap();
            assert_eq!(signatures.keys().collect::<Vec<_>>(), ["hs1", "peer.test"], "version {version}");
            assert_eq!(world.membership(&room, BOB).await, "join");
            // In the room, no condition is asked again.
            world.shake("join", &room, BOB).await.ok();

            // Who leaves the room of the condition is not let in by an old template.
            let room = world.room(version, restricted(&[&condition])).await;
            let (_, join) = world.peer.signed_template(&world.make("join", &room, BOB).await.ok());
            world.shake("leave", &condition, BOB).await.ok();
            world.submit("join", &room, &join).await.is_error(403, "M_FORBIDDEN");
            assert_eq!(world.membership(&room, BOB).await, "");

            // A room that none of us is in: others may know.
            let room = world.room(version, restricted(&[&condition, "!elsewhere:other.test"])).await;
            world.make("join", &room, BOB).await.is_error(400, "M_UNABLE_TO_AUTHORISE_JOIN");
            world.submit("join", &room, &join).await.is_error(400, "M_INVALID_PARAM");
            // Who is invited needs no condition, and who is banned is not helped by one.
            world.alice.in_room(&room, "ban", &json!({"user_id": BOB})).await.ok();
            world.make("join", &room, BOB).await.is_error(403, "M_FORBIDDEN");
            // What makes no sense is no condition.
            let room = world.room(version, json!({"join_rule": rule, "allow": [{"type": "m.other"}, 1]})).await;
            world.make("join", &room, BOB).await.is_error(403, "M_FORBIDDEN");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_condition_does_not_help_where_none_of_ours_may_invite() {
    let world = World::new().await;
    let condition = world.room("11", public()).await;
    world.peer.join(world.http(), "hs1", &condition, BOB).await;
    let rules = json!({"join_rule": "restricted", "allow": [{"type": "m.room_membership", "room_id": condition}]});
    let body = json!({
        "room_version": "11", "power_level_content_override": {"invite": 101},
        "initial_state": [{"type": "m.room.join_rules", "state_key": "", "content": rules}],
    });
    let room = world.alice.create_room_with(&body).await;
    world.make("join", &room, BOB).await.is_error(400, "M_UNABLE_TO_GRANT_JOIN");
}

/// The signature of our server lets somebody in: it is not given for the asking.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_names_a_voucher_by_themselves_is_not_vouched_for() {
    let world = World::new().await;
    let condition = world.room("11", public()).await;
    let rules = json!({"join_rule": "restricted", "allow": [{"type": "m.room_membership", "room_id": condition}]});
    let room = world.room("11", rules).await;
    // The room is open for a moment, so that there is a template of it.
    let open = world.room("11", public()).await;
    let template = world.make("join", &open, BOB).await.ok();
    let mut event = template["event"].clone();
    let state = world.alice.get(&format!("/rooms/{}/state", encode(&room))).await.ok();
    let ids: Vec<&Value> = state.as_array().unwrap().iter().map(|event| &event["event_id"]).collect();
    event["room_id"] = json!(room);
    event["content"]["join_authorised_via_users_server"] = json!("@alice:hs1");
    event["prev_events"] = json!([ids.last().unwrap()]);
    event["auth_events"] = json!(ids.iter().take(4).collect::<Vec<_>>());
    let join = world.peer.sign_event(&"11".try_into().unwrap(), event);
    world.submit("join", &room, &join).await.is_error(403, "M_FORBIDDEN");
    assert_eq!(world.membership(&room, BOB).await, "");
}

/// Server-Server API, "PUT /send_join/{roomId}/{eventId}", `omit_members`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_wants_no_members_gets_those_it_needs() {
    for database in TestDatabase::each().await {
        let world = World::on(database).await;
        let room = world.room("12", public()).await;
        for name in ["u1", "u2", "u3", "u4", "u5", "u6", "u7"] {
            world.federation.user("hs1", name).await.join(&room).await;
        }
        let omitting = async |user: &str| {
            let (_, join) = world.peer.signed_template(&world.make("join", &room, user).await.ok());
            let (room, id) = (encode(&room), encode(&join.id));
            let path = format!("/_matrix/federation/v2/send_join/{room}/{id}?omit_members=true");
            world.peer.ask(world.http(), "hs1", "PUT", &path, &join.json).await.ok()
        };
        let answer = omitting(BOB).await;
        assert_eq!((&answer["members_omitted"], &answer["servers_in_room"]), (&json!(true), &json!(["hs1"])));
        let members = |answer: &Value| -> Vec<String> {
            keys(&answer["state"]).into_iter().filter(|(kind, _)| kind == "m.room.member").map(|(_, key)| key).collect()
        };
        // The room has no name: it is called after its first members.
        assert_eq!(members(&answer), ["@alice:hs1", "@u1:hs1", "@u2:hs1", "@u3:hs1", "@u4:hs1", "@u5:hs1"]);
        assert_eq!(keys(&answer["auth_chain"]), [], "all of it is in the state");
        world.alice.set_state(&room, "m.room.name", "", &json!({"name": "A room"})).await;
        world.alice.in_room(&room, "invite", &json!({"user_id": "@u8:hs1"})).await.ok();
        let answer = omitting("@carol:peer.test").await;
        assert_eq!((members(&answer), &answer["servers_in_room"]), (vec![], &json!(["hs1", "peer.test"])));
        let state = keys(&answer["state"]);
        assert!(state.contains(&("m.room.name".to_owned(), String::new())), "{state:?}");
        // Who made the room allows its events, and is not in the state that was given.
        assert_eq!(keys(&answer["auth_chain"]), [("m.room.member".to_owned(), "@alice:hs1".to_owned())]);
    }
}

// shows: server-server:makeKnock, server-server:sendKnock
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_of_another_server_knock_and_take_it_back() {
    for database in TestDatabase::each().await {
        let world = World::on(database).await;
        for version in ["7", "10", "12"] {
            let room = world.room(version, json!({"join_rule": "knock"})).await;
            world.alice.set_state(&room, "m.room.name", "", &json!({"name": "Behind a door"})).await;
            let answer = world.shake("knock", &room, BOB).await.ok();
            let state = answer["knock_room_state"].as_array().unwrap();
            assert_eq!(
                keys(&answer["knock_room_state"]),
                ["m.room.create", "m.room.join_rules", "m.room.name"].map(|kind| (kind.to_owned(), String::new()))
            );
            for event in state {
                assert!(event["signatures"]["hs1"].is_object() && event["hashes"].is_object(), "{event}");
            }
            assert_eq!(world.membership(&room, BOB).await, "knock");
            world.make("join", &room, BOB).await.is_error(403, "M_FORBIDDEN");
            world.shake("leave", &room, BOB).await.ok();
            assert_eq!(world.membership(&room, BOB).await, "leave");
        }
        let old = world.room("6", json!({"join_rule": "knock"})).await;
        world.make("knock", &old, BOB).await.is_error(403, "M_FORBIDDEN");
        let path = format!("/_matrix/federation/v1/make_knock/{}/{}", encode(&old), encode(BOB));
        let answer = world.peer.ask(world.http(), "hs1", "GET", &path, &Value::Null).await;
        answer.is_error(400, "M_MISSING_PARAM");
        let path = format!("{path}?ver=1");
        let answer = world.peer.ask(world.http(), "hs1", "GET", &path, &Value::Null).await;
        answer.is_error(400, "M_INCOMPATIBLE_ROOM_VERSION");
    }
}

/// Kicks and bans of users of other servers are state like any other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_of_another_server_are_kicked_and_banned() {
    let world = World::new().await;
    let room = world.room("12", public()).await;
    world.peer.join(world.http(), "hs1", &room, BOB).await;
    world.alice.in_room(&room, "kick", &json!({"user_id": BOB})).await.ok();
    assert_eq!(world.membership(&room, BOB).await, "leave");
    let again = world.peer.join(world.http(), "hs1", &room, BOB).await;
    assert!(again.state.contains_key(&("m.room.member".to_owned(), BOB.to_owned())));
    world.alice.in_room(&room, "ban", &json!({"user_id": BOB})).await.ok();
    world.shake("join", &room, BOB).await.is_error(403, "M_FORBIDDEN");
    world.shake("leave", &room, BOB).await.is_error(403, "M_FORBIDDEN");
    world.alice.in_room(&room, "unban", &json!({"user_id": BOB})).await.ok();
    world.shake("join", &room, BOB).await.ok();
}
