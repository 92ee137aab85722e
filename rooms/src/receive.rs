//! Events that other servers made. Server-Server API, "Checks performed on receipt of a PDU".

mod backfill;
mod chain;
mod gap;
mod legible;
mod missing;
mod place;
mod single;
mod verify;
mod withdrawn;

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt as _, future::join_all, stream};
use model::{NodeNr, Pdu, Position, RoomNr};
use ruma::{OwnedEventId, OwnedRoomId, ServerName, events::TimelineEventType, room_version_rules::RoomVersionRules};
use serde::Deserialize;
use serde_json::value::RawValue;
use storage::RoomRow;
use tokio::time::timeout;

pub(crate) use self::{gap::misbehaved, legible::legible};
use self::{place::Retry, verify::id_of};
use crate::{Error, Rooms, head::Head, power::rules_of, race::Race, to_the_end};

/// Most rooms of one transaction whose events are taken in at the same time.
const ROOMS_AT_ONCE: usize = 32;

/// How long events of a room wait that we are about to join.
const JOIN_WAIT: Duration = Duration::from_secs(30);

/// What became of an event from elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// It was here already.
    Known,
    /// It is in the timeline.
    Accepted,
    /// The room's current state forbids it: it is kept, but nobody sees it and nothing builds upon it.
    SoftFailed(String),
    /// Its own past forbids it: it is kept, so that it is not fetched again, and counts for nothing.
    Rejected(String),
    /// These events that it refers to are not here: fetch them first.
    Missing(Vec<OwnedEventId>),
}

/// A verified event on its way in.
#[derive(Clone)]
struct Incoming {
    pdu: Pdu,
    /// The room's state before it, where that is not known from what came before it.
    state_before: Option<NodeNr>,
    /// Whether that lacks members who are not here yet.
    lacks_members: bool,
    /// Why the room's policy server does not recommend it, if it does not.
    refusal: Option<String>,
    /// Whether it is this server that has to tell the others in the room of it.
    passed_on: bool,
    /// Where it goes in the timeline if not to its end: behind the live event of that position, so many steps.
    behind: Option<(Position, i64)>,
}

impl Incoming {
    /// One that comes now.
    fn new(pdu: Pdu, state_before: Option<NodeNr>) -> Self {
        Self { pdu, state_before, lacks_members: false, behind: None, refusal: None, passed_on: false }
    }
}

/// Who gives us events.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// Which of our names they are given to.
    pub as_server: &'a ServerName,
    /// The server that gives them.
    pub server: &'a ServerName,
}

impl Rooms {
    /// Takes in events of another server, of whatever rooms: checks them and gives them their places. Tells for each what became of it;
    /// what is no event by any means has no id to tell it by, and is left out.
    ///
    /// # Errors
    ///
    /// Only ours: [`Error::Storage`], [`Error::Busy`]; some of them may have been taken in, and all may be given again.
    /// [`Error::Remote`] when no keys can be asked for. For each event [`Error::BadEvent`]: it is none of its room, or not signed.
    /// [`Error::RoomUnknown`].
    pub async fn receive(
        &self,
        source: Source<'_>,
        events: Vec<Box<RawValue>>,
    ) -> Result<BTreeMap<OwnedEventId, Result<Received, Error>>, Error> {
        let mut outcomes = BTreeMap::new();
        let mut by_room: BTreeMap<OwnedRoomId, Vec<Box<RawValue>>> = BTreeMap::new();
        for event in events {
            match room_of(&event) {
                Some(room_id) => by_room.entry(room_id).or_default().push(event),
                None => outcomes.extend(unknown_room(&event)),
            }
        }
        self.wait_for_joins(by_room.keys()).await;
        let mut rooms = Vec::with_capacity(by_room.len());
        for (room_id, events) in by_room {
            match self.room(&room_id).await {
                Ok(room) => rooms.push((room, events)),
                Err(Error::RoomUnknown) => outcomes.extend(events.iter().filter_map(|event| unknown_room(event))),
                Err(error) => return Err(error),
            }
        }
        let numbers: Vec<RoomNr> = rooms.iter().map(|(room, _)| room.nr).collect();
        let ours = self.servers().iter().map(|server| server.name.to_string());
        let states = self.storage().list_states_of_rooms_with(&numbers, ours).await?;
        let mut of_rooms = Vec::with_capacity(rooms.len());
        for (room, events) in rooms {
            let Some(state) = states.get(&room.nr) else {
                outcomes.extend(self.receive_outside(&room, events).await?);
                continue;
            };
            // Server-Server API, "Server Access Control Lists (ACLs)".
            if self.is_server_allowed_at(&room, *state, source.server).await? {
                of_rooms.push((room, *state, events));
                continue;
            }
            let refusal = Error::NotAllowed(format!("{} is denied access to this room", source.server));
            let rules = rules_of(&room.version)?;
            let ids = events.iter().filter_map(|event| id_of(&legible(event, &rules)?, &rules));
            outcomes.extend(ids.map(|event_id| (event_id, Err(refusal.clone()))));
        }
        outcomes.extend(Box::pin(self.receive_of_rooms(source, of_rooms)).await?);
        Ok(outcomes)
    }

