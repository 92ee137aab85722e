//! What a user has not read. Client-Server API, "Receiving notifications".
//!
//! Nothing is kept for a member who reads nothing. An event is stored with its class ([`crate::push`]); how far a user has read is stored by
//! thread; the events between are counted by class, for many rooms at once, and the reader's rules say what each class is to them. Counts are
//! those of the rules and the ignored users of now.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, LazyLock},
};

use accounts::{Requester, UserSettings, default_push_rules};
use model::{EventNr, NodeNr, Position, RoomNr, UserNr};
use ruma::{
    EventId, Int, OwnedEventId, OwnedUserId, UInt, UserId,
    events::TimelineEventType,
    power_levels::NotificationPowerLevels,
    push::{FlattenedJson, PushCondition, PushConditionPowerLevelsCtx, PushConditionRoomCtx, Ruleset},
    room_version_rules::RoomPowerLevelsRules,
    serde::Raw,
};
use serde_json::value::RawValue;
use storage::{ReadPositions, RoomRow, StoredEvent, TimelineDirection, UnreadRange};

use crate::{
    Error, Rooms,
    power::{Power, rules_of},
    push::{
        class, fit,
        plan::{Effect, Plan, depend_on_members, facts},
    },
};

/// Most events of a room that are looked at one by one, for rules that need that: the newest ones count.
const LOOKED_AT_MAX: usize = 2_000;

/// How many different plans of a user are looked through for one that fits another room.
const PLANS_COMPARED: usize = 32;

/// Most threads of a room that are counted apart: what is unread in more of them counts in the main timeline.
const THREADS_MAX: usize = 500;

/// How many events are read at once.
const PAGE: u32 = 200;

/// What the default rules come to, in any room and for any user.
static DEFAULT_PLAN: LazyLock<Arc<Plan>> = LazyLock::new(|| {
    let (user_id, room_id) = (ruma::user_id!("@anybody:localhost"), ruma::room_id!("!any:localhost"));
    Arc::new(Plan::new(&default_push_rules(user_id), room_id, UInt::MIN))
});

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
    fn add(&mut self, thread: &str, effect: Effect, count: i64) {
        if !effect.notifies {
            return;
        }
        let counts = match thread {
            "" => &mut self.main,
            _ => match EventId::parse(thread) {
                // Anybody can name any number of roots.
                Ok(root) if self.threads.len() >= THREADS_MAX && !self.threads.contains_key(&root) => &mut self.main,
                Ok(root) => self.threads.entry(root).or_default(),
                Err(_) => return,
            },
        };
        counts.notifications = counts.notifications.saturating_add_signed(count);
        if effect.highlights {
            counts.highlights = counts.highlights.saturating_add_signed(count);
        }
    }

    fn forget_empty(mut self) -> Self {
        self.threads.retain(|_, counts| counts.notifications > 0);
        self
    }
}

