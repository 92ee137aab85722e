//! Server-Server API, "Inviting to a room", "Third-party invites": other servers ask us.

use model::{KeyPair, Random};
use ruma::{CanonicalJsonObject, signatures::sign_json};
use serde_json::{Value, json};
use test_kit::{Answer, Http, Peer, PeerEvent, PeerRoom, TestDatabase, TestFederation, TestUser, encode};

use super::world::server_and_peer;

const BOB: &str = "@bob:peer.test";
const ALICE: &str = "@alice:hs1";

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

    /// A room of bob's at the peer, with a name.
    fn room(&self, version: &str) -> PeerRoom {
        self.room_of(BOB, version)
    }

    fn room_of(&self, user: &str, version: &str) -> PeerRoom {
        let more = [
            ("m.room.join_rules", "", json!({"join_rule": "invite"})),
            ("m.room.name", "", json!({"name": "Their room"})),
        ];
        self.peer.make_room(&version.try_into().unwrap(), user, &more)
    }

    fn invitation(&self, room: &PeerRoom) -> PeerEvent {
        room.event(&self.peer, "m.room.member", Some(ALICE), json!({"membership": "invite", "reason": "dance"}))
    }

    async fn invite_with(&self, room: &PeerRoom, event: &PeerEvent, room_state: &Value) -> Answer {
        let path = format!("/_matrix/federation/v2/invite/{}/{}", encode(&room.id), encode(&event.id));
        let body = json!({"room_version": room.version, "event": event.json, "invite_room_state": room_state});
        self.peer.ask(self.http(), "hs1", "PUT", &path, &body).await
    }

    async fn invite(&self, room: &PeerRoom, event: &PeerEvent) -> Answer {
        self.invite_with(room, event, &shown(room)).await
    }

    /// What alice is told of the room that she is invited to; null when she is told nothing.
    async fn told(&self, room: &str) -> Value {
        self.alice.sync(None).await["rooms"]["invite"][room].clone()
    }
}

/// What shows the room to who is invited.
fn shown(room: &PeerRoom) -> Value {
    let shown = [("m.room.create", ""), ("m.room.name", ""), ("m.room.join_rules", ""), ("m.room.member", BOB)];
    shown.map(|(kind, key)| room.state_event(kind, key).json.clone()).as_slice().into()
}

