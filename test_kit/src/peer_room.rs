//! Users of a [`Peer`] in rooms of the servers under test: how they come in, and the events that they send there.

use std::collections::HashMap;

use model::{Clock, KeyPair, Random};
use ruma::{
    CanonicalJsonObject, RoomVersionId, UserId,
    room_version_rules::{EventIdFormatVersion, EventsReferenceFormatVersion, RoomVersionRules},
    signatures::{hash_and_sign_event, reference_hash, sign_event},
    state_res,
};
use serde_json::{Value, json, value::to_raw_value};

use crate::{Answer, Http, Peer, encode};

/// The versions that a peer says it knows.
const VERSIONS: [&str; 12] = ["1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12"];

/// An event that a peer made.
#[derive(Clone, Debug)]
pub struct PeerEvent {
    /// Its id.
    pub id: String,
    /// The event, hashed and signed.
    pub json: Value,
}

/// A room as a user of a peer sees it, who joined it.
#[derive(Clone, Debug)]
pub struct PeerRoom {
    /// The room's id.
    pub id: String,
    /// Its version.
    pub version: RoomVersionId,
    /// Who joined.
    pub user: String,
    /// What the server answered to the join.
    pub answer: Value,
    /// The state after what the user knows of, by type and state key, each event with its id.
    pub state: HashMap<(String, String), PeerEvent>,
    /// The ids of the newest events that the user knows of: the next one comes after them.
    pub tips: Vec<String>,
    /// The depth of the newest event.
    pub depth: i64,
}

impl Peer {
    /// Joins a user of this peer to a room of the server `destination` at `http`, by `make_join` and `send_join`.
    ///
    /// # Panics
    ///
    /// When the server does not let the user in.
    pub async fn join(&self, http: &Http, destination: &str, room_id: &str, user: &str) -> PeerRoom {
        let template = self.make(http, destination, "join", room_id, user).await.ok();
        let (version, join) = self.signed_template(&template);
        let answer = self.submit(http, destination, "join", room_id, &join).await.ok();
        PeerRoom::of_answer(room_id, version, user, join, answer)
    }

    /// Asks for the template of a `join`, `leave` or `knock`.
    pub async fn make(&self, http: &Http, destination: &str, action: &str, room_id: &str, user: &str) -> Answer {
        let versions = VERSIONS.map(|version| format!("ver={version}")).join("&");
        let query = if action == "leave" { String::new() } else { format!("?{versions}") };
        let path = format!("/_matrix/federation/v1/make_{action}/{}/{}{query}", encode(room_id), encode(user));
        self.ask(http, destination, "GET", &path, &Value::Null).await
    }

    /// The event of a template, made complete and signed, with the version of its room.
    ///
    /// # Panics
    ///
    /// When it is no template.
    #[must_use]
    pub fn signed_template(&self, template: &Value) -> (RoomVersionId, PeerEvent) {
        let version = RoomVersionId::try_from(template["room_version"].as_str().unwrap_or("1")).expect("a version");
        let mut event = template["event"].clone();
        event["origin"] = json!(self.name());
        event["origin_server_ts"] = json!(Clock::system().now_ms());
        let event = self.sign_event(&version, event);
        (version, event)
    }

    /// Sends the event of a `join`, `leave` or `knock` back.
    pub async fn submit(
        &self,
        http: &Http,
        destination: &str,
        action: &str,
        room_id: &str,
        event: &PeerEvent,
    ) -> Answer {
        let api = if action == "knock" { "v1" } else { "v2" };
        let path = format!("/_matrix/federation/{api}/send_{action}/{}/{}", encode(room_id), encode(&event.id));
        self.ask(http, destination, "PUT", &path, &event.json).await
    }

    /// From now on it signs every invitation that it gets.
    ///
    /// # Panics
    ///
    /// When it gets what is no invitation.
    pub fn take_invitations(&self) {
        let key = KeyPair::from_text(&self.key().to_text()).expect("a key");
        let name = self.name().clone();
        self.respond("PUT /_matrix/federation/v2/invite/", move |asked| {
            let version = RoomVersionId::try_from(asked.body["room_version"].as_str().expect("a version"));
            let rules = rules(&version.expect("a version"));
            let mut event: CanonicalJsonObject = serde_json::from_value(asked.body["event"].clone()).expect("an event");
            sign_event(name.as_str(), &key, &mut event, &rules.redaction).expect("an event");
            (200, json!({ "event": event }))
        });
    }

