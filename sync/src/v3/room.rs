//! One room in an answer.

use std::sync::Arc;

use accounts::Requester;
use model::{EventNr, Position, limits};
use rooms::{Reader, TimelineToken};
use ruma::{
    api::client::{
        filter::EventFormat,
        sync::sync_events::v3::{InviteState, InvitedRoom, JoinedRoom, KnockState, KnockedRoom, LeftRoom, Timeline},
    },
    events::AnyRoomAccountDataEvent,
    serde::Raw,
};
use storage::{AccountDataRow, RoomMembership, RoomRow, StoredEvent, TimelineDirection};

use super::{
    Answer,
    ahead::rows_read,
    filter::{matches, matches_part},
    raw,
    state::Span,
};
use crate::{Error, Sync, account_data::account_data_event, news::News, stay::Stay};

/// Events of a room in an answer when the client names no number.
const TIMELINE_DEFAULT: u32 = 10;
/// How many pages of a room's timeline are read for one answer to a filter that fits little.
const PAGES_MAX: usize = 5;

/// The events of a room between two positions.
struct Found {
    events: Vec<Arc<StoredEvent>>,
    /// Whether there are more before them.
    limited: bool,
    /// Whether the filter kept a state event back.
    lacks_state: bool,
}

/// How many events of a room an answer has at most.
pub(super) fn timeline_limit(answer: &Answer<'_>) -> usize {
    let limit = answer.request.filter.room.timeline.limit;
    let limit = limit.map_or(TIMELINE_DEFAULT, |limit| u32::try_from(limit).unwrap_or(u32::MAX));
    limit.min(limits::TIMELINE_EVENTS_MAX as u32) as usize
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
        let reader = reader.with_transactions(answer.ahead.transactions.clone());
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
            is_left: false,
        };
        let mut shown = JoinedRoom::new();
        let state = self.room_state(answer, room, &span, &events).await?;
        if since.is_none() || state.has_summary {
            shown.summary = state.summary;
        }
        shown.timeline = self.show_timeline(answer, &reader, &events, found.limited || has_hidden, answer.upto).await?;
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
            let span = Span { base: since, upto: left, has_more: true, is_left: true };
            let state = self.room_state(answer, room, &span, &events).await?;
            shown.state = self.show_state(answer, &reader, state.events).await?;
        }
        shown.timeline = self.show_timeline(answer, &reader, &events, found.limited, row.position).await?;
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
        let limit = timeline_limit(answer);
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
        let read = rows_read(limit);
        // Asked for together with those of the other rooms.
        let mut ahead =
            answer.ahead.timelines.get(&reader.room.nr).filter(|_| since == answer.since && upto == answer.upto);
        for _ in 0..PAGES_MAX {
            let rows = match ahead.take() {
                Some(rows) => rows.clone(),
                None => {
                    let backward = TimelineDirection::Backward;
                    self.0.storage.list_timeline(reader.room.nr, backward, from, stop, read).await?
                }
            };
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

    /// Events in the form that the client asks for. Client-Server API, "Filtering", `event_format` and `event_fields`.
    pub(super) async fn show_events<T>(
        &self,
        answer: &Answer<'_>,
        reader: &Reader,
        events: &[Arc<StoredEvent>],
        with_relations: bool,
    ) -> Result<Vec<Raw<T>>, Error> {
        let shown = match answer.request.filter.event_format {
            EventFormat::Federation => self.0.rooms.pdus(reader, events).await?,
            // Who has been told all since then puts together what relates to what. Client-Server API, "Aggregations of child events".
            _ if with_relations => self.0.rooms.render_with_relations(reader, events, false).await?,
            _ => self.0.rooms.render(reader, events, false).await?,
        };
        Ok(match &answer.fields {
            Some(fields) => shown.into_iter().map(|event| Raw::from_json(fields.pick(event))).collect(),
            None => shown.into_iter().map(Raw::from_json).collect(),
        })
    }

    async fn show_timeline(
        &self,
        answer: &Answer<'_>,
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
        timeline.events = self.show_events(answer, reader, events, limited).await?;
        Ok(timeline)
    }

    pub(super) async fn add_room_account_data(
        &self,
        answer: &Answer<'_>,
        shown: &mut JoinedRoom,
        (row, room): (&RoomMembership, &RoomRow),
        changed: &[AccountDataRow],
    ) -> Result<(), Error> {
        let is_new = answer.since.is_some_and(|since| row.position > since);
        let all;
        let rows = if is_new {
            all = self.0.storage.list_account_data_of_room(row.user_nr, row.room_nr).await?;
            &all
        } else {
            changed
        };
        shown.account_data.events = room_account_data(answer, room, rows);
        Ok(())
    }
}

/// What of some account data belongs to a room, as events.
pub(super) fn room_account_data(
    answer: &Answer<'_>,
    room: &RoomRow,
    rows: &[AccountDataRow],
) -> Vec<Raw<AnyRoomAccountDataEvent>> {
    let filter = &answer.request.filter.room.account_data;
    let of_room = rows.iter().filter(|data| data.room_nr == room.nr);
    let wanted = of_room.filter(|data| matches_part(filter, &room.id, &data.event_type));
    wanted.filter_map(|data| raw(account_data_event(&data.event_type, &data.content))).collect()
}
