//! What servers read of the rooms that they are in.

mod crafted;

use std::collections::BTreeSet;

use accounts::Requester;
use rooms::{Error, MissingEvents, NewRoomRequest, Options, Preset, Received, Rooms, testing};
use ruma::{MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, RoomVersionId, ServerName, UserId, server_name};
use serde_json::{
    Value, json,
    value::{RawValue, to_raw_value},
};
use storage::{NewUser, Storage, TimelineDirection, testing::TestDatabase};

use self::crafted::{Crafted, Keys, versions};

const REM: &str = "@rem:other";

/// A room of alice's on our server `hs`; users of the server `other` come and go.
struct Scene {
    storage: Storage,
    rooms: Rooms,
    room: OwnedRoomId,
    version: RoomVersionId,
    keys: Keys,
    alice: Requester,
    _database: TestDatabase,
}

impl Scene {
    async fn new(version: u8, database: TestDatabase) -> Self {
        let storage = database.open().await;
        let version = RoomVersionId::try_from(version.to_string()).unwrap();
        let options = Options { default_version: version.clone(), ..Options::default() };
        let rooms = Keys::new().rooms(storage.clone(), options);
        let user_id = UserId::parse("@alice:hs").unwrap();
        let alice = Requester {
            user_nr: storage.user_nr(&user_id).await.unwrap(),
            user_id,
            device_id: Some("D".into()),
            is_guest: false,
            is_admin: false,
            app_service: None,
        };
        let room = rooms.create_room(&alice, NewRoomRequest::new(Preset::PublicChat)).await.unwrap();
        Self { storage, rooms, room, version, keys: Keys::new(), alice, _database: database }
    }

    async fn say(&self, body: &str) -> OwnedEventId {
        let content = to_raw_value(&json!({"body": body})).unwrap();
        let kind = "m.room.message".into();
        self.rooms.send_message(&self.alice, &self.room, kind, body.into(), &content, None).await.unwrap()
    }

    async fn set(&self, event_type: &str, content: Value) -> OwnedEventId {
        let content = to_raw_value(&content).unwrap();
        self.rooms.send_state(&self.alice, &self.room, event_type.into(), "", &content, None).await.unwrap()
    }

    /// An event of a user of `other` after `prev`, taken in.
    async fn take_in(
        &self,
        sender: &str,
        event_type: &str,
        state_key: Option<&str>,
        content: Value,
        prev: &[OwnedEventId],
    ) -> OwnedEventId {
        let rules = self.version.rules().unwrap();
        let before = self.storage.find_event(&prev[0]).await.unwrap().unwrap();
        let mut auth = Vec::new();
        for (kind, key) in
            [("m.room.create", ""), ("m.room.power_levels", ""), ("m.room.join_rules", ""), ("m.room.member", sender)]
        {
            let is_wanted = match kind {
                "m.room.create" => !rules.authorization.room_create_event_id_as_room_id,
                "m.room.join_rules" => matches!(content["membership"].as_str(), Some("join" | "invite")),
                _ => true,
            };
            if is_wanted && let Ok((_, event)) = self.rooms.state_event(&self.alice, &self.room, kind, key).await {
                auth.push(event.pdu.event_id.clone());
            }
        }
        let crafted = Crafted {
            room_id: Some(self.room.as_str()),
            sender,
            event_type,
            state_key,
            content,
            redacts: None,
            prev,
            auth: &auth,
            depth: before.pdu.depth + 1,
            origin_server_ts: self.storage.clock().now_ms(),
        };
        let (object, pdu) = crafted.sign(&self.keys, &rules, self.storage.random());
        let received = testing::receive(&self.rooms, object).await.unwrap();
        assert_eq!(received, Received::Accepted);
        pdu.event_id
    }

    async fn member(&self, user: &str, membership: &str, prev: &OwnedEventId) -> OwnedEventId {
        let content = json!({"membership": membership});
        self.take_in(user, "m.room.member", Some(user), content, std::slice::from_ref(prev)).await
    }

    async fn backfill(&self, from: &[&OwnedEventId], limit: u64) -> Result<Vec<Value>, Error> {
        let from: Vec<OwnedEventId> = from.iter().map(|id| (*id).clone()).collect();
        Ok(values(&self.rooms.backfill_for_server(other(), &self.room, &from, limit).await?))
    }

