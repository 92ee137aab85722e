//! The authorization rules, one by one. Room Versions, "Authorization rules": each test names a rule, and fails without it.

use accounts::Requester;
use model::{KeyPair, LocalServer, LocalServers, Random};
use rooms::{Error, NewRoomRequest, Options, Preset, Rooms};
use ruma::{OwnedRoomId, RoomVersionId, UserId, events::TimelineEventType, server_name};
use serde_json::{Value, json, value::to_raw_value};
use storage::{Storage, testing::TestDatabase};

/// A room of a version with its maker `alice` (100), a moderator `mod` (50), members `bob` and `carol`, an invited `ivan`,
/// a banned `eve`, and a stranger `sam`.
struct Scene {
    storage: Storage,
    rooms: Rooms,
    room: OwnedRoomId,
    _database: TestDatabase,
}

impl Scene {
    async fn new(version: u8) -> Self {
        let database = TestDatabase::sqlite();
        let storage = database.open().await;
        let key = KeyPair::generate(&Random::seeded(1));
        let servers = LocalServers::new(vec![LocalServer::new(server_name!("hs").to_owned(), key)]);
        let version = RoomVersionId::try_from(version.to_string()).unwrap();
        let rooms = Rooms::new(storage.clone(), servers, Options { default_version: version, ..Options::default() });
        let mut scene = Self { storage, rooms, room: ruma::room_id!("!none:hs").to_owned(), _database: database };
        let alice = scene.user("alice").await;
        let levels = to_raw_value(&json!({
            "users": {}, "invite": 50, "events": {"m.room.topic": 50, "org.special": 75, "m.room.power_levels": 50},
        }));
        let request = NewRoomRequest::new(Preset::PrivateChat);
        scene.room = scene.rooms.create_room(&alice, request).await.unwrap();
        for name in ["mod", "bob", "carol", "ivan", "eve"] {
            let user = scene.user(name).await;
            scene.rooms.invite(&alice, &scene.room, &user.user_id, None).await.unwrap();
            if name != "ivan" {
                scene.rooms.join(&user, &scene.room, None).await.unwrap();
            }
        }
        let mut levels: Value = serde_json::from_str(levels.unwrap().get()).unwrap();
        levels["users"]["@mod:hs"] = json!(50);
        if !scene.creators_are_privileged() {
            levels["users"]["@alice:hs"] = json!(100);
        }
        scene.state("alice", "m.room.power_levels", "", levels).await.unwrap();
        scene.member("alice", "eve", "ban").await.unwrap();
        scene
    }

    fn creators_are_privileged(&self) -> bool {
        self.rooms.default_version().rules().unwrap().authorization.explicitly_privilege_room_creators
    }

    async fn user(&self, name: &str) -> Requester {
        let user_id = UserId::parse(format!("@{name}:hs")).unwrap();
        Requester { user_nr: self.storage.user_nr(&user_id).await.unwrap(), ..requester(user_id) }
    }

    async fn state(&self, who: &str, event_type: &str, state_key: &str, content: Value) -> Result<(), Error> {
        let (who, content) = (self.user(who).await, to_raw_value(&content).unwrap());
        self.rooms
            .send_state(&who, &self.room, TimelineEventType::from(event_type), state_key, &content, None)
            .await
            .map(|_| ())
    }

    async fn member(&self, who: &str, whom: &str, membership: &str) -> Result<(), Error> {
        self.state(who, "m.room.member", &format!("@{whom}:hs"), json!({"membership": membership})).await
    }

    async fn say(&self, who: &str, event_type: &str) -> Result<(), Error> {
        let (who, content) = (self.user(who).await, to_raw_value(&json!({"body": "x"})).unwrap());
        let txn = self.storage.random().alphanumeric(10);
        self.rooms
            .send_message(&who, &self.room, event_type.into(), txn.as_str().into(), &content, None)
            .await
            .map(|_| ())
    }

