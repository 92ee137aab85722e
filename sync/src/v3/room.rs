//! One room in an answer.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use accounts::Requester;
use model::{ClientEvent, EventNr, Membership, NodeNr, Position, RoomNr, UserNr, limits};
use rooms::{Reader, TimelineToken};
use ruma::{
    UInt,
    api::client::{
        filter::LazyLoadOptions,
        sync::sync_events::v3::{
            InviteState, InvitedRoom, JoinedRoom, KnockState, KnockedRoom, LeftRoom, RoomSummary, State, StateEvents,
            Timeline,
        },
    },
    serde::Raw,
};
use serde_json::{json, value::RawValue};
use storage::{RoomMembership, RoomRow, StoredEvent, TimelineDirection};

use super::{
    Answer, account_data_event,
    filter::{matches, matches_type},
    news::News,
    raw,
};
use crate::{Error, Sync};

/// Events of a room in an answer when the client names no number.
const TIMELINE_DEFAULT: u32 = 10;
/// Members after whom a room without a name is called. Client-Server API, "Calculating the display name for a room".
const HEROES: u32 = 5;

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
}

impl Sync {
    pub(super) async fn joined_room(
        &self,
        answer: &Answer<'_>,
        news: &News,
        row: &RoomMembership,
        room: &RoomRow,
        newcomers: &mut BTreeSet<UserNr>,
    ) -> Result<JoinedRoom, Error> {
        let since = match answer.since {
            Some(since) if row.position <= since || self.was_joined_at(row, since).await? => Some(since),
            _ => None,
        };
        let is_new = since.is_none();
        let reader = self.reader(answer.requester, row, room).await?;
        let known = since.and(news.events.as_ref()).map(|events| events.get(&room.nr).cloned().unwrap_or_default());
        let found = self.timeline(answer, room.nr, since, answer.upto, known).await?;
        let limited = found.limited;
        let events = if is_new { self.0.rooms.visible(&reader, found.events).await? } else { found.events };
        let state = self
            .state(
                answer,
                room,
                since.filter(|_| !answer.request.full_state),
                &events,
                answer.upto,
                limited || is_new || answer.request.full_state,
            )
            .await?;
        let mut has_members = is_new;
        for event in events.iter().filter(|event| event.pdu.event_type.to_string() == "m.room.member") {
            has_members = true;
            let user_id = event.pdu.state_key.as_deref().and_then(|key| ruma::UserId::parse(key).ok());
            if let Some(user_id) = user_id {
                newcomers.insert(self.0.storage.user_nr(&user_id).await?);
            }
        }
        if is_new && answer.since.is_some() {
            let members = self.0.storage.list_members_of_kind(room.nr, Membership::Join, 1_000).await?;
            newcomers.extend(members.into_iter().map(|member| member.user_nr));
        }
        let mut shown = JoinedRoom::new();
        shown.timeline = self.show_timeline(&reader, &events, limited, answer.upto).await?;
        shown.state = self.show_state(answer, &reader, state).await?;
        if has_members {
            shown.summary = self.summary(answer.requester, room.nr).await?;
        }
        Ok(shown)
    }

