//! How much a user has not read, kept in memory from answer to answer.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use accounts::{Requester, UserSettings};
use model::{Position, RoomNr, UserNr};
use moka::sync::Cache;
use rooms::{Tally, Unread};
use storage::{Item, StoredEvent};

use crate::{Error, Sync};

/// Most rooms and threads of all users together whose counts are in memory: about 40 MB.
const ROOMS_CACHED: u64 = 200_000;

/// What a user has not read of their rooms, up to a position.
pub(crate) struct Tallies {
    at: Position,
    settings: Arc<UserSettings>,
    rooms: HashMap<RoomNr, Tally>,
}

impl Tallies {
    fn weight(&self) -> usize {
        self.rooms.values().map(|tally| 1 + tally.unread.threads.len()).sum()
    }
}

/// Where a user's tallies are kept. Who works with them takes them out meanwhile: whoever finds none counts from the database.
#[derive(Default)]
pub(crate) struct Slot {
    /// Held for moments only; no other lock is taken inside.
    tallies: Mutex<Option<Tallies>>,
}

impl Slot {
    fn take(&self) -> Option<Tallies> {
        self.tallies.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn put(&self, tallies: Tallies) {
        *self.tallies.lock().unwrap_or_else(PoisonError::into_inner) = Some(tallies);
    }

    fn weight(&self) -> usize {
        self.tallies.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map_or(0, Tallies::weight)
    }
}

/// The tallies of users, weighed by their rooms and threads as they are put in.
pub(crate) fn cache() -> Cache<UserNr, Arc<Slot>> {
    let weight = |_: &UserNr, slot: &Arc<Slot>| slot.weight() as u32 + 1;
    Cache::builder().max_capacity(ROOMS_CACHED).weigher(weight).build()
}

impl Sync {
    /// What the requester has not read of rooms that they are joined to, up to a position that this process shows.
    ///
    /// What was counted for an earlier answer goes on from there, with the events since then, which are in memory.
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
        if rooms.is_empty() {
            return Ok(HashMap::new());
        }
        let settings = self.0.rooms.settings(requester).await?;
        let slot = self.0.tallies.get_with(requester.user_nr, Arc::default);
        let known = slot.take().filter(|known| Arc::ptr_eq(&known.settings, &settings));
        let kept = known.as_ref().map_or(0, Tallies::weight);
        let mut tallies = known.unwrap_or_else(|| Tallies { at: upto, settings, rooms: HashMap::new() });
        if tallies.at > upto {
            // Another device is ahead: its counts are not those of this answer.
            slot.put(tallies);
            return Ok(self.0.rooms.unread(requester, rooms, upto).await?);
        }
        self.go_on(requester, &mut tallies, upto).await?;
        let missing: Vec<RoomNr> = rooms.iter().filter(|room| !tallies.rooms.contains_key(room)).copied().collect();
        if !missing.is_empty() {
            tallies.rooms.extend(self.0.rooms.tallies(requester, &missing, upto).await?);
        }
        let unread = rooms.iter().filter_map(|room| Some((*room, tallies.rooms.get(room)?.unread.clone()))).collect();
        let is_weighed = tallies.weight() == kept;
        slot.put(tallies);
        if !is_weighed {
            self.0.tallies.insert(requester.user_nr, slot);
        }
        Ok(unread)
    }

    /// The rooms of threads that the requester has subscribed to, or unsubscribed from, after a position up to another.
    pub(crate) async fn subscribed_rooms(
        &self,
        requester: &Requester,
        after: Position,
        upto: Position,
    ) -> Result<HashSet<RoomNr>, Error> {
        let rooms = self.0.storage.list_rooms_of_subscriptions(requester.user_nr, after, upto).await?;
        Ok(rooms.into_iter().collect())
    }

    /// Takes what came since into the tallies; those that have to be counted anew are dropped.
    async fn go_on(&self, requester: &Requester, tallies: &mut Tallies, upto: Position) -> Result<(), Error> {
        let mut events: Vec<Arc<StoredEvent>> = Vec::new();
        let mut changed: HashSet<RoomNr> = HashSet::new();
        let mut has_subscribed = false;
        let all_here = self.0.ring.scan(tallies.at, upto, |_, item| match item {
            Item::Event(event) if tallies.rooms.contains_key(&event.room_nr) => events.push(event.clone()),
            Item::Receipt(room_nr, user_nr) if *user_nr == requester.user_nr => drop(changed.insert(*room_nr)),
            Item::ThreadSubscription(user_nr) => has_subscribed |= *user_nr == requester.user_nr,
            // Resolution may have changed how many members there are.
            Item::State(room_nr) => drop(changed.insert(*room_nr)),
            _ => {}
        });
        for redacted in self.0.ring.redacted(tallies.at, upto) {
            let tally = tallies.rooms.get(&redacted.room_nr);
            if tally.is_some_and(|tally| tally.depends_on(redacted.position, redacted.counted_in_thread)) {
                changed.insert(redacted.room_nr);
            }
        }
        if has_subscribed && tallies.rooms.values().any(Tally::depends_on_subscriptions) {
            changed.extend(self.subscribed_rooms(requester, tallies.at, upto).await?);
        }
        if !all_here {
            tallies.rooms.clear();
        }
        for room_nr in changed {
            tallies.rooms.remove(&room_nr);
        }
        for event in events {
            let Some(tally) = tallies.rooms.get_mut(&event.room_nr) else { continue };
            if !self.0.rooms.go_on(requester, tally, &event).await? {
                tallies.rooms.remove(&event.room_nr);
            }
        }
        tallies.at = upto;
        Ok(())
    }
}
