//! One room in an answer.

use std::sync::Arc;

use accounts::Requester;
use model::{ClientEvent, EventNr, Membership, Position, limits};
use rooms::{Reader, TimelineToken};
use ruma::{
    api::client::sync::sync_events::v3::{
        InviteState, InvitedRoom, JoinedRoom, KnockState, KnockedRoom, LeftRoom, Timeline,
    },
    serde::Raw,
};
use serde_json::value::RawValue;
use storage::{RoomMembership, RoomRow, StoredEvent, TimelineDirection};

use super::{
    Answer, account_data_event,
    filter::{matches, matches_type},
    raw,
    state::Span,
};
use crate::{Error, Sync, news::News};

/// Events of a room in an answer when the client names no number.
const TIMELINE_DEFAULT: u32 = 10;
/// How many pages of a room's timeline are read for one answer to a filter that fits little.
const PAGES_MAX: usize = 5;

/// State that shows somebody who they are invited by and to what. Client-Server API, "Stripped state".
const STRIPPED_STATE: &[&str] = &[
    "m.room.create",
    "m.room.name",
    "m.room.avatar",
    "m.room.topic",
    "m.room.join_rules",
    "m.room.canonical_alias",
    "m.room.encryption",
];

/// The events of a room between two positions.
struct Found {
    events: Vec<Arc<StoredEvent>>,
    /// Whether there are more before them.
    limited: bool,
    /// Whether the filter kept a state event back.
    lacks_state: bool,
}

/// What a user was to a room over the time that an answer is about.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stay {
    /// Joined all the time.
    Joined,
    /// Joined at its start, and away since then for a while.
    Away,
    /// Not joined at its start.
    New,
}

impl Sync {
    pub(super) async fn joined_room(
        &self,
        answer: &Answer<'_>,
        news: &News,
        row: &RoomMembership,
        room: &Arc<RoomRow>,
    ) -> Result<JoinedRoom, Error> {
        let stay = self.stay(answer.since, row).await?;
        let since = answer.since.filter(|_| stay != Stay::New);
        let reader = self.0.rooms.reader_of(answer.requester, Some(*row), room.clone()).await?;
        let known = since.and(news.events.as_ref()).map(|events| events.get(&room.nr).cloned().unwrap_or_default());
        let found = self.timeline(answer, &reader, since, answer.upto, known).await?;
        let (events, has_hidden) = match stay {
            Stay::Joined => (found.events, false),
            Stay::Away | Stay::New => self.visible_end(&reader, found.events).await?,
        };
        let span = Span {
            base: since.filter(|_| !answer.request.full_state),
            upto: answer.upto,
            // Otherwise the timeline tells all that has happened to the state.
            has_more: found.limited
                || found.lacks_state
                || has_hidden
                || since.is_none()
                || answer.request.full_state
                || news.is_resolved(room.nr),
        };
        let mut shown = JoinedRoom::new();
        let state = self.room_state(answer, room, &span, &events).await?;
        if since.is_none() || state.has_summary {
            shown.summary = state.summary;
        }
        shown.timeline = self.show_timeline(&reader, &events, found.limited || has_hidden, answer.upto).await?;
        shown.state = self.show_state(answer, &reader, state.events).await?;
        Ok(shown)
    }

    pub(super) async fn left_room(
        &self,
        answer: &Answer<'_>,
        row: &RoomMembership,
        room: &Arc<RoomRow>,
    ) -> Result<LeftRoom, Error> {
        let since = answer.since.filter(|since| *since < row.position);
        let since = if self.was_joined_at(row, since).await? { since } else { None };
        let reader = self.0.rooms.reader_of(answer.requester, Some(*row), room.clone()).await?;
        let found = self.timeline(answer, &reader, since, row.position, None).await?;
        let events = self.0.rooms.visible(&reader, found.events).await?;
        let mut shown = LeftRoom::new();
        if let Some(left) = reader.left_at() {
            let span = Span { base: since, upto: left, has_more: true };
            let state = self.room_state(answer, room, &span, &events).await?;
            shown.state = self.show_state(answer, &reader, state.events).await?;
        }
        shown.timeline = self.show_timeline(&reader, &events, found.limited, row.position).await?;
        Ok(shown)
    }

