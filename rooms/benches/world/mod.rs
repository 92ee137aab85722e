//! One of our servers, `hs`, and another one, `other`, whose events it is given.

// Not all of it is used by each benchmark.
#![allow(dead_code)]

use std::sync::Arc;

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

pub(crate) struct World {
    pub(crate) rooms: Rooms,
    storage: Storage,
    key: KeyPair,
    rules: RoomVersionRules,
}

impl World {
    /// A server on this storage; on the same storage it is the same server, with nothing in memory.
    pub(crate) fn new(storage: Storage, version: &RoomVersionId) -> Self {
        let (ours, key) = (KeyPair::generate(&Random::seeded(1)), KeyPair::generate(&Random::seeded(2)));
        let public = Base64::<Standard>::parse(key.public_key()).expect("a key");
        let keys = PublicKeyMap::from([("other".to_owned(), [(key.id().to_string(), public)].into())]);
        let servers = LocalServers::new(vec![LocalServer::new(server_name!("hs").to_owned(), ours)]);
        let options = Options { default_version: version.clone(), ..Options::default() };
        let rooms = Rooms::federating(storage.clone(), servers, options, Arc::new(KnownKeys(keys)));
        Self { rooms, storage, key, rules: version.rules().expect("a version") }
    }

    /// The user who makes the rooms.
    pub(crate) async fn alice(&self) -> Requester {
        let user_id = UserId::parse("@alice:hs").expect("a user id");
        let user_nr = self.storage.user_nr(&user_id).await.expect("a number");
        Requester { user_nr, user_id, device_id: None, is_guest: false, is_admin: false, app_service: None }
    }

    /// A room of alice's that all may join, with these powers.
    pub(crate) async fn create_room(&self, power_levels: &Value) -> OwnedRoomId {
        let levels = to_raw_value(power_levels).expect("JSON");
        let request =
            NewRoomRequest { power_level_content_override: Some(levels), ..NewRoomRequest::new(Preset::PublicChat) };
        self.rooms.create_room(&self.alice().await, request).await.expect("a room")
    }

    /// The id of an event of the state.
    pub(crate) async fn state_event(&self, room: &OwnedRoomId, kind: &str, key: &str) -> OwnedEventId {
        let event = self.rooms.state_event(&self.alice().await, room, kind, key).await;
        event.expect("an event of the state").1.pdu.event_id.clone()
    }

    /// The content of an event of the state.
    pub(crate) async fn state_content(&self, room: &OwnedRoomId, kind: &str, key: &str) -> Value {
        let event = self.rooms.state_event(&self.alice().await, room, kind, key).await;
        let (_, event) = event.expect("an event of the state");
        serde_json::from_str(event.pdu.content.get()).expect("JSON")
    }

    /// Whether events of the room's version refer to the create event: since version 12 the room's id does.
    pub(crate) fn refers_to_create(&self) -> bool {
        !self.rules.authorization.room_create_event_id_as_room_id
    }

    /// The event of the other server, with its id.
    pub(crate) fn sign(&self, event: Value) -> (CanonicalJsonObject, OwnedEventId) {
        let Ok(CanonicalJsonValue::Object(mut object)) = CanonicalJsonValue::try_from(event) else {
            panic!("an event is an object")
        };
        hash_and_sign_event("other", &self.key, &mut object, &self.rules.redaction).expect("an event");
        let event_id = Pdu::from_canonical(&object, &self.rules).expect("an event").event_id;
        (object, event_id)
    }

    /// Gives events to the server; how many were taken in.
    pub(crate) async fn send(&self, pdus: Vec<CanonicalJsonObject>) -> usize {
        let source = Source { as_server: server_name!("hs"), server: server_name!("other") };
        let outcomes = self.rooms.receive(source, pdus).await.expect("outcomes");
        outcomes.values().filter(|outcome| matches!(outcome, Ok(Received::Accepted))).count()
    }
}

/// SQLite, or the PostgreSQL server for tests with `-- --postgres`.
pub(crate) async fn database() -> TestDatabase {
    match std::env::args().any(|argument| argument == "--postgres") {
        true => TestDatabase::postgres().await.expect("a PostgreSQL server for tests"),
        false => TestDatabase::sqlite(),
    }
}

/// The powers of a room: alice's, where the version lets them be written.
pub(crate) fn levels(version: &RoomVersionId) -> Value {
    let rules = version.rules().expect("a version");
    match rules.authorization.explicitly_privilege_room_creators {
        true => json!({"users": {}}),
        false => json!({"users": {"@alice:hs": 100}}),
    }
}
