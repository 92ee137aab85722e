//! Reading a room: its state, its members, single events, and events as clients see them.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use accounts::Requester;
use model::{EventNr, Membership, NodeNr, Position, Unsigned};
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

    /// The state event of a type whose state key is empty. For what is looked for all the time in rooms that may not have it: when the
    /// state is in memory it costs no query, also while no room of this deployment has such an event.
    pub(crate) async fn find_only_state_at(
        &self,
        room: &RoomRow,
        state: NodeNr,
        event_type: &str,
    ) -> Result<Option<Arc<StoredEvent>>, Error> {
        let storage = self.storage();
        let key = (storage.type_nr(event_type).await?, storage.state_key_nr("").await?);
        match storage.get_state_event(room.nr, state, key).await? {
            Some(nr) => Ok(storage.get_event(nr).await?),
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
        let mut event = self.find_state_at(&reader.room, state, event_type, state_key).await?;
        if event.is_none() && event_type == "m.room.member" && reader.is_joined() {
            self.wait_for_members(&reader.room).await?;
            event = self.find_state_at(&reader.room, self.state_for(&reader).await?, event_type, state_key).await?;
        }
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
        let seen = self.seen(reader, events.iter(), with_room_id, true).await?;
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
        let mut rendered = Vec::with_capacity(events.len());
        for event in events {
            let unsigned = Unsigned {
                transaction_id: transactions.remove(&event.nr),
                relations: aggregations.of(event.nr),
                ..seen.unsigned(event)?
            };
            rendered.push(seen.shown(event).ready()?.to_json(seen.room_id, &unsigned));
        }
        Ok(rendered)
    }

    /// What is to be known of events to show them to a reader: two queries at most, none for most events. Without what they replaced, state
    /// events do not say what was before them.
    pub(crate) async fn seen<'a>(
        &self,
        reader: &'a Reader,
        events: impl Iterator<Item = &'a Arc<StoredEvent>> + Clone,
        with_room_id: bool,
        with_replaced: bool,
    ) -> Result<Seen<'a>, Error> {
        let related = events.clone().flat_map(|event| [event.replaces.filter(|_| with_replaced), event.redacted_by]);
        let related: Vec<EventNr> = related.flatten().collect();
        let related = if related.is_empty() { HashMap::new() } else { self.storage().get_events(&related).await? };
        let all = events.map(|event| -> &Arc<StoredEvent> { event }).chain(related.values());
        let erased = self.erased_for(reader, all).await?;
        let room_id = with_room_id.then_some(&*reader.room.id);
        Ok(Seen { reader, room_id, now_ms: self.storage().clock().now_ms(), related, erased })
    }
}

/// Events as a reader sees them, and what the server says beside each.
pub(crate) struct Seen<'a> {
    reader: &'a Reader,
    pub(crate) room_id: Option<&'a RoomId>,
    now_ms: i64,
    /// What they replaced, and what redacted them.
    related: HashMap<EventNr, Arc<StoredEvent>>,
    /// What is left of those of erased users, the related ones too.
    erased: HashMap<EventNr, Arc<StoredEvent>>,
}

impl Seen<'_> {
    /// An event, or what is left of it.
    pub(crate) fn shown<'e>(&'e self, event: &'e Arc<StoredEvent>) -> &'e Arc<StoredEvent> {
        self.erased.get(&event.nr).unwrap_or(event)
    }

    /// What is beside an event that replaced none and was not redacted.
    pub(crate) fn unsigned_of(&self, sent_ms: i64, state: NodeNr, position: Option<Position>) -> Unsigned {
        Unsigned {
            age: Some((self.now_ms - sent_ms).max(0)),
            membership: self.reader.membership_in_state(state, position).map(Membership::as_str),
            ..Unsigned::default()
        }
    }

    /// Client-Server API, "UnsignedData", but for what depends on more than the event.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] for an event that is damaged.
    pub(crate) fn unsigned(&self, event: &StoredEvent) -> Result<Unsigned, Error> {
        let sent_ms = event.pdu.origin_server_ts.get().into();
        let mut unsigned = self.unsigned_of(sent_ms, event.state, event.position);
        let related = |nr: Option<EventNr>| self.related.get(&nr?).map(|event| self.shown(event));
        if let Some(old) = related(event.replaces) {
            unsigned.prev_content = Some(old.pdu.content.clone().into());
            unsigned.prev_sender = Some(old.pdu.sender.to_string());
            unsigned.replaces_state = Some(old.pdu.event_id.to_string());
        }
        if let Some(redaction) = related(event.redacted_by) {
            unsigned.redacted_because = Some(redaction.ready()?.to_json(self.room_id, &Unsigned::default()).into());
        }
        Ok(unsigned)
    }
}