    pub(super) async fn invited_room(
        &self,
        row: &RoomMembership,
        room: &RoomRow,
        requester: &Requester,
    ) -> Result<InvitedRoom, Error> {
        let mut state = InviteState::new();
        state.events = self.stripped_state(row, room, requester).await?.into_iter().map(Raw::from_json).collect();
        Ok(InvitedRoom::from(state))
    }

    pub(super) async fn knocked_room(
        &self,
        row: &RoomMembership,
        room: &RoomRow,
        requester: &Requester,
    ) -> Result<KnockedRoom, Error> {
        let mut state = KnockState::new();
        state.events = self.stripped_state(row, room, requester).await?.into_iter().map(Raw::from_json).collect();
        Ok(KnockedRoom::from(state))
    }

    /// What an invited user may see of a room: as it was when they were invited.
    pub(crate) async fn stripped_state(
        &self,
        row: &RoomMembership,
        room: &RoomRow,
        requester: &Requester,
    ) -> Result<Vec<Box<RawValue>>, Error> {
        let storage = &self.0.storage;
        let Some(member) = storage.get_event(row.event_nr).await? else { return Ok(Vec::new()) };
        let mut keys: Vec<(&str, String)> = STRIPPED_STATE.iter().map(|word| (*word, String::new())).collect();
        keys.push(("m.room.member", member.pdu.sender.to_string()));
        keys.push(("m.room.member", requester.user_id.to_string()));
        keys.dedup();
        let mut numbers = Vec::new();
        for (event_type, state_key) in keys {
            if let Some(key) = storage.find_state_key(event_type, &state_key).await? {
                numbers.extend(storage.get_state_event(room.nr, member.state, key).await?);
            }
        }
        let events = storage.get_events(&numbers).await?;
        Ok(numbers
            .iter()
            .filter_map(|nr| events.get(nr))
            .filter_map(|event| Some(ClientEvent::of(&event.pdu.json).ok()?.to_stripped()))
            .collect())
    }

    /// What a user, who is joined now, was to a room since a position.
    pub(crate) async fn stay(&self, since: Option<Position>, row: &RoomMembership) -> Result<Stay, Error> {
        let Some(since) = since else { return Ok(Stay::New) };
        if row.position <= since {
            return Ok(Stay::Joined);
        }
        // A member's event changes with their name, too.
        let log = self.0.storage.list_membership_log(row.room_nr, row.user_nr).await?;
        let (before, after) = log.split_at(log.partition_point(|(at, _)| *at <= since));
        let is_join = |(_, membership): &(Position, Membership)| *membership == Membership::Join;
        Ok(match before.last().is_some_and(is_join) {
            true if after.iter().all(is_join) => Stay::Joined,
            true => Stay::Away,
            false => Stay::New,
        })
    }

    /// Whether a user was joined at a position.
    pub(crate) async fn was_joined_at(&self, row: &RoomMembership, position: Option<Position>) -> Result<bool, Error> {
        let Some(position) = position else { return Ok(false) };
        let log = self.0.storage.list_membership_log(row.room_nr, row.user_nr).await?;
        let last = log.iter().take_while(|(at, _)| *at <= position).last();
        Ok(last.is_some_and(|(_, membership)| *membership == Membership::Join))
    }

    /// The events after the last one that the reader may not see, and whether there is one: a timeline has no holes, and what is
    /// before it is told as state.
    pub(crate) async fn visible_end(
        &self,
        reader: &Reader,
        events: Vec<Arc<StoredEvent>>,
    ) -> Result<(Vec<Arc<StoredEvent>>, bool), Error> {
        let mut visible = self.0.rooms.visible(reader, events.clone()).await?;
        let hidden = events.iter().rposition(|event| !visible.iter().any(|seen| seen.nr == event.nr));
        let Some(hidden) = hidden else { return Ok((visible, false)) };
        visible.retain(|event| events[hidden + 1..].iter().any(|later| later.nr == event.nr));
        Ok((visible, true))
    }

