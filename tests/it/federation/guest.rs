//! A server in the test's hands whose user is in a room of ours: it makes events as it likes, and sends them.

use model::Pdu;
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedEventId, RoomVersionId,
    room_version_rules::{EventIdFormatVersion, EventsReferenceFormatVersion, RoomVersionRules},
    signatures::hash_and_sign_event,
};
use serde_json::{Value, json};
use storage::testing::TestDatabase;
use test_kit::{Answer, Peer, ServerOptions, TestFederation, TestUser, encode};

/// The user of the peer.
pub(crate) const REM: &str = "@rem:peer.test";

/// Our server `hs1` with alice, the peer with rem, and a public room of alice's.
pub(crate) struct Guest {
    pub(crate) federation: TestFederation,
    pub(crate) peer: Peer,
    pub(crate) alice: TestUser,
    pub(crate) room: String,
    pub(crate) rules: RoomVersionRules,
    /// The newest event that the peer knows of.
    pub(crate) tip: OwnedEventId,
    pub(crate) depth: i64,
    sent: usize,
}

/// An event of the peer's.
#[derive(Clone, Debug)]
pub(crate) struct Made {
    pub(crate) id: OwnedEventId,
    pub(crate) pdu: Value,
}

impl Guest {
    /// Rem has joined.
    pub(crate) async fn new(database: TestDatabase) -> Self {
        Self::in_version(RoomVersionId::V11, database).await
    }

    /// Rem has joined a room of that version.
    pub(crate) async fn in_version(version: RoomVersionId, database: TestDatabase) -> Self {
        let mut guest = Self::outside(version, database).await;
        let join = guest.make_state("m.room.member", REM, json!({"membership": "join"})).await;
        guest.send_one(&join).await;
        guest
    }

    /// Rem has not joined.
    pub(crate) async fn outside(version: RoomVersionId, database: TestDatabase) -> Self {
        let mut federation = TestFederation::empty();
        federation.add("hs1", database, ServerOptions::default()).await;
        let alice = federation.user("hs1", "alice").await;
        let levels = json!({"users": {alice.id(): 100, REM: 50}});
        let request = json!({"preset": "public_chat", "room_version": version, "power_level_content_override": levels});
        let room = alice.create_room_with(&request).await;
        let peer = federation.peer("peer.test").await;
        let rules = version.rules().expect("a version of this server");
        let tip = newest(&alice, &room).await;
        Self { federation, peer, alice, room, rules, tip, depth: 20, sent: 0 }
    }

    /// The event of the current state, if there is one.
    pub(crate) async fn state(&self, event_type: &str, state_key: &str) -> Option<OwnedEventId> {
        let state = self.alice.get(&format!("/rooms/{}/state", encode(&self.room))).await.ok();
        let mut events = state.as_array().into_iter().flatten();
        let found = events.find(|event| event["type"] == event_type && event["state_key"] == state_key)?;
        OwnedEventId::try_from(found["event_id"].as_str()?).ok()
    }

    /// The events that allow rem an event.
    pub(crate) async fn auth(&self, event_type: &str) -> Vec<OwnedEventId> {
        let mut auth = Vec::new();
        let rule = ("m.room.join_rules", "");
        for (kind, key) in [("m.room.create", ""), ("m.room.power_levels", ""), ("m.room.member", REM), rule] {
            if kind != "m.room.join_rules" || event_type == "m.room.member" {
                auth.extend(self.state(kind, key).await);
            }
        }
        auth
    }

    /// Makes an event out of these fields, where the others are as they should be. Nothing else changes.
    pub(crate) async fn make(&self, fields: Value) -> Made {
        let auth = match fields.get("auth_events") {
            Some(_) => Vec::new(),
            None => self.auth(fields["type"].as_str().unwrap_or_default()).await,
        };
        let mut event = json!({
            "type": "m.room.message", "content": {}, "sender": REM, "room_id": self.room, "depth": self.depth + 1,
            "origin_server_ts": model::Clock::system().now_ms(), "prev_events": self.references(std::slice::from_ref(&self.tip)),
            "auth_events": self.references(&auth),
        });
        if self.rules.event_id_format == EventIdFormatVersion::V1 {
            event["event_id"] = json!(format!("${}:peer.test", model::Random::system().alphanumeric(18)));
        }
        for (name, value) in fields.as_object().into_iter().flatten() {
            event[name] = value.clone();
        }
        self.sign(event)
    }