    pub(super) async fn left_room(
        &self,
        answer: &Answer<'_>,
        row: &RoomMembership,
        room: &RoomRow,
    ) -> Result<Option<LeftRoom>, Error> {
        let since = match answer.since {
            Some(since) if self.was_joined_at(row, since).await? => Some(since),
            _ => None,
        };
        let reader = self.reader(answer.requester, row, room).await?;
        let found = self.timeline(answer, room.nr, since, row.position, None).await?;
        let events = self.0.rooms.visible(&reader, found.events).await?;
        let mut shown = LeftRoom::new();
        let was_in = self.0.storage.list_membership_log(room.nr, row.user_nr).await?;
        if was_in.iter().any(|(_, membership)| *membership == Membership::Join) {
            let state =
                self.state(answer, room, since, &events, row.position, found.limited || since.is_none()).await?;
            shown.state = self.show_state(answer, &reader, state).await?;
        }
        shown.timeline = self.show_timeline(&reader, &events, found.limited, row.position).await?;
        Ok(Some(shown))
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
    async fn stripped_state(
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

    async fn reader(&self, requester: &Requester, row: &RoomMembership, room: &RoomRow) -> Result<Reader, Error> {
        Ok(self.0.rooms.reader_of(requester, Some(*row), Arc::new(room.clone())).await?)
    }

    /// A member's event changes with their name, too: whether they were in the room at a position already.
    async fn was_joined_at(&self, row: &RoomMembership, position: Position) -> Result<bool, Error> {
        let log = self.0.storage.list_membership_log(row.room_nr, row.user_nr).await?;
        let last = log.iter().take_while(|(at, _)| *at <= position).last();
        Ok(last.is_some_and(|(_, membership)| *membership == Membership::Join))
    }

    /// The newest events after `since` up to `upto` that the filter lets through, oldest first.
    async fn timeline(
        &self,
        answer: &Answer<'_>,
        room_nr: RoomNr,
        since: Option<Position>,
        upto: Position,
        known: Option<Vec<Arc<StoredEvent>>>,
    ) -> Result<Found, Error> {
        let filter = &answer.request.filter.room.timeline;
        let limit = filter.limit.map_or(TIMELINE_DEFAULT, |limit| u32::try_from(limit).unwrap_or(u32::MAX));
        let limit = limit.min(limits::TIMELINE_EVENTS_MAX as u32) as usize;
        if let Some(mut events) = known {
            events.retain(|event| event.position.is_some_and(|position| position <= upto) && matches(filter, event));
            let limited = events.len() > limit;
            return Ok(Found { events: events.split_off(events.len().saturating_sub(limit)), limited });
        }
        let stop = since.map_or((Position(i64::MIN), 0), |since| (since, i64::MAX));
        let mut from = (upto, i64::MAX);
        let mut events = Vec::new();
        let read = (limit + 1).max(20) as u32;
        // A filter that fits little is not followed to the beginning of the room in one answer.
        for _ in 0..5 {
            let rows = self.0.storage.list_timeline(room_nr, TimelineDirection::Backward, from, stop, read).await?;
            let at_end = rows.len() < read as usize;
            let numbers: Vec<EventNr> = rows.iter().map(|(nr, _)| *nr).collect();
            let found = self.0.storage.get_events(&numbers).await?;
            events
                .extend(numbers.iter().filter_map(|nr| found.get(nr).cloned()).filter(|event| matches(filter, event)));
            if at_end || events.len() > limit {
                let limited = events.len() > limit;
                events.truncate(limit);
                events.reverse();
                return Ok(Found { events, limited });
            }
            from = rows.last().map_or(from, |(_, place)| *place);
        }
        events.reverse();
        Ok(Found { events, limited: true })
    }

    /// The state that the client lacks: at the start of the timeline, or, if it asks for that, at its end.
    async fn state(
        &self,
        answer: &Answer<'_>,
        room: &RoomRow,
        since: Option<Position>,
        timeline: &[Arc<StoredEvent>],
        upto: Position,
        has_gap: bool,
    ) -> Result<Vec<Arc<StoredEvent>>, Error> {
        let storage = &self.0.storage;
        let filter = &answer.request.filter.room.state;
        let first = timeline.first().and_then(|event| event.position);
        let needs_members = matches!(filter.lazy_load_options, LazyLoadOptions::Enabled { .. });
        if !has_gap && !needs_members && !answer.request.use_state_after {
            return Ok(Vec::new());
        }
        let end = match first {
            Some(first) if !answer.request.use_state_after => {
                storage.get_state_at(room.nr, Position(first.0 - 1)).await?
            }
            _ => storage.get_state_at(room.nr, upto).await?,
        };
        let mut numbers: Vec<EventNr> = Vec::new();
        if has_gap || answer.request.use_state_after {
            let start = match since {
                Some(since) => storage.get_state_at(room.nr, since).await?,
                None => NodeNr(0),
            };
            let changes = storage.diff_state(room.nr, start, end).await?;
            numbers.extend(changes.into_iter().filter_map(|(_, _, new)| new));
        }
        let mut events = storage.get_events(&numbers).await?;
        if needs_members {
            // Of the members only those who speak, and the user. Client-Server API, "Lazy-loading room members".
            let mut speakers: BTreeSet<String> = timeline.iter().map(|event| event.pdu.sender.to_string()).collect();
            if has_gap {
                speakers.insert(answer.requester.user_id.to_string());
            }
            events.retain(|_, event| {
                event.pdu.event_type.to_string() != "m.room.member"
                    || event.pdu.state_key.as_ref().is_some_and(|key| speakers.contains(key))
            });
            let mut missing = Vec::new();
            for speaker in &speakers {
                if let Some(key) = storage.find_state_key("m.room.member", speaker).await? {
                    missing.extend(storage.get_state_event(room.nr, end, key).await?);
                }
            }
            missing.retain(|nr| !events.contains_key(nr));
            events.extend(storage.get_events(&missing).await?);
        }
        let mut events: Vec<_> = events.into_values().filter(|event| matches(filter, event)).collect();
        if !answer.request.use_state_after {
            events.retain(|event| !timeline.iter().any(|shown| shown.nr == event.nr));
        }
        events.sort_unstable_by_key(|event| event.nr);
        Ok(events)
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
        timeline.events = self.0.rooms.render(reader, events, false).await?.into_iter().map(Raw::from_json).collect();
        Ok(timeline)
    }

    async fn show_state(
        &self,
        answer: &Answer<'_>,
        reader: &Reader,
        events: Vec<Arc<StoredEvent>>,
    ) -> Result<State, Error> {
        let mut state = StateEvents::new();
        state.events = self.0.rooms.render(reader, &events, false).await?.into_iter().map(Raw::from_json).collect();
        Ok(if answer.request.use_state_after { State::After(state) } else { State::Before(state) })
    }

    /// Client-Server API, "RoomSummary".
    async fn summary(&self, requester: &Requester, room_nr: RoomNr) -> Result<RoomSummary, Error> {
        let storage = &self.0.storage;
        let mut shown = RoomSummary::new();
        let Some((summary, joined, invited)) = storage.get_summaries(&[room_nr]).await?.remove(&room_nr) else {
            return Ok(shown);
        };
        shown.joined_member_count = Some(UInt::try_from(joined).unwrap_or(UInt::MAX));
        shown.invited_member_count = Some(UInt::try_from(invited).unwrap_or(UInt::MAX));
        if summary.name.is_none() && summary.canonical_alias.is_none() {
            let mut heroes = Vec::new();
            for kinds in [[Membership::Join, Membership::Invite], [Membership::Leave, Membership::Ban]] {
                for membership in kinds {
                    let members = storage.list_members_of_kind(room_nr, membership, HEROES + 1).await?;
                    heroes.extend(members.into_iter().map(|row| row.user_nr).filter(|nr| *nr != requester.user_nr));
                }
                if !heroes.is_empty() {
                    break;
                }
            }
            heroes.truncate(HEROES as usize);
            let mut names = storage.user_ids(&heroes).await?;
            shown.heroes = heroes.iter().filter_map(|nr| names.remove(nr)).collect();
        }
        Ok(shown)
    }

    /// The receipts of rooms as events: new ones, and all of a room that is new to the client.
    pub(super) async fn receipts(
        &self,
        answer: &Answer<'_>,
        joined: &[RoomNr],
        rows: &[(&RoomMembership, &RoomRow)],
    ) -> Result<HashMap<RoomNr, String>, Error> {
        let storage = &self.0.storage;
        let since = answer.since.unwrap_or(Position(0));
        let is_new = |room: &RoomNr| rows.iter().any(|(row, _)| row.room_nr == *room && row.position > since);
        let (new, old): (Vec<RoomNr>, Vec<RoomNr>) = joined.iter().copied().partition(is_new);
        let mut found = HashMap::new();
        for (rooms, after) in [(new, Position(0)), (old, since)] {
            if !rooms.is_empty() {
                found.extend(storage.list_receipts(&rooms, after, answer.upto).await?);
            }
        }
        let users: Vec<UserNr> = found.values().flatten().map(|receipt| receipt.user_nr).collect();
        let names = storage.user_ids(&users).await?;
        let mut shown = HashMap::new();
        for (room, receipts) in found {
            type ByUser = BTreeMap<String, serde_json::Value>;
            let mut content: BTreeMap<String, BTreeMap<String, ByUser>> = BTreeMap::new();
            for receipt in receipts {
                // A private receipt is its owner's alone. Client-Server API, "Private read receipts".
                if receipt.receipt_type == "m.read.private" && receipt.user_nr != answer.requester.user_nr {
                    continue;
                }
                let Some(user_id) = names.get(&receipt.user_nr) else { continue };
                let mut data = json!({"ts": receipt.at_ms});
                if !receipt.thread.is_empty() {
                    data["thread_id"] = json!(receipt.thread);
                }
                let by_type = content.entry(receipt.event_id).or_default();
                by_type.entry(receipt.receipt_type).or_default().insert(user_id.to_string(), data);
            }
            if !content.is_empty() {
                shown.insert(room, json!({"type": "m.receipt", "content": content}).to_string());
            }
        }
        Ok(shown)
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
