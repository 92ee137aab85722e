//! The rooms that a space names. Client-Server API, "m.space.child".

use model::{EventNr, NodeNr, RoomNr};
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedRoomId, OwnedServerName, OwnedUserId, RoomId, SpaceChildOrder,
    serde::default_on_error,
};
use serde::Deserialize;
use serde_json::value::RawValue;
use storage::StoredEvent;

use crate::{Error, Rooms};

/// What makes a room a child of a space.
pub(crate) const CHILD: &str = "m.space.child";
/// Events of spaces that are in memory at once.
pub(crate) const EVENTS_AT_ONCE: usize = 500;
/// Most servers of a child that are kept: those that would be asked about it.
const VIA_MAX: usize = 5;

/// Client-Server API, "Ordering of children within a space".
type Order = (bool, Option<String>, MilliSecondsSinceUnixEpoch);

/// A room that a space names as its child.
pub(crate) struct Child {
    pub(crate) room_id: OwnedRoomId,
    /// The event that says so. Not the event itself: of a tree there may be many, and a page shows few.
    pub(crate) nr: EventNr,
    pub(crate) bytes: usize,
    pub(crate) order: Order,
    /// Servers that know the room.
    pub(crate) via: Vec<OwnedServerName>,
}

/// The same of a space of another server.
#[derive(Clone, Debug)]
pub(crate) struct NamedChild {
    pub(crate) room_id: OwnedRoomId,
    pub(crate) event: Box<RawValue>,
    pub(crate) order: Order,
    pub(crate) via: Vec<OwnedServerName>,
    pub(crate) is_suggested: bool,
}

#[derive(Deserialize)]
struct Content {
    via: Vec<OwnedServerName>,
    #[serde(default, deserialize_with = "default_on_error")]
    order: Option<String>,
    #[serde(default, deserialize_with = "default_on_error")]
    suggested: bool,
}

impl Content {
    /// Reads the content of an `m.space.child` event; nothing if it makes no room a child.
    fn read(content: &RawValue) -> Option<Self> {
        let mut content: Self = serde_json::from_str(content.get()).ok()?;
        content.via.truncate(VIA_MAX);
        (!content.via.is_empty()).then_some(content)
    }

    fn order(&mut self, made: MilliSecondsSinceUnixEpoch) -> Order {
        let order = self.order.take().filter(|order| <&SpaceChildOrder>::try_from(order.as_str()).is_ok());
        (order.is_none(), order, made)
    }
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
        let room_id = RoomId::parse(event.pdu.state_key.as_deref()?).ok()?;
        let mut content = Content::read(&event.pdu.content)?;
        if suggested_only && !content.suggested {
            return None;
        }
        let order = content.order(event.pdu.origin_server_ts);
        Some(Self { room_id, nr: event.nr, bytes: event.pdu.json.len(), order, via: content.via })
    }
}

impl NamedChild {
    /// Reads a stripped `m.space.child` event with its time; nothing if it makes no room a child. Server-Server API,
    /// "GET /hierarchy/{roomId}".
    pub(crate) fn of_stripped(event: Box<RawValue>) -> Option<Self> {
        #[derive(Deserialize)]
        struct Stripped {
            content: Box<RawValue>,
            origin_server_ts: MilliSecondsSinceUnixEpoch,
            #[serde(rename = "sender")]
            _sender: OwnedUserId,
            state_key: OwnedRoomId,
            #[serde(rename = "type")]
            event_type: String,
        }
        let stripped: Stripped = serde_json::from_str(event.get()).ok()?;
        let mut content = Content::read(&stripped.content).filter(|_| stripped.event_type == CHILD)?;
        let order = content.order(stripped.origin_server_ts);
        Some(Self { room_id: stripped.state_key, event, order, via: content.via, is_suggested: content.suggested })
    }
}