/// What a user has not read of a room up to a position, and what it takes to go on from there.
#[derive(Clone, Debug)]
pub struct Tally {
    /// What is not read.
    pub unread: Unread,
    plan: Arc<Plan>,
    settings: Arc<UserSettings>,
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
        let storage = self.storage();
        let settings = self.settings(requester).await?;
        let plans = self.plans(&settings, rooms).await?;
        let read = storage.list_read_positions(requester.user_nr, rooms).await?;
        let mut tallies = HashMap::with_capacity(rooms.len());
        let mut ranges = Vec::with_capacity(rooms.len());
        for (room_nr, plan) in plans {
            let mut unread = Unread::default();
            if plan.is_by_event {
                unread = self.count_one_by_one(requester, &settings, room_nr, upto).await?;
            } else {
                let ReadPositions { main, all_threads, .. } = read.get(&room_nr).cloned().unwrap_or_default();
                let by_sender = plan.is_by_sender || !settings.ignored.is_empty();
                ranges.push(UnreadRange { room_nr, main, all_threads, by_sender });
            }
            tallies.insert(room_nr, Tally { unread, plan, settings: settings.clone() });
        }
        if ranges.is_empty() {
            return Ok(tallies);
        }
        let rows = storage.count_unread(requester.user_nr, &ranges, upto).await?;
        let senders: Vec<UserNr> = rows.iter().filter_map(|row| row.sender_nr).collect();
        let senders = if senders.is_empty() { HashMap::new() } else { storage.user_ids(&senders).await? };
        for row in rows {
            let sender: Option<&OwnedUserId> = row.sender_nr.and_then(|nr| senders.get(&nr));
            let Some(tally) = tallies.get_mut(&row.room_nr) else { continue };
            if sender.is_some_and(|sender| settings.ignores(sender)) {
                continue;
            }
            let effect = |is_mention| tally.plan.effect(facts(row.class, is_mention, sender.map(|sender| &**sender)));
            let (plain, mentioning) = (effect(false), effect(true));
            let count = row.count.cast_signed();
            if row.is_mention {
                // Counted among those of its class already.
                tally.unread.add(&row.thread, mentioning, count);
                tally.unread.add(&row.thread, plain, -count);
            } else {
                tally.unread.add(&row.thread, plain, count);
            }
        }
        for tally in tallies.values_mut() {
            tally.unread = std::mem::take(&mut tally.unread).forget_empty();
        }
        Ok(tallies)
    }

    /// What a user's rules come to in each of the rooms.
    async fn plans(&self, settings: &UserSettings, rooms: &[RoomNr]) -> Result<HashMap<RoomNr, Arc<Plan>>, Error> {
        let Some(rules) = &settings.push_rules else {
            return Ok(rooms.iter().map(|room_nr| (*room_nr, DEFAULT_PLAN.clone())).collect());
        };
        let rows = self.storage().get_rooms(rooms).await?;
        let joined = if depend_on_members(rules) { self.joined_counts(rooms).await? } else { HashMap::new() };
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

    async fn joined_counts(&self, rooms: &[RoomNr]) -> Result<HashMap<RoomNr, UInt>, Error> {
        let summaries = self.storage().get_summaries(rooms).await?;
        Ok(summaries.into_iter().map(|(room_nr, (_, joined, _))| (room_nr, UInt::new_saturating(joined))).collect())
    }

    /// Counts by looking at each event.
    async fn count_one_by_one(
        &self,
        requester: &Requester,
        settings: &UserSettings,
        room_nr: RoomNr,
        upto: Position,
    ) -> Result<Unread, Error> {
        let storage = self.storage();
        let read = storage.list_all_read_positions(requester.user_nr, room_nr).await?;
        let mut events = self.newest_after(room_nr, read.main, upto).await?;
        // Of what lies before, only threads are unread.
        let older =
            storage.list_countable_in_threads(room_nr, (read.all_threads, read.main.min(upto)), LOOKED_AT_MAX).await?;
        events.extend(storage.get_events(&older).await?.into_values());
        let mut judge = Judge::new(self, requester, settings, room_nr).await?;
        let mut unread = Unread::default();
        for event in &events {
            let thread = thread_of(event);
            if !read.covers(thread, event.position.unwrap_or_default()) {
                let effect = judge.effect(event).await?;
                unread.add(thread, effect, 1);
                // Many rules and long texts take their time, and others wait for the thread.
                tokio::task::yield_now().await;
            }
        }
        Ok(unread)
    }

    /// The newest events of a room after a position, up to another.
    async fn newest_after(
        &self,
        room_nr: RoomNr,
        after: Position,
        upto: Position,
    ) -> Result<Vec<Arc<StoredEvent>>, Error> {
        let (mut from, stop) = ((upto, i64::MAX), (after, i64::MAX));
        let mut events = Vec::new();
        while events.len() < LOOKED_AT_MAX {
            let backward = TimelineDirection::Backward;
            let rows = self.storage().list_timeline(room_nr, backward, from, stop, PAGE).await?;
            let numbers: Vec<EventNr> = rows.iter().map(|(nr, _)| *nr).collect();
            let found = self.storage().get_events(&numbers).await?;
            events.extend(found.into_values().filter(|event| event.position.is_some()));
            let Some((_, last)) = rows.last().filter(|_| rows.len() == PAGE as usize) else { break };
            from = *last;
        }
        Ok(events)
    }

    /// Takes the next event of the room into a tally of the requester's; `false` when it has to be counted anew. After a redaction or a receipt
    /// of the requester's it always has to.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn go_on(&self, requester: &Requester, tally: &mut Tally, event: &StoredEvent) -> Result<bool, Error> {
        let settings = tally.settings.clone();
        let is_member = event.pdu.event_type == TimelineEventType::RoomMember;
        let is_own_membership = event.pdu.state_key.as_deref() == Some(requester.user_id.as_str());
        if is_member && (is_own_membership || settings.push_rules.as_deref().is_some_and(depend_on_members)) {
            return Ok(false);
        }
        let is_own = event.sender_nr == requester.user_nr;
        if is_own || settings.ignores(&event.pdu.sender) {
            if let Some((class, thread)) = event.countable.as_ref().filter(|_| is_own)
                && class::notifies(*class)
            {
                // Who sends something has read what came before.
                match thread.as_str() {
                    "" => tally.unread.main = Counts::default(),
                    _ => tally.unread.threads.retain(|root, _| root != thread.as_str()),
                }
            }
            return Ok(true);
        }
        if tally.plan.is_by_event {
            let mut judge = Judge::new(self, requester, &settings, event.room_nr).await?;
            let effect = judge.effect(event).await?;
            tally.unread.add(thread_of(event), effect, 1);
            return Ok(true);
        }
        if let Some((class, thread)) = &event.countable {
            let is_mention =
                class & class::MENTIONS != 0 && class::mentions(&event.pdu, &requester.user_id, self.servers());
            let effect = tally.plan.effect(facts(*class, is_mention, Some(&event.pdu.sender)));
            tally.unread.add(thread, effect, 1);
        }
        Ok(true)
    }
}

/// The root of the thread that an event was in when it came; empty for the main timeline.
fn thread_of(event: &StoredEvent) -> &str {
    event.countable.as_ref().map_or("", |(_, thread)| thread)
}