// shows: server-server:sendInviteV2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_users_are_invited_to_rooms_of_others_in_every_version() {
    for database in TestDatabase::each().await {
        let world = World::on(database).await;
        for version in ["1", "2", "3", "6", "10", "11", "12"] {
            let room = world.room(version);
            let event = world.invitation(&room);
            let answer = world.invite(&room, &event).await.ok();
            let signed = &answer["event"];
            let signers: Vec<_> = signed["signatures"].as_object().unwrap().keys().collect();
            assert_eq!(signers, ["hs1", "peer.test"]);
            let mut without = signed.clone();
            without["signatures"].as_object_mut().unwrap().remove("hs1");
            assert_eq!(without, event.json, "all else is as it was");
            let told = world.told(&room.id).await;
            let state = told["invite_state"]["events"].as_array().unwrap();
            let find = |kind: &str| state.iter().find(|event| event["type"] == kind).unwrap();
            assert_eq!(find("m.room.name")["content"]["name"], "Their room", "{told}");
            assert_eq!(find("m.room.create")["sender"], BOB);
            let own = state.iter().find(|event| event["state_key"] == ALICE).unwrap();
            assert_eq!(own["content"], json!({"membership": "invite", "reason": "dance"}));
            for event in state {
                let mut fields: Vec<_> = event.as_object().unwrap().keys().collect();
                fields.sort();
                assert_eq!(fields, ["content", "sender", "state_key", "type"], "only what is stripped is shown");
            }
            // Twice is once.
            world.invite(&room, &event).await.ok();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_invitation_of_the_asking_server_is_not_signed() {
    for database in TestDatabase::each().await {
        let world = World::on(database).await;
        for version in ["1", "6", "12"] {
            let room = world.room(version);
            let good = world.invitation(&room);
            let changed = |change: &dyn Fn(&mut Value)| {
                let mut event = good.json.clone();
                event.as_object_mut().unwrap().remove("signatures");
                change(&mut event);
                world.peer.sign_event(&room.version, event)
            };
            for (event, why) in [
                (changed(&|event| event["type"] = json!("m.room.topic")), "another type"),
                (changed(&|event| event["content"]["membership"] = json!("join")), "another membership"),
                (changed(&|event| event["content"] = json!({})), "no membership"),
                (changed(&|event| event["sender"] = json!("@eve:other.test")), "a sender of another server"),
                (changed(&|event| event["sender"] = json!(ALICE)), "ourselves"),
                (changed(&|event| event["state_key"] = json!("@eve:other.test")), "another server's user"),
                (changed(&|event| event["state_key"] = json!("alice")), "nobody"),
                (changed(&|event| drop(event.as_object_mut().unwrap().remove("state_key"))), "no state"),
                (changed(&|event| event["room_id"] = json!("!other:peer.test")), "another room"),
                (changed(&|event| event["depth"] = json!(-1)), "a depth below zero"),
                (PeerEvent { id: "$other".to_owned(), ..good.clone() }, "another id"),
            ] {
                let answer = world.invite(&room, &event).await;
                assert_eq!((answer.status.as_u16(), &*answer.errcode()), (400, "M_INVALID_PARAM"), "{why}: {answer}");
            }
            let mut unsigned = good.clone();
            unsigned.json["signatures"] = json!({});
            world.invite(&room, &unsigned).await.is_error(400, "M_INVALID_PARAM");
            let mut altered = good.clone();
            altered.json["content"]["reason"] = json!("another");
            altered.id = test_kit::event_id(&room.version, &altered.json);
            world.invite(&room, &altered).await.is_error(400, "M_INVALID_PARAM");
            let nobody = changed(&|event| event["state_key"] = json!("@nobody:hs1"));
            world.invite(&room, &nobody).await.is_error(403, "M_FORBIDDEN");
            let path = format!("/_matrix/federation/v2/invite/{}/{}", encode(&room.id), encode(&good.id));
            for body in [json!({}), json!([]), json!({"room_version": version, "event": 1, "invite_room_state": []})] {
                let answer = world.peer.ask(world.http(), "hs1", "PUT", &path, &body).await;
                assert_eq!(answer.status.as_u16(), 400, "{answer}");
            }
            let body = json!({"room_version": "99", "event": good.json, "invite_room_state": []});
            let answer = world.peer.ask(world.http(), "hs1", "PUT", &path, &body).await;
            answer.is_error(400, "M_INCOMPATIBLE_ROOM_VERSION");
            assert_eq!(answer.json()["room_version"], "99");
            assert_eq!(world.told(&room.id).await, Value::Null);
        }
    }
}

/// The create event of a version 12 room proves which room it is of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_shows_the_room_is_of_the_room() {
    let world = World::new().await;
    let (room, other) = (world.room("12"), world.room_of("@carol:peer.test", "12"));
    let event = world.invitation(&room);
    let of = |room: &PeerRoom, kind: &str| room.state_event(kind, "").json.clone();
    let stripped = json!({"type": "m.room.name", "state_key": "", "sender": BOB, "content": {"name": "x"}});
    for (state, why) in [
        (json!([]), "nothing"),
        (json!([of(&room, "m.room.name")]), "no create event"),
        (json!([of(&other, "m.room.create")]), "another create event"),
        (json!([of(&room, "m.room.create"), of(&other, "m.room.name")]), "an event of another room"),
        (json!([of(&room, "m.room.create"), stripped]), "an event that is not whole"),
        (json!([of(&room, "m.room.create"), {}]), "no event"),
        (json!([of(&room, "m.room.create"), room.text(&world.peer, "hi").json]), "no state"),
    ] {
        let answer = world.invite_with(&room, &event, &state).await;
        assert_eq!((answer.status.as_u16(), &*answer.errcode()), (400, "M_INVALID_PARAM"), "{why}: {answer}");
    }
    assert_eq!(world.told(&room.id).await, Value::Null);
    let mut forged = of(&room, "m.room.name");
    forged["sender"] = json!("@eve:unreachable.test");
    let state = json!([of(&room, "m.room.create"), forged]);
    world.invite_with(&room, &event, &state).await.is_error(400, "M_INVALID_PARAM");
    // What may be signed by who cannot be asked for keys is not shown.
    forged["signatures"]["unreachable.test"] = json!({"ed25519:a": "AAAA"});
    let state = json!([of(&room, "m.room.create"), forged, of(&room, "m.room.join_rules")]);
    world.invite_with(&room, &event, &state).await.ok();
    let told = world.told(&room.id).await;
    let types: Vec<_> = told["invite_state"]["events"].as_array().unwrap().iter().map(|event| &event["type"]).collect();
    assert_eq!(types, ["m.room.create", "m.room.join_rules", "m.room.member"]);
    // Before version 12 less was asked for.
    let room = world.room("10");
    world.invite_with(&room, &world.invitation(&room), &json!([stripped, {"type": 5}])).await.ok();
    let told = world.told(&room.id).await;
    assert_eq!(told["invite_state"]["events"][0]["content"]["name"], "x");
}

/// Client-Server API, "Invite permission".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_takes_no_invitations_gets_none() {
    for database in TestDatabase::each().await {
        let world = World::on(database).await;
        let carol = world.federation.user("hs1", "carol").await;
        let (before, after) = (world.room("11"), world.room("10"));
        world.invite(&before, &world.invitation(&before)).await.ok();
        let local = carol.create_room().await;
        let setting = format!("/user/{ALICE}/account_data/m.invite_permission_config");
        world.alice.put(&setting, &json!({"default_action": "block"})).await.ok();
        world.invite(&after, &world.invitation(&after)).await.is_error(403, "M_INVITE_BLOCKED");
        let alice = json!({"user_id": ALICE});
        carol.in_room(&local, "invite", &alice).await.is_error(403, "M_INVITE_BLOCKED");
        let as_state = carol.try_set_state(&local, "m.room.member", ALICE, &json!({"membership": "invite"})).await;
        as_state.is_error(403, "M_INVITE_BLOCKED");
        carol.post("/createRoom", &json!({"invite": [ALICE]})).await.is_error(403, "M_INVITE_BLOCKED");
        world.federation.user("hs1", "dora").await;
        let room = carol.create_room_with(&json!({"invite": [ALICE, "@dora:hs1"]})).await;
        let members = carol.get(&format!("/rooms/{}/members?membership=invite", encode(&room))).await.ok();
        let members: Vec<_> = members["chunk"].as_array().unwrap().iter().map(|event| &event["state_key"]).collect();
        assert_eq!(members, ["@dora:hs1"]);
        // What came before is not shown, and again when it is wanted.
        assert_eq!(world.told(&before.id).await, Value::Null);
        world.alice.put(&setting, &json!({})).await.ok();
        assert!(world.told(&before.id).await.is_object());
        carol.in_room(&local, "invite", &alice).await.ok();
    }
}