    async fn missing(
        &self,
        earliest: &[&OwnedEventId],
        latest: &[&OwnedEventId],
        limit: u64,
        min_depth: i64,
    ) -> Vec<String> {
        let owned = |ids: &[&OwnedEventId]| ids.iter().map(|id| (*id).clone()).collect::<Vec<_>>();
        let (earliest, latest) = (owned(earliest), owned(latest));
        let asked = MissingEvents { earliest: &earliest, latest: &latest, limit, min_depth };
        texts(&values(&self.rooms.missing_events_for_server(other(), &self.room, asked).await.unwrap()))
    }
}

fn other() -> &'static ServerName {
    server_name!("other")
}

fn values(events: &[Box<RawValue>]) -> Vec<Value> {
    events.iter().map(|event| serde_json::from_str(event.get()).unwrap()).collect()
}

/// What is said in events; of others the type, and of redacted ones nothing.
fn texts(events: &[Value]) -> Vec<String> {
    let text = |event: &Value| match event["content"]["body"].as_str() {
        Some(body) => body.to_owned(),
        None if event["type"] == "m.room.message" => "-".to_owned(),
        None => event["type"].as_str().unwrap().to_owned(),
    };
    events.iter().map(text).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_gets_what_lies_before_an_event_the_nearest_first() {
    for (version, _) in versions() {
        for database in TestDatabase::each().await {
            let scene = Scene::new(version, database).await;
            let first = scene.say("1").await;
            scene.member(REM, "join", &first).await;
            scene.say("2").await;
            let last = scene.say("3").await;
            let given = scene.backfill(&[&last], 3).await.unwrap();
            assert_eq!(texts(&given), ["3", "2", "m.room.member"]);
            assert!(given.iter().all(|event| event["signatures"].is_object() && event["hashes"].is_object()));
            let all = texts(&scene.backfill(&[&last], 1_000_000).await.unwrap());
            assert_eq!((&*all[3], all.last().unwrap().as_str()), ("1", "m.room.create"));
            assert_eq!(texts(&scene.backfill(&[&last], 0).await.unwrap()), Vec::<String>::new());
            // Both ends of a fork, and where they meet.
            let fork =
                scene.take_in(REM, "m.room.message", None, json!({"body": "fork"}), std::slice::from_ref(&last)).await;
            let (end, both) = (scene.say("end").await, [&fork, &last]);
            assert_eq!(texts(&scene.backfill(&both, 3).await.unwrap()), ["fork", "3", "2"]);
            assert_eq!(texts(&scene.backfill(&[&end], 3).await.unwrap())[..2], ["end", "fork"]);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_events_are_walked_over_and_at_most_a_hundred_given() {
    for database in TestDatabase::each().await {
        let scene = Scene::new(12, database).await;
        let first = scene.say("first").await;
        scene.member(REM, "join", &first).await;
        let mut last = first.clone();
        for number in 0..230 {
            last = scene.say(&number.to_string()).await;
        }
        let given = texts(&scene.backfill(&[&last], 500).await.unwrap());
        assert_eq!((given.len(), &*given[0], &*given[99]), (100, "229", "130"));
        let given = scene.missing(&[&first], &[&last], 500, 0).await;
        assert_eq!((given.len(), &*given[0], &*given[99]), (100, "129", "228"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_events_are_those_between_what_is_there_and_what_is_not() {
    for database in TestDatabase::each().await {
        let scene = Scene::new(11, database).await;
        let root = scene.say("root").await;
        let joined = scene.member(REM, "join", &root).await;
        let two = scene.say("2").await;
        scene.say("3").await;
        let four = scene.say("4").await;
        let five = scene.say("5").await;
        assert_eq!(scene.missing(&[&two], &[&five], 10, 0).await, ["3", "4"]);
        assert_eq!(scene.missing(&[&joined], &[&five], 2, 0).await, ["3", "4"], "the nearest ones");
        let unknown = ruma::event_id!("$kFyyBvwbGM-TYsEqPvXHVGH_WDRJQWQMNjMsRWKhkhY").to_owned();
        assert_eq!(scene.missing(&[&unknown], &[&two, &unknown], 1, 0).await, ["m.room.member"]);
        assert_eq!(scene.missing(&[&two], &[&two], 10, 0).await, Vec::<String>::new());
        assert_eq!(scene.missing(&[&two, &two, &two], &[&five, &five], 10, 0).await, ["3", "4"]);
        let four = scene.rooms.event_for_server(other(), &four).await.unwrap();
        let depth = serde_json::from_str::<Value>(four.get()).unwrap()["depth"].as_i64().unwrap();
        assert_eq!(scene.missing(&[], &[&five], 10, depth).await, ["4"]);
        assert_eq!(scene.missing(&[], &[&five], 10, depth + 5).await, Vec::<String>::new());
    }
}

/// As Synapse does: other events before and after stay connected, and the server learns no more of it than that it was there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_history_visibility_hides_goes_out_redacted() {
    for (visibility, expected) in [
        ("joined", [false, false, true, false, true]),
        ("invited", [false, true, true, false, true]),
        ("shared", [true; 5]),
        ("world_readable", [true; 5]),
    ] {
        for database in TestDatabase::each().await {
            let scene = Scene::new(11, database).await;
            scene.set("m.room.history_visibility", json!({"history_visibility": visibility})).await;
            let early = scene.say("early").await;
            let invite = json!({"membership": "invite"});
            scene.take_in("@alice:hs", "m.room.member", Some(REM), invite, std::slice::from_ref(&early)).await;
            let invited = scene.say("invited").await;
            scene.member(REM, "join", &invited).await;
            let seen = scene.say("seen").await;
            scene.member(REM, "leave", &seen).await;
            let gone = scene.say("gone").await;
            scene.member("@sue:other", "join", &gone).await;
            let late = scene.say("late").await;
            let whole = texts(&scene.backfill(&[&late], 100).await.unwrap());
            let is_seen = ["early", "invited", "seen", "gone", "late"].map(|text| whole.contains(&text.to_owned()));
            assert_eq!(is_seen, expected, "{visibility}: {whole:?}");
            assert_eq!(
                whole.iter().filter(|text| *text == "-").count(),
                expected.iter().filter(|seen| !**seen).count()
            );
            let event = scene.rooms.event_for_server(other(), &early).await.unwrap();
            assert_eq!(event.get().contains("early"), expected[0]);
            // The event of a time is one that the server sees.
            let early = scene.storage.find_event(&early).await.unwrap().unwrap().pdu.origin_server_ts;
            let found =
                scene.rooms.event_by_timestamp_for_server(other(), &scene.room, early, TimelineDirection::Forward);
            assert_eq!(found.await.unwrap().pdu.content.get().contains("early"), expected[0]);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_state_is_that_before_the_event_with_all_that_allows_it() {
    for version in [1, 6, 12] {
        for database in TestDatabase::each().await {
            let scene = Scene::new(version, database).await;
            let first = scene.set("m.room.topic", json!({"topic": "first"})).await;
            scene.member(REM, "join", &first).await;
            let second = scene.set("m.room.topic", json!({"topic": "second"})).await;
            let message = scene.say("hello").await;
            for (event, topic) in [(&first, None), (&second, Some("first")), (&message, Some("second"))] {
                let served = scene.rooms.state_for_server(other(), &scene.room, event).await.unwrap();
                let bodies = |bodies: Vec<std::sync::Arc<str>>| -> Vec<Value> {
                    bodies.iter().map(|body| serde_json::from_str(body).unwrap()).collect()
                };
                let state = bodies(scene.rooms.bodies(&served.state).await.unwrap());
                let found = state.iter().find(|event| event["type"] == "m.room.topic");
                assert_eq!(found.map(|event| event["content"]["topic"].as_str().unwrap()), topic);
                let has_rem = state.iter().any(|event| event["state_key"] == REM);
                assert_eq!(has_rem, topic.is_some());

                let (state_ids, chain_ids) =
                    scene.rooms.state_ids_for_server(other(), &scene.room, event).await.unwrap();
                assert_eq!(state_ids.len(), state.len());
                let chain = bodies(scene.rooms.bodies(&served.auth_chain).await.unwrap());
                assert_eq!(chain_ids.len(), chain.len());
                let chain_ids: BTreeSet<String> = chain_ids.iter().map(ToString::to_string).collect();
                for event in state.iter().chain(&chain) {
                    for auth in event["auth_events"].as_array().unwrap() {
                        let id = auth.as_str().or_else(|| auth[0].as_str()).unwrap();
                        assert!(chain_ids.contains(id), "{id} is not in the auth chain");
                    }
                }
                assert!(chain.iter().any(|event| event["type"] == "m.room.create") || version == 12);
            }
            let chain = scene.rooms.auth_chain_for_server(other(), &scene.room, &message).await.unwrap();
            let chain = scene.rooms.bodies(&chain).await.unwrap();
            assert!(chain.iter().any(|event| event.contains("@alice:hs") && event.contains("m.room.member")));
            assert!(!chain.iter().any(|event| event.contains("hello") || event.contains(REM)));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_not_in_the_room_or_is_denied_learns_nothing() {
    for database in TestDatabase::each().await {
        let scene = Scene::new(12, database).await;
        let said = scene.say("secret").await;
        let refused = async |why: &str| {
            let (rooms, room) = (&scene.rooms, &scene.room);
            let first = [said.clone()];
            let time = MilliSecondsSinceUnixEpoch(0_u32.into());
            let (forward, missing) =
                (TimelineDirection::Forward, MissingEvents { earliest: &[], latest: &first, limit: 9, min_depth: 0 });
            assert!(matches!(rooms.event_for_server(other(), &said).await, Err(Error::EventUnknown)), "{why}");
            for error in [
                rooms.state_for_server(other(), room, &said).await.unwrap_err(),
                rooms.state_ids_for_server(other(), room, &said).await.unwrap_err(),
                rooms.auth_chain_for_server(other(), room, &said).await.unwrap_err(),
                rooms.backfill_for_server(other(), room, &first, 9).await.unwrap_err(),
                rooms.missing_events_for_server(other(), room, missing).await.unwrap_err(),
                rooms.event_by_timestamp_for_server(other(), room, time, forward).await.unwrap_err(),
            ] {
                assert!(matches!(error, Error::NotAllowed(_)), "{why}: {error}");
            }
        };
        refused("never was in the room").await;
        let joined = scene.member(REM, "join", &said).await;
        assert!(scene.rooms.event_for_server(other(), &said).await.unwrap().get().contains("secret"));
        scene.member(REM, "leave", &joined).await;
        refused("has left").await;
        let said = scene.say("again").await;
        scene.member(REM, "join", &said).await;
        scene.set("m.room.server_acl", json!({"allow": ["*"], "deny": ["other"]})).await;
        refused("is denied").await;
        let nowhere = ruma::room_id!("!nowhere:hs");
        let unknown = scene.rooms.backfill_for_server(other(), nowhere, &[], 1).await;
        assert!(matches!(unknown, Err(Error::NotAllowed(_))));
    }
}

/// A room that the server is in is no way into one that it is not in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_of_other_rooms_are_not_given() {
    for database in TestDatabase::each().await {
        let mut scene = Scene::new(12, database).await;
        let (secret_room, secret) = (scene.room.clone(), scene.say("secret").await);
        scene.room = scene.rooms.create_room(&scene.alice, NewRoomRequest::new(Preset::PublicChat)).await.unwrap();
        let said = scene.say("open").await;
        scene.member(REM, "join", &said).await;
        assert_eq!(scene.backfill(&[&secret], 10).await.unwrap(), Vec::<Value>::new());
        assert_eq!(scene.missing(&[], &[&secret], 10, 0).await, Vec::<String>::new());
        let state = scene.rooms.state_for_server(other(), &scene.room, &secret).await;
        assert!(matches!(state, Err(Error::EventUnknown)));
        let chain = scene.rooms.auth_chain_for_server(other(), &scene.room, &secret).await;
        assert!(matches!(chain, Err(Error::EventUnknown)));
        assert!(matches!(
            scene.rooms.state_for_server(other(), &secret_room, &secret).await,
            Err(Error::NotAllowed(_))
        ));
        let too_many = vec![said; 101];
        let refused = scene.rooms.backfill_for_server(other(), &scene.room, &too_many, 1).await;
        assert!(matches!(refused, Err(Error::InvalidParam(_))));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_erased_user_is_erased_for_servers_too() {
    for database in TestDatabase::each().await {
        let scene = Scene::new(12, database).await;
        let said = scene.say("mine").await;
        scene.member(REM, "join", &said).await;
        assert!(scene.rooms.event_for_server(other(), &said).await.unwrap().get().contains("mine"));
        scene.storage.insert_user(&scene.alice.user_id, NewUser::default()).await.unwrap();
        scene.storage.deactivate_user(scene.alice.user_nr, true).await.unwrap();
        assert!(!scene.rooms.event_for_server(other(), &said).await.unwrap().get().contains("mine"));
    }
}
