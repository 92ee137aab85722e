//! The state at a gap: where what lies before an event is not to be had, its server says what the room was like.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use futures_util::{StreamExt as _, stream};
use model::{EventNr, NodeNr, Pdu};
use ruma::OwnedEventId;
use storage::{NewNodes, RoomRow, StateKey, StoredEvent};
use tracing::debug;

use super::Source;
use crate::{Error, RemoteError, Rooms, power::rules_of, resolution::resolve};

/// Most events before one event at which the state is asked for.
const STATES_MAX: usize = 5;

/// Up to so many events are asked for one by one; of more, the whole state.
const ONE_BY_ONE_MAX: usize = 30;

/// Most member events that are asked for one by one, to know who sent some events.
const SENDERS_MAX: usize = 150;

/// How many of them at the same time.
const ASKED_AT_ONCE: usize = 5;

/// How many ids are looked up with one question.
const IDS_AT_ONCE: usize = 4_000;

/// Most events of a state with all that allows it.
const STATE_EVENTS_MAX: usize = 500_000;

impl Rooms {
    /// Gets what allows an event and what the room was like before it, from the server that sent it, as far as they are not here. Gives the
    /// state, unless that follows from what is here.
    ///
    /// # Errors
    ///
    /// [`Error::Remote`] when the server does not tell; [`Error::BadEvent`] when what it tells makes no sense.
    pub(crate) async fn fill_gap(
        &self,
        source: Source<'_>,
        room: &Arc<RoomRow>,
        pdu: &Pdu,
    ) -> Result<Option<NodeNr>, Error> {
        self.fetch_auth_events(source, room, pdu).await?;
        let storage = self.storage();
        let numbers = storage.find_event_nrs(&pdu.prev_events).await?;
        let events = storage.get_events(&numbers.values().copied().collect::<Vec<_>>()).await?;
        let whole = events.values().filter(|event| !event.outlier && !event.lacks_members);
        let placed: HashMap<&OwnedEventId, NodeNr> = whole.map(|event| (&event.pdu.event_id, event.state)).collect();
        let missing: Vec<&OwnedEventId> = pdu.prev_events.iter().filter(|id| !placed.contains_key(id)).collect();
        if missing.is_empty() {
            return Ok(None);
        }
        if missing.len() > STATES_MAX {
            return Err(Error::BadEvent("too much of what lies before it is not to be had".to_owned()));
        }
        let mut nodes = NewNodes::default();
        let mut states: Vec<NodeNr> = placed.values().copied().collect();
        for event_id in missing {
            states.push(self.fetch_state_after(source, room, event_id, &mut nodes).await?);
        }
        let state = resolve(storage, room, &rules_of(&room.version)?, &states, None, &mut nodes).await?;
        storage.insert_state_nodes(room.nr, nodes).await?;
        Ok(Some(state))
    }

    /// The same, but of a room whose members are not all here no state is asked for before they are: it would be as large as what is
    /// asked for then, and all events are looked at again.
    pub(super) async fn fill_gap_unless_partial(
        &self,
        source: Source<'_>,
        room: &Arc<RoomRow>,
        pdu: &Pdu,
    ) -> Result<Option<NodeNr>, Error> {
        if self.storage().is_partial(room.nr).await? {
            self.fetch_auth_events(source, room, pdu).await?;
            return Ok(None);
        }
        self.fill_gap(source, room, pdu).await
    }