    /// The newest events after `since` up to `upto` that the filter lets through, oldest first.
    async fn timeline(
        &self,
        answer: &Answer<'_>,
        reader: &Reader,
        since: Option<Position>,
        upto: Position,
        known: Option<Vec<Arc<StoredEvent>>>,
    ) -> Result<Found, Error> {
        let filter = &answer.request.filter.room.timeline;
        let limit = filter.limit.map_or(TIMELINE_DEFAULT, |limit| u32::try_from(limit).unwrap_or(u32::MAX));
        let limit = limit.min(limits::TIMELINE_EVENTS_MAX as u32) as usize;
        let mut lacks_state = false;
        let mut is_wanted = |event: &Arc<StoredEvent>| {
            let is_wanted = matches(filter, event) && !reader.ignores(event);
            lacks_state |= !is_wanted && event.is_state();
            is_wanted
        };
        if let Some(mut events) = known {
            events.retain(|event| event.position.is_some_and(|position| position <= upto) && is_wanted(event));
            let limited = events.len() > limit;
            return Ok(Found { events: events.split_off(events.len().saturating_sub(limit)), limited, lacks_state });
        }
        let stop = since.map_or((Position(i64::MIN), 0), |since| (since, i64::MAX));
        let mut from = (upto, i64::MAX);
        let mut events = Vec::new();
        let read = (limit + 1).max(20) as u32;
        for _ in 0..PAGES_MAX {
            let rows =
                self.0.storage.list_timeline(reader.room.nr, TimelineDirection::Backward, from, stop, read).await?;
            let at_end = rows.len() < read as usize;
            let numbers: Vec<EventNr> = rows.iter().map(|(nr, _)| *nr).collect();
            let found = self.0.storage.get_events(&numbers).await?;
            events.extend(numbers.iter().filter_map(|nr| found.get(nr).cloned()).filter(&mut is_wanted));
            if at_end || events.len() > limit {
                let limited = events.len() > limit;
                events.truncate(limit);
                events.reverse();
                return Ok(Found { events, limited, lacks_state });
            }
            from = rows.last().map_or(from, |(_, place)| *place);
        }
        events.reverse();
        Ok(Found { events, limited: true, lacks_state })
    }

    async fn show_timeline(
        &self,
        reader: &Reader,
        events: &[Arc<StoredEvent>],
        limited: bool,
        upto: Position,
    ) -> Result<Timeline, Error> {
        let mut timeline = Timeline::new();
        if events.is_empty() && !limited {
            return Ok(timeline);
        }
        let first = events.first().and_then(|event| event.place);
        let before = first.map_or((upto, 0), |(anchor, step)| (anchor, step - 1));
        timeline.limited = limited;
        timeline.prev_batch = Some(TimelineToken(before).to_string());
        // Who has been told all since then puts together what relates to what. Client-Server API, "Aggregations of child events".
        let rendered = match limited {
            true => self.0.rooms.render_with_relations(reader, events, false).await?,
            false => self.0.rooms.render(reader, events, false).await?,
        };
        timeline.events = rendered.into_iter().map(Raw::from_json).collect();
        Ok(timeline)
    }

    pub(super) async fn add_room_account_data(
        &self,
        answer: &Answer<'_>,
        shown: &mut JoinedRoom,
        row: &RoomMembership,
        changed: &[storage::AccountDataRow],
    ) -> Result<(), Error> {
        let filter = &answer.request.filter.room.account_data;
        let is_new = answer.since.is_some_and(|since| row.position > since);
        let all;
        let rows = if is_new {
            all = self.0.storage.list_account_data_of_room(row.user_nr, row.room_nr).await?;
            &all
        } else {
            changed
        };
        for data in rows.iter().filter(|data| data.room_nr == row.room_nr && matches_type(filter, &data.event_type)) {
            shown.account_data.events.extend(raw(account_data_event(&data.event_type, &data.content)));
        }
        Ok(())
    }
}
