//! What clients are told when state resolution alone changes the state of a room.

use std::sync::Arc;

use accounts::Requester;
use event_bus::{Bus, Typing};
use model::{Clock, KeyPair, LocalServer, LocalServers, Random};
use rooms::{NewRoomRequest, Options, Preset, Received, Rooms, testing, testing::KnownKeys};
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedEventId, RoomId, RoomVersionId, UserId,
    api::client::sync::sync_events::v3::Response,
    serde::{Base64, base64::Standard},
    server_name,
    signatures::{PublicKeyMap, hash_and_sign_event},
};
use serde_json::{Value, json, value::to_raw_value};
use storage::{Storage, testing::TestDatabase};
use sync::{Sync, v3::Request};
use tokio_util::sync::CancellationToken;

async fn user(storage: &Storage, id: &str) -> Requester {
    let user_id = UserId::parse(id).unwrap();
    Requester {
        user_nr: storage.user_nr(&user_id).await.unwrap(),
        user_id,
        device_id: Some("D".into()),
        is_guest: false,
        is_admin: false,
        app_service: None,
    }
}

async fn set_state(rooms: &Rooms, who: &Requester, room: &RoomId, event_type: &str, content: Value) -> OwnedEventId {
    let content = to_raw_value(&content).unwrap();
    rooms.send_state(who, room, event_type.into(), "", &content, None).await.unwrap()
}

async fn ask(sync: &Sync, who: &Requester, since: Option<&Response>) -> Response {
    let request = Request {
        since: since.map(|response| response.next_batch.parse().unwrap()),
        filter: Default::default(),
        full_state: false,
        timeout: std::time::Duration::ZERO,
        use_state_after: false,
    };
    sync.sync_events(who, &request).await.unwrap()
}

/// Another server takes bob's power away, at a time before he set the topic: then he did not set it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn state_that_resolution_alone_changed_is_told() {
    for database in TestDatabase::each().await {
        let storage = database.open().await;
        let (ours, theirs) = (KeyPair::generate(&Random::seeded(1)), KeyPair::generate(&Random::seeded(2)));
        let mut keys = PublicKeyMap::new();
        for (server, key) in [("hs", &ours), ("other", &theirs)] {
            let public = Base64::<Standard>::parse(key.public_key()).unwrap();
            keys.entry(server.to_owned()).or_default().insert(key.id().to_string(), public);
        }
        let servers = LocalServers::new(vec![LocalServer::new(server_name!("hs").to_owned(), ours)]);
        let options = Options { default_version: RoomVersionId::V11, ..Options::default() };
        let rooms = Rooms::federating(storage.clone(), servers, options, Arc::new(KnownKeys(keys)));
        let typing = Typing::new(Clock::system(), &Random::system());
        let sync = Sync::start(storage.clone(), rooms.clone(), typing, Bus::memory(), CancellationToken::new());
        let (alice, bob) = (user(&storage, "@alice:hs").await, user(&storage, "@bob:hs").await);
        let levels = |bob: u32| json!({"users": {"@alice:hs": 100, "@rem:other": 100, "@bob:hs": bob}});
        let request = NewRoomRequest {
            power_level_content_override: Some(to_raw_value(&levels(50)).unwrap()),
            ..NewRoomRequest::new(Preset::PublicChat)
        };
        let room = rooms.create_room(&alice, request).await.unwrap();
        let id_of = async |event_type: &str, key: &str| {
            rooms.state_event(&alice, &room, event_type, key).await.unwrap().1.pdu.event_id.clone()
        };
        let craft = async |event_type: &str, key: &str, content: Value, prev: &OwnedEventId, auth: &[OwnedEventId]| {
            let event = json!({
                "type": event_type, "state_key": key, "content": content, "sender": "@rem:other", "room_id": room,
                "depth": 50, "origin_server_ts": storage.clock().now_ms(), "prev_events": [prev], "auth_events": auth,
            });
            let Ok(CanonicalJsonValue::Object(mut object)) = CanonicalJsonValue::try_from(event) else {
                unreachable!("an object")
            };
            let rules = RoomVersionId::V11.rules().unwrap();
            hash_and_sign_event("other", &theirs, &mut object, &rules.redaction).unwrap();
            object as CanonicalJsonObject
        };
        let (create, power) = (id_of("m.room.create", "").await, id_of("m.room.power_levels", "").await);
        let rule = id_of("m.room.join_rules", "").await;
        let first = set_state(&rooms, &alice, &room, "m.room.topic", json!({"topic": "first"})).await;
        let auth = [create.clone(), power.clone(), rule];
        let join = craft("m.room.member", "@rem:other", json!({"membership": "join"}), &first, &auth).await;
        assert_eq!(testing::receive(&rooms, join).await.unwrap(), Received::Accepted);
        rooms.join(&bob, &room, None).await.unwrap();
        let member = id_of("m.room.member", "@rem:other").await;
        set_state(&rooms, &bob, &room, "m.room.topic", json!({"topic": "second"})).await;
        let before = ask(&sync, &alice, None).await;

        // 1. It is in no timeline, and is told as state.
        let auth = [create, power, member.clone()];
        let demotion = craft("m.room.power_levels", "", levels(0), &member, &auth).await;
        assert_eq!(testing::receive(&rooms, demotion).await.unwrap(), Received::Accepted);
        assert_eq!(id_of("m.room.topic", "").await, first);
        let after = ask(&sync, &alice, Some(&before)).await;
        let shown = serde_json::to_value(&after.rooms.join[&room]).unwrap();
        let state = shown["state"]["events"].as_array().unwrap();
        assert_eq!(state.len(), 1, "{shown}");
        assert_eq!(state[0]["content"]["topic"], "first", "{shown}");
        assert_eq!(shown["timeline"]["events"][0]["type"], "m.room.power_levels", "{shown}");

        // 2. Once.
        assert!(ask(&sync, &alice, Some(&after)).await.rooms.is_empty());

        // 3. Also when only the database knows.
        let typing = Typing::new(Clock::system(), &Random::system());
        let other = Sync::start(storage.clone(), rooms.clone(), typing, Bus::memory(), CancellationToken::new());
        let again = ask(&other, &alice, Some(&before)).await;
        assert_eq!(
            serde_json::to_value(&again.rooms.join[&room]).unwrap()["state"]["events"][0]["content"]["topic"],
            "first"
        );
        storage.close().await;
    }
}
