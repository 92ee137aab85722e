//! The rooms of an answer. MSC4186, "Room results".
//!
//! All rooms of an answer go through the same steps together, so that each step asks the database once: their timelines, their
//! states, the events of both. A room whose news are in memory asks nothing.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use model::{EventNr, Membership, NodeNr, Position, RoomNr, StateKeyNr, TypeNr, UserNr};
use rooms::{Counts, Reader, TimelineToken};
use ruma::{OwnedRoomId, events::TimelineEventType};
use serde::Deserialize;
use serde_json::value::RawValue;
use storage::{StateKey, StateLook, StoredEvent, TimelineDirection};

use super::{
    Look,
    connection::{Sent, SentRoom},
    lists::Combination,
    required_state::Wanted,
    response::{Hero, Room},
};
use crate::{
    Error, Sync,
    room_facts::{KnownSummary, ListedRoom},
    stay::Stay,
    told_members::NewMembers,
};

/// Most pieces of state in one answer, but for the last room.
const STATE_MAX: usize = 20_000;
/// How many rooms of an answer are put together at once.
const ROOMS_AT_ONCE: usize = 8;

/// A room of which there may be something to tell.
pub(super) struct Task<'a> {
    pub(super) listed: &'a ListedRoom,
    /// What is wanted of it.
    pub(super) combination: &'a Combination<'a>,
    /// What the client has been sent of it.
    pub(super) sent: Option<&'a SentRoom>,
    /// The position up to which the client has it; nothing when it is to get all of it.
    pub(super) from: Option<Position>,
    /// What is wanted of its state, and the place of that in the connection's state.
    pub(super) config: usize,
    pub(super) wanted: Arc<Wanted>,
    /// What was wanted before, if that is something else.
    pub(super) wanted_before: Option<Arc<Wanted>>,
}

/// What an answer tells of a room, and what the client has then.
pub(super) struct Told {
    pub(super) room_nr: RoomNr,
    /// Nothing when there was nothing to tell.
    pub(super) shown: Option<(OwnedRoomId, Room)>,
    /// The events that it tells of.
    pub(super) timeline: Vec<Arc<StoredEvent>>,
    pub(super) sent: SentRoom,
    pub(super) members: Option<NewMembers>,
}

/// A room in the making.
struct Work<'a> {
    task: Task<'a>,
    reader: Reader,
    /// The events of the timeline, oldest first.
    timeline: Vec<Arc<StoredEvent>>,
    /// Whether there are events before them that the client has not seen.
    limited: bool,
    /// Whether the timeline reaches back behind what the client had.
    expanded: bool,
    /// The newest events that the client has afterwards, without a hole, at least.
    depth: u32,
    /// Whether something may have happened to the state that the timeline does not tell.
    has_gap: bool,
    /// The state at the end.
    end: NodeNr,
    /// The state to be told.
    state: BTreeMap<StateKey, EventNr>,
    deleted: Vec<StateKey>,
    touched: Touched,
    members: NewMembers,
}

/// What of a room's summary may have changed.
#[derive(Clone, Copy, Debug, Default)]
struct Touched {
    name: bool,
    avatar: bool,
    members: bool,
}

/// The numbers of the words that rooms are told by, for looking into states.
#[derive(Clone, Copy, Default)]
struct Words {
    name: Option<TypeNr>,
    avatar: Option<TypeNr>,
    member: Option<TypeNr>,
    /// The member event of who asks.
    own: Option<StateKey>,
    visibility: Option<StateKey>,
}

impl Touched {
    /// Notes that a piece of state changed, as `words` tells it.
    fn note(&mut self, key: StateKey, words: &Words) {
        self.name |= Some(key.0) == words.name;
        self.avatar |= Some(key.0) == words.avatar;
        self.members |= Some(key.0) == words.member;
    }

    /// The same of an event. Asks nobody.
    fn note_event(&mut self, event: &StoredEvent) {
        self.name |= event.pdu.event_type == TimelineEventType::RoomName;
        self.avatar |= event.pdu.event_type == TimelineEventType::RoomAvatar;
        self.members |= is_member(event);
    }
}

