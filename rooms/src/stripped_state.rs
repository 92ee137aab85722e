//! What of a room shows those outside of it which one it is. Client-Server API, "Stripped state".

use std::sync::Arc;

use model::{NodeNr, RoomNr};
use ruma::UserId;
use serde_json::value::RawValue;
use storage::StoredEvent;

use crate::{Error, Rooms};

/// The state events, each with an empty state key.
const SHOWN: &[&str] = &[
    "m.room.create",
    "m.room.name",
    "m.room.avatar",
    "m.room.topic",
    "m.room.join_rules",
    "m.room.canonical_alias",
    "m.room.encryption",
];

impl Rooms {
    /// The events of a state that show which room it is, and the member events of some users.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn stripped_state_events(
        &self,
        room_nr: RoomNr,
        state: NodeNr,
        members: &[&UserId],
    ) -> Result<Vec<Arc<StoredEvent>>, Error> {
        let storage = self.storage();
        let shown = SHOWN.iter().map(|event_type| (*event_type, ""));
        let mut keys: Vec<(&str, &str)> =
            shown.chain(members.iter().map(|user_id| ("m.room.member", user_id.as_str()))).collect();
        keys.dedup();
        let mut numbers = Vec::with_capacity(keys.len());
        for (event_type, state_key) in keys {
            if let Some(key) = storage.find_state_key(event_type, state_key).await? {
                numbers.extend(storage.get_state_event(room_nr, state, key).await?);
            }
        }
        let events = storage.get_events(&numbers).await?;
        Ok(numbers.iter().filter_map(|nr| events.get(nr).cloned()).collect())
    }

    /// What another server is shown of a room whose user has knocked: whole events. Server-Server API, "PUT /send_knock/{roomId}/{eventId}".
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn shown_to_knocking(&self, knock: &StoredEvent) -> Result<Vec<Box<RawValue>>, Error> {
        let events = self.stripped_state_events(knock.room_nr, knock.state, &[]).await?;
        Ok(events.iter().filter_map(|event| as_stored(event)).collect())
    }
}

/// The event as it is stored, which is as its server signed it.
pub(crate) fn as_stored(event: &StoredEvent) -> Option<Box<RawValue>> {
    RawValue::from_string(event.pdu.json.to_string()).ok()
}
