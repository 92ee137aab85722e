//! What other servers read of a room. Server-Server API, "Retrieving events", "Backfilling and retrieving missing events".
//!
//! Events go out as they are stored: the bytes that were hashed and signed. What a server may not see goes out redacted.

use std::{collections::BTreeSet, sync::Arc};

use model::EventNr;
use ruma::{EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, RoomId, ServerName};
use serde_json::value::RawValue;
use storage::{RoomRow, StoredEvent, TimelineDirection};

use crate::{
    Error, Rooms,
    by_time::Viewer,
    erasure::{is_membership, redacted_copy},
    graph_walk::{Graph, Wanted},
    resolution::Chains,
};

/// Most events that are given at once; who asks for more gets as many.
const EVENTS_MAX: u64 = 100;
/// Most ids of events that a question may name in one list.
const IDS_MAX: usize = 100;
/// Events whose bodies are in memory at once while many are sent.
pub const BODIES_AT_ONCE: usize = 500;

/// What a server is told that asks for what depends on members who are not here yet: others may tell it.
pub(crate) const MEMBERS_UNKNOWN: &str = "the members of this room are not all known here yet";

/// Where a server starts to ask for what lies before, and what it has already.
#[derive(Clone, Debug)]
pub struct MissingEvents<'a> {
    /// What it has of the newest.
    pub earliest: &'a [OwnedEventId],
    /// What it wants to know the past of.
    pub latest: &'a [OwnedEventId],
    /// Most events to give.
    pub limit: u64,
    /// The least depth.
    pub min_depth: i64,
}

/// A state of a room, and the events that allow it.
#[derive(Clone, Debug)]
pub struct ServedState {
    /// The state.
    pub state: Vec<EventNr>,
    /// The auth chain of all of it.
    pub auth_chain: Vec<EventNr>,
}

impl Rooms {
    /// The room, for a server that may read it: one of its users is in it, and its ACL lets the server take part.
    ///
    /// Every endpoint by which servers read rooms asks this. What they see of single events is a matter of the history visibility.
    ///
    /// # Errors
    ///
    /// [`Error::NotAllowed`] for everybody else, and for a room that does not exist: they learn nothing of it.
    pub async fn may_server_see(&self, server: &ServerName, room_id: &RoomId) -> Result<Arc<RoomRow>, Error> {
        let refused = || Error::NotAllowed(format!("{server} is not in this room"));
        let room = match self.room(room_id).await {
            Ok(room) => room,
            Err(Error::RoomUnknown) => return Err(refused()),
            Err(error) => return Err(error),
        };
        if self.storage().list_rooms_of_servers(&[room.nr], &[server]).await?.is_empty() {
            return Err(refused());
        }
        self.check_server_allowed(room_id, server).await?;
        Ok(room)
    }

    /// One event as the server sees it. Server-Server API, "GET /event/{eventId}".
    ///
    /// # Errors
    ///
    /// [`Error::EventUnknown`], also for an event of a room that is not the server's.
    pub async fn event_for_server(&self, server: &ServerName, event_id: &EventId) -> Result<Box<RawValue>, Error> {
        let event = self.storage().find_event(event_id).await?.ok_or(Error::EventUnknown)?;
        let room = self.may_server_see(server, &event.pdu.room_id).await.map_err(|error| match error {
            Error::NotAllowed(_) => Error::EventUnknown,
            other => other,
        })?;
        self.shown_to_server(&room, server, vec![event]).await?.pop().ok_or(Error::EventUnknown)
    }

    /// The state before an event. Server-Server API, "GET /state/{roomId}".
    ///
    /// # Errors
    ///
    /// [`Error::NotAllowed`]; [`Error::EventUnknown`] when the event is not there, or not known to the state.
    pub async fn state_for_server(
        &self,
        server: &ServerName,
        room_id: &RoomId,
        event_id: &EventId,
    ) -> Result<ServedState, Error> {
        let room = self.may_server_see(server, room_id).await?;
        let event = self.event_of_room(&room, event_id).await?;
        if event.outlier {
            return Err(Error::EventUnknown);
        }
        if event.lacks_members {
            return Err(Error::NotAllowed(MEMBERS_UNKNOWN.to_owned()));
        }
        let state: Vec<EventNr> = self.state_before(&event).await?.into_iter().map(|(_, nr)| nr).collect();
        Ok(ServedState { auth_chain: self.auth_chain_of(&state).await?, state })
    }

    /// The same by ids: of the state, and of its auth chain. Server-Server API, "GET /state_ids/{roomId}".
    ///
    /// # Errors
    ///
    /// As [`Rooms::state_for_server`].
    pub async fn state_ids_for_server(
        &self,
        server: &ServerName,
        room_id: &RoomId,
        event_id: &EventId,
    ) -> Result<(Vec<OwnedEventId>, Vec<OwnedEventId>), Error> {
        let ServedState { state, auth_chain } = self.state_for_server(server, room_id, event_id).await?;
        let state = self.storage().list_event_ids(&state).await?.into_values().collect();
        let auth_chain = self.storage().list_event_ids(&auth_chain).await?.into_values().collect();
        Ok((state, auth_chain))
    }

    /// The auth chain of an event, without it. Server-Server API, "GET /event_auth/{roomId}/{eventId}".
    ///
    /// # Errors
    ///
    /// [`Error::NotAllowed`], [`Error::EventUnknown`].
    pub async fn auth_chain_for_server(
        &self,
        server: &ServerName,
        room_id: &RoomId,
        event_id: &EventId,
    ) -> Result<Vec<EventNr>, Error> {
        let room = self.may_server_see(server, room_id).await?;
        let event = self.event_of_room(&room, event_id).await?;
        self.auth_chain_of(&[event.nr]).await
    }