fn is_member(event: &StoredEvent) -> bool {
    event.pdu.event_type == TimelineEventType::RoomMember
}

impl Task<'_> {
    fn room_nr(&self) -> RoomNr {
        self.listed.row.room_nr
    }

    fn is_joined(&self) -> bool {
        self.listed.row.membership == Membership::Join
    }

    /// Whether the client asks for more events than it is known to have.
    fn is_grown(&self) -> bool {
        self.from.is_some() && self.sent.is_some_and(|sent| self.combination.timeline_limit > sent.timeline_limit)
    }

    /// Whether all that is new of its timeline is in memory.
    fn is_known(&self, look: &Look<'_>) -> bool {
        let is_live = self.sent.is_some_and(|sent| sent.stream == Sent::Live);
        look.news.events.is_some() && is_live && self.from.is_some() && self.is_joined() && !self.is_grown()
    }

    /// Where its timeline ends for who asks.
    fn end(&self, upto: Position) -> Position {
        if self.is_joined() { upto } else { self.listed.row.position.min(upto) }
    }
}

impl Sync {
    /// What there is to tell of rooms.
    pub(super) async fn rooms(&self, look: &Look<'_>, tasks: Vec<Task<'_>>) -> Result<Vec<Told>, Error> {
        let (stripped, whole): (Vec<_>, Vec<_>) = tasks
            .into_iter()
            .partition(|task| matches!(task.listed.row.membership, Membership::Invite | Membership::Knock));
        let mut told = Vec::new();
        for task in stripped {
            told.push(self.stripped_room(look, &task).await?);
        }
        if whole.is_empty() {
            return Ok(told);
        }
        // The words are asked for only when somebody has to look into a state.
        let is_told = |task: &Task<'_>| task.is_known(look) && !look.news.is_resolved(task.room_nr());
        let mut words = if whole.iter().all(is_told) { Words::default() } else { self.words(look).await? };
        let mut works = self.with_timelines(look, whole, &words).await?;
        if works.iter().any(|work| work.has_gap) {
            words = self.words(look).await?;
        }
        self.find_states(look, &mut works, &words).await?;
        self.find_lazy_members(look, &mut works).await?;
        // One query for the events of all states; they are in memory when each room asks for its own.
        let mut numbers: Vec<EventNr> = works.iter().flat_map(|work| work.state.values().copied()).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let events = &if numbers.is_empty() { HashMap::new() } else { self.0.storage.get_events(&numbers).await? };
        let with_summary = works.iter().filter(|work| work.needs_summary()).map(|work| &work.task.listed.facts);
        let summaries = &self.summaries(with_summary.collect()).await?;
        let heroes = &mut self.heroes_of(look, &works, summaries).await?;
        let counts = &self.counts(look, &works).await?;
        let mut shown = Vec::with_capacity(works.len());
        for work in works {
            let summary = summaries.get(&work.task.room_nr()).map(|summary| &**summary);
            let counts = counts.get(&work.task.room_nr()).copied();
            let heroes = heroes.remove(&work.task.room_nr());
            shown.push(self.whole_room(look, work, events, summary, (heroes, counts)));
        }
        // Some at a time: each waits for the database most of its time, if it has to ask at all.
        let shown: Vec<Told> = stream::iter(shown).buffered(ROOMS_AT_ONCE).try_collect().await?;
        told.extend(shown);
        Ok(told)
    }

