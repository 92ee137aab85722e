//! What an answer about many rooms needs of each, asked for together: a statement for all rooms in place of some for each.

use std::{collections::HashMap, sync::Arc};

use model::{EventNr, Membership, NodeNr, Position, RoomNr};
use rooms::OwnTransactions;
use storage::{RoomMembership, RoomSummary, StoredEvent, TimelinePlace};

use super::{Answer, filter::matches, room::timeline_limit};
use crate::{Error, Sync, heroes::Heroes};

/// What was asked for all rooms at once; a room or a place that is not in it is asked for by itself.
#[derive(Default)]
pub(super) struct Ahead {
    /// States of rooms at positions.
    pub(super) states: HashMap<(RoomNr, Position), NodeNr>,
    pub(super) summaries: HashMap<RoomNr, (RoomSummary, u64, u64)>,
    /// Those after whom rooms are called.
    pub(super) heroes: Heroes,
    /// The newest rows of each room's timeline; all rooms of the answer are in it, or none.
    pub(super) timelines: HashMap<RoomNr, Vec<(EventNr, TimelinePlace)>>,
    /// How the requester's device named its own events.
    pub(super) transactions: OwnTransactions,
}

/// How many rows of a timeline are read for a number of events, one of which only tells that there are more.
pub(super) fn rows_read(limit: usize) -> u32 {
    (limit + 1).max(20) as u32
}

impl Sync {
    /// Asks for what all of an answer's rooms need.
    pub(super) async fn look_ahead(
        &self,
        answer: &Answer<'_>,
        rooms: &[&RoomMembership],
        has_events: bool,
    ) -> Result<Ahead, Error> {
        let storage = &self.0.storage;
        let joined = rooms.iter().filter(|row| row.membership == Membership::Join);
        let is_whole = answer.since.is_none() || answer.request.full_state;
        let mut ahead = Ahead::default();
        if !has_events {
            // Who came into a room since the last answer reads all of its timeline: those few rooms are read by themselves.
            let known: Vec<RoomNr> = joined
                .clone()
                .filter(|row| answer.since.is_none_or(|since| row.position <= since))
                .map(|row| row.room_nr)
                .collect();
            if known.len() > 1 {
                ahead.timelines = self.timelines_ahead(answer, &known).await?;
            }
        }
        if is_whole {
            let numbers: Vec<RoomNr> = joined.map(|row| row.room_nr).collect();
            ahead.summaries = storage.get_summaries(&numbers).await?;
            let nameless = |room: &RoomNr| {
                let summary = ahead.summaries.get(room);
                summary.is_some_and(|(summary, ..)| summary.name.is_none() && summary.canonical_alias.is_none())
            };
            let nameless: Vec<RoomNr> = numbers.iter().copied().filter(nameless).collect();
            ahead.heroes = self.heroes(answer.requester.user_nr, &nameless).await?;
            let ends = storage.get_states_at(&numbers, answer.upto).await?;
            ahead.states = ends.into_iter().map(|(room_nr, state)| ((room_nr, answer.upto), state)).collect();
        }
        if !ahead.timelines.is_empty() {
            let shown = self.shown_ahead(answer, &ahead).await?;
            if is_whole {
                let starts = shown.values().filter_map(|events| events.first());
                let starts: Vec<_> = starts.filter_map(|event| Some((event.room_nr, before(event)?))).collect();
                ahead.states.extend(storage.list_states_at(&starts).await?);
            }
            let user_nr = answer.requester.user_nr;
            let own = shown.values().flatten().filter(|event| event.sender_nr == user_nr && !event.is_state());
            let own: Vec<EventNr> = own.map(|event| event.nr).collect();
            ahead.transactions = self.0.rooms.own_transactions(answer.requester, &own).await?;
        }
        Ok(ahead)
    }

    async fn timelines_ahead(
        &self,
        answer: &Answer<'_>,
        rooms: &[RoomNr],
    ) -> Result<HashMap<RoomNr, Vec<(EventNr, TimelinePlace)>>, Error> {
        let after = answer.since.unwrap_or(Position(i64::MIN));
        let read = rows_read(timeline_limit(answer));
        let mut timelines = self.0.storage.list_timelines(rooms, (after, answer.upto), read).await?;
        for room_nr in rooms {
            timelines.entry(*room_nr).or_default();
        }
        Ok(timelines)
    }

    /// The events that the timelines will probably show, oldest first; reading them brings them into memory.
    async fn shown_ahead(
        &self,
        answer: &Answer<'_>,
        ahead: &Ahead,
    ) -> Result<HashMap<RoomNr, Vec<Arc<StoredEvent>>>, Error> {
        let (filter, limit) = (&answer.request.filter.room.timeline, timeline_limit(answer));
        let numbers: Vec<EventNr> = ahead.timelines.values().flatten().map(|(nr, _)| *nr).collect();
        let found = self.0.storage.get_events(&numbers).await?;
        let shown = ahead.timelines.iter().map(|(room_nr, rows)| {
            let events = rows.iter().filter_map(|(nr, _)| found.get(nr)).filter(|event| matches(filter, event));
            let mut events: Vec<_> = events.take(limit).cloned().collect();
            events.reverse();
            (*room_nr, events)
        });
        Ok(shown.collect())
    }
}

/// The position right before an event.
fn before(event: &StoredEvent) -> Option<Position> {
    event.position.map(|position| Position(position.0 - 1))
}
