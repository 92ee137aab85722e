//! The state of a room in an answer, and its summary.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use model::{EventNr, NodeNr, Position, RoomNr, UserNr};
use rooms::Reader;
use ruma::{
    OwnedUserId, UInt,
    api::client::{
        filter::LazyLoadOptions,
        sync::sync_events::v3::{RoomSummary, State, StateEvents},
    },
};
use storage::{RoomRow, StateKey, StoredEvent};

use super::{Answer, filter::matches};
use crate::{Error, Sync, told_members::NewMembers};

/// State that the summary of a room follows.
const SUMMARIZED: &[&str] = &["m.room.member", "m.room.name", "m.room.canonical_alias"];

/// What an answer tells of a room's state.
pub(super) struct Span {
    /// The position whose state the client knows; nothing when it knows none.
    pub(super) base: Option<Position>,
    /// The position at which the answer ends.
    pub(super) upto: Position,
    /// Whether something has happened to the state that the timeline does not tell.
    pub(super) has_more: bool,
    /// Whether the user is out of the room: then the answer has no summary, which would tell of now.
    pub(super) is_left: bool,
}

/// The state of a room in an answer.
pub(super) struct RoomState {
    pub(super) events: Vec<Arc<StoredEvent>>,
    /// Whether the summary may have changed; it is empty otherwise.
    pub(super) has_summary: bool,
    pub(super) summary: RoomSummary,
}

impl Sync {
    /// The state that the client lacks: at the start of the timeline, with what the timeline does not tell, or, if it asks for that, at
    /// its end.
    pub(super) async fn room_state(
        &self,
        answer: &Answer<'_>,
        room: &RoomRow,
        span: &Span,
        timeline: &[Arc<StoredEvent>],
    ) -> Result<RoomState, Error> {
        let storage = &self.0.storage;
        let filter = &answer.request.filter.room.state;
        let is_after = answer.request.use_state_after;
        let is_lazy = matches!(filter.lazy_load_options, LazyLoadOptions::Enabled { .. });
        let mut changes: BTreeMap<StateKey, EventNr> = BTreeMap::new();
        let mut is_whole_now = false;
        if span.has_more || (is_after && timeline.iter().any(|event| event.is_state())) {
            is_whole_now = match span.base {
                Some(since) if is_lazy => storage.has_become_whole(room.nr, since, span.upto).await?,
                _ => false,
            };
            changes = self.changes(answer, room, span, timeline, is_whole_now).await?;
        }
        let is_quiet = changes.is_empty() && !is_whole_now && !timeline.iter().any(|event| event.is_state());
        if is_quiet && !is_lazy && span.base.is_some() {
            return Ok(RoomState { events: Vec::new(), has_summary: false, summary: RoomSummary::new() });
        }
        let mut summarized = BTreeSet::new();
        for event_type in SUMMARIZED.iter().filter(|_| !is_quiet) {
            summarized.insert(storage.type_nr(event_type).await?);
        }
        let member_nr = storage.type_nr("m.room.member").await?;
        let mut has_summary = is_whole_now || changes.keys().any(|key| summarized.contains(&key.0));
        for event in timeline.iter().filter(|event| event.is_state() && summarized.contains(&event.type_nr)) {
            has_summary = has_summary || event.type_nr != member_nr || self.changes_membership(event).await?;
        }
        let (summary, heroes) = match (has_summary || span.base.is_none()) && !span.is_left {
            true => self.summary(answer, room.nr).await?,
            false => Default::default(),
        };
        if is_lazy {
            // Client-Server API, "Lazy-loading room members": those who speak, the heroes, the user; and all that changed in a gap.
            let mut needed: BTreeSet<&str> = timeline.iter().map(|event| event.pdu.sender.as_str()).collect();
            needed.extend(heroes.iter().map(|user_id| user_id.as_str()));
            if span.base.is_none() {
                needed.insert(answer.requester.user_id.as_str());
                changes.retain(|key, _| key.0 != member_nr);
            }
            let end = match timeline.last() {
                _ if needed.is_empty() => NodeNr(0),
                // The timeline tells all: its last event has the current state, and no table need be asked.
                Some(last) if !span.has_more => last.state,
                _ => self.end_of_state(answer, room, span, timeline, is_after).await?,
            };
            for user_id in needed {
                let Some(key) = storage.find_state_key("m.room.member", user_id).await? else { continue };
                // Before a change that the timeline tells, they were what it replaced.
                let is_of_key = |event: &&Arc<StoredEvent>| (event.type_nr, event.state_key_nr) == (key.0, Some(key.1));
                let nr = match timeline.iter().find(is_of_key).filter(|_| !is_after) {
                    Some(change) => change.replaces,
                    None => storage.get_state_event(room.nr, end, key).await?,
                };
                let Some(nr) = nr else { continue };
                let is_told = || answer.told.as_ref().is_some_and(|told| told.knows(room.nr, key.1, nr));
                // Who comes into the room, or wants all of it, begins anew.
                if span.base.is_none() || !is_told() {
                    changes.entry(key).or_insert(nr);
                }
            }
        }
        if !is_after {
            changes.retain(|_, nr| !timeline.iter().any(|event| event.nr == *nr));
        }
        let numbers: Vec<EventNr> = changes.into_values().collect();
        let found = if numbers.is_empty() { Default::default() } else { storage.get_events(&numbers).await? };
        let mut events: Vec<_> = found.into_values().filter(|event| matches(filter, event)).collect();
        events.sort_unstable_by_key(|event| event.nr);
        if let Some(told) = &answer.told {
            let shown = events.iter().chain(timeline).filter(|event| event.type_nr == member_nr);
            let members = shown.filter_map(|event| Some((event.state_key_nr?, event.nr))).collect();
            told.add(room.nr, NewMembers { starts_anew: span.base.is_none(), members });
        }
        Ok(RoomState { events, has_summary, summary })
    }

