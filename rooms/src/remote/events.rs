//! What servers of a room are asked about its events. Server-Server API, "Backfilling and retrieving missing events", "Retrieving events".

use ruma::{EventId, OwnedEventId, RoomId};
use serde_json::value::RawValue;

use super::{Asking, RemoteError};
use crate::Source;

/// The ids of a state, and of the events that allow it.
#[derive(Clone, Debug, Default)]
pub struct StateIds {
    /// The events of the state.
    pub state: Vec<OwnedEventId>,
    /// Their auth chains.
    pub auth_chain: Vec<OwnedEventId>,
}

/// Asks servers about events of their rooms, in the name of one of ours. Nothing of what they answer is checked.
pub trait RemoteEvents: Send + Sync {
    /// Events before `latest`, as far as they are not before `earliest`; at most `limit`.
    fn get_missing_events<'a>(
        &'a self,
        source: Source<'a>,
        room_id: &'a RoomId,
        earliest: Vec<OwnedEventId>,
        latest: Vec<OwnedEventId>,
        limit: u32,
    ) -> Asking<'a, Vec<Box<RawValue>>> {
        let _ = (source, room_id, earliest, latest, limit);
        Box::pin(async { Err(RemoteError::NotFederating) })
    }

    /// One event.
    fn get_event<'a>(&'a self, source: Source<'a>, event_id: &'a EventId) -> Asking<'a, Box<RawValue>> {
        let _ = (source, event_id);
        Box::pin(async { Err(RemoteError::NotFederating) })
    }

    /// The events that allow an event, and those that allow them.
    fn get_event_auth<'a>(
        &'a self,
        source: Source<'a>,
        room_id: &'a RoomId,
        event_id: &'a EventId,
    ) -> Asking<'a, Vec<Box<RawValue>>> {
        let _ = (source, room_id, event_id);
        Box::pin(async { Err(RemoteError::NotFederating) })
    }

    /// The state before an event, by ids.
    fn get_state_ids<'a>(
        &'a self,
        source: Source<'a>,
        room_id: &'a RoomId,
        event_id: &'a EventId,
    ) -> Asking<'a, StateIds> {
        let _ = (source, room_id, event_id);
        Box::pin(async { Err(RemoteError::NotFederating) })
    }

    /// The state before an event with all that allows it, as events.
    fn get_state<'a>(
        &'a self,
        source: Source<'a>,
        room_id: &'a RoomId,
        event_id: &'a EventId,
    ) -> Asking<'a, Vec<Box<RawValue>>> {
        let _ = (source, room_id, event_id);
        Box::pin(async { Err(RemoteError::NotFederating) })
    }

    /// Events of a room from these on backwards; at most `limit`.
    fn backfill<'a>(
        &'a self,
        source: Source<'a>,
        room_id: &'a RoomId,
        from: Vec<OwnedEventId>,
        limit: u32,
    ) -> Asking<'a, Vec<Box<RawValue>>> {
        let _ = (source, room_id, from, limit);
        Box::pin(async { Err(RemoteError::NotFederating) })
    }
}