    /// After whom rooms are called that have no name, where that may have changed. MSC4186, "`heroes`".
    async fn heroes_of(
        &self,
        look: &Look<'_>,
        works: &[Work<'_>],
        summaries: &HashMap<RoomNr, Arc<KnownSummary>>,
    ) -> Result<HashMap<RoomNr, Vec<Hero>>, Error> {
        let is_called_after_some = |work: &&Work<'_>| {
            let summary = summaries.get(&work.task.room_nr());
            let Touched { name, members, .. } = work.touched;
            (work.task.from.is_none() || name || members) && summary.is_some_and(|summary| summary.shown.name.is_none())
        };
        let rooms = works.iter().filter(|work| work.needs_summary()).filter(is_called_after_some);
        let found =
            self.heroes(look.requester.user_nr, &rooms.map(|work| work.task.room_nr()).collect::<Vec<_>>()).await?;
        let (users, numbers): (Vec<UserNr>, Vec<EventNr>) = found.values().flatten().copied().unzip();
        if users.is_empty() {
            return Ok(found.into_keys().map(|room_nr| (room_nr, Vec::new())).collect());
        }
        let names = self.0.storage.user_ids(&users).await?;
        let events = self.0.storage.get_events(&numbers).await?;
        let hero = |(user_nr, event_nr): (UserNr, EventNr)| {
            let event = events.get(&event_nr).cloned();
            let content = event.and_then(|event| content_of(&[event], "m.room.member")).unwrap_or_default();
            let user_id = names.get(&user_nr)?.clone();
            Some(Hero { user_id, display_name: content.displayname, avatar_url: content.avatar_url })
        };
        Ok(found
            .into_iter()
            .map(|(room_nr, heroes)| (room_nr, heroes.into_iter().filter_map(hero).collect()))
            .collect())
    }

