//! What users who asked to be forgotten have left in rooms. Client-Server API, "POST /account/deactivate", `erase`.

use std::{collections::HashMap, sync::Arc};

use model::{EventNr, Membership, Pdu, Position};
use ruma::{CanonicalJsonObject, canonical_json::redact, events::TimelineEventType};
use storage::{RoomRow, StoredEvent};

use crate::{Error, Reader, Rooms};

impl Rooms {
    /// Of the events of one room those that the reader may see only redacted, redacted: the messages and memberships of users who asked
    /// to be forgotten, unless the reader was in the room at some time between the event and that request. Other state says what the
    /// room is, and stays. Touches no table, and makes nothing, while none of the senders asked to be forgotten.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn erased_for(
        &self,
        reader: &Reader,
        events: impl Iterator<Item = &Arc<StoredEvent>> + Clone,
    ) -> Result<HashMap<EventNr, Arc<StoredEvent>>, Error> {
        let mut redacted = HashMap::new();
        let erased = self.storage().erased_users(events.clone().map(|event| event.sender_nr));
        if erased.is_empty() {
            return Ok(redacted);
        }
        let log = self.storage().list_membership_log(reader.room.nr, reader.user_nr).await?;
        for event in events.filter(|event| !event.is_state() || is_membership(event)) {
            if let Some(erased_at) = erased.get(&event.sender_nr)
                && !was_in(&log, event.place.map_or(Position(0), |(anchor, _)| anchor), *erased_at)
            {
                redacted.insert(event.nr, Arc::new(redacted_copy(&reader.room, event)?));
            }
        }
        Ok(redacted)
    }

    /// The event as the reader may see it: itself, or its redacted copy.
    pub(crate) async fn erased_or_whole(
        &self,
        reader: &Reader,
        event: Arc<StoredEvent>,
    ) -> Result<Arc<StoredEvent>, Error> {
        let redacted = self.erased_for(reader, std::iter::once(&event)).await?.remove(&event.nr);
        Ok(redacted.unwrap_or(event))
    }
}

pub(crate) fn is_membership(event: &StoredEvent) -> bool {
    event.pdu.event_type == TimelineEventType::RoomMember
}

/// Whether somebody with this log was in the room at some time from one position to another.
fn was_in(log: &[(Position, Membership)], from: Position, to: Position) -> bool {
    let is_join = |(_, membership): &(Position, Membership)| *membership == Membership::Join;
    let at_first = log.iter().take_while(|(at, _)| *at <= from).last();
    let later = log.iter().skip_while(|(at, _)| *at <= from).take_while(|(at, _)| *at <= to);
    at_first.is_some_and(is_join) || later.into_iter().any(is_join)
}

/// An event as somebody sees it who may see no more of it than that it was there.
pub(crate) fn redacted_copy(room: &RoomRow, event: &StoredEvent) -> Result<StoredEvent, Error> {
    let damaged = || storage::Error::Damaged(format!("event {}", event.nr));
    let rules = room.version.rules().ok_or_else(damaged)?;
    let object: CanonicalJsonObject = serde_json::from_str(&event.pdu.json).map_err(|_| damaged())?;
    let redacted = redact(object, &rules.redaction, None).map_err(|_| damaged())?;
    let json = serde_json::to_string(&redacted).map_err(|_| damaged())?.into();
    let pdu = Pdu::from_stored(json, event.pdu.event_id.clone(), event.pdu.room_id.clone(), &rules);
    Ok(event.with_pdu(pdu.map_err(|_| damaged())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_was_in_the_room_between_event_and_erasure_was_in() {
        let (join, leave) = (Membership::Join, Membership::Leave);
        let log = [(Position(10), join), (Position(20), leave), (Position(30), join)];
        for (from, to, expected) in [
            (5, 9, false),
            (5, 10, true),
            (15, 50, true),
            (20, 29, false),
            (25, 30, true),
            (25, 29, false),
            (40, 50, true),
        ] {
            assert_eq!(was_in(&log, Position(from), Position(to)), expected, "{from} to {to}");
        }
        assert!(!was_in(&[], Position(0), Position(9)));
        assert!(!was_in(&[(Position(1), Membership::Invite)], Position(0), Position(9)));
    }
}
