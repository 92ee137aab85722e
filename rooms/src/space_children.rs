//! The rooms that a space names. Client-Server API, "m.space.child".

use model::{EventNr, NodeNr, RoomNr};
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedRoomId, OwnedServerName, RoomId, SpaceChildOrder, serde::default_on_error,
};
use serde::Deserialize;
use storage::StoredEvent;

use crate::{Error, Rooms};

/// What makes a room a child of a space.
pub(crate) const CHILD: &str = "m.space.child";
/// Events of spaces that are in memory at once.
pub(crate) const EVENTS_AT_ONCE: usize = 500;

/// A room that a space names as its child.
pub(crate) struct Child {
    pub(crate) room_id: OwnedRoomId,
    /// The event that says so. Not the event itself: of a tree there may be many, and a page shows few.
    pub(crate) nr: EventNr,
    pub(crate) bytes: usize,
    /// Client-Server API, "Ordering of children within a space".
    pub(crate) order: (bool, Option<String>, MilliSecondsSinceUnixEpoch),
}

impl Rooms {
    /// The rooms that a space names in a state of it, in no order. Client-Server API, "m.space.child".
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn space_children(&self, room_nr: RoomNr, state: NodeNr) -> Result<Vec<OwnedRoomId>, Error> {
        let numbers: Vec<EventNr> = self.state_of_type(room_nr, state, CHILD).await?.events().collect();
        let mut children = Vec::with_capacity(numbers.len());
        for piece in numbers.chunks(EVENTS_AT_ONCE) {
            let events = self.storage().get_events(piece).await?;
            children.extend(events.values().filter_map(|event| Child::of(event, false)).map(|child| child.room_id));
        }
        Ok(children)
    }
}

impl Child {
    /// Reads an `m.space.child` event; nothing if it makes no room a child. Client-Server API, "m.space.child".
    pub(crate) fn of(event: &StoredEvent, suggested_only: bool) -> Option<Self> {
        #[derive(Deserialize)]
        struct Content {
            via: Vec<OwnedServerName>,
            #[serde(default, deserialize_with = "default_on_error")]
            order: Option<String>,
            #[serde(default, deserialize_with = "default_on_error")]
            suggested: bool,
        }
        let room_id = RoomId::parse(event.pdu.state_key.as_deref()?).ok()?;
        let content: Content = serde_json::from_str(event.pdu.content.get()).ok()?;
        if content.via.is_empty() || (suggested_only && !content.suggested) {
            return None;
        }
        let order = content.order.filter(|order| <&SpaceChildOrder>::try_from(order.as_str()).is_ok());
        let order = (order.is_none(), order, event.pdu.origin_server_ts);
        Some(Self { room_id, nr: event.nr, bytes: event.pdu.json.len(), order })
    }
}