    /// What the user has not read of the rooms, if the client is told.
    async fn counts(&self, look: &Look<'_>, works: &[Work<'_>]) -> Result<HashMap<RoomNr, Counts>, Error> {
        if !look.request.counts_unread {
            return Ok(HashMap::new());
        }
        let joined: Vec<RoomNr> =
            works.iter().filter(|work| work.task.is_joined()).map(|work| work.task.room_nr()).collect();
        let unread = self.unread(look.requester, &joined, look.upto).await?;
        Ok(unread.into_iter().map(|(room_nr, unread)| (room_nr, unread.total())).collect())
    }

    async fn words(&self, look: &Look<'_>) -> Result<Words, Error> {
        let types = ["m.room.name", "m.room.avatar", "m.room.member", "m.room.history_visibility"];
        let own = look.requester.user_id.as_str();
        let (types, keys) = self.0.storage.find_words(&types, &["", own]).await?;
        let nr = |word: &str| types.get(word).copied();
        Ok(Words {
            name: nr("m.room.name"),
            avatar: nr("m.room.avatar"),
            member: nr("m.room.member"),
            own: nr("m.room.member").zip(keys.get(own).copied()),
            visibility: nr("m.room.history_visibility").zip(keys.get("").copied()),
        })
    }

    /// A room that the user is invited to, or has asked to be let into: its stripped state. MSC4186, "Invite/knock/rejections".
    async fn stripped_room(&self, look: &Look<'_>, task: &Task<'_>) -> Result<Told, Error> {
        let ListedRoom { row, facts } = task.listed;
        let sent = SentRoom {
            stream: Sent::Live,
            timeline_limit: 0,
            config: task.config,
            is_dm: look.marks.direct.contains(&facts.room.id),
            ..sent_before(task)
        };
        let mut room = Room::new(row.membership, task.from.is_none());
        if task.from.is_none_or(|from| row.position > from) {
            room.stripped_state = Some(self.stripped_state(row, &facts.room, look.requester).await?);
            room.bump_stamp = Some(row.position);
        }
        if task.sent.map_or(sent.is_dm, |before| before.is_dm != sent.is_dm) {
            room.is_dm = Some(sent.is_dm);
        }
        room.lists = task.combination.lists.iter().map(|name| (*name).to_owned()).collect();
        let is_empty = room.is_empty();
        Ok(Told {
            room_nr: row.room_nr,
            shown: (!is_empty).then(|| (facts.room.id.clone(), room)),
            timeline: Vec::new(),
            sent,
            members: None,
        })
    }

    /// The first step: the events of the timelines.
    async fn with_timelines<'a>(
        &self,
        look: &Look<'_>,
        mut tasks: Vec<Task<'a>>,
        words: &Words,
    ) -> Result<Vec<Work<'a>>, Error> {
        for task in tasks.iter_mut().filter(|task| task.is_joined()) {
            // Who was away meanwhile, or came anew, gets all of the room.
            if task.from.is_some() && self.stay(task.from, &task.listed.row).await? != Stay::Joined {
                task.from = None;
            }
        }
        let rows = self.timeline_rows(look, tasks.iter().filter(|task| !task.is_known(look)).collect()).await?;
        let numbers: Vec<EventNr> = rows.values().flatten().map(|(nr, _)| *nr).collect();
        let events = if numbers.is_empty() { HashMap::new() } else { self.0.storage.get_events(&numbers).await? };
        let mut works = Vec::with_capacity(tasks.len());
        for mut task in tasks {
            let (room_nr, row) = (task.room_nr(), task.listed.row);
            let room = task.listed.facts.room.clone();
            let reader = self.0.rooms.reader_of(look.requester, Some(row), room).await?;
            // Who came and went meanwhile gets all that they saw.
            if let (Some(from), Some(left)) = (task.from, reader.left_at())
                && left > from
                && !self.was_joined_at(&row, task.from).await?
            {
                task.from = None;
            }
            // Newest first, and one more than is told.
            let newest: Vec<Arc<StoredEvent>> = if task.is_known(look) {
                let known = look.news.events.as_ref().and_then(|events| events.get(&room_nr));
                known.into_iter().flatten().rev().cloned().collect()
            } else {
                let rows = rows.get(&room_nr).into_iter().flatten();
                rows.filter_map(|(nr, _)| events.get(nr).cloned()).collect()
            };
            works.push(self.cut(look, task, reader, newest));
        }
        // The states that decide who sees what, of all rooms at once.
        let looks = works.iter().filter(|work| work.needs_check()).flat_map(|work| {
            let keys: Vec<StateKey> = [words.visibility, words.own].into_iter().flatten().collect();
            let states: BTreeSet<NodeNr> = work.timeline.iter().map(|event| event.state).collect();
            let room_nr = work.task.room_nr();
            states.into_iter().map(move |state| StateLook { room_nr, state, keys: Some(keys.clone()) })
        });
        self.0.storage.preload_states(looks.collect()).await?;
        for work in works.iter_mut().filter(|work| work.needs_check()) {
            let (visible, has_hidden) = self.visible_end(&work.reader, std::mem::take(&mut work.timeline)).await?;
            work.timeline = visible;
            work.limited |= has_hidden;
            work.has_gap |= has_hidden;
        }
        Ok(works)
    }

    /// The newest places in the timelines of rooms, newest first: one more than each asks for.
    async fn timeline_rows(
        &self,
        look: &Look<'_>,
        tasks: Vec<&Task<'_>>,
    ) -> Result<HashMap<RoomNr, Vec<(EventNr, (Position, i64))>>, Error> {
        let storage = &self.0.storage;
        let mut by_limit: BTreeMap<u32, Vec<RoomNr>> = BTreeMap::new();
        let mut rows = HashMap::new();
        for task in tasks {
            let limit = task.combination.timeline_limit + 1;
            if task.is_joined() {
                by_limit.entry(limit).or_default().push(task.room_nr());
            } else {
                let (from, stop) = ((task.end(look.upto), i64::MAX), (Position(i64::MIN), 0));
                let found =
                    storage.list_timeline(task.room_nr(), TimelineDirection::Backward, from, stop, limit).await?;
                rows.insert(task.room_nr(), found);
            }
        }
        for (limit, rooms) in by_limit {
            rows.extend(storage.list_timelines(&rooms, (Position(i64::MIN), look.upto), limit).await?);
        }
        Ok(rows)
    }

    /// Cuts the newest events of a room, newest first, to what is to be told of them. MSC4186, "Changes to `timeline_limit`".
    fn cut<'a>(&self, look: &Look<'_>, task: Task<'a>, reader: Reader, mut newest: Vec<Arc<StoredEvent>>) -> Work<'a> {
        let limit = task.combination.timeline_limit as usize;
        let end = task.end(look.upto);
        newest.retain(|event| event.place.is_some_and(|(anchor, _)| anchor <= end));
        let is_new = |event: &Arc<StoredEvent>| {
            task.from.is_none_or(|from| event.place.is_some_and(|(anchor, _)| anchor > from))
        };
        // Where nothing new lies before them, those of ignored users do not count; else a hole could hide behind them.
        let has_all = task.is_known(look)
            || newest.len() <= limit
            || (!task.is_grown() && newest.last().is_some_and(|oldest| !is_new(oldest)));
        if has_all {
            newest.retain(|event| !reader.ignores(event));
        }
        let had = task.sent.map_or(0, |sent| sent.timeline_limit);
        let new = newest.iter().filter(|event| is_new(event)).count();
        // What the client has already is not sent again.
        let expanded = task.is_grown() && reader.was_joined() && newest.len() > (had as usize).max(new);
        let count = if expanded { newest.len() } else { new };
        let limited = count > limit;
        newest.truncate(count.min(limit));
        newest.retain(|event| !reader.ignores(event));
        newest.reverse();
        let is_resolved = task.is_joined() && look.news.is_resolved(task.room_nr());
        let depth = match task.from {
            Some(_) if !limited && !task.is_grown() => had,
            _ => task.combination.timeline_limit,
        };
        Work {
            has_gap: (new > limit || is_resolved) && task.from.is_some(),
            task,
            reader,
            timeline: newest,
            limited,
            expanded,
            depth,
            end: NodeNr(0),
            state: BTreeMap::new(),
            deleted: Vec::new(),
            touched: Touched::default(),
            members: NewMembers::default(),
        }
    }

    /// The second step: the state to be told. MSC4186, "`required_state`".
    async fn find_states(&self, look: &Look<'_>, works: &mut Vec<Work<'_>>, words: &Words) -> Result<(), Error> {
        let storage = &self.0.storage;
        // The state of a room that only messages came into is in memory with the last of them.
        let (mut rooms, mut behind) = (Vec::new(), Vec::new());
        for work in works.iter_mut() {
            match work.timeline.last() {
                Some(last) if work.task.is_joined() && work.task.from.is_some() && !work.has_gap => {
                    work.end = last.state
                }
                _ if work.task.is_joined() => {
                    if work.task.from.is_none() || work.has_gap || work.task.wanted_before.is_some() {
                        rooms.push(work.task.room_nr());
                    }
                }
                _ => {
                    let left = work.reader.left_at().unwrap_or_default().min(look.upto);
                    work.end = storage.get_state_at(work.task.room_nr(), left).await?;
                }
            }
            if work.has_gap && work.task.from == look.since {
                behind.push(work.task.room_nr());
            }
        }
        let ends = if rooms.is_empty() { HashMap::new() } else { storage.get_states_at(&rooms, look.upto).await? };
        let bases = match look.since {
            Some(since) if !behind.is_empty() => storage.get_states_at(&behind, since).await?,
            _ => HashMap::new(),
        };
        for work in works.iter_mut() {
            work.end = ends.get(&work.task.room_nr()).copied().unwrap_or(work.end);
        }
        let mut looks = Vec::new();
        for work in works.iter().filter(|work| work.task.from.is_none() || work.task.wanted_before.is_some()) {
            let keys = self.wanted_keys(&work.task.wanted).await?.keys();
            looks.push(StateLook { room_nr: work.task.room_nr(), state: work.end, keys });
        }
        storage.preload_states(looks).await?;
        let (mut pieces, mut done) = (0, 0);
        for work in works.iter_mut() {
            if pieces > STATE_MAX {
                break;
            }
            self.find_state(work, words, &bases).await?;
            pieces += work.state.len();
            done += 1;
        }
        // The others come with the next answer.
        works.truncate(done);
        Ok(())
    }

    /// The state of a room that is to be told.
    async fn find_state(
        &self,
        work: &mut Work<'_>,
        words: &Words,
        bases: &HashMap<RoomNr, NodeNr>,
    ) -> Result<(), Error> {
        let storage = &self.0.storage;
        let room_nr = work.task.room_nr();
        let wanted = work.task.wanted.clone();
        // MSC4186, "Lazy loaded memberships": without a gap the client is told of all changes of members.
        let tells_members = wanted.lazy_members && !work.limited;
        let Some(from) = work.task.from else {
            let keys = self.wanted_keys(&wanted).await?;
            work.state = self.wanted_state(room_nr, work.end, |key| keys.wants(key), keys.keys()).await?;
            return self.add_own_member(work, words).await;
        };
        if !work.reader.was_joined() {
            // Nothing of the state was theirs to see.
        } else if work.has_gap || !work.task.is_joined() {
            let base = match bases.get(&room_nr) {
                Some(base) => *base,
                None => storage.get_state_at(room_nr, from).await?,
            };
            let keys = self.wanted_keys(&wanted).await?;
            // Members who were in the room and are known now have not come.
            let is_whole_now =
                tells_members && storage.has_become_whole(room_nr, from, self.0.storage.published()).await?;
            for (key, old, event) in storage.diff_state(room_nr, base, work.end).await? {
                work.touched.note(key, words);
                let is_change = tells_members && Some(key.0) == words.member && (old.is_some() || !is_whole_now);
                if keys.wants(key) || is_change {
                    match event {
                        Some(event) => drop(work.state.insert(key, event)),
                        None => work.deleted.push(key),
                    }
                }
            }
        } else {
            for event in &work.timeline {
                let Some(key_nr) = event.state_key_nr.filter(|_| event.position > Some(from)) else { continue };
                work.touched.note_event(event);
                if wanted.wants_event(event) || (tells_members && is_member(event)) {
                    work.state.insert((event.type_nr, key_nr), event.nr);
                }
            }
        }
        if let Some(before) = &work.task.wanted_before {
            // What it did not ask for before.
            let (now, before) = (self.wanted_keys(&wanted).await?, self.wanted_keys(before).await?);
            let lacks = |key| now.wants(key) && !before.wants(key);
            let keys = now.keys().map(|keys| keys.into_iter().filter(|key| lacks(*key)).collect());
            let lacking = self.wanted_state(room_nr, work.end, lacks, keys).await?;
            for (key, event) in lacking {
                work.state.entry(key).or_insert(event);
            }
        }
        self.add_own_member(work, words).await
    }

    /// Whoever is out of a room sees no more of its state than they saw, but how they came out.
    async fn add_own_member(&self, work: &mut Work<'_>, words: &Words) -> Result<(), Error> {
        let row = &work.task.listed.row;
        let is_new = work.task.from.is_none_or(|from| row.position > from);
        if !work.task.is_joined()
            && is_new
            && let Some(own) = words.own
            && self.wanted_keys(&work.task.wanted).await?.wants(own)
        {
            work.state.insert(own, row.event_nr);
        }
        Ok(())
    }

    /// The part of a state that is wanted: of `keys`, or without them, of all.
    async fn wanted_state(
        &self,
        room_nr: RoomNr,
        state: NodeNr,
        wants: impl Fn(StateKey) -> bool,
        keys: Option<Vec<StateKey>>,
    ) -> Result<BTreeMap<StateKey, EventNr>, Error> {
        let mut found = BTreeMap::new();
        match keys {
            Some(keys) => {
                for key in keys {
                    if let Some(event) = self.0.storage.get_state_event(room_nr, state, key).await? {
                        found.insert(key, event);
                    }
                }
            }
            None => {
                let all = self.0.storage.list_state(room_nr, state).await?;
                found.extend(all.into_iter().filter(|(key, _)| wants(*key)));
            }
        }
        Ok(found)
    }

    /// The third step: the members whom the timelines name. MSC4186, "Lazy loaded memberships".
    async fn find_lazy_members(&self, look: &Look<'_>, works: &mut [Work<'_>]) -> Result<(), Error> {
        let storage = &self.0.storage;
        let mut users: BTreeSet<&str> = BTreeSet::new();
        let lazy = works.iter().enumerate().filter(|(_, work)| work.task.wanted.lazy_members);
        let timelines: Vec<(usize, Vec<Arc<StoredEvent>>)> =
            lazy.map(|(nr, work)| (nr, work.timeline.clone())).collect();
        for event in timelines.iter().flat_map(|(_, events)| events) {
            users.extend(named_by(event));
        }
        if users.is_empty() {
            return Ok(());
        }
        let users: Vec<&str> = users.into_iter().collect();
        let (types, keys) = storage.find_words(&["m.room.member"], &users).await?;
        let Some(member) = types.get("m.room.member").copied() else { return Ok(()) };
        let mut named: HashMap<usize, Vec<StateKey>> = HashMap::new();
        let mut needed: HashMap<usize, Vec<StateKey>> = HashMap::new();
        for (nr, events) in &timelines {
            let work = &mut works[*nr];
            work.members.starts_anew = work.task.from.is_none() || work.limited;
            let room_nr = work.task.room_nr();
            let words: HashSet<&str> = events.iter().flat_map(|event| named_by(event)).collect();
            let members: Vec<StateKey> =
                words.into_iter().filter_map(|word| Some((member, *keys.get(word)?))).collect();
            let is_new = |key: &StateKey| work.members.starts_anew || look.start.known.get(room_nr, key.1).is_none();
            let lacks = |key: &StateKey| is_new(key) && !work.state.contains_key(key);
            needed.insert(*nr, members.iter().copied().filter(lacks).collect());
            named.insert(*nr, members);
        }
        let looks = needed.iter().map(|(nr, keys)| StateLook {
            room_nr: works[*nr].task.room_nr(),
            state: works[*nr].end,
            keys: Some(keys.clone()),
        });
        storage.preload_states(looks.collect()).await?;
        for (nr, keys) in needed {
            let work = &mut works[nr];
            let found = self.wanted_state(work.task.room_nr(), work.end, |_| true, Some(keys)).await?;
            work.state.extend(found);
            let told = named[&nr].iter().filter_map(|key| Some((key.1, *work.state.get(key)?)));
            work.members.members.extend(told);
        }
        Ok(())
    }

    /// The last step: the room as the client sees it.
    async fn whole_room(
        &self,
        look: &Look<'_>,
        work: Work<'_>,
        events: &HashMap<EventNr, Arc<StoredEvent>>,
        summary: Option<&KnownSummary>,
        (heroes, counts): (Option<Vec<Hero>>, Option<Counts>),
    ) -> Result<Told, Error> {
        let Work { task, reader, timeline, limited, expanded, depth, state, deleted, touched, members, .. } = work;
        let ListedRoom { row, facts } = task.listed;
        let initial = task.from.is_none();
        let mut room = Room::new(row.membership, initial);
        let mut state: Vec<Arc<StoredEvent>> = state.values().filter_map(|nr| events.get(nr).cloned()).collect();
        state.sort_unstable_by_key(|event| event.nr);
        // Together, so that what the server adds is asked for once.
        let shown: Vec<Arc<StoredEvent>> = timeline.iter().chain(&state).cloned().collect();
        // Where a client was not told all, with what relates to the events. MSC4186, "timeline".
        let mut shown = match limited || expanded {
            true => self.0.rooms.render_with_relations(&reader, &shown, false).await?,
            false => self.0.rooms.render(&reader, &shown, false).await?,
        };
        room.required_state = shown.split_off(timeline.len());
        room.timeline = shown;
        // Whoever was never joined has nothing to page through.
        let limited = limited && reader.was_joined();
        room.limited = limited;
        room.expanded_timeline = expanded;
        if !timeline.is_empty() || limited {
            let first = timeline.first().and_then(|event| event.place);
            let before = first.map_or((task.end(look.upto), 0), |(anchor, step)| (anchor, step - 1));
            room.prev_batch = Some(TimelineToken(before).to_string());
        }
        let is_live = |event: &&Arc<StoredEvent>| {
            look.since.is_some_and(|since| event.position.is_some_and(|position| position > since))
        };
        room.num_live = (!timeline.is_empty()).then(|| timeline.iter().filter(is_live).count());
        room.deleted_state = self.names_of(&deleted).await?;
        if let Some(summary) = summary {
            let changed = |is_touched: bool, value: &Option<String>| {
                if initial { value.clone().map(Some) } else { is_touched.then(|| value.clone()) }
            };
            room.name = changed(touched.name, &summary.shown.name);
            room.avatar = changed(touched.avatar, &summary.shown.avatar_url);
            if initial || touched.members {
                room.joined_count = Some(summary.joined);
                room.invited_count = Some(summary.invited);
            }
            room.heroes = heroes;
        } else if !task.is_joined() && initial {
            room.name = content_of(&state, "m.room.name").and_then(|content| content.name).map(Some);
        }
        if !reader.was_joined() {
            // MSC4186, "Invite/knock/rejections": the end of an invitation.
            let own = self.0.storage.get_event(row.event_nr).await?.into_iter();
            let own = own.filter_map(|event| Some(model::ClientEvent::of(&event.pdu.json).ok()?.to_stripped()));
            room.stripped_state = Some(own.collect::<Vec<Box<RawValue>>>()).filter(|own| !own.is_empty());
        }
        let is_dm = look.marks.direct.contains(&facts.room.id);
        // What is not told at first is false.
        let was_dm = if initial { false } else { task.sent.map_or(is_dm, |sent| sent.is_dm) };
        if was_dm != is_dm {
            room.is_dm = Some(is_dm);
        }
        if !room.is_empty() || look.may_count(task.listed) {
            room.unread = counts;
        }
        let is_empty = room.is_empty();
        room.bump_stamp = Some(if task.is_joined() { facts.bump() } else { row.position });
        room.lists = task.combination.lists.iter().map(|name| (*name).to_owned()).collect();
        let sent =
            SentRoom { stream: Sent::Live, timeline_limit: depth, config: task.config, is_dm, ..sent_before(&task) };
        Ok(Told {
            room_nr: row.room_nr,
            shown: (!is_empty).then(|| (facts.room.id.clone(), room)),
            timeline,
            sent,
            members: task.wanted.lazy_members.then_some(members),
        })
    }

    /// The words of keys.
    async fn names_of(&self, keys: &[StateKey]) -> Result<Vec<(String, String)>, Error> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let (types, names): (Vec<TypeNr>, Vec<StateKeyNr>) = keys.iter().copied().unzip();
        let types = self.0.storage.type_names(&types).await?;
        let names = self.0.storage.state_key_names(&names).await?;
        let words = keys.iter().filter_map(|(t, k)| Some((types.get(t)?.to_string(), names.get(k)?.to_string())));
        Ok(words.collect())
    }
}

