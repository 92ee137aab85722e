//! The event of a time.

use std::sync::Arc;

use accounts::Requester;
use model::{Position, RoomNr};
use ruma::{MilliSecondsSinceUnixEpoch, RoomId};
use storage::{StoredEvent, TimelineDirection};

use crate::{Error, Rooms};

/// Events that are read at once.
const EVENTS_AT_ONCE: u32 = 50;
/// How many times, to find one that the reader sees.
const PAGES_MAX: usize = 20;

impl Rooms {
    /// The event of a room that was made closest to a time, at or after it (forward) or at or before it, as far as the requester sees.
    /// Client-Server API, "GET /rooms/{roomId}/timestamp_to_event".
    ///
    /// # Errors
    ///
    /// [`Error::EventUnknown`] when there is none, [`Error::NotMember`].
    pub async fn event_by_timestamp(
        &self,
        requester: &Requester,
        room_id: &RoomId,
        time: MilliSecondsSinceUnixEpoch,
        direction: TimelineDirection,
    ) -> Result<Arc<StoredEvent>, Error> {
        let reader = self.reader(requester, room_id).await?;
        let visible = async |events| self.visible(&reader, events).await;
        let found = self.closest_event(reader.room.nr, (time, direction), reader.upto(), visible).await?;
        found.ok_or(Error::EventUnknown)
    }

    /// The same for whoever sees what `visible` leaves of events, up to a position.
    pub(crate) async fn closest_event(
        &self,
        room_nr: RoomNr,
        (time, direction): (MilliSecondsSinceUnixEpoch, TimelineDirection),
        upto: Position,
        visible: impl AsyncFn(Vec<Arc<StoredEvent>>) -> Result<Vec<Arc<StoredEvent>>, Error>,
    ) -> Result<Option<Arc<StoredEvent>>, Error> {
        let storage = self.storage();
        let mut from = (time.get().into(), None);
        for _ in 0..PAGES_MAX {
            let rows = storage.list_events_by_time(room_nr, direction, from, upto, EVENTS_AT_ONCE).await?;
            let numbers: Vec<_> = rows.iter().map(|(nr, _)| *nr).collect();
            let events = storage.get_events(&numbers).await?;
            let events = numbers.iter().filter_map(|nr| events.get(nr).cloned()).collect();
            if let Some(event) = visible(events).await?.into_iter().next() {
                return Ok(Some(event));
            }
            if rows.len() < EVENTS_AT_ONCE as usize {
                break;
            }
            from = rows.last().map_or(from, |(nr, made)| (*made, Some(*nr)));
        }
        Ok(None)
    }
}