    /// Ids as `prev_events` and `auth_events` have them.
    fn references(&self, ids: &[OwnedEventId]) -> Value {
        let with_hashes = self.rules.events_reference_format == EventsReferenceFormatVersion::V1;
        ids.iter().map(|id| if with_hashes { json!([id, {}]) } else { json!(id) }).collect()
    }

    /// Signs what need not be an event.
    pub(crate) fn sign(&self, event: Value) -> Made {
        let Ok(CanonicalJsonValue::Object(mut object)) = CanonicalJsonValue::try_from(event) else {
            panic!("no JSON object")
        };
        hash_and_sign_event(self.peer.name().as_str(), self.peer.key(), &mut object, &self.rules.redaction)
            .expect("something to sign");
        self.made(object)
    }

    /// What was signed by hand.
    pub(crate) fn made(&self, object: CanonicalJsonObject) -> Made {
        let id = Pdu::from_canonical(&object, &self.rules).map(|pdu| pdu.event_id);
        let id = id.unwrap_or_else(|_| OwnedEventId::try_from("$none").expect("an id"));
        Made { id, pdu: serde_json::to_value(&object).expect("JSON") }
    }

    /// A message after the newest event, which is the newest then.
    pub(crate) async fn message(&mut self, body: &str) -> Made {
        let made = self.make(json!({"content": {"msgtype": "m.text", "body": body}})).await;
        self.follow(&made);
        made
    }

    /// A state event after the newest event, which is the newest then.
    pub(crate) async fn make_state(&mut self, event_type: &str, state_key: &str, content: Value) -> Made {
        let made = self.make(json!({"type": event_type, "state_key": state_key, "content": content})).await;
        self.follow(&made);
        made
    }

    /// Goes on from this event.
    pub(crate) fn follow(&mut self, made: &Made) {
        self.tip = made.id.clone();
        self.depth = made.pdu["depth"].as_i64().unwrap_or(self.depth);
    }

    /// Sends events in a transaction of their own.
    pub(crate) async fn send(&mut self, made: &[Made]) -> Answer {
        self.sent += 1;
        let pdus = made.iter().map(|made| made.pdu.clone()).collect();
        self.transaction(&format!("t{}", self.sent), pdus, Vec::new()).await
    }

    /// Sends one event, which is taken in.
    #[track_caller]
    pub(crate) fn send_one<'a>(&'a mut self, made: &'a Made) -> impl Future<Output = ()> + 'a {
        let caller = std::panic::Location::caller();
        async move {
            let answer = self.send(std::slice::from_ref(made)).await.ok();
            assert_eq!(answer, json!({"pdus": {made.id.as_str(): {}}}), "sent at {caller}");
        }
    }

    /// Sends a transaction.
    pub(crate) async fn transaction(&self, id: &str, pdus: Vec<Value>, edus: Vec<Value>) -> Answer {
        let body = json!({
            "origin": "peer.test", "origin_server_ts": model::Clock::system().now_ms(), "pdus": pdus, "edus": edus,
        });
        let path = format!("/_matrix/federation/v1/send/{}", encode(id));
        self.peer.ask(self.federation.server("hs1").http(), "hs1", "PUT", &path, &body).await
    }

    /// Starts our server anew.
    pub(crate) async fn restart(&mut self) {
        self.federation.server_mut("hs1").restart().await;
        self.alice = self.alice.at(self.federation.server("hs1").http());
    }

    /// The texts that alice sees.
    pub(crate) async fn texts(&self) -> Vec<String> {
        self.alice.texts(&self.room).await
    }
}

/// The newest event that a user sees.
pub(crate) async fn newest(user: &TestUser, room: &str) -> OwnedEventId {
    let page = user.get(&format!("/rooms/{}/messages?dir=b&limit=1", encode(room))).await.ok();
    page["chunk"][0]["event_id"].as_str().and_then(|id| OwnedEventId::try_from(id).ok()).expect("an event")
}
