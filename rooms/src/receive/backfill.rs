//! What was said in a room before we knew of it, or while others were cut off: asked for when somebody reads that far. Server-Server
//! API, "Backfilling and retrieving missing events".

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use model::{NodeNr, Pdu};
use ruma::{OwnedEventId, OwnedServerName, ServerName, events::TimelineEventType};
use storage::{Commit, RoomCommit, RoomRow, StoredEvent, TimelinePlace};
use tokio::time::timeout;
use tracing::debug;

use super::{Incoming, Received, Source, missing::in_order};
use crate::{Error, Rooms, head::Head};

/// Most events that are asked for at once.
const EVENTS_MAX: u32 = 100;

/// Most gaps that one page fills.
const GAPS_MAX: u32 = 1;

/// Most servers that are asked, one after the other.
const SERVERS_MAX: u32 = 2;

/// How many events of an answer may come after something that is not in it: each takes a state.
const STATES_MAX: usize = 3;

/// How long one server has for it, with all that is asked of it.
const SERVER_WAIT: Duration = Duration::from_secs(8);

impl Rooms {
    /// Asks servers of a room, in the name of one of ours that is in it, for what lies before the gaps between two places of its timeline;
    /// whether there is more to read now.
    ///
    /// That nobody answers is no error: what is here is read then.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`].
    pub(crate) async fn backfill(
        &self,
        as_server: &ServerName,
        room: &Arc<RoomRow>,
        newest: TimelinePlace,
        oldest: TimelinePlace,
    ) -> Result<bool, Error> {
        let gaps = self.storage().list_gaps_between(room.nr, newest, oldest, GAPS_MAX).await?;
        if gaps.is_empty() {
            return Ok(false);
        }
        let events = self.storage().get_events(&gaps.iter().map(|(nr, _)| *nr).collect::<Vec<_>>()).await?;
        let mut has_more = false;
        for gap in gaps.iter().filter_map(|(nr, _)| events.get(nr)) {
            for server in self.servers_to_ask(room, &gap.pdu).await? {
                let source = Source { as_server, server: &server };
                match timeout(SERVER_WAIT, self.backfill_from(source, room, gap)).await {
                    Ok(Ok(true)) => {
                        has_more = true;
                        break;
                    }
                    Ok(Err(error @ Error::Storage(_))) => return Err(error),
                    Ok(Err(error)) => {
                        debug!(room.id = %room.id, server.name = %server, %error, "{server} does not tell what was said before");
                    }
                    Ok(Ok(false)) | Err(_) => {}
                }
            }
        }
        Ok(has_more)
    }

    /// Servers that are in the room: the one of the event first.
    async fn servers_to_ask(&self, room: &RoomRow, pdu: &Pdu) -> Result<Vec<OwnedServerName>, Error> {
        let there = self.storage().list_servers(room.nr, SERVERS_MAX + 1).await?;
        let mut servers: Vec<OwnedServerName> = there.iter().filter_map(|name| ServerName::parse(name).ok()).collect();
        servers.insert(0, pdu.sender.server_name().to_owned());
        let mut seen = HashSet::new();
        servers.retain(|server| !self.servers().is_local(server) && seen.insert(server.clone()));
        servers.truncate(SERVERS_MAX as usize);
        Ok(servers)
    }