    /// Waits for joins to rooms elsewhere that are under way: what is said there from then on may come before we know of what we are in.
    async fn wait_for_joins(&self, rooms: impl Iterator<Item = &OwnedRoomId>) {
        let turns: Vec<_> = rooms.filter_map(|room_id| self.0.joining.get(room_id)).collect();
        let under_way = turns.iter().filter(|turn| turn.try_lock().is_err());
        let ends = join_all(under_way.map(|turn| async { drop(turn.lock().await) }));
        // Who comes too late is heard with what is said next.
        let _ = timeout(JOIN_WAIT, ends).await;
    }

    /// Takes in events of these rooms, of which the current state is known.
    pub(crate) async fn receive_of_rooms(
        &self,
        source: Source<'_>,
        of_rooms: Vec<(Arc<RoomRow>, NodeNr, Vec<Box<RawValue>>)>,
    ) -> Result<BTreeMap<OwnedEventId, Result<Received, Error>>, Error> {
        let mut outcomes = BTreeMap::new();
        let mut rooms = Vec::new();
        let mut read = Vec::new();
        for (room, state, events) in of_rooms {
            let rules = Arc::new(rules_of(&room.version)?);
            for (event_id, event) in self.read_texts(&room, &rules, events).await? {
                match event {
                    Ok(event) if event.pdu.event_type == TimelineEventType::RoomCreate => {
                        let error = Error::BadEvent("the room exists".to_owned());
                        outcomes.extend(event_id.map(|event_id| (event_id, Err(error))));
                    }
                    Ok(event) => read.push((rooms.len(), event)),
                    Err(error) => outcomes.extend(event_id.map(|event_id| (event_id, Err(error)))),
                }
            }
            rooms.push((room, state));
        }
        // What is here already was verified then.
        let ids: Vec<OwnedEventId> = read.iter().map(|(_, event)| event.pdu.event_id.clone()).collect();
        let mut seen = self.find_placed(&ids).await?;
        outcomes.extend(seen.iter().map(|event_id| (event_id.clone(), Ok(Received::Known))));
        read.retain(|(_, event)| seen.insert(event.pdu.event_id.clone()));

        let (of_rooms, events): (Vec<usize>, Vec<_>) = read.into_iter().unzip();
        let ids: Vec<OwnedEventId> = events.iter().map(|event| event.pdu.event_id.clone()).collect();
        let verified = self.verify_events(events).await?;
        let mut pdus: Vec<Vec<Pdu>> = rooms.iter().map(|_| Vec::new()).collect();
        for ((room, event_id), pdu) in of_rooms.into_iter().zip(ids).zip(verified) {
            match pdu {
                Ok(pdu) => pdus[room].push(pdu),
                Err(error) => drop(outcomes.insert(event_id, Err(error))),
            }
        }
        let received: Vec<Result<_, Error>> = stream::iter(rooms.into_iter().zip(pdus))
            .map(|((room, state), pdus)| {
                let rooms = self.clone();
                let (as_server, server) = (source.as_server.to_owned(), source.server.to_owned());
                to_the_end(async move {
                    let source = Source { as_server: &as_server, server: &server };
                    let received = rooms.receive_in_room(source, &room, state, pdus).await?;
                    Ok((room, received))
                })
            })
            .buffer_unordered(ROOMS_AT_ONCE)
            .collect()
            .await;
        let mut accepted = Vec::new();
        for received in received {
            let (room, received) = received?;
            let new = received.iter().filter(|(_, outcome)| matches!(outcome, Ok(Received::Accepted)));
            accepted.extend(new.map(|(event_id, _)| (room.nr, event_id.clone())));
            // Not what was asked for on the way.
            outcomes.extend(received.into_iter().filter(|(event_id, _)| seen.contains(event_id)));
        }
        self.release_awaited(&accepted).await?;
        Ok(outcomes)
    }

