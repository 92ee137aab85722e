//! How fast events of another server are taken in: `cargo bench -p rooms --bench receive`.
//!
//! One server sends transactions of 50 messages of 600 bytes, one after the other, to one room and to 20; `-- --postgres` does it on the
//! database for tests.

use std::{sync::Arc, time::Instant};

use accounts::Requester;
use model::{KeyPair, LocalServer, LocalServers, Pdu, Random};
use rooms::{NewRoomRequest, Options, Preset, Received, Rooms, Source, testing::KnownKeys};
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedEventId, OwnedRoomId, RoomVersionId, UserId,
    room_version_rules::RoomVersionRules,
    serde::{Base64, base64::Standard},
    server_name,
    signatures::{PublicKeyMap, hash_and_sign_event},
};
use serde_json::{Value, json, value::to_raw_value};
use storage::{Storage, testing::TestDatabase};

const EVENTS: usize = 5_000;
const TRANSACTION: usize = 50;

struct World {
    storage: Storage,
    rooms: Rooms,
    key: KeyPair,
    rules: RoomVersionRules,
}

/// A room as the other server sees it.
struct Room {
    id: OwnedRoomId,
    auth: Vec<OwnedEventId>,
    tip: OwnedEventId,
    depth: i64,
}

impl World {
    async fn new(storage: Storage) -> Self {
        let (ours, key) = (KeyPair::generate(&Random::seeded(1)), KeyPair::generate(&Random::seeded(2)));
        let public = Base64::<Standard>::parse(key.public_key()).expect("a key");
        let keys = PublicKeyMap::from([("other".to_owned(), [(key.id().to_string(), public)].into())]);
        let servers = LocalServers::new(vec![LocalServer::new(server_name!("hs").to_owned(), ours)]);
        let options = Options { default_version: RoomVersionId::V11, ..Options::default() };
        let rooms = Rooms::federating(storage.clone(), servers, options, Arc::new(KnownKeys(keys)));
        Self { storage, rooms, key, rules: RoomVersionId::V11.rules().expect("a version") }
    }

    fn sign(&self, event: Value) -> (CanonicalJsonObject, OwnedEventId) {
        let Ok(CanonicalJsonValue::Object(mut object)) = CanonicalJsonValue::try_from(event) else {
            panic!("an event is an object")
        };
        hash_and_sign_event("other", &self.key, &mut object, &self.rules.redaction).expect("an event");
        let event_id = Pdu::from_canonical(&object, &self.rules).expect("an event").event_id;
        (object, event_id)
    }

    /// A room of alice's which rem of the other server has joined.
    async fn room(&self) -> Room {
        let user_id = UserId::parse("@alice:hs").expect("a user id");
        let user_nr = self.storage.user_nr(&user_id).await.expect("a number");
        let alice =
            Requester { user_nr, user_id, device_id: None, is_guest: false, is_admin: false, app_service: None };
        let levels = to_raw_value(&json!({"users": {"@alice:hs": 100}})).expect("JSON");
        let request =
            NewRoomRequest { power_level_content_override: Some(levels), ..NewRoomRequest::new(Preset::PublicChat) };
        let id = self.rooms.create_room(&alice, request).await.expect("a room");
        let mut auth = Vec::new();
        for kind in ["m.room.create", "m.room.power_levels", "m.room.join_rules"] {
            let (_, event) = self.rooms.state_event(&alice, &id, kind, "").await.expect("an event of the state");
            auth.push(event.pdu.event_id.clone());
        }
        // After the newest event of the room; which one that is does not matter here.
        let (_, guests) = self.rooms.state_event(&alice, &id, "m.room.guest_access", "").await.expect("an event");
        let mut room = Room { id, auth, tip: guests.pdu.event_id.clone(), depth: 20 };
        let join = json!({
            "type": "m.room.member", "state_key": "@rem:other", "content": {"membership": "join"},
            "sender": "@rem:other", "room_id": room.id, "depth": room.depth, "origin_server_ts": 1_700_000_000_000_i64,
            "prev_events": [room.tip], "auth_events": room.auth,
        });
        let (join, event_id) = self.sign(join);
        assert_eq!(self.send(vec![join]).await, 1);
        room.auth[2] = event_id.clone();
        room.tip = event_id;
        room
    }

    fn message(&self, room: &mut Room) -> CanonicalJsonObject {
        room.depth += 1;
        let (object, event_id) = self.sign(json!({
            "type": "m.room.message", "content": {"msgtype": "m.text", "body": "x".repeat(150)}, "sender": "@rem:other",
            "room_id": room.id, "depth": room.depth, "origin_server_ts": 1_700_000_000_000_i64,
            "prev_events": [room.tip], "auth_events": room.auth,
        }));
        room.tip = event_id;
        object
    }

    /// Gives events to the server; how many were taken in.
    async fn send(&self, pdus: Vec<CanonicalJsonObject>) -> usize {
        let source = Source { as_server: server_name!("hs"), server: server_name!("other") };
        let outcomes =
            self.rooms.receive(source, pdus.iter().map(rooms::testing::raw).collect()).await.expect("outcomes");
        outcomes.values().filter(|outcome| matches!(outcome, Ok(Received::Accepted))).count()
    }

    async fn measure(&self, count: usize) {
        let mut rooms = Vec::new();
        for _ in 0..count {
            rooms.push(self.room().await);
        }
        let pdus: Vec<CanonicalJsonObject> =
            (0..EVENTS).map(|number| self.message(&mut rooms[number % count])).collect();
        let start = Instant::now();
        let mut accepted = 0;
        for transaction in pdus.chunks(TRANSACTION) {
            accepted += self.send(transaction.to_vec()).await;
        }
        let seconds = start.elapsed().as_secs_f64();
        assert_eq!(accepted, EVENTS, "all events are taken in");
        println!("{count} rooms: {:.0} events/s", EVENTS as f64 / seconds);
    }
}

#[tokio::main]
async fn main() {
    let database = match std::env::args().any(|argument| argument == "--postgres") {
        true => TestDatabase::postgres().await.expect("a PostgreSQL server for tests"),
        false => TestDatabase::sqlite(),
    };
    let world = World::new(database.open().await).await;
    for count in [1, 20] {
        world.measure(count).await;
    }
}
