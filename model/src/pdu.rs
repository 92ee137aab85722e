//! An event as it is signed, stored and sent between servers.

use std::sync::Arc;

use ruma::{
    EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, UserId,
    canonical_json::{CanonicalJsonObject, CanonicalJsonValue},
    events::TimelineEventType,
    room_version_rules::{EventIdFormatVersion, EventsReferenceFormatVersion, RoomIdFormatVersion, RoomVersionRules},
    signatures,
    state_res::{self, Event},
};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::limits::{ID_BYTES_MAX, is_name};

/// A persistent event: the JSON that was hashed and signed, and what the rules ask of it. Server-Server API, "PDUs".
#[derive(Clone, Debug)]
pub struct Pdu {
    /// The event's id.
    pub event_id: OwnedEventId,
    /// The room that it is in.
    pub room_id: OwnedRoomId,
    /// Who sent it.
    pub sender: OwnedUserId,
    /// Its type.
    pub event_type: TimelineEventType,
    /// For a state event, what it is the state of.
    pub state_key: Option<String>,
    /// Its content, as in `json`.
    pub content: Box<RawValue>,
    /// The events that came right before it.
    pub prev_events: Vec<OwnedEventId>,
    /// The events that allow it.
    pub auth_events: Vec<OwnedEventId>,
    /// One more than the largest depth of `prev_events`.
    pub depth: i64,
    /// When its server made it, by that server's clock.
    pub origin_server_ts: MilliSecondsSinceUnixEpoch,
    /// For a redaction, what it redacts, wherever its room version has it. Room Version 11, "Redactions".
    pub redacts: Option<OwnedEventId>,
    /// Whether the rules forbade it by its own past. Server-Server API, "Rejection".
    pub rejected: bool,
    /// Whether the JSON itself names the room; the create event of a version 12 room must not.
    pub names_room: bool,
    /// The whole event in canonical JSON.
    pub json: Arc<str>,
}

