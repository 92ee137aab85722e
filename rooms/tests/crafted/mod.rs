//! Events made by hand, on the two servers `hs` (ours) and `other`.

use std::sync::Arc;

use model::{KeyPair, LocalServer, LocalServers, Pdu, Random};
use rooms::{Options, Rooms, testing::KnownKeys};
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedEventId, RoomVersionId, UserId,
    room_version_rules::{EventIdFormatVersion, EventsReferenceFormatVersion, RoomVersionRules},
    serde::{Base64, base64::Standard},
    server_name,
    signatures::{PublicKeyMap, hash_and_sign_event},
};
use serde_json::{Value, json};
use storage::Storage;

/// The keys of both servers.
pub(crate) struct Keys {
    ours: KeyPair,
    theirs: KeyPair,
    /// What they are verified with.
    pub(crate) public: PublicKeyMap,
}

impl Keys {
    pub(crate) fn new() -> Self {
        let (ours, theirs) = (KeyPair::generate(&Random::seeded(1)), KeyPair::generate(&Random::seeded(2)));
        let mut public = PublicKeyMap::new();
        for (server, key) in [("hs", &ours), ("other", &theirs)] {
            let bytes = Base64::<Standard>::parse(key.public_key()).unwrap();
            public.entry(server.to_owned()).or_default().insert(key.id().to_string(), bytes);
        }
        Self { ours, theirs, public }
    }

    /// Rooms of our server, which knows the keys of the other one.
    pub(crate) fn rooms(&self, storage: Storage, options: Options) -> Rooms {
        Rooms::federating(storage, Self::local_servers(), options, Arc::new(KnownKeys(self.public.clone())))
    }

    /// Our one server name with its key.
    pub(crate) fn local_servers() -> LocalServers {
        let key = KeyPair::generate(&Random::seeded(1));
        LocalServers::new(vec![LocalServer::new(server_name!("hs").to_owned(), key)])
    }
}

/// An event before it has hashes and signatures.
pub(crate) struct Crafted<'a> {
    /// Nothing for the create event of a version 12 room.
    pub(crate) room_id: Option<&'a str>,
    pub(crate) sender: &'a str,
    pub(crate) event_type: &'a str,
    pub(crate) state_key: Option<&'a str>,
    pub(crate) content: Value,
    pub(crate) redacts: Option<&'a str>,
    pub(crate) prev: &'a [OwnedEventId],
    pub(crate) auth: &'a [OwnedEventId],
    pub(crate) depth: i64,
    pub(crate) origin_server_ts: i64,
}

impl Crafted<'_> {
    /// The event, signed by both servers, as it is sent and as it is read.
    pub(crate) fn sign(self, keys: &Keys, rules: &RoomVersionRules, random: &Random) -> (CanonicalJsonObject, Pdu) {
        let with_hashes = rules.events_reference_format == EventsReferenceFormatVersion::V1;
        let references = |ids: &[OwnedEventId]| -> Value {
            ids.iter().map(|id| if with_hashes { json!([id, {}]) } else { json!(id) }).collect()
        };
        let mut event = json!({
            "type": self.event_type, "content": self.content, "sender": self.sender, "depth": self.depth,
            "origin_server_ts": self.origin_server_ts,
            "prev_events": references(self.prev), "auth_events": references(self.auth),
        });
        for (name, value) in [("room_id", self.room_id), ("state_key", self.state_key), ("redacts", self.redacts)] {
            if let Some(value) = value {
                event[name] = json!(value);
            }
        }
        if rules.event_id_format == EventIdFormatVersion::V1 {
            let server = UserId::parse(self.sender).unwrap().server_name().to_owned();
            event["event_id"] = json!(format!("${}:{server}", random.alphanumeric(12)));
        }
        let CanonicalJsonValue::Object(mut object) = CanonicalJsonValue::try_from(event).unwrap() else {
            unreachable!("an object")
        };
        hash_and_sign_event("hs", &keys.ours, &mut object, &rules.redaction).unwrap();
        hash_and_sign_event("other", &keys.theirs, &mut object, &rules.redaction).unwrap();
        let pdu = Pdu::from_canonical(&object, rules).unwrap();
        (object, pdu)
    }
}

/// All room versions.
pub(crate) fn versions() -> impl Iterator<Item = (u8, RoomVersionId)> {
    (1..=12).map(|number: u8| (number, RoomVersionId::try_from(number.to_string()).unwrap()))
}
