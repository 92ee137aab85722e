//! Events as clients see them, spliced from the stored JSON without parsing it whole.

use std::{collections::BTreeMap, sync::Arc};

use ruma::{EventId, OwnedEventId, RoomId};
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

/// The fields of a stored event that clients see, borrowed from its JSON. Client-Server API, "Room event format".
#[derive(Debug, Deserialize)]
pub struct ClientEvent<'a> {
    #[serde(borrow)]
    content: &'a RawValue,
    #[serde(borrow)]
    origin_server_ts: &'a RawValue,
    #[serde(borrow)]
    sender: &'a RawValue,
    #[serde(borrow)]
    state_key: Option<&'a RawValue>,
    #[serde(borrow, rename = "type")]
    event_type: &'a RawValue,
}

/// What the server adds to an event for one reader. Client-Server API, "UnsignedData".
#[derive(Clone, Debug, Default, Serialize)]
pub struct Unsigned {
    /// Milliseconds since the event was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age: Option<i64>,
    /// The reader's membership at the time of the event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub membership: Option<&'static str>,
    /// For a state event, the content that it replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prev_content: Option<Arc<RawValue>>,
    /// For a state event, the event that it replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replaces_state: Option<String>,
    /// Who sent the event that it replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prev_sender: Option<String>,
    /// The redaction, when it was redacted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redacted_because: Option<Arc<RawValue>>,
    /// For the device that sent it, its transaction id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transaction_id: Option<String>,
    /// Bundled aggregations. Client-Server API, "Aggregations of child events".
    #[serde(rename = "m.relations", skip_serializing_if = "Option::is_none")]
    pub relations: Option<Arc<RawValue>>,
}

impl Unsigned {
    fn is_empty(&self) -> bool {
        self.age.is_none()
            && self.membership.is_none()
            && self.prev_content.is_none()
            && self.replaces_state.is_none()
            && self.prev_sender.is_none()
            && self.redacted_because.is_none()
            && self.transaction_id.is_none()
            && self.relations.is_none()
    }
}

/// An event as clients see it but for what the server adds for each reader. Made once; each reader's is put together from its pieces
/// without reading them again.
#[derive(Clone, Debug)]
pub struct ReadyEvent {
    content: Box<RawValue>,
    event_id: OwnedEventId,
    origin_server_ts: Box<RawValue>,
    redacts: Option<Box<RawValue>>,
    sender: Box<RawValue>,
    state_key: Option<Box<RawValue>>,
    event_type: Box<RawValue>,
}

#[derive(Serialize)]
struct Shown<'a> {
    content: &'a RawValue,
    event_id: &'a EventId,
    origin_server_ts: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    redacts: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    room_id: Option<&'a RoomId>,
    sender: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    state_key: Option<&'a RawValue>,
    #[serde(rename = "type")]
    event_type: &'a RawValue,
    #[serde(skip_serializing_if = "Unsigned::is_empty")]
    unsigned: &'a Unsigned,
}

impl ReadyEvent {
    /// The event for `/messages` and the like with its room, for `/sync` (`room_id` is `None`) without.
    #[must_use]
    pub fn to_json(&self, room_id: Option<&RoomId>, unsigned: &Unsigned) -> Box<RawValue> {
        to_raw_value(&self.shown(room_id, unsigned)).expect("strings and ready-made JSON serialize")
    }

    /// The same, written behind what is in `json` already: for long lists.
    pub fn write_json(&self, json: &mut Vec<u8>, room_id: Option<&RoomId>, unsigned: &Unsigned) {
        serde_json::to_writer(json, &self.shown(room_id, unsigned)).expect("strings and ready-made JSON serialize");
    }

    fn shown<'a>(&'a self, room_id: Option<&'a RoomId>, unsigned: &'a Unsigned) -> Shown<'a> {
        Shown {
            content: &self.content,
            event_id: &self.event_id,
            origin_server_ts: &self.origin_server_ts,
            redacts: self.redacts.as_deref(),
            room_id,
            sender: &self.sender,
            state_key: self.state_key.as_deref(),
            event_type: &self.event_type,
            unsigned,
        }
    }
}

#[derive(Serialize)]
struct Stripped<'a> {
    content: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    origin_server_ts: Option<&'a RawValue>,
    sender: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    state_key: Option<&'a RawValue>,
    #[serde(rename = "type")]
    event_type: &'a RawValue,
}

impl<'a> ClientEvent<'a> {
    /// Finds the fields in the JSON of a stored event.
    ///
    /// # Errors
    ///
    /// When the text is not an event: it was damaged.
    pub fn of(json: &'a str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(json)
    }