/// Their server tells us, as of all that happens to our users. Nobody else does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invitation_is_taken_back_by_the_server_that_made_it() {
    for database in TestDatabase::each().await {
        let world = World::on(database).await;
        for (version, membership) in [("1", "leave"), ("6", "ban"), ("11", "leave"), ("12", "ban")] {
            let mut room = world.room(version);
            let event = world.invitation(&room);
            world.invite(&room, &event).await.ok();
            let early = room.event(&world.peer, "m.room.member", Some(ALICE), json!({"membership": membership}));
            room.follow(&event);
            let end = room.event(&world.peer, "m.room.member", Some(ALICE), json!({"membership": membership}));
            let eve = world.federation.peer(&format!("eve{version}.test")).await;
            let mut theirs = room.clone();
            theirs.user = format!("@eve:{}", eve.name());
            let theirs = theirs.event(&eve, "m.room.member", Some(ALICE), json!({"membership": membership}));
            let mut forged = end.clone();
            forged.json["depth"] = json!(1_000);
            forged.id = test_kit::event_id(&room.version, &forged.json);
            let refused = async |peer: &Peer, event: &PeerEvent, why: &str| {
                let answer = send(peer, world.http(), event).await;
                assert!(answer["pdus"][&event.id]["error"].is_string(), "{version} {why}: {answer}");
                assert!(world.told(&room.id).await.is_object(), "{version} {why}");
            };
            refused(&eve, &theirs, "somebody else").await;
            refused(&world.peer, &early, "what knows of no invitation").await;
            refused(&world.peer, &forged, "not signed").await;
            refused(&world.peer, &room.text(&world.peer, "hello"), "another event").await;
            let since = world.alice.sync(None).await["next_batch"].as_str().unwrap().to_owned();
            // Also by way of another server: it is signed.
            let answer = send(&eve, world.http(), &end).await;
            assert_eq!(answer["pdus"][&end.id], json!({}), "{version}: {answer}");
            assert_eq!(world.told(&room.id).await, Value::Null);
            let sync = world.alice.sync(Some(&since)).await;
            assert!(sync["rooms"]["leave"][&room.id].is_object(), "{version}: {sync}");
            // What is over is not ended again, and a new invitation is one.
            let again = send(&world.peer, world.http(), &end).await;
            assert!(again["pdus"][&end.id]["error"].is_string(), "{again}");
            if membership == "leave" {
                room.follow(&end);
                world.invite(&room, &world.invitation(&room)).await.ok();
                assert!(world.told(&room.id).await.is_object());
                let again = send(&world.peer, world.http(), &end).await;
                assert!(again["pdus"][&end.id]["error"].is_string(), "{again}");
                assert!(world.told(&room.id).await.is_object(), "an old end does not end the new one");
            }
        }
    }
}

