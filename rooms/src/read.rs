//! Reading a room: its state, its members, single events, and events as clients see them.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use accounts::Requester;
use model::{EventNr, Membership, NodeNr, Unsigned};
use ruma::{EventId, OwnedUserId, RoomId};
use serde_json::value::RawValue;
use storage::{RoomRow, StoredEvent};

use crate::{Error, OwnTransactions, Reader, Rooms, aggregations::Aggregations};

impl Rooms {
    /// The state event of a room of now.
    pub(crate) async fn find_state(
        &self,
        room: &RoomRow,
        event_type: &str,
        state_key: &str,
    ) -> Result<Option<Arc<StoredEvent>>, Error> {
        let Some(head) = self.storage().get_head(room.nr).await? else { return Ok(None) };
        self.find_state_at(room, head.state, event_type, state_key).await
    }

    pub(crate) async fn find_state_at(
        &self,
        room: &RoomRow,
        state: NodeNr,
        event_type: &str,
        state_key: &str,
    ) -> Result<Option<Arc<StoredEvent>>, Error> {
        let Some(key) = self.storage().find_state_key(event_type, state_key).await? else { return Ok(None) };
        match self.storage().get_state_event(room.nr, state, key).await? {
            Some(nr) => Ok(self.storage().get_event(nr).await?),
            None => Ok(None),
        }
    }

