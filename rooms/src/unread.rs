//! What a user has not read. Client-Server API, "Receiving notifications".
//!
//! Nothing is kept for a member who reads nothing. An event is stored with its class ([`crate::push`]); how far a user has read is stored by
//! thread; the events between are counted by class, for many rooms at once, and the reader's rules say what each class is to them. Where a
//! class does not say it, events are looked at, and each that is something else than its class counts as that. Counts are those of the
//! rules, the ignored users and the subscriptions of now.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use accounts::{Requester, UserSettings};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use model::{EventNr, Position, RoomNr, Thread, UserNr};
use ruma::{OwnedEventId, OwnedUserId, UInt, UserId, events::TimelineEventType};
use storage::{LISTED_OF_ROOM_MAX, ReadPositions, RoomRow, StoredEvent, TimelineDirection, UnreadRange};

use crate::{
    Error, Rooms,
    push::{
        Chosen, class,
        judge::Judge,
        plan::{Effect, Facts, Looks, Plan},
    },
};

/// Most events that are looked at one by one for an answer; what is not looked at counts by its class.
const LOOKED_AT_MAX: usize = 20_000;

/// Most events of a room that are looked at by whose rules are about everything: the newest ones.
const LOOKED_AT_OF_ROOM_MAX: usize = LISTED_OF_ROOM_MAX;

/// How many rooms are looked through at the same time.
const ROOMS_AT_ONCE: usize = 8;

/// How many different plans of a user are looked through for one that fits another room.
const PLANS_COMPARED: usize = 32;

/// Most threads of a room that are counted apart: what is unread in more of them counts in the main timeline.
const THREADS_MAX: usize = 500;

/// How many events are read at once.
const PAGE: u32 = 200;

/// Numbers of unread events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Those that notify.
    pub notifications: u64,
    /// Those of them that are highlighted.
    pub highlights: u64,
}

/// What a user has not read of a room.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unread {
    /// In the main timeline.
    pub main: Counts,
    /// In each thread, by its root; threads with nothing that notifies are left out.
    pub threads: BTreeMap<OwnedEventId, Counts>,
}

impl Unread {
    /// In the room as a whole.
    #[must_use]
    pub fn total(&self) -> Counts {
        self.threads.values().fold(self.main, |sum, counts| Counts {
            notifications: sum.notifications + counts.notifications,
            highlights: sum.highlights + counts.highlights,
        })
    }

    /// Adds so many events with an effect, or takes them away.
    fn add(&mut self, thread: &Thread, effect: Effect, count: i64) {
        if !effect.notifies {
            return;
        }
        let counts = match thread {
            Thread::Main => &mut self.main,
            // Anybody can name any number of roots.
            Thread::Root(root) if self.threads.len() >= THREADS_MAX && !self.threads.contains_key(root) => {
                &mut self.main
            }
            Thread::Root(root) => self.threads.entry(root.clone()).or_default(),
        };
        counts.notifications = counts.notifications.saturating_add_signed(count);
        if effect.highlights {
            counts.highlights = counts.highlights.saturating_add_signed(count);
        }
    }

    fn forget_empty(&mut self) {
        self.threads.retain(|_, counts| counts.notifications > 0);
    }
}

/// What a user has not read of a room up to a position, and what it takes to go on from there.
#[derive(Clone, Debug)]
pub struct Tally {
    /// What is not read.
    pub unread: Unread,
    /// Up to where the main timeline was read, at least.
    read_main: Position,
    /// Up to where all threads were read.
    read_threads: Position,
    /// The roots of the threads that the user is subscribed to, if their rules are about that.
    subscribed: HashSet<OwnedEventId>,
    plan: Arc<Plan>,
    chosen: Arc<Chosen>,
}

impl Tally {
    /// Whether it may be another one when an event at a position is redacted. `counted_in_thread` says whether that was in a thread, if it
    /// might count by its class.
    #[must_use]
    pub fn depends_on(&self, position: Position, counted_in_thread: Option<bool>) -> bool {
        let read = if counted_in_thread == Some(true) { self.read_threads } else { self.read_main };
        position > read && (counted_in_thread.is_some() || self.plan.looks == Looks::Everything)
    }

