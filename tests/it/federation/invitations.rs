//! Server-Server API, "Inviting to a room".

use std::sync::{Arc, Mutex, mpsc};

use ruma::{CanonicalJsonObject, RoomVersionId, signatures::sign_event};
use serde_json::{Value, json};
use test_kit::{Answer, Peer, TestDatabase, TestFederation, TestUser, encode};

use super::world::server_and_peer;

const BOB: &str = "@bob:peer.test";
const INVITE_V2: &str = "PUT /_matrix/federation/v2/invite/";
const INVITE_V1: &str = "PUT /_matrix/federation/v1/invite/";

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

    async fn room(&self, version: &str) -> String {
        self.alice.create_room_with(&json!({"room_version": version, "name": "Dance"})).await
    }

    async fn invite(&self, room: &str, user: &str) -> Answer {
        self.alice.in_room(room, "invite", &json!({"user_id": user})).await
    }

    async fn membership(&self, room: &str, user: &str) -> String {
        let path = format!("/rooms/{}/state/m.room.member/{}", encode(room), encode(user));
        self.alice.get(&path).await.json()["membership"].as_str().unwrap_or_default().to_owned()
    }

    /// The invitations that the peer got.
    fn invitations(&self) -> Vec<test_kit::Asked> {
        self.peer.asked().into_iter().filter(|asked| asked.what.contains("/invite/")).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_of_other_servers_are_invited_in_every_version() {
    for database in TestDatabase::each().await {
        let world = World::on(database).await;
        world.peer.take_invitations();
        for version in ["1", "2", "3", "6", "10", "11", "12"] {
            let room = world.room(version).await;
            world.alice.in_room(&room, "invite", &json!({"user_id": BOB, "reason": "dance"})).await.ok();
            assert_eq!(world.membership(&room, BOB).await, "invite");
            let asked = world.invitations().pop().unwrap();
            let (body, event) = (&asked.body, &asked.body["event"]);
            assert_eq!(body["room_version"], version);
            assert_eq!((&event["sender"], &event["state_key"]), (&json!("@alice:hs1"), &json!(BOB)));
            assert_eq!(event["content"], json!({"membership": "invite", "reason": "dance"}));
            assert!(event["signatures"]["hs1"].is_object(), "{event}");
            let shown: Vec<_> = body["invite_room_state"].as_array().unwrap().iter().collect();
            let types: Vec<_> = shown.iter().map(|event| event["type"].as_str().unwrap()).collect();
            assert_eq!(types, ["m.room.create", "m.room.name", "m.room.join_rules", "m.room.member"]);
            // Since 1.16 these are whole events.
            assert!(shown.iter().all(|event| event["signatures"]["hs1"].is_object() && event["depth"].is_number()));
            // Who is invited comes in; the invitation is in the room as both have signed it.
            let joined = world.peer.join(world.federation.server("hs1").http(), "hs1", &room, BOB).await;
            let state = joined.answer["state"].as_array().unwrap().clone();
            let invite = state.iter().find(|event| event["state_key"] == BOB).unwrap();
            let signers: Vec<_> = invite["signatures"].as_object().unwrap().keys().collect();
            assert_eq!(signers, ["hs1", "peer.test"], "version {version}");
        }
    }
}

/// A state event may be an invitation, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invitation_as_state_goes_the_same_way() {
    let world = World::new().await;
    world.peer.take_invitations();
    let room = world.room("12").await;
    let content = json!({"membership": "invite", "org.example": 1});
    let event_id = world.alice.set_state(&room, "m.room.member", BOB, &content).await;
    assert_eq!(world.membership(&room, BOB).await, "invite");
    let asked = world.invitations();
    assert_eq!((asked.len(), &asked[0].body["event"]["content"]), (1, &content));
    // The same again changes nothing.
    assert_eq!(world.alice.set_state(&room, "m.room.member", BOB, &content).await, event_id);
    assert_eq!(world.invitations().len(), 1);
    world.invite(&room, "@x:").await.is_error(400, "M_BAD_JSON");
    let unknown = world.alice.try_set_state(&room, "m.room.member", "nobody", &content).await;
    unknown.is_error(403, "M_FORBIDDEN");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_asked_about_an_invitation_that_the_room_does_not_allow() {
    let world = World::new().await;
    world.peer.take_invitations();
    let carol = world.federation.user("hs1", "carol").await;
    let room = world.alice.create_room_with(&json!({"preset": "public_chat"})).await;
    carol.join(&room).await;
    carol.in_room(&room, "invite", &json!({"user_id": BOB})).await.is_error(403, "M_FORBIDDEN");
    world.alice.in_room(&room, "ban", &json!({"user_id": BOB})).await.ok();
    world.invite(&room, BOB).await.is_error(403, "M_FORBIDDEN");
    assert_eq!(world.invitations().len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_room_goes_on_while_another_server_thinks() {
    for database in TestDatabase::each().await {
        let world = World::on(database).await;
        world.peer.take_invitations();
        let room = world.room("12").await;
        for bans in [false, true] {
            let (go_on, wait) = mpsc::channel::<()>();
            let (wait, signed) = (Mutex::new(wait), signing(&world.peer, "12"));
            world.peer.respond(INVITE_V2, move |asked| {
                let _ = wait.lock().unwrap().recv();
                signed(&asked.body)
            });
            let (alice, to) = (world.alice.clone(), room.clone());
            let before = world.invitations().len();
            let inviting = tokio::spawn(async move { alice.in_room(&to, "invite", &json!({"user_id": BOB})).await });
            test_kit::eventually!(world.invitations().len() > before);
            world.alice.send_text(&room, "meanwhile").await;
            world.alice.set_state(&room, "m.room.topic", "", &json!({"topic": "meanwhile"})).await;
            if bans {
                world.alice.in_room(&room, "ban", &json!({"user_id": BOB})).await.ok();
            }
            go_on.send(()).unwrap();
            let answer = inviting.await.unwrap();
            if bans {
                answer.is_error(403, "M_FORBIDDEN");
                assert_eq!(world.membership(&room, BOB).await, "ban");
            } else {
                answer.ok();
                assert_eq!(world.membership(&room, BOB).await, "invite");
                world.alice.in_room(&room, "kick", &json!({"user_id": BOB})).await.ok();
            }
            let topic = format!("/rooms/{}/state/m.room.topic", encode(&room));
            assert_eq!(world.alice.get(&topic).await.ok()["topic"], "meanwhile");
            world.alice.send_text(&room, "after").await;
            assert!(world.alice.texts(&room).await.contains(&"after".to_owned()));
        }
    }
}

/// What adds the signature of a peer.
fn signing(peer: &Peer, version: &str) -> impl Fn(&Value) -> (u16, Value) + use<> {
    let key = model::KeyPair::from_text(&peer.key().to_text()).unwrap();
    let (name, rules) = (peer.name().clone(), RoomVersionId::try_from(version).unwrap().rules().unwrap());
    move |body: &Value| {
        let mut event: CanonicalJsonObject = serde_json::from_value(body["event"].clone()).unwrap();
        sign_event(name.as_str(), &key, &mut event, &rules.redaction).unwrap();
        (200, json!({ "event": event }))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_server_says_of_an_invitation_is_told_where_it_is_about_the_user() {
    let world = World::new().await;
    let error = |code: &str| json!({"errcode": code, "error": "no"});
    let signed = Arc::new(signing(&world.peer, "12"));
    for (said, status, errcode) in [
        ((403, error("M_FORBIDDEN")), 403, "M_FORBIDDEN"),
        ((403, error("M_INVITE_BLOCKED")), 403, "M_INVITE_BLOCKED"),
        ((404, error("M_NOT_FOUND")), 404, "M_NOT_FOUND"),
        ((400, error("M_UNSUPPORTED_ROOM_VERSION")), 400, "M_UNSUPPORTED_ROOM_VERSION"),
        // What is wrong with our request is not the client's fault.
        ((400, error("M_INVALID_PARAM")), 502, "M_UNKNOWN"),
        ((400, error("M_MISSING_PARAM")), 502, "M_UNKNOWN"),
        ((401, error("M_UNAUTHORIZED")), 502, "M_UNKNOWN"),
        ((404, error("M_UNRECOGNIZED")), 502, "M_UNKNOWN"),
        ((429, error("M_LIMIT_EXCEEDED")), 502, "M_UNKNOWN"),
        ((500, error("M_FORBIDDEN")), 502, "M_UNKNOWN"),
        ((500, json!(null)), 502, "M_UNKNOWN"),
        ((200, json!({})), 502, "M_UNKNOWN"),
        ((200, json!({"event": {}})), 502, "M_UNKNOWN"),
        ((200, json!({"event": {"signatures": {"peer.test": {}}}})), 502, "M_UNKNOWN"),
        (
            (200, json!({"event": {"signatures": {"peer.test": {world.peer.key().id().as_str(): "AAAA"}}}})),
            502,
            "M_UNKNOWN",
        ),
        ((200, json!({"event": {"signatures": {"peer.test": 5}}})), 502, "M_UNKNOWN"),
    ] {
        let room = world.room("12").await;
        let answer = said.clone();
        world.peer.respond(INVITE_V2, move |_| answer.clone());
        let refused = world.invite(&room, BOB).await;
        assert_eq!((refused.status.as_u16(), &*refused.errcode()), (status, errcode), "{said:?}: {refused}");
        assert_eq!(world.membership(&room, BOB).await, "", "{said:?}");
    }
    let room = world.room("12").await;
    // A signature of something else, and without a signature.
    let other = signed.clone();
    world.peer.respond(INVITE_V2, move |asked| {
        let mut body = asked.body.clone();
        body["event"]["depth"] = json!(99);
        other(&body)
    });
    world.invite(&room, BOB).await.is_error(502, "M_UNKNOWN");
    world.peer.respond(INVITE_V2, |asked| (200, json!({"event": asked.body["event"]})));
    world.invite(&room, BOB).await.is_error(502, "M_UNKNOWN");
    assert_eq!(world.membership(&room, BOB).await, "");
    // Its signature is all that is taken: not what else it answers.
    world.peer.respond(INVITE_V2, move |asked| {
        let (status, mut answer) = signed(&asked.body);
        answer["event"]["content"]["membership"] = json!("ban");
        answer["event"]["unsigned"] = json!({"a": "b"});
        (status, answer)
    });
    world.invite(&room, BOB).await.ok();
    assert_eq!(world.membership(&room, BOB).await, "invite");
    world.invite(&room, "@nobody:unreachable.test").await.is_error(502, "M_UNKNOWN");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_of_the_first_days_is_asked_in_its_own_way() {
    let world = World::new().await;
    let signed = signing(&world.peer, "1");
    world.peer.respond(INVITE_V1, move |asked| {
        let (_, answer) = signed(&json!({"event": asked.body}));
        (200, json!([200, answer]))
    });
    for version in ["1", "2"] {
        let room = world.room(version).await;
        world.invite(&room, BOB).await.ok();
        assert_eq!(world.membership(&room, BOB).await, "invite");
        let asked = world.invitations().pop().unwrap();
        assert!(asked.what.starts_with(INVITE_V1));
        let shown = asked.body["unsigned"]["invite_room_state"].as_array().unwrap();
        assert!(shown.iter().any(|event| event["type"] == "m.room.create"), "{}", asked.body);
        assert_eq!(asked.body["state_key"], BOB);
    }
    let room = world.room("3").await;
    world.invite(&room, BOB).await.is_error(502, "M_UNKNOWN");
    assert_eq!(world.membership(&room, BOB).await, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_room_invites_users_of_other_servers() {
    for database in TestDatabase::each().await {
        let world = World::on(database).await;
        world.peer.take_invitations();
        world.federation.user("hs1", "carol").await;
        let many: Vec<String> = (0..12).map(|number| format!("@user{number}:peer.test")).collect();
        let mut invited = many.clone();
        invited.push("@carol:hs1".to_owned());
        for version in ["10", "12"] {
            let body = json!({
                "room_version": version, "preset": "trusted_private_chat", "is_direct": true, "invite": invited,
            });
            let room = world.alice.create_room_with(&body).await;
            for user in &invited {
                assert_eq!(world.membership(&room, user).await, "invite", "{user}");
            }
            let asked = world.invitations();
            assert!(asked.iter().all(|asked| asked.body["event"]["content"]["is_direct"] == true));
            let mut told: Vec<_> =
                asked.iter().rev().take(12).map(|asked| asked.body["event"]["state_key"].clone()).collect();
            told.sort_by_key(ToString::to_string);
            let mut expected: Vec<_> = many.iter().map(|user| json!(user)).collect();
            expected.sort_by_key(ToString::to_string);
            assert_eq!(told, expected);
            world.alice.send_text(&room, "welcome").await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_room_is_there_though_somebody_cannot_be_invited() {
    let world = World::new().await;
    let signed = signing(&world.peer, "12");
    world.peer.respond(INVITE_V2, move |asked| match asked.body["event"]["state_key"].as_str() {
        Some("@no:peer.test") => (403, json!({"errcode": "M_INVITE_BLOCKED", "error": "no"})),
        _ => signed(&asked.body),
    });
    let room = world.alice.create_room_with(&json!({"invite": [BOB, "@no:peer.test", "@x:unreachable.test"]})).await;
    assert_eq!(world.membership(&room, BOB).await, "invite");
    assert_eq!(world.membership(&room, "@no:peer.test").await, "");
    // Where nobody could be, whoever made it hears why.
    let alone = world.alice.post("/createRoom", &json!({"invite": ["@no:peer.test"]})).await;
    alone.is_error(403, "M_INVITE_BLOCKED");
}

/// Both are ours: what one asks is what the other expects.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_of_another_server_is_invited_and_comes_or_does_not() {
    let federation = TestFederation::of(2).await;
    let alice = federation.user("hs1", "alice").await;
    let (bob, carol) = (federation.user("hs2", "bob").await, federation.user("hs2", "carol").await);
    for version in ["1", "6", "10", "11", "12"] {
        let room =
            alice.create_room_with(&json!({"room_version": version, "name": "Ball", "invite": ["@bob:hs2"]})).await;
        let invited = bob.sync(None).await["rooms"]["invite"][&room]["invite_state"]["events"].clone();
        let names: Vec<_> =
            invited.as_array().unwrap().iter().filter_map(|event| event["content"]["name"].as_str()).collect();
        assert_eq!(names, ["Ball"], "version {version}: {invited}");
        bob.join(&room).await;
        let members = alice.get(&format!("/rooms/{}/joined_members", encode(&room))).await.ok();
        assert!(members["joined"]["@bob:hs2"].is_object(), "version {version}: {members}");
        // Of the same server somebody else, who does not want to.
        alice.in_room(&room, "invite", &json!({"user_id": carol.id()})).await.ok();
        let path = format!("/rooms/{}/state/m.room.member/@carol:hs2", encode(&room));
        assert_eq!(alice.get(&path).await.ok()["membership"], "invite");
    }
    let room = alice.create_room_with(&json!({"invite": ["@carol:hs2"]})).await;
    assert!(carol.sync(None).await["rooms"]["invite"][&room].is_object());
    carol.leave(&room).await;
    let path = format!("/rooms/{}/state/m.room.member/@carol:hs2", encode(&room));
    assert_eq!(alice.get(&path).await.ok()["membership"], "leave");
}