impl Work<'_> {
    /// Whether what the room shows of itself is told.
    fn needs_summary(&self) -> bool {
        let Touched { name, avatar, members } = self.touched;
        self.task.is_joined() && (self.task.from.is_none() || name || avatar || members)
    }

    /// Whether the events may be of a time when who asks was not there.
    fn needs_check(&self) -> bool {
        self.task.from.is_none() || self.expanded || !self.task.is_joined()
    }
}

/// What of the content of some state events a room is called by.
#[derive(Debug, Default, Deserialize)]
struct Content {
    name: Option<String>,
    displayname: Option<String>,
    avatar_url: Option<String>,
}

fn content_of(events: &[Arc<StoredEvent>], event_type: &str) -> Option<Content> {
    let event = events.iter().find(|event| event.pdu.event_type.to_string() == event_type)?;
    serde_json::from_str(event.pdu.content.get()).ok()
}

/// The users whom an event names: its sender, and the member whom it is about.
fn named_by(event: &StoredEvent) -> impl Iterator<Item = &str> {
    let target = event.pdu.state_key.as_deref().filter(|_| is_member(event));
    std::iter::once(event.pdu.sender.as_str()).chain(target)
}

fn sent_before(task: &Task<'_>) -> SentRoom {
    task.sent.copied().unwrap_or(SentRoom {
        stream: Sent::Never,
        account_data: Sent::Never,
        receipts: Sent::Never,
        timeline_limit: 0,
        config: 0,
        is_dm: false,
    })
}