    /// The JSON of state events and auth chains, in no order; ask for [`BODIES_AT_ONCE`] at most.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn bodies(&self, events: &[EventNr]) -> Result<Vec<Arc<str>>, Error> {
        Ok(self.storage().list_event_bodies(events).await?)
    }

    /// Events and those before them, the nearest first. Server-Server API, "GET /backfill/{roomId}".
    ///
    /// # Errors
    ///
    /// [`Error::NotAllowed`], [`Error::InvalidParam`].
    pub async fn backfill_for_server(
        &self,
        server: &ServerName,
        room_id: &RoomId,
        from: &[OwnedEventId],
        limit: u64,
    ) -> Result<Vec<Box<RawValue>>, Error> {
        let room = self.may_server_see(server, room_id).await?;
        let wanted = Wanted { limit: limit.min(EVENTS_MAX) as usize, min_depth: i64::MIN, with_first: true };
        let events = self.before(&room, from, &[], wanted).await?;
        self.shown_to_server(&room, server, events).await
    }

    /// The events before some, but for those that the server has, the oldest first. Server-Server API,
    /// "POST /get_missing_events/{roomId}".
    ///
    /// # Errors
    ///
    /// [`Error::NotAllowed`], [`Error::InvalidParam`].
    pub async fn missing_events_for_server(
        &self,
        server: &ServerName,
        room_id: &RoomId,
        asked: MissingEvents<'_>,
    ) -> Result<Vec<Box<RawValue>>, Error> {
        let room = self.may_server_see(server, room_id).await?;
        let limit = asked.limit.min(EVENTS_MAX) as usize;
        let wanted = Wanted { limit, min_depth: asked.min_depth, with_first: false };
        let mut events = self.before(&room, asked.latest, asked.earliest, wanted).await?;
        events.reverse();
        self.shown_to_server(&room, server, events).await
    }

    /// The event closest to a time that the server sees. Server-Server API, "GET /timestamp_to_event/{roomId}".
    ///
    /// # Errors
    ///
    /// [`Error::NotAllowed`]; [`Error::EventUnknown`] when there is none.
    pub async fn event_by_timestamp_for_server(
        &self,
        server: &ServerName,
        room_id: &RoomId,
        time: MilliSecondsSinceUnixEpoch,
        direction: TimelineDirection,
    ) -> Result<Arc<StoredEvent>, Error> {
        let room = self.may_server_see(server, room_id).await?;
        let (viewer, upto) = (Viewer::Server(&room, server), self.storage().published());
        self.closest_event(viewer, room.nr, (time, direction), upto).await?.ok_or(Error::EventUnknown)
    }

    async fn event_of_room(&self, room: &RoomRow, event_id: &EventId) -> Result<Arc<StoredEvent>, Error> {
        let event = self.storage().find_event(event_id).await?;
        event.filter(|event| event.room_nr == room.nr).ok_or(Error::EventUnknown)
    }

    /// All events that are reached from some over their `auth_events`. Server-Server API, "Authorization rules", *auth chain*.
    async fn auth_chain_of(&self, events: &[EventNr]) -> Result<Vec<EventNr>, Error> {
        let mut chains = Chains::default();
        chains.load(self.storage(), events.iter().copied(), None).await?;
        Ok(chains.all().into_iter().collect::<BTreeSet<_>>().into_iter().collect())
    }

    /// Walks from events to those before them, breadth-first.
    async fn before(
        &self,
        room: &RoomRow,
        first: &[OwnedEventId],
        known: &[OwnedEventId],
        wanted: Wanted,
    ) -> Result<Vec<Arc<StoredEvent>>, Error> {
        if first.len() > IDS_MAX || known.len() > IDS_MAX {
            return Err(Error::InvalidParam(format!("name at most {IDS_MAX} events")));
        }
        let storage = self.storage();
        let numbers = storage.find_event_nrs(&[first, known].concat()).await?;
        let numbers_of =
            |ids: &[OwnedEventId]| ids.iter().filter_map(|id| numbers.get(id).copied()).collect::<Vec<_>>();
        let found = Graph::new(storage, room.nr).before(&numbers_of(first), &numbers_of(known), wanted).await?;
        let events = storage.get_events(&found).await?;
        Ok(found.iter().filter_map(|nr| events.get(nr).cloned()).collect())
    }

    /// Events of a room as the server sees them: whole or redacted, in their order.
    async fn shown_to_server(
        &self,
        room: &RoomRow,
        server: &ServerName,
        events: Vec<Arc<StoredEvent>>,
    ) -> Result<Vec<Box<RawValue>>, Error> {
        let hidden = self.hidden_from_server(room, server, &events).await?;
        // Who asked to be forgotten is, also by servers. Client-Server API, "Account deactivation".
        let erased = self.storage().erased_users(events.iter().map(|event| event.sender_nr));
        let is_redacted = |event: &StoredEvent| {
            hidden.contains(&event.nr)
                || (erased.contains_key(&event.sender_nr) && (!event.is_state() || is_membership(event)))
        };
        let damaged = |event: &StoredEvent| storage::Error::Damaged(format!("event {}", event.nr));
        let shown = events.iter().map(|event| {
            let json =
                if is_redacted(event) { redacted_copy(room, event)?.pdu.json.clone() } else { event.pdu.json.clone() };
            Ok(RawValue::from_string(json.to_string()).map_err(|_| damaged(event))?)
        });
        shown.collect()
    }
}