    /// Lets redactions that came before the events that they redact do so.
    async fn release_awaited(&self, events: &[(RoomNr, OwnedEventId)]) -> Result<(), Error> {
        for (room_nr, target) in self.storage().list_awaited(events).await? {
            let rooms = self.storage().get_rooms(&[room_nr]).await?;
            let Some(room) = rooms.get(&room_nr) else { continue };
            let turn = self.turn(room_nr);
            let mut head = turn.take_head().await;
            *head = None;
            self.release_redactions(room, &target).await?;
        }
        Ok(())
    }

    /// Those of some events that are here and have a place in their room: outliers have none.
    pub(crate) async fn find_placed(&self, ids: &[OwnedEventId]) -> Result<HashSet<OwnedEventId>, Error> {
        let numbers: Vec<_> = self.storage().find_event_nrs(ids).await?.into_values().collect();
        let events = self.storage().get_events(&numbers).await?.into_values();
        Ok(events.filter(|event| !event.outlier).map(|event| event.pdu.event_id.clone()).collect())
    }

    /// Takes in one event that was verified; whether it is `passed_on` to the other servers of the room.
    pub(crate) async fn receive_verified(
        &self,
        room: &Arc<RoomRow>,
        pdu: Pdu,
        passed_on: bool,
    ) -> Result<Received, Error> {
        let incoming = Incoming { passed_on, ..Incoming::new(pdu, None) };
        let mut outcomes = self.receive_in_turn(room, vec![incoming]).await?;
        outcomes.pop().map_or(Err(Error::Busy), |(_, received)| received)
    }

    /// Takes in verified events of one room, in its turn and in order.
    async fn receive_in_turn(
        &self,
        room: &Arc<RoomRow>,
        incoming: Vec<Incoming>,
    ) -> Result<Vec<(OwnedEventId, Result<Received, Error>)>, Error> {
        let turn = self.turn(room.nr);
        let mut cached = turn.take_head().await;
        let mut outcomes = Vec::with_capacity(incoming.len());
        let mut incoming = VecDeque::from(incoming);
        let mut race = Race::default();
        while !incoming.is_empty() {
            let head = match cached.take() {
                Some(head) => head,
                None => Head::load(self.storage(), room.clone()).await?,
            };
            match self.receive_chain(head, incoming.make_contiguous(), &race).await {
                Ok((head, received)) => {
                    *cached = Some(head);
                    let ids = incoming.drain(..received.len()).map(|incoming| incoming.pdu.event_id);
                    outcomes.extend(ids.zip(received.into_iter().map(Ok)));
                    race = Race::default();
                }
                Err(Retry::Lost(error)) if race.goes_on(&error).await => continue,
                Err(Retry::Lost(_)) => return Err(Error::Busy),
                Err(Retry::Failed(error)) => return Err(error),
            }
            if let Some(next) = incoming.pop_front() {
                // What is committed there makes the head in memory old.
                *cached = None;
                let event_id = next.pdu.event_id.clone();
                let received = match self.receive_one(room, next).await {
                    Err(error @ (Error::Storage(_) | Error::Busy)) => return Err(error),
                    received => received,
                };
                outcomes.push((event_id, received));
            }
        }
        Ok(outcomes)
    }
}

/// The room that an event says it is in.
fn room_of(event: &RawValue) -> Option<OwnedRoomId> {
    #[derive(Deserialize)]
    struct Event {
        room_id: OwnedRoomId,
    }
    Some(serde_json::from_str::<Event>(event.get()).ok()?.room_id)
}

/// What is said of an event whose room is not here. Which version it has is not known, so its id is the one of the newest.
fn unknown_room(event: &RawValue) -> Option<(OwnedEventId, Result<Received, Error>)> {
    let rules = RoomVersionRules::V12;
    Some((id_of(&legible(event, &rules)?, &rules)?, Err(Error::RoomUnknown)))
}