/// Why a JSON object is not an event.
#[derive(Debug, thiserror::Error)]
pub enum PduError {
    /// A field is missing or has the wrong type.
    #[error("the event is malformed")]
    Malformed(#[from] serde_json::Error),
    /// The event breaks the format of its room version.
    #[error("the event breaks the format of its room version: {0}")]
    Format(String),
    /// The reference hash cannot be made.
    #[error("the event has no reference hash")]
    Hash(#[from] signatures::JsonError),
}

#[derive(Deserialize)]
struct Fields {
    event_id: Option<OwnedEventId>,
    room_id: Option<OwnedRoomId>,
    sender: OwnedUserId,
    #[serde(rename = "type")]
    event_type: TimelineEventType,
    state_key: Option<String>,
    content: Box<RawValue>,
    prev_events: Box<RawValue>,
    auth_events: Box<RawValue>,
    depth: i64,
    origin_server_ts: MilliSecondsSinceUnixEpoch,
    redacts: Option<OwnedEventId>,
}

impl Pdu {
    /// Reads a signed event, checks the format of its room version and works out its id.
    ///
    /// Signatures and hashes are not checked here. Room Versions, "Event format"; Server-Server API, "Calculating the
    /// reference hash for an event".
    ///
    /// # Errors
    ///
    /// [`PduError`]: whoever made the event broke the protocol; drop it.
    pub fn from_canonical(object: &CanonicalJsonObject, rules: &RoomVersionRules) -> Result<Self, PduError> {
        state_res::check_pdu_format(object, &rules.event_format).map_err(PduError::Format)?;
        if !matches!(object.get("content"), Some(CanonicalJsonValue::Object(_))) {
            return Err(PduError::Format("`content` is not an object".to_owned()));
        }
        let event_id = match rules.event_id_format {
            EventIdFormatVersion::V1 => None,
            _ => {
                let hash = signatures::reference_hash(object, rules)?;
                Some(EventId::parse(format!("${hash}")).map_err(|error| PduError::Format(error.to_string()))?)
            }
        };
        Self::read(serde_json::to_string(object)?.into(), event_id, None, rules)
    }

    /// Reads an event that we have stored, whose id and room we know and which was checked before.
    ///
    /// # Errors
    ///
    /// [`PduError`] when the text was damaged.
    pub fn from_stored(
        json: Arc<str>,
        event_id: OwnedEventId,
        room_id: OwnedRoomId,
        rules: &RoomVersionRules,
    ) -> Result<Self, PduError> {
        Self::read(json, Some(event_id), Some(room_id), rules)
    }

    fn read(
        json: Arc<str>,
        event_id: Option<OwnedEventId>,
        room_id: Option<OwnedRoomId>,
        rules: &RoomVersionRules,
    ) -> Result<Self, PduError> {
        let is_stored = room_id.is_some();
        let fields: Fields = serde_json::from_str(&json)?;
        let missing = |field: &str| PduError::Format(format!("missing `{field}`"));
        let event_id = event_id.or(fields.event_id).ok_or_else(|| missing("event_id"))?;
        let is_create = fields.event_type == TimelineEventType::RoomCreate;
        let names_room = fields.room_id.is_some();
        let room_id = match rules.room_id_format {
            // Room version 12: the room's id is the create event's, with another sigil.
            RoomIdFormatVersion::V2 if is_create => Some(room_id_of_create(&event_id)?),
            _ => room_id.or(fields.room_id),
        };
        let is_redaction = fields.event_type == TimelineEventType::RoomRedaction;
        let redacts = match rules.redaction.content_field_redacts {
            _ if !is_redaction => None,
            true => redacts_in(&fields.content),
            false => fields.redacts,
        };
        // What is no id of any event is nothing to wait for, and fits into no index.
        let redacts = redacts.filter(|id| is_name(id.as_str(), ID_BYTES_MAX));
        Ok(Self {
            room_id: room_id.ok_or_else(|| missing("room_id"))?,
            sender: fields.sender,
            event_type: fields.event_type,
            state_key: fields.state_key,
            content: fields.content,
            prev_events: read_references(&fields.prev_events, rules, is_stored)?,
            auth_events: read_references(&fields.auth_events, rules, is_stored)?,
            depth: fields.depth,
            origin_server_ts: fields.origin_server_ts,
            redacts,
            rejected: false,
            names_room,
            event_id,
            json,
        })
    }

    /// Whether this is a state event of that type and state key.
    #[must_use]
    pub fn is_state(&self, event_type: &TimelineEventType, state_key: &str) -> bool {
        self.event_type == *event_type && self.state_key.as_deref() == Some(state_key)
    }
}

/// What a redaction redacts, by its content.
fn redacts_in(content: &RawValue) -> Option<OwnedEventId> {
    #[derive(Deserialize)]
    struct Content {
        redacts: Option<OwnedEventId>,
    }
    serde_json::from_str::<Content>(content.get()).ok()?.redacts
}

/// The id of a version 12 room, from its create event's. Room Version 12, "Room IDs as hashes of the create event".
pub(crate) fn room_id_of_create(event_id: &EventId) -> Result<OwnedRoomId, PduError> {
    let room_id = event_id.as_str().replacen('$', "!", 1);
    RoomId::parse(room_id).map_err(|error| PduError::Format(error.to_string()))
}

/// References as the room version has them. What is stored of a room may be older than what is known of its version: there both ways count.
fn read_references(
    json: &RawValue,
    rules: &RoomVersionRules,
    is_stored: bool,
) -> Result<Vec<OwnedEventId>, serde_json::Error> {
    let in_pairs = || -> Result<Vec<OwnedEventId>, serde_json::Error> {
        let pairs: Vec<(OwnedEventId, serde::de::IgnoredAny)> = serde_json::from_str(json.get())?;
        Ok(pairs.into_iter().map(|(event_id, _hashes)| event_id).collect())
    };
    let plain = || serde_json::from_str(json.get());
    match rules.events_reference_format {
        EventsReferenceFormatVersion::V1 if is_stored => in_pairs().or_else(|_| plain()),
        EventsReferenceFormatVersion::V1 => in_pairs(),
        _ if is_stored => plain().or_else(|_| in_pairs()),
        _ => plain(),
    }
}

impl Event for Pdu {
    type Id = OwnedEventId;

    fn event_id(&self) -> &OwnedEventId {
        &self.event_id
    }

    fn room_id(&self) -> Option<&RoomId> {
        self.names_room.then_some(&self.room_id)
    }

    fn sender(&self) -> &UserId {
        &self.sender
    }

    fn origin_server_ts(&self) -> MilliSecondsSinceUnixEpoch {
        self.origin_server_ts
    }

    fn event_type(&self) -> &TimelineEventType {
        &self.event_type
    }

    fn content(&self) -> &RawValue {
        &self.content
    }

    fn state_key(&self) -> Option<&str> {
        self.state_key.as_deref()
    }

    fn prev_events(&self) -> Box<dyn DoubleEndedIterator<Item = &OwnedEventId> + '_> {
        Box::new(self.prev_events.iter())
    }

    fn auth_events(&self) -> Box<dyn DoubleEndedIterator<Item = &OwnedEventId> + '_> {
        Box::new(self.auth_events.iter())
    }

    fn redacts(&self) -> Option<&OwnedEventId> {
        self.redacts.as_ref()
    }

    fn rejected(&self) -> bool {
        self.rejected
    }
}