    /// An event with its hash and the signature of this peer; one of version 1 or 2 without an id gets one.
    ///
    /// # Panics
    ///
    /// When it is no event.
    #[must_use]
    pub fn sign_event(&self, version: &RoomVersionId, mut event: Value) -> PeerEvent {
        let rules = rules(version);
        if rules.event_id_format == EventIdFormatVersion::V1 && event["event_id"].is_null() {
            event["event_id"] = json!(format!("${}:{}", Random::system().alphanumeric(18), self.name()));
        }
        let mut object: CanonicalJsonObject = serde_json::from_value(event).expect("canonical JSON");
        hash_and_sign_event(self.name().as_str(), self.key(), &mut object, &rules.redaction).expect("an event");
        let json = serde_json::to_value(&object).expect("JSON");
        PeerEvent { id: event_id(version, &json), json }
    }
}

impl PeerRoom {
    fn of_answer(room_id: &str, version: RoomVersionId, user: &str, join: PeerEvent, answer: Value) -> Self {
        let state = answer["state"].as_array().expect("`state` is a list").iter().map(|json| {
            let text = |field: &str| json[field].as_str().unwrap_or_default().to_owned();
            ((text("type"), text("state_key")), PeerEvent { id: event_id(&version, json), json: json.clone() })
        });
        let state = state.collect();
        let mut room =
            Self { id: room_id.to_owned(), version, user: user.to_owned(), answer, state, tips: Vec::new(), depth: 0 };
        room.follow(&join);
        room
    }

    /// An event of the user upon all that they know of, as their server would make it.
    ///
    /// # Panics
    ///
    /// When the content is none of the type.
    #[must_use]
    pub fn event(&self, peer: &Peer, event_type: &str, state_key: Option<&str>, content: Value) -> PeerEvent {
        let rules = rules(&self.version);
        let user = <&UserId>::try_from(self.user.as_str()).expect("a user id");
        let types = state_res::auth_types_for_event(
            &event_type.into(),
            user,
            state_key,
            &to_raw_value(&content).expect("JSON"),
            &rules.authorization,
        );
        let keys = types.expect("content of the type").into_iter();
        let auth = keys.filter_map(|(kind, key)| Some(self.state.get(&(kind.to_string(), key))?.id.clone()));
        let mut event = json!({
            "type": event_type, "content": content, "sender": self.user, "room_id": self.id, "depth": self.depth + 1,
            "origin_server_ts": Clock::system().now_ms(),
            "prev_events": references(&rules, &self.tips), "auth_events": references(&rules, &auth.collect::<Vec<_>>()),
        });
        if let Some(state_key) = state_key {
            event["state_key"] = json!(state_key);
        }
        peer.sign_event(&self.version, event)
    }

    /// A text message of the user upon all that they know of.
    #[must_use]
    pub fn text(&self, peer: &Peer, body: &str) -> PeerEvent {
        self.event(peer, "m.room.message", None, json!({"msgtype": "m.text", "body": body}))
    }

    /// The next event comes after this one.
    pub fn follow(&mut self, event: &PeerEvent) {
        self.tips = vec![event.id.clone()];
        self.depth = self.depth.max(event.json["depth"].as_i64().unwrap_or_default());
        if let (Some(event_type), Some(key)) = (event.json["type"].as_str(), event.json["state_key"].as_str()) {
            self.state.insert((event_type.to_owned(), key.to_owned()), event.clone());
        }
    }
}

/// The id of an event, well-formed or not.
///
/// # Panics
///
/// When it has none.
#[must_use]
pub fn event_id(version: &RoomVersionId, event: &Value) -> String {
    let rules = rules(version);
    if rules.event_id_format == EventIdFormatVersion::V1 {
        return event["event_id"].as_str().expect("an id").to_owned();
    }
    let object: CanonicalJsonObject = serde_json::from_value(event.clone()).expect("canonical JSON");
    format!("${}", reference_hash(&object, &rules).expect("an event"))
}

fn rules(version: &RoomVersionId) -> RoomVersionRules {
    version.rules().expect("a known version")
}

/// Ids as `prev_events` and `auth_events` have them.
fn references(rules: &RoomVersionRules, ids: &[String]) -> Value {
    let with_hashes = rules.events_reference_format == EventsReferenceFormatVersion::V1;
    ids.iter().map(|id| if with_hashes { json!([id, {}]) } else { json!(id) }).collect()
}