    /// Gets what allows events of a room whose members are not all here: mostly who sent them. Nothing happens when all are here.
    pub(super) async fn fetch_senders(
        &self,
        source: Source<'_>,
        room: &Arc<RoomRow>,
        pdus: &[Pdu],
    ) -> Result<(), Error> {
        if !self.storage().is_partial(room.nr).await? {
            return Ok(());
        }
        let own: HashSet<&OwnedEventId> = pdus.iter().map(|pdu| &pdu.event_id).collect();
        let listed: HashSet<&OwnedEventId> = pdus.iter().flat_map(|pdu| &pdu.auth_events).collect();
        let mut missing: Vec<OwnedEventId> = listed.difference(&own).copied().cloned().collect();
        let here = self.storage().find_event_nrs(&missing).await?;
        missing.retain(|id| !here.contains_key(id));
        let asking = missing.iter().take(SENDERS_MAX).map(|id| self.remote().get_event(source, id));
        let told: Vec<_> = stream::iter(asking.collect::<Vec<_>>()).buffered(ASKED_AT_ONCE).collect().await;
        self.take_in_outliers(room, told.into_iter().filter_map(Result::ok).collect()).await?;
        // What allows those may not be here either.
        for pdu in pdus {
            match self.fetch_auth_events(source, room, pdu).await {
                Err(error @ (Error::Storage(_) | Error::Busy)) => return Err(error),
                Err(error) => {
                    debug!(room.id = %room.id, event.id = %pdu.event_id, %error, "what allows an event could not be had");
                }
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// Gets what an event lists as `auth_events` and is not here. Server-Server API, "Retrieving event authorisation information".
    async fn fetch_auth_events(&self, source: Source<'_>, room: &Arc<RoomRow>, pdu: &Pdu) -> Result<(), Error> {
        let here = self.storage().find_event_nrs(&pdu.auth_events).await?;
        if pdu.auth_events.iter().all(|id| here.contains_key(id)) {
            return Ok(());
        }
        let _memory = self.0.states_asked.permits_for(source.server).await;
        let mut chain = self.remote().get_event_auth(source, &room.id, &pdu.event_id).await?;
        chain.truncate(STATE_EVENTS_MAX);
        self.take_in_outliers(room, chain).await?;
        Ok(())
    }

    /// The state after an event that is not here, as its server tells it: the events of it are stored as outliers, as is the event.
    async fn fetch_state_after(
        &self,
        source: Source<'_>,
        room: &Arc<RoomRow>,
        event_id: &OwnedEventId,
        nodes: &mut NewNodes,
    ) -> Result<NodeNr, Error> {
        let storage = self.storage();
        let mut entries = self.fetch_state_before(source, room, event_id).await?;
        if storage.find_event_nr(event_id).await?.is_none() {
            let told = self.remote().get_event(source, event_id).await?;
            self.take_in_outliers(room, vec![told]).await?;
        }
        let last = storage.find_event(event_id).await?.filter(|event| event.room_nr == room.nr);
        let last = last.ok_or_else(|| misbehaved(source, "an event before the one that was sent is not told"))?;
        entries.extend(key_of(&last).map(|key| (key, last.nr)));
        let head = storage.get_head(room.nr).await?.ok_or(Error::RoomUnknown)?;
        let create = self.find_state_at(room, head.state, "m.room.create", "").await?.ok_or(Error::RoomUnknown)?;
        if !entries.values().any(|nr| *nr == create.nr) {
            return Err(misbehaved(source, "the state lacks what made the room"));
        }
        Ok(storage.build_state(room.nr, head.state, entries.into_iter().collect(), nodes).await?)
    }

    /// The state before an event, as a server of the room tells it: the events of it are stored as outliers.
    ///
    /// # Errors
    ///
    /// [`Error::Remote`].
    pub(crate) async fn fetch_state_before(
        &self,
        source: Source<'_>,
        room: &Arc<RoomRow>,
        event_id: &OwnedEventId,
    ) -> Result<HashMap<StateKey, EventNr>, Error> {
        let (storage, remote) = (self.storage(), self.remote());
        let ids = remote.get_state_ids(source, &room.id, event_id).await?;
        if ids.state.len() + ids.auth_chain.len() > STATE_EVENTS_MAX {
            return Err(misbehaved(source, "the state is too large"));
        }
        let mut missing: Vec<&OwnedEventId> = Vec::new();
        let wanted: Vec<&OwnedEventId> = ids.auth_chain.iter().chain(&ids.state).collect();
        for wanted in wanted.chunks(IDS_AT_ONCE) {
            let here = storage.find_event_nrs(&wanted.iter().copied().cloned().collect::<Vec<_>>()).await?;
            missing.extend(wanted.iter().filter(|id| !here.contains_key(**id)));
        }
        let is_large = missing.len() > ONE_BY_ONE_MAX;
        let _memory = if is_large { Some(self.0.states_asked.permits_for(source.server).await) } else { None };
        let mut told = Vec::new();
        if is_large {
            told = remote.get_state(source, &room.id, event_id).await?;
            told.truncate(STATE_EVENTS_MAX);
        } else {
            let asking: Vec<_> = missing.into_iter().map(|id| remote.get_event(source, id)).collect();
            let answers: Vec<_> = stream::iter(asking).buffered(ASKED_AT_ONCE).collect().await;
            told.extend(answers.into_iter().filter_map(Result::ok));
        }
        self.take_in_outliers(room, told).await?;
        let mut entries: HashMap<StateKey, EventNr> = HashMap::with_capacity(ids.state.len());
        for (nr, key) in storage.list_state_keys(room.nr, &ids.state).await? {
            if entries.insert(key, nr).is_some_and(|other| other != nr) {
                return Err(misbehaved(source, "two events for one state key"));
            }
        }
        Ok(entries)
    }
}

/// Of what an event is the state, unless it counts for nothing.
fn key_of(event: &StoredEvent) -> Option<StateKey> {
    Some((event.type_nr, event.state_key_nr.filter(|_| !event.pdu.rejected)?))
}

pub(crate) fn misbehaved(source: Source<'_>, what: &str) -> Error {
    Error::Remote(RemoteError::Misbehaved { server: source.server.to_owned(), what: what.to_owned() })
}