/// Sends one event in a transaction.
async fn send(peer: &Peer, http: &Http, event: &PeerEvent) -> Value {
    let body = json!({"origin": peer.name(), "origin_server_ts": 1, "pdus": [event.json]});
    let path = format!("/_matrix/federation/v1/send/{}", Random::system().alphanumeric(10));
    peer.ask(http, "hs1", "PUT", &path, &body).await.ok()
}

/// It comes again in a transaction, like all that happens in a room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invitation_to_a_room_that_we_are_in_is_signed_and_comes_as_an_event() {
    let world = World::new().await;
    let carol = world.federation.user("hs1", "carol").await;
    let open = json!({"preset": "public_chat", "power_level_content_override": {"invite": 0}});
    let id = carol.create_room_with(&open).await;
    let room = world.peer.join(world.http(), "hs1", &id, BOB).await;
    let event = world.invitation(&room);
    let state = json!([room.state_event("m.room.create", "").json]);
    let answer = world.invite_with(&room, &event, &state).await.ok();
    assert!(answer["event"]["signatures"]["hs1"].is_object());
    assert_eq!(world.told(&id).await, Value::Null);
    let body = json!({"origin": "peer.test", "origin_server_ts": 1, "pdus": [answer["event"]]});
    let sent = world.peer.ask(world.http(), "hs1", "PUT", "/_matrix/federation/v1/send/1", &body).await.ok();
    assert_eq!(sent["pdus"][&event.id], json!({}));
    assert!(world.told(&id).await.is_object());

    carol.set_state(&id, "m.room.server_acl", "", &json!({"allow": ["*"], "deny": ["peer.test"]})).await;
    world.invite_with(&room, &event, &state).await.is_error(403, "M_FORBIDDEN");
}