    /// Whether it may be another one when the user subscribes to a thread of the room, or unsubscribes.
    #[must_use]
    pub fn depends_on_subscriptions(&self) -> bool {
        self.plan.is_by_subscription
    }

    fn range(&self, room_nr: RoomNr) -> UnreadRange {
        let by_sender = self.plan.is_by_sender || !self.chosen.settings.ignored.is_empty();
        UnreadRange { room_nr, main: self.read_main, all_threads: self.read_threads, by_sender }
    }

    fn is_subscribed(&self, thread: &Thread) -> Option<bool> {
        thread.root().map(|root| self.subscribed.contains(root))
    }

    /// What an event of a class is to the reader.
    fn by_class(&self, class: i64, thread: &Thread, mentions_reader: bool, sender: Option<&UserId>) -> Effect {
        let is_subscribed = self.is_subscribed(thread);
        self.plan.effect(Facts { class, mentions_reader, sender, is_subscribed })
    }

    /// Adds an event as what its class says, or takes it away.
    fn add_by_class(&mut self, rooms: &Rooms, requester: &Requester, event: &StoredEvent, count: i64) {
        let Some((class, thread)) = &event.countable else { return };
        let is_mention =
            class & class::MENTIONS != 0 && class::mentions(&event.pdu, &requester.user_id, rooms.servers());
        let effect = self.by_class(*class, thread, is_mention, Some(&event.pdu.sender));
        self.unread.add(thread, effect, count);
    }
}