    async fn levels(&self) -> Value {
        let alice = self.user("alice").await;
        let (_, event) = self.rooms.state_event(&alice, &self.room, "m.room.power_levels", "").await.unwrap();
        serde_json::from_str(event.pdu.content.get()).unwrap()
    }

    async fn set_levels(&self, who: &str, change: impl FnOnce(&mut Value)) -> Result<(), Error> {
        let mut levels = self.levels().await;
        change(&mut levels);
        self.state(who, "m.room.power_levels", "", levels).await
    }
}

fn requester(user_id: ruma::OwnedUserId) -> Requester {
    Requester {
        user_nr: model::UserNr(0),
        user_id,
        device_id: Some("D".into()),
        is_guest: false,
        is_admin: false,
        app_service: None,
    }
}

fn refused(result: Result<(), Error>) {
    assert!(matches!(result, Err(Error::NotAllowed(_) | Error::NotMember)), "{result:?}");
}

/// A test for each rule, in the first version, in the last before creators got their own power, and in the newest.
macro_rules! rules {
    ($($(#[$doc:meta])* $name:ident: |$scene:ident| $body:block)+) => {$(
        $(#[$doc])*
        #[tokio::test]
        async fn $name() {
            for version in [1, 6, 10, 11, 12] {
                let $scene = Scene::new(version).await;
                $body
            }
        }
    )+};
}

rules! {
    a_stranger_cannot_send: |scene| {
        refused(scene.say("sam", "m.room.message").await);
        scene.say("bob", "m.room.message").await.unwrap();
    }
    an_invited_user_cannot_send: |scene| { refused(scene.say("ivan", "m.room.message").await); }
    a_banned_user_cannot_send: |scene| { refused(scene.say("eve", "m.room.message").await); }
    a_user_who_left_cannot_send: |scene| {
        scene.member("bob", "bob", "leave").await.unwrap();
        refused(scene.say("bob", "m.room.message").await);
    }
    a_stranger_cannot_join_without_an_invitation: |scene| {
        let sam = scene.user("sam").await;
        refused(scene.rooms.join(&sam, &scene.room, None).await.map(|_| ()));
    }
    anyone_joins_a_public_room_but_the_banned: |scene| {
        scene.state("alice", "m.room.join_rules", "", json!({"join_rule": "public"})).await.unwrap();
        let (sam, eve) = (scene.user("sam").await, scene.user("eve").await);
        scene.rooms.join(&sam, &scene.room, None).await.unwrap();
        refused(scene.rooms.join(&eve, &scene.room, None).await.map(|_| ()));
    }
    nobody_joins_for_another: |scene| { refused(scene.member("alice", "ivan", "join").await); }
    an_invitation_needs_the_power_to_invite: |scene| {
        scene.set_levels("alice", |levels| levels["invite"] = json!(50)).await.unwrap();
        refused(scene.member("bob", "sam", "invite").await);
        scene.member("mod", "sam", "invite").await.unwrap();
    }
    a_member_or_a_banned_user_cannot_be_invited: |scene| {
        refused(scene.member("alice", "bob", "invite").await);
        refused(scene.member("alice", "eve", "invite").await);
    }
    a_kick_needs_the_power_to_kick: |scene| {
        refused(scene.member("bob", "carol", "leave").await);
        scene.member("mod", "carol", "leave").await.unwrap();
    }
    nobody_kicks_or_bans_an_equal: |scene| {
        scene.set_levels("alice", |levels| levels["users"]["@carol:hs"] = json!(50)).await.unwrap();
        refused(scene.member("mod", "carol", "leave").await);
        refused(scene.member("mod", "carol", "ban").await);
        refused(scene.member("mod", "alice", "ban").await);
    }
    a_ban_needs_the_power_to_ban: |scene| {
        refused(scene.member("bob", "carol", "ban").await);
        scene.member("mod", "carol", "ban").await.unwrap();
    }
    an_unban_needs_the_power_to_ban: |scene| {
        refused(scene.member("bob", "eve", "leave").await);
        refused(scene.member("eve", "eve", "leave").await);
        scene.member("mod", "eve", "leave").await.unwrap();
    }
    an_unknown_membership_is_refused: |scene| { refused(scene.member("bob", "bob", "dance").await); }
    an_event_type_needs_its_own_level: |scene| {
        refused(scene.say("mod", "org.special").await);
        scene.say("alice", "org.special").await.unwrap();
    }
    state_needs_the_level_of_state: |scene| {
        refused(scene.state("bob", "org.state", "", json!({})).await);
        scene.state("mod", "org.state", "", json!({})).await.unwrap();
    }
    a_state_key_that_is_a_user_is_theirs: |scene| {
        refused(scene.state("mod", "org.state", "@bob:hs", json!({})).await);
        scene.state("mod", "org.state", "@mod:hs", json!({})).await.unwrap();
    }
    nobody_gives_more_power_than_they_have: |scene| {
        refused(scene.set_levels("mod", |levels| levels["users"]["@bob:hs"] = json!(51)).await);
        scene.set_levels("mod", |levels| levels["users"]["@bob:hs"] = json!(49)).await.unwrap();
    }
    nobody_raises_themselves: |scene| {
        refused(scene.set_levels("mod", |levels| levels["users"]["@mod:hs"] = json!(51)).await);
    }
    nobody_takes_power_from_an_equal: |scene| {
        scene.set_levels("alice", |levels| levels["users"]["@carol:hs"] = json!(50)).await.unwrap();
        refused(scene.set_levels("mod", |levels| levels["users"]["@carol:hs"] = json!(0)).await);
        scene.set_levels("mod", |levels| levels["users"]["@mod:hs"] = json!(40)).await.unwrap();
    }
    nobody_changes_a_level_above_their_own: |scene| {
        refused(scene.set_levels("mod", |levels| levels["events"]["org.special"] = json!(0)).await);
        refused(scene.set_levels("mod", |levels| levels["ban"] = json!(51)).await);
        scene.set_levels("mod", |levels| levels["ban"] = json!(40)).await.unwrap();
    }
    power_levels_need_their_shape: |scene| {
        refused(scene.set_levels("alice", |levels| levels["users"] = json!({"not a user": 1})).await);
    }
    a_room_is_made_once: |scene| { refused(scene.state("alice", "m.room.create", "", json!({})).await); }
    a_redaction_of_another_needs_power: |scene| {
        let content = to_raw_value(&json!({"body": "x"})).unwrap();
        let bob = scene.user("bob").await;
        let said = scene.rooms.send_message(&bob, &scene.room, "m.room.message".into(), "r".into(), &content, None);
        let said = said.await.unwrap();
        let redact = async |who: &str| {
            let who = scene.user(who).await;
            scene.rooms.redact(&who, &scene.room, &said, "r1".into(), None).await.map(|_| ())
        };
        refused(redact("carol").await);
        redact("mod").await.unwrap();
    }
}

/// Room Version 12, "Creator power": power levels cannot name who made the room, who stands above them all.
#[tokio::test]
async fn the_creator_of_a_version_12_room_stands_above_all_levels() {
    let scene = Scene::new(12).await;
    refused(scene.set_levels("alice", |levels| levels["users"]["@alice:hs"] = json!(100)).await);
    scene.set_levels("alice", |levels| levels["users"]["@mod:hs"] = json!(1_000)).await.unwrap();
    refused(scene.member("mod", "alice", "ban").await);
    scene.member("alice", "mod", "leave").await.unwrap();
}

/// Room Version 10: levels are integers; before, a string of digits is one too.
#[tokio::test]
async fn levels_are_integers_from_version_10_on() {
    for (version, is_allowed) in [(9, true), (10, false)] {
        let scene = Scene::new(version).await;
        let result = scene.set_levels("alice", |levels| levels["ban"] = json!("50")).await;
        assert_eq!(result.is_ok(), is_allowed, "version {version}: {result:?}");
    }
}