/// Applies a user's rules to single events of a room.
struct Judge<'a> {
    rooms: &'a Rooms,
    requester: &'a Requester,
    settings: &'a UserSettings,
    room: Arc<RoomRow>,
    joined: UInt,
    display_name: String,
    /// The powers in the states that were looked at.
    powers: HashMap<NodeNr, Option<Arc<Power>>>,
}

impl<'a> Judge<'a> {
    async fn new(
        rooms: &'a Rooms,
        requester: &'a Requester,
        settings: &'a UserSettings,
        room_nr: RoomNr,
    ) -> Result<Self, Error> {
        let storage = rooms.storage();
        let room = storage.get_rooms(&[room_nr]).await?.remove(&room_nr).ok_or(Error::RoomUnknown)?;
        let mut display_name = String::new();
        let mut joined = UInt::MIN;
        if let Some(rules) = settings.push_rules.as_deref() {
            if asks_for_name(rules) {
                display_name = rooms.display_name(requester, &room).await?.unwrap_or_default();
            }
            if depend_on_members(rules) {
                joined = rooms.joined_counts(&[room_nr]).await?.get(&room_nr).copied().unwrap_or_default();
            }
        }
        Ok(Self { rooms, requester, settings, room, joined, display_name, powers: HashMap::new() })
    }

    async fn effect(&mut self, event: &StoredEvent) -> Result<Effect, Error> {
        let is_silent = event.sender_nr == self.requester.user_nr
            || event.redacted_by.is_some()
            || self.settings.ignores(&event.pdu.sender);
        let Some(rules) = self.settings.push_rules.as_deref().filter(|_| !is_silent) else {
            return Ok(Effect::default());
        };
        let user_id = self.requester.user_id.clone();
        let mut context =
            PushConditionRoomCtx::new(self.room.id.clone(), self.joined, user_id, self.display_name.clone());
        if let Some(power) = self.power_at(event.state).await? {
            context = context.with_power_levels(levels_of(&power, &event.pdu.sender, &self.room)?);
        }
        let Ok(json) = RawValue::from_string(event.pdu.json.to_string()) else { return Ok(Effect::default()) };
        let json = FlattenedJson::from_raw(&Raw::<ruma::events::AnyTimelineEvent>::from_json(json));
        Ok(Effect::of(fit::actions(rules, &json, &context).await))
    }

    async fn power_at(&mut self, state: NodeNr) -> Result<Option<Arc<Power>>, Error> {
        if let Some(power) = self.powers.get(&state) {
            return Ok(power.clone());
        }
        let power = match self.rooms.power_at(&self.room, state).await {
            Ok(power) => Some(Arc::new(power)),
            Err(error @ Error::Storage(_)) => return Err(error),
            // A room whose state is damaged lets nobody notify it.
            Err(_) => None,
        };
        self.powers.insert(state, power.clone());
        Ok(power)
    }
}

impl Rooms {
    async fn display_name(&self, requester: &Requester, room: &RoomRow) -> Result<Option<String>, Error> {
        #[derive(serde::Deserialize)]
        struct Content {
            displayname: Option<String>,
        }
        let member = self.find_state(room, "m.room.member", requester.user_id.as_str()).await?;
        let content = member.and_then(|event| serde_json::from_str::<Content>(event.pdu.content.get()).ok());
        Ok(content.and_then(|content| content.displayname))
    }
}

#[expect(deprecated, reason = "clients in use have rules with it")]
fn asks_for_name(rules: &Ruleset) -> bool {
    let rules = rules.override_.iter().chain(&rules.underride);
    rules.flat_map(|rule| &rule.conditions).any(|condition| matches!(condition, PushCondition::ContainsDisplayName))
}

/// The power levels as conditions ask for them: only about the sender.
fn levels_of(power: &Power, sender: &UserId, room: &RoomRow) -> Result<PushConditionPowerLevelsCtx, Error> {
    let rules = rules_of(&room.version)?;
    let int = |level: i64| Int::new_saturating(level);
    let mut needed = NotificationPowerLevels::new();
    needed.room = int(power.needed_to_notify_room());
    let users = BTreeMap::from([(sender.to_owned(), int(power.of_user(sender)))]);
    let rules = RoomPowerLevelsRules::new(&rules.authorization, []);
    Ok(PushConditionPowerLevelsCtx::new(users, int(0), needed, rules))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Any member can make up as many roots of threads as they send messages.
    #[test]
    fn more_threads_than_are_counted_apart_count_in_the_main_timeline() {
        let mut unread = Unread::default();
        let effect = Effect { notifies: true, highlights: false };
        for root in 0..THREADS_MAX + 10 {
            unread.add(&format!("$root{root}"), effect, 1);
        }
        unread.add("$root0", effect, 1);
        assert_eq!(unread.threads.len(), THREADS_MAX);
        assert_eq!(unread.main.notifications, 10);
        assert_eq!(unread.total().notifications, THREADS_MAX as u64 + 11);
    }
}