// shows: server-server:sendInviteV1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_of_the_first_days_invite_in_their_own_way() {
    let world = World::new().await;
    for version in ["1", "2", "6"] {
        let room = world.room(version);
        let event = world.invitation(&room);
        let path = format!("/_matrix/federation/v1/invite/{}/{}", encode(&room.id), encode(&event.id));
        let mut body = event.json.clone();
        body["unsigned"] = json!({ "invite_room_state": shown(&room) });
        let answer = world.peer.ask(world.http(), "hs1", "PUT", &path, &body).await;
        if version == "6" {
            answer.is_error(400, "M_INCOMPATIBLE_ROOM_VERSION");
            continue;
        }
        let answer = answer.ok();
        assert_eq!(answer[0], 200);
        assert!(answer[1]["event"]["signatures"]["hs1"].is_object(), "{answer}");
        assert_eq!(answer[1]["event"]["signatures"]["peer.test"], event.json["signatures"]["peer.test"]);
        assert!(world.told(&room.id).await.is_object());
    }
}

/// Somebody was invited by mail address, and turns out to be a user of another server.
// shows: server-server:exchangeThirdPartyInvite
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invitation_by_mail_is_exchanged() {
    for database in TestDatabase::each().await {
        let world = World::on(database).await;
        world.peer.take_invitations();
        let (identity_server, stranger) = (KeyPair::generate(&Random::system()), KeyPair::generate(&Random::system()));
        for version in ["6", "12"] {
            let room = world.alice.create_room_with(&json!({"room_version": version})).await;
            let key = json!({"public_key": identity_server.public_key(), "key_validity_url": "https://id.test/valid"});
            let invite = json!({
                "display_name": "b...@example.org", "public_key": identity_server.public_key(),
                "key_validity_url": "https://id.test/valid", "public_keys": [key],
            });
            world.alice.set_state(&room, "m.room.third_party_invite", "token", &invite).await;
            let exchange = async |sender: &str, invited: &str, token: &str, key: &KeyPair| {
                let mut signed: CanonicalJsonObject =
                    serde_json::from_value(json!({"mxid": invited, "token": token})).unwrap();
                sign_json("id.test", key, &mut signed).unwrap();
                let content = json!({
                    "membership": "invite", "third_party_invite": {"display_name": "Somebody else", "signed": signed},
                });
                let body = json!({
                    "type": "m.room.member", "room_id": room, "sender": sender, "state_key": invited, "content": content,
                });
                let path = format!("/_matrix/federation/v1/exchange_third_party_invite/{}", encode(&room));
                world.peer.ask(world.http(), "hs1", "PUT", &path, &body).await
            };
            exchange(ALICE, BOB, "token", &stranger).await.is_error(403, "M_FORBIDDEN");
            exchange(ALICE, BOB, "other", &identity_server).await.is_error(403, "M_FORBIDDEN");
            exchange("@carol:hs1", BOB, "token", &identity_server).await.is_error(403, "M_FORBIDDEN");
            exchange("@x:peer.test", BOB, "token", &identity_server).await.is_error(403, "M_FORBIDDEN");
            exchange(ALICE, "@x:other.test", "token", &identity_server).await.is_error(403, "M_FORBIDDEN");
            assert!(world.peer.asked().iter().all(|asked| !asked.what.contains("/invite/") || version == "12"));
            exchange(ALICE, BOB, "token", &identity_server).await.ok();
            let path = format!("/rooms/{}/state/m.room.member/{}", encode(&room), encode(BOB));
            let member = world.alice.get(&path).await.ok();
            assert_eq!(member["membership"], "invite");
            assert_eq!(member["third_party_invite"]["display_name"], "b...@example.org");
            world.peer.join(world.http(), "hs1", &room, BOB).await;
        }
    }
}