    /// Asks one server for what lies before a gap, and puts it there; whether there was anything.
    async fn backfill_from(
        &self,
        source: Source<'_>,
        room: &Arc<RoomRow>,
        gap: &Arc<StoredEvent>,
    ) -> Result<bool, Error> {
        let turn = self.0.asking.get_with((room.nr, source.server.to_owned()), Arc::default);
        let _turn = turn.lock().await;
        let Some(place) = gap.place else { return Ok(false) };
        if self.close_gap(room, gap).await? {
            return Ok(false);
        }
        let from = vec![gap.pdu.event_id.clone()];
        let answer = self.remote().backfill(source, &room.id, from, EVENTS_MAX).await?;
        let told: HashMap<OwnedEventId, Pdu> =
            self.verified(room, answer).await?.into_iter().map(|pdu| (pdu.event_id.clone(), pdu)).collect();
        // What does not lie before the gap is not wanted.
        let placed = self.find_placed(&told.keys().cloned().collect::<Vec<_>>()).await?;
        let mut open = gap.pdu.prev_events.clone();
        let mut chosen: HashMap<OwnedEventId, Pdu> = HashMap::new();
        while let Some(id) = open.pop() {
            if let Some(pdu) = told.get(&id).filter(|_| !placed.contains(&id) && !chosen.contains_key(&id)) {
                open.extend(pdu.prev_events.iter().cloned());
                chosen.insert(id, pdu.clone());
            }
        }
        if chosen.is_empty() {
            return Ok(false);
        }
        let pdus = in_order(chosen.into_values().collect());
        let mut step = self.first_step_behind(room, place, pdus.len()).await?;
        Box::pin(self.fetch_senders(source, room, &pdus)).await?;
        let mut states_left = STATES_MAX;
        let mut has_more = false;
        for pdu in pdus {
            let lacks_state = !self.find_lacking(std::slice::from_ref(&pdu)).await?.is_empty();
            if lacks_state && states_left == 0 {
                continue;
            }
            states_left -= usize::from(lacks_state);
            let behind = (place.0, step);
            step += 1;
            match self.receive_behind(source, room, gap, pdu, lacks_state, behind).await {
                Ok(received) => has_more |= received == Received::Accepted,
                Err(Error::BadEvent(what)) => {
                    debug!(room.id = %room.id, server.name = %source.server, what, "an event of the past is none of the room");
                }
                Err(error) => return Err(error),
            }
        }
        if has_more {
            self.close_gap(room, gap).await?;
        }
        Ok(has_more)
    }

    /// Where in the timeline the first of so many events goes that lie before an event: right behind it where there are as many free places,
    /// else behind all others there.
    async fn first_step_behind(
        &self,
        room: &RoomRow,
        (anchor, step): TimelinePlace,
        count: usize,
    ) -> Result<i64, Error> {
        let count = i64::try_from(count).unwrap_or(0);
        let next = self.storage().next_step(room.nr, (anchor, step)).await?;
        if next.is_none_or(|next| step.saturating_sub(next) > count) {
            return Ok(step - count);
        }
        Ok(self.storage().farthest_step(room.nr, anchor).await? - count)
    }

    /// Takes in an event of the past that lies before a gap, at its place in the timeline. If it `lacks_state`, what lies before it is not
    /// here, and its server is asked for the state, unless that of the gap tells it.
    pub(super) async fn receive_behind(
        &self,
        source: Source<'_>,
        room: &Arc<RoomRow>,
        gap: &StoredEvent,
        pdu: Pdu,
        lacks_state: bool,
        behind: TimelinePlace,
    ) -> Result<Received, Error> {
        let is_first = pdu.event_type == TimelineEventType::RoomCreate;
        let mut incoming = Incoming { behind: Some(behind), ..Incoming::new(pdu, is_first.then_some(NodeNr(0))) };
        let turn = self.turn(room.nr);
        // First: whether members are here changes in somebody's turn only.
        let mut head = turn.take_head().await;
        if lacks_state {
            match self.state_before_in_partial(room, gap).await? {
                Some(state) => (incoming.state_before, incoming.lacks_members) = (Some(state), true),
                None => {
                    drop(head);
                    incoming.state_before = self.fill_gap(source, room, &incoming.pdu).await?;
                    head = turn.take_head().await;
                }
            }
        }
        *head = None;
        self.receive_one(room, incoming).await
    }

    /// Notes that a gap is one no more, when what lies before it is here; whether it is.
    async fn close_gap(&self, room: &Arc<RoomRow>, gap: &StoredEvent) -> Result<bool, Error> {
        if self.find_placed(&gap.pdu.prev_events).await?.len() < gap.pdu.prev_events.len() {
            return Ok(false);
        }
        let head = Head::load(self.storage(), room.clone()).await?;
        let commit = RoomCommit {
            room_nr: room.nr,
            expected_state: head.stored_state,
            state: head.state,
            depth: head.depth,
            gaps_closed: vec![gap.nr],
            ..RoomCommit::default()
        };
        // Lost to another commit, it stays a gap, and is asked for once more.
        let _ = self.storage().commit(Commit { room: Some(commit), ..Commit::default() }).await;
        Ok(true)
    }
}