    /// Whether somebody came or went with a member event: it may be about their name only.
    async fn changes_membership(&self, event: &StoredEvent) -> Result<bool, Error> {
        #[derive(serde::Deserialize, PartialEq)]
        struct Content {
            membership: String,
        }
        let content = |event: &StoredEvent| serde_json::from_str::<Content>(event.pdu.content.get()).ok();
        let Some(old) = event.replaces else { return Ok(true) };
        let old = self.0.storage.get_event(old).await?;
        Ok(old.and_then(|old| content(&old)) != content(event))
    }

    async fn changes(
        &self,
        answer: &Answer<'_>,
        room: &RoomRow,
        span: &Span,
        timeline: &[Arc<StoredEvent>],
        without_new_members: bool,
    ) -> Result<BTreeMap<StateKey, EventNr>, Error> {
        let storage = &self.0.storage;
        let member = storage.type_nr("m.room.member").await?;
        // Members who were in the room and are known now have not come: who wants them as they are needed gets them so.
        let is_told = |key: &StateKey, old: &Option<EventNr>| !without_new_members || key.0 != member || old.is_some();
        let is_after = answer.request.use_state_after;
        let base = match span.base {
            Some(since) => storage.get_state_at(room.nr, since).await?,
            None => NodeNr(0),
        };
        let end = self.state_at(answer, room.nr, span.upto).await?;
        let start = if is_after { end } else { self.end_of_state(answer, room, span, timeline, false).await? };
        let before = storage.diff_state(room.nr, base, start).await?;
        let mut changes: BTreeMap<_, _> = before
            .into_iter()
            .filter(|(key, old, _)| is_told(key, old))
            .filter_map(|(key, _, event)| Some((key, event?)))
            .collect();
        // What happened to the state in the time of the timeline without being in it.
        let meanwhile = storage.diff_state(room.nr, start, end).await?.into_iter();
        let meanwhile = meanwhile.filter(|(key, old, _)| is_told(key, old));
        let meanwhile = meanwhile.filter_map(|(key, _, event)| Some((key, event?)));
        changes.extend(meanwhile.filter(|(_, nr)| !timeline.iter().any(|event| event.nr == *nr)));
        Ok(changes)
    }

    /// The state before the first event of the timeline, or that at the end of the answer.
    async fn end_of_state(
        &self,
        answer: &Answer<'_>,
        room: &RoomRow,
        span: &Span,
        timeline: &[Arc<StoredEvent>],
        is_after: bool,
    ) -> Result<NodeNr, Error> {
        let first = timeline.first().and_then(|event| event.position).filter(|_| !is_after);
        // Of who left and was banned later, the timeline may go beyond what they see of the state.
        let at = first.map_or(span.upto, |first| Position(first.0 - 1)).min(span.upto);
        self.state_at(answer, room.nr, at).await
    }

    async fn state_at(&self, answer: &Answer<'_>, room_nr: RoomNr, position: Position) -> Result<NodeNr, Error> {
        match answer.ahead.states.get(&(room_nr, position)) {
            Some(state) => Ok(*state),
            None => Ok(self.0.storage.get_state_at(room_nr, position).await?),
        }
    }

    pub(super) async fn show_state(
        &self,
        answer: &Answer<'_>,
        reader: &Reader,
        events: Vec<Arc<StoredEvent>>,
    ) -> Result<State, Error> {
        let mut state = StateEvents::new();
        state.events = self.show_events(answer, reader, &events, false).await?;
        Ok(if answer.request.use_state_after { State::After(state) } else { State::Before(state) })
    }

    /// Client-Server API, "RoomSummary".
    async fn summary(&self, answer: &Answer<'_>, room_nr: RoomNr) -> Result<(RoomSummary, Vec<OwnedUserId>), Error> {
        let storage = &self.0.storage;
        let mut shown = RoomSummary::new();
        let known = match answer.ahead.summaries.get(&room_nr) {
            Some(known) => Some(known.clone()),
            None => storage.get_summaries(&[room_nr]).await?.remove(&room_nr),
        };
        let Some((summary, joined, invited)) = known else { return Ok((shown, Vec::new())) };
        shown.joined_member_count = Some(UInt::try_from(joined).unwrap_or(UInt::MAX));
        shown.invited_member_count = Some(UInt::try_from(invited).unwrap_or(UInt::MAX));
        if summary.name.is_some() || summary.canonical_alias.is_some() {
            return Ok((shown, Vec::new()));
        }
        let heroes = match answer.ahead.heroes.get(&room_nr) {
            Some(known) => known.clone(),
            None => self.heroes(answer.requester.user_nr, &[room_nr]).await?.remove(&room_nr).unwrap_or_default(),
        };
        let heroes: Vec<UserNr> = heroes.into_iter().map(|(user_nr, _)| user_nr).collect();
        let mut names = storage.user_ids(&heroes).await?;
        let heroes: Vec<OwnedUserId> = heroes.iter().filter_map(|nr| names.remove(nr)).collect();
        shown.heroes.clone_from(&heroes);
        Ok((shown, heroes))
    }
}