    /// The content.
    #[must_use]
    pub fn content(&self) -> &'a RawValue {
        self.content
    }

    /// The state key, a JSON text.
    #[must_use]
    pub fn state_key(&self) -> Option<&'a RawValue> {
        self.state_key
    }

    /// When it was made, in milliseconds since 1970.
    #[must_use]
    pub fn sent_ms(&self) -> i64 {
        self.origin_server_ts.get().parse().unwrap_or_default()
    }

    /// Writes the event for one reader behind what is in `json` already, as [`ReadyEvent::write_json`] does. Not for redactions.
    pub fn write_json(&self, json: &mut Vec<u8>, event_id: &EventId, room_id: Option<&RoomId>, unsigned: &Unsigned) {
        let shown = Shown {
            content: self.content,
            event_id,
            origin_server_ts: self.origin_server_ts,
            redacts: None,
            room_id,
            sender: self.sender,
            state_key: self.state_key,
            event_type: self.event_type,
            unsigned,
        };
        serde_json::to_writer(json, &shown).expect("strings and ready-made JSON serialize");
    }

    /// The event ready-made for all its readers; `redacts` is what a redaction redacts.
    ///
    /// A redaction shows that both at the top level, for older clients, and in its content, for newer ones, wherever its room version
    /// has it. Room Version 11, "Moving the redacts property of m.room.redaction events to a content property".
    #[must_use]
    pub fn to_ready(&self, event_id: &EventId, redacts: Option<&EventId>) -> ReadyEvent {
        let redacts = redacts.map(|redacts| to_raw_value(redacts).expect("a text serializes"));
        ReadyEvent {
            content: redacts
                .as_deref()
                .and_then(|redacts| with_redacts(self.content, redacts))
                .unwrap_or_else(|| self.content.to_owned()),
            event_id: event_id.to_owned(),
            origin_server_ts: self.origin_server_ts.to_owned(),
            redacts,
            sender: self.sender.to_owned(),
            state_key: self.state_key.map(ToOwned::to_owned),
            event_type: self.event_type.to_owned(),
        }
    }

    /// The event as someone sees it who is not in the room yet. Client-Server API, "Stripped state".
    #[must_use]
    pub fn to_stripped(&self) -> Box<RawValue> {
        self.stripped(None)
    }

    /// The same with the time of the event. Client-Server API, "GET /rooms/{roomId}/hierarchy".
    #[must_use]
    pub fn to_stripped_with_time(&self) -> Box<RawValue> {
        self.stripped(Some(self.origin_server_ts))
    }

    fn stripped(&self, origin_server_ts: Option<&RawValue>) -> Box<RawValue> {
        let stripped = Stripped {
            content: self.content,
            origin_server_ts,
            sender: self.sender,
            state_key: self.state_key,
            event_type: self.event_type,
        };
        to_raw_value(&stripped).expect("ready-made JSON serializes")
    }
}

/// The content of a redaction with what it redacts.
fn with_redacts(content: &RawValue, redacts: &RawValue) -> Option<Box<RawValue>> {
    let mut fields: BTreeMap<String, &RawValue> = serde_json::from_str(content.get()).ok()?;
    fields.insert("redacts".to_owned(), redacts);
    to_raw_value(&fields).ok()
}

#[cfg(test)]
mod tests {
    use ruma::{event_id, room_id};

    use super::*;

    const STORED: &str = r#"{"auth_events":["$a"],"content":{"body":"hi"},"depth":3,"hashes":{"sha256":"x"},"origin_server_ts":5,"prev_events":["$p"],"room_id":"!r:x","sender":"@a:x","signatures":{},"type":"m.room.message"}"#;

    #[test]
    fn a_client_sees_neither_hashes_nor_the_graph() {
        let event = ClientEvent::of(STORED).unwrap();
        let unsigned = Unsigned { transaction_id: Some("t".to_owned()), ..Unsigned::default() };
        assert_eq!(
            event.to_ready(event_id!("$e"), None).to_json(Some(room_id!("!r:x")), &unsigned).get(),
            r#"{"content":{"body":"hi"},"event_id":"$e","origin_server_ts":5,"room_id":"!r:x","sender":"@a:x","type":"m.room.message","unsigned":{"transaction_id":"t"}}"#
        );
        assert_eq!(event.to_stripped().get(), r#"{"content":{"body":"hi"},"sender":"@a:x","type":"m.room.message"}"#);
    }
}