impl Rooms {
    /// What the requester has not read of rooms that they are joined to, up to a position: a few statements for all rooms.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn unread(
        &self,
        requester: &Requester,
        rooms: &[RoomNr],
        upto: Position,
    ) -> Result<HashMap<RoomNr, Unread>, Error> {
        let tallies = self.tallies(requester, rooms, upto).await?;
        Ok(tallies.into_iter().map(|(room_nr, tally)| (room_nr, tally.unread)).collect())
    }

    /// What the requester chose, as of now.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn settings(&self, requester: &Requester) -> Result<Arc<UserSettings>, Error> {
        Ok(self.0.settings.of_user(&requester.user_id, requester.user_nr).await?)
    }

    /// The same as [`Rooms::unread`], to go on from.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn tallies(
        &self,
        requester: &Requester,
        rooms: &[RoomNr],
        upto: Position,
    ) -> Result<HashMap<RoomNr, Tally>, Error> {
        let (storage, user_nr) = (self.storage(), requester.user_nr);
        let chosen = self.0.chosen.of(user_nr, self.settings(requester).await?);
        let plans = self.plans(&chosen, rooms).await?;
        let mut read = storage.list_read_positions(user_nr, rooms).await?;
        let mut subscribed = HashMap::new();
        if plans.values().any(|plan| plan.is_by_subscription) {
            subscribed = storage.list_subscribed_threads(user_nr, rooms).await?;
        }
        let tally = |(room_nr, plan)| {
            let ReadPositions { main, all_threads, .. } = read.remove(&room_nr).unwrap_or_default();
            let tally = Tally {
                unread: Unread::default(),
                read_main: main,
                read_threads: all_threads,
                subscribed: subscribed.remove(&room_nr).unwrap_or_default(),
                plan,
                chosen: chosen.clone(),
            };
            (room_nr, tally)
        };
        let mut tallies: HashMap<RoomNr, Tally> = plans.into_iter().map(tally).collect();
        if tallies.is_empty() {
            return Ok(tallies);
        }
        let to_look_at = self.count_by_class(requester, &mut tallies, upto).await?;
        self.look_at(requester, &chosen, &mut tallies, (rooms, to_look_at), upto).await?;
        tallies.values_mut().for_each(|tally| tally.unread.forget_empty());
        Ok(tallies)
    }

    /// Counts by class; gives how many of the events have to be looked at, by room.
    async fn count_by_class(
        &self,
        requester: &Requester,
        tallies: &mut HashMap<RoomNr, Tally>,
        upto: Position,
    ) -> Result<HashMap<RoomNr, usize>, Error> {
        let ranges: Vec<UnreadRange> = tallies.iter().map(|(room_nr, tally)| tally.range(*room_nr)).collect();
        let rows = self.storage().count_unread(requester.user_nr, &ranges, upto).await?;
        let senders: Vec<UserNr> = rows.iter().filter_map(|row| row.sender_nr).collect();
        let senders = if senders.is_empty() { HashMap::new() } else { self.storage().user_ids(&senders).await? };
        let mut to_look_at: HashMap<RoomNr, usize> = HashMap::new();
        for row in rows {
            let sender: Option<&OwnedUserId> = row.sender_nr.and_then(|nr| senders.get(&nr));
            let Some(tally) = tallies.get_mut(&row.room_nr) else { continue };
            if sender.is_some_and(|sender| tally.chosen.settings.ignores(sender)) {
                continue;
            }
            let effect =
                |is_mention| tally.by_class(row.class, &row.thread, is_mention, sender.map(|sender| &**sender));
            let (plain, mentioning) = (effect(false), effect(true));
            let count = row.count.cast_signed();
            if row.is_mention {
                // Counted among those of its class already.
                tally.unread.add(&row.thread, mentioning, count);
                tally.unread.add(&row.thread, plain, -count);
            } else {
                tally.unread.add(&row.thread, plain, count);
                if tally.plan.looks_at(Some(row.class)) {
                    *to_look_at.entry(row.room_nr).or_default() += row.count as usize;
                }
            }
        }
        Ok(to_look_at)
    }

    /// Looks at the events whose class does not say what they are, and makes them count as what they are.
    async fn look_at(
        &self,
        requester: &Requester,
        chosen: &Chosen,
        tallies: &mut HashMap<RoomNr, Tally>,
        (rooms, to_look_at): (&[RoomNr], HashMap<RoomNr, usize>),
        upto: Position,
    ) -> Result<(), Error> {
        let mut left = LOOKED_AT_MAX;
        let mut ranges: Vec<(UnreadRange, i64)> = Vec::new();
        let mut everything: Vec<RoomNr> = Vec::new();
        for room_nr in rooms {
            let Some(tally) = tallies.get(room_nr) else { continue };
            match (tally.plan.looks, to_look_at.get(room_nr)) {
                (Looks::Everything, _) => everything.push(*room_nr),
                (Looks::At(mask), Some(count)) => {
                    let count = (*count).min(2 * LISTED_OF_ROOM_MAX);
                    if count <= left {
                        left -= count;
                        ranges.push((tally.range(*room_nr), mask));
                    }
                }
                (Looks::At(_), None) => {}
            }
        }
        let mut judges: HashMap<RoomNr, Judge<'_>> = HashMap::new();
        if !ranges.is_empty() {
            let numbers = self.storage().list_unread_of_class(requester.user_nr, &ranges, upto).await?;
            for numbers in numbers.chunks(PAGE as usize) {
                for event in self.storage().get_events(numbers).await?.into_values() {
                    let Some(tally) = tallies.get_mut(&event.room_nr) else { continue };
                    let judge = match judges.entry(event.room_nr) {
                        std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
                        std::collections::hash_map::Entry::Vacant(entry) => {
                            entry.insert(Judge::new(self, requester, chosen, event.room_nr).await?)
                        }
                    };
                    self.correct(requester, tally, judge, &event).await?;
                }
            }
        }
        let limit = (left / everything.len().max(1)).min(LOOKED_AT_OF_ROOM_MAX);
        let found = stream::iter(everything).map(|room_nr| async move {
            Ok::<_, Error>((room_nr, self.list_unread(requester, room_nr, upto, limit).await?))
        });
        let mut found = std::pin::pin!(found.buffered(ROOMS_AT_ONCE));
        while let Some((room_nr, events)) = found.try_next().await? {
            let Some(tally) = tallies.get_mut(&room_nr) else { continue };
            let mut judge = Judge::new(self, requester, chosen, room_nr).await?;
            for event in &events {
                self.correct(requester, tally, &mut judge, event).await?;
            }
        }
        Ok(())
    }

    /// Makes an event that was counted by its class, if it has one, count as what it is.
    async fn correct(
        &self,
        requester: &Requester,
        tally: &mut Tally,
        judge: &mut Judge<'_>,
        event: &StoredEvent,
    ) -> Result<(), Error> {
        let is_silent = event.sender_nr == requester.user_nr
            || event.redacted_by.is_some()
            || tally.chosen.settings.ignores(&event.pdu.sender);
        if !is_silent {
            let thread = thread_of(event);
            let effect = judge.effect(event, tally.is_subscribed(&thread)).await?;
            tally.unread.add(&thread, effect, 1);
            tally.add_by_class(self, requester, event, -1);
            // Many rules and long texts take their time, and others wait for the thread.
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// What a user's rules come to in each of the rooms.
    async fn plans(&self, chosen: &Chosen, rooms: &[RoomNr]) -> Result<HashMap<RoomNr, Arc<Plan>>, Error> {
        let Some(rules) = &chosen.settings.push_rules else {
            return Ok(rooms.iter().map(|room_nr| (*room_nr, self.0.default_plan.clone())).collect());
        };
        let rows = self.storage().get_rooms(rooms).await?;
        let joined = if chosen.depends_on_members() { self.joined_counts(rooms).await? } else { HashMap::new() };
        // Most rooms are named in no rule: they share a plan.
        let mut known: Vec<Arc<Plan>> = Vec::new();
        let plan = |(room_nr, row): (RoomNr, Arc<RoomRow>)| {
            let plan = Plan::new(rules, &row.id, joined.get(&room_nr).copied().unwrap_or_default());
            if let Some(known) = known.iter().find(|known| ***known == plan) {
                return (room_nr, known.clone());
            }
            let plan = Arc::new(plan);
            if known.len() < PLANS_COMPARED {
                known.push(plan.clone());
            }
            (room_nr, plan)
        };
        Ok(rows.into_iter().map(plan).collect())
    }

    pub(crate) async fn joined_counts(&self, rooms: &[RoomNr]) -> Result<HashMap<RoomNr, UInt>, Error> {
        let summaries = self.storage().get_summaries(rooms).await?;
        Ok(summaries.into_iter().map(|(room_nr, (_, joined, _))| (room_nr, UInt::new_saturating(joined))).collect())
    }

    /// The newest unread events of a room, whatever they are.
    async fn list_unread(
        &self,
        requester: &Requester,
        room_nr: RoomNr,
        upto: Position,
        limit: usize,
    ) -> Result<Vec<Arc<StoredEvent>>, Error> {
        let storage = self.storage();
        let read = storage.list_all_read_positions(requester.user_nr, room_nr).await?;
        let mut events = self.newest_after(room_nr, read.main, upto, limit).await?;
        // Of what lies before, only threads are unread.
        let range = (read.all_threads, read.main.min(upto));
        let older = storage.list_countable_in_threads(room_nr, range, limit).await?;
        events.extend(storage.get_events(&older).await?.into_values());
        events.retain(|event| !read.covers(&thread_of(event), event.position.unwrap_or_default()));
        Ok(events)
    }

    /// The newest events of a room after a position, up to another, at most `limit`.
    async fn newest_after(
        &self,
        room_nr: RoomNr,
        after: Position,
        upto: Position,
        limit: usize,
    ) -> Result<Vec<Arc<StoredEvent>>, Error> {
        let (mut from, stop) = ((upto, i64::MAX), (after, i64::MAX));
        let mut events = Vec::new();
        while events.len() < limit {
            let backward = TimelineDirection::Backward;
            let page = u32::try_from(limit - events.len()).map_or(PAGE, |left| left.min(PAGE));
            let rows = self.storage().list_timeline(room_nr, backward, from, stop, page).await?;
            let numbers: Vec<EventNr> = rows.iter().map(|(nr, _)| *nr).collect();
            let found = self.storage().get_events(&numbers).await?;
            events.extend(found.into_values().filter(|event| event.position.is_some()));
            let Some((_, last)) = rows.last().filter(|_| rows.len() == page as usize) else { break };
            from = *last;
        }
        Ok(events)
    }

    /// Takes the next event of the room into a tally of the requester's; `false` when it has to be counted anew. After a receipt of the
    /// requester's it always has to, after a redaction when it [depends on it](Tally::depends_on).
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn go_on(&self, requester: &Requester, tally: &mut Tally, event: &StoredEvent) -> Result<bool, Error> {
        let chosen = tally.chosen.clone();
        let is_member = event.pdu.event_type == TimelineEventType::RoomMember;
        let is_own_membership = event.pdu.state_key.as_deref() == Some(requester.user_id.as_str());
        if is_member && (is_own_membership || chosen.depends_on_members()) {
            return Ok(false);
        }
        if event.sender_nr == requester.user_nr {
            if let Some((class, thread)) = &event.countable
                && class::notifies(*class)
            {
                // Who sends something has read what came before.
                match thread {
                    Thread::Main => {
                        tally.unread.main = Counts::default();
                        tally.read_main = tally.read_main.max(event.position.unwrap_or_default());
                    }
                    Thread::Root(root) => drop(tally.unread.threads.remove(root)),
                }
            }
        } else if event.redacted_by.is_some() || chosen.settings.ignores(&event.pdu.sender) {
            // It counts for nothing.
        } else if tally.plan.looks_at(event.countable.as_ref().map(|(class, _)| *class)) {
            let thread = thread_of(event);
            let mut judge = Judge::new(self, requester, &chosen, event.room_nr).await?;
            let effect = judge.effect(event, tally.is_subscribed(&thread)).await?;
            tally.unread.add(&thread, effect, 1);
        } else {
            tally.add_by_class(self, requester, event, 1);
        }
        Ok(true)
    }
}

/// The thread that an event was in when it came.
fn thread_of(event: &StoredEvent) -> Thread {
    event.countable.as_ref().map(|(_, thread)| thread.clone()).unwrap_or_default()
}

impl Rooms {
    pub(crate) async fn display_name(&self, requester: &Requester, room: &RoomRow) -> Result<Option<String>, Error> {
        #[derive(serde::Deserialize)]
        struct Content {
            displayname: Option<String>,
        }
        let member = self.find_state(room, "m.room.member", requester.user_id.as_str()).await?;
        let content = member.and_then(|event| serde_json::from_str::<Content>(event.pdu.content.get()).ok());
        Ok(content.and_then(|content| content.displayname))
    }
}

#[cfg(test)]
mod tests {
    use accounts::default_push_rules;
    use ruma::{
        EventId,
        push::{RuleKind, Ruleset},
        room_id, user_id,
    };

    use super::*;

    /// Whoever redacts what others have read, or what counts for nobody, does not make them count anew.
    #[test]
    fn only_redactions_of_what_was_counted_make_a_tally_another_one() {
        let tally = |rules: &Ruleset| Tally {
            unread: Unread::default(),
            read_main: Position(20),
            read_threads: Position(10),
            subscribed: HashSet::new(),
            plan: Arc::new(Plan::new(rules, room_id!("!room:hs"), UInt::MIN)),
            chosen: Arc::new(Chosen { settings: Arc::default(), rules: None }),
        };
        let mut rules = default_push_rules(user_id!("@alice:hs"), false);
        let by_class = tally(&rules);
        for (position, thread, expected) in [
            (20, Some(false), false),
            (21, Some(false), true),
            (21, None, false),
            (10, Some(true), false),
            (11, Some(true), true),
        ] {
            assert_eq!(by_class.depends_on(Position(position), thread), expected, "at {position}, {thread:?}");
        }
        // Of whose rules are about everything, anything may have counted.
        rules.set_enabled(RuleKind::Override, ".m.rule.member_event", false).unwrap();
        let by_event = tally(&rules);
        assert!(by_event.depends_on(Position(21), None));
        assert!(!by_event.depends_on(Position(20), None));
    }

    /// Any member can make up as many roots of threads as they send messages.
    #[test]
    fn more_threads_than_are_counted_apart_count_in_the_main_timeline() {
        let mut unread = Unread::default();
        let effect = Effect { notifies: true, highlights: false };
        let thread = |root: usize| Thread::Root(EventId::parse(format!("$root{root}")).unwrap());
        for root in 0..THREADS_MAX + 10 {
            unread.add(&thread(root), effect, 1);
        }
        unread.add(&thread(0), effect, 1);
        assert_eq!(unread.threads.len(), THREADS_MAX);
        assert_eq!(unread.main.notifications, 10);
        assert_eq!(unread.total().notifications, THREADS_MAX as u64 + 11);
    }
}