    /// The state that a reader sees: the current one, or that of when they stopped being joined.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn state_for(&self, reader: &Reader) -> Result<NodeNr, Error> {
        match reader.left_at() {
            Some(left) => Ok(self.storage().get_state_at(reader.room.nr, left).await?),
            None => Ok(self.storage().get_head(reader.room.nr).await?.ok_or(Error::RoomUnknown)?.state),
        }
    }

    /// One state event as the requester sees it. Client-Server API, "GET /rooms/{roomId}/state/{eventType}/{stateKey}".
    ///
    /// # Errors
    ///
    /// [`Error::StateUnknown`], [`Error::NotMember`].
    pub async fn state_event(
        &self,
        requester: &Requester,
        room_id: &RoomId,
        event_type: &str,
        state_key: &str,
    ) -> Result<(Reader, Arc<StoredEvent>), Error> {
        let reader = self.reader(requester, room_id).await?;
        let state = self.state_for(&reader).await?;
        let event = self.find_state_at(&reader.room, state, event_type, state_key).await?;
        let event = self.erased_or_whole(&reader, event.ok_or(Error::StateUnknown)?).await?;
        Ok((reader, event))
    }

    /// The events of a state, by number.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn events_of_state(&self, room: &RoomRow, state: NodeNr) -> Result<Vec<Arc<StoredEvent>>, Error> {
        let entries = self.storage().list_state(room.nr, state).await?;
        let numbers: Vec<EventNr> = entries.iter().map(|(_, nr)| *nr).collect();
        let found = self.storage().get_events(&numbers).await?;
        let mut events: Vec<_> = found.into_values().collect();
        events.sort_unstable_by_key(|event| event.nr);
        Ok(events)
    }

    /// The events of a state but for its members, by number.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn events_of_state_without_members(
        &self,
        room: &RoomRow,
        state: NodeNr,
    ) -> Result<Vec<Arc<StoredEvent>>, Error> {
        let member_nr = self.storage().type_nr("m.room.member").await?;
        let entries = self.storage().list_state(room.nr, state).await?;
        let numbers: Vec<EventNr> =
            entries.iter().filter(|((type_nr, _), _)| *type_nr != member_nr).map(|(_, nr)| *nr).collect();
        let mut events: Vec<_> = self.storage().get_events(&numbers).await?.into_values().collect();
        events.sort_unstable_by_key(|event| event.nr);
        Ok(events)
    }

    /// The member events of some users in a state, by number. Client-Server API, "Lazy-loading room members".
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn member_events(
        &self,
        room: &RoomRow,
        state: NodeNr,
        users: &BTreeSet<OwnedUserId>,
    ) -> Result<Vec<Arc<StoredEvent>>, Error> {
        let mut numbers = Vec::with_capacity(users.len());
        for user_id in users {
            // The words and the state's nodes are in memory but for the first time.
            let Some(key) = self.storage().find_state_key("m.room.member", user_id.as_str()).await? else { continue };
            numbers.extend(self.storage().get_state_event(room.nr, state, key).await?);
        }
        let mut events: Vec<_> = self.storage().get_events(&numbers).await?.into_values().collect();
        events.sort_unstable_by_key(|event| event.nr);
        Ok(events)
    }

    /// The rooms that the requester is joined to. Client-Server API, "GET /joined_rooms".
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn joined_rooms(&self, requester: &Requester) -> Result<Vec<ruma::OwnedRoomId>, Error> {
        let rows = self.storage().list_rooms_of_user(requester.user_nr).await?;
        let joined: Vec<_> =
            rows.iter().filter(|row| row.membership == Membership::Join).map(|row| row.room_nr).collect();
        let rooms = self.storage().get_rooms(&joined).await?;
        Ok(joined.iter().filter_map(|nr| rooms.get(nr)).map(|room| room.id.clone()).collect())
    }

    /// One event, if the requester may see it. Client-Server API, "GET /rooms/{roomId}/event/{eventId}".
    ///
    /// # Errors
    ///
    /// [`Error::EventUnknown`], also for what the requester may not see.
    pub async fn event(
        &self,
        requester: &Requester,
        room_id: &RoomId,
        event_id: &EventId,
    ) -> Result<(Reader, Arc<StoredEvent>), Error> {
        let (reader, event) = self.event_of_anyone(requester, room_id, event_id).await?;
        if reader.ignores(&event) { Err(Error::EventUnknown) } else { Ok((reader, event)) }
    }

    /// The same with an event of a user whom the requester ignores: for what is asked about it, not to show it.
    ///
    /// # Errors
    ///
    /// As [`Rooms::event`].
    pub(crate) async fn event_of_anyone(
        &self,
        requester: &Requester,
        room_id: &RoomId,
        event_id: &EventId,
    ) -> Result<(Reader, Arc<StoredEvent>), Error> {
        let reader = self.reader(requester, room_id).await?;
        let event = self.storage().find_event(event_id).await?;
        let event = event.filter(|event| event.room_nr == reader.room.nr).ok_or(Error::EventUnknown)?;
        let event = self.visible_of_anyone(&reader, vec![event]).await?.pop().ok_or(Error::EventUnknown)?;
        Ok((reader, event))
    }

    /// Events as servers exchange them, for a reader who sees them. Client-Server API, "Filtering", `event_format`.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn pdus(&self, reader: &Reader, events: &[Arc<StoredEvent>]) -> Result<Vec<Box<RawValue>>, Error> {
        let erased = self.erased_for(reader, events.iter()).await?;
        let shown = events.iter().map(|event| erased.get(&event.nr).unwrap_or(event));
        let damaged = |event: &StoredEvent| storage::Error::Damaged(format!("event {}", event.nr));
        shown.map(|event| Ok(RawValue::from_string(event.pdu.json.to_string()).map_err(|_| damaged(event))?)).collect()
    }

    /// How the requester's device named its own events, asked for all of them at once.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn own_transactions(&self, requester: &Requester, events: &[EventNr]) -> Result<OwnTransactions, Error> {
        if events.is_empty() {
            return Ok(OwnTransactions::default());
        }
        let mut named = self.storage().find_event_transactions(requester.user_nr, requester.device(), events).await?;
        Ok(Arc::new(events.iter().map(|nr| (*nr, named.remove(nr))).collect()))
    }

    /// Events as clients see them, with what the server adds for this reader: at most three queries for all.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn render(
        &self,
        reader: &Reader,
        events: &[Arc<StoredEvent>],
        with_room_id: bool,
    ) -> Result<Vec<Box<RawValue>>, Error> {
        self.render_with(reader, events, with_room_id, &Aggregations::default()).await
    }

    /// The same with these aggregations.
    pub(crate) async fn render_with(
        &self,
        reader: &Reader,
        events: &[Arc<StoredEvent>],
        with_room_id: bool,
        aggregations: &Aggregations,
    ) -> Result<Vec<Box<RawValue>>, Error> {
        let storage = self.storage();
        let related: Vec<EventNr> =
            events.iter().flat_map(|event| [event.replaces, event.redacted_by]).flatten().collect();
        let related = if related.is_empty() { HashMap::new() } else { storage.get_events(&related).await? };
        let erased = self.erased_for(reader, events.iter().chain(related.values())).await?;
        let mut transactions = HashMap::new();
        let mut unknown = Vec::new();
        // Only messages are sent with a transaction id.
        for event in events.iter().filter(|event| event.sender_nr == reader.user_nr && !event.is_state()) {
            match (&event.transaction, reader.transactions.get(&event.nr)) {
                (Some((device, id)), _) if *device == reader.device => drop(transactions.insert(event.nr, id.clone())),
                (None, Some(Some(id))) => drop(transactions.insert(event.nr, id.clone())),
                (None, None) => unknown.push(event.nr),
                (Some(_), _) | (None, Some(None)) => {}
            }
        }
        if !unknown.is_empty() {
            transactions.extend(storage.find_event_transactions(reader.user_nr, &reader.device, &unknown).await?);
        }
        let room_id = with_room_id.then_some(&*reader.room.id);
        let now_ms = storage.clock().now_ms();
        let mut rendered = Vec::with_capacity(events.len());
        for event in events {
            let event = erased.get(&event.nr).unwrap_or(event);
            let sent_ms: i64 = event.pdu.origin_server_ts.get().into();
            let mut unsigned = Unsigned {
                age: Some((now_ms - sent_ms).max(0)),
                membership: reader.membership_at(event).map(Membership::as_str),
                transaction_id: transactions.remove(&event.nr),
                relations: aggregations.of(event.nr),
                ..Unsigned::default()
            };
            if let Some(old) = event.replaces.and_then(|nr| erased.get(&nr).or_else(|| related.get(&nr))) {
                unsigned.prev_content = Some(old.pdu.content.clone().into());
                unsigned.prev_sender = Some(old.pdu.sender.to_string());
                unsigned.replaces_state = Some(old.pdu.event_id.to_string());
            }
            if let Some(redaction) = event.redacted_by.and_then(|nr| erased.get(&nr).or_else(|| related.get(&nr))) {
                let json = redaction.ready()?.to_json(room_id, &Unsigned::default());
                unsigned.redacted_because = Some(json.into());
            }
            rendered.push(event.ready()?.to_json(room_id, &unsigned));
        }
        Ok(rendered)
    }
}
