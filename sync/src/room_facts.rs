//! What is in memory of the rooms of those who sync by lists: when something last happened, and what the room shows of itself.
//!
//! The tailer keeps it up to date, before it shows what it has read: whoever looks up to a position finds here what happened
//! up to there.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
};

use model::{Membership, Position, RoomNr, UserNr, is_bump};
use ruma::OwnedRoomId;
use storage::{Item, RoomMembership, RoomRow, RoomSummary};

use crate::{Error, Sync, UserRooms, remembered::Remembered};

/// What a room shows of itself now.
#[derive(Debug)]
pub(crate) struct KnownSummary {
    pub(crate) shown: RoomSummary,
    pub(crate) joined: u64,
    pub(crate) invited: u64,
}

/// A room in memory.
#[derive(Debug)]
pub(crate) struct RoomFacts {
    pub(crate) room: Arc<RoomRow>,
    /// Whether what happened before the room was in memory is known.
    is_loaded: AtomicBool,
    last: AtomicI64,
    bump: AtomicI64,
    summary: Remembered<KnownSummary>,
}

impl RoomFacts {
    /// The position of the newest event, or change of the state.
    pub(crate) fn last(&self) -> Position {
        Position(self.last.load(Ordering::Acquire))
    }

    /// The position of the newest event that counts as activity; zero when there is none.
    pub(crate) fn bump(&self) -> Position {
        Position(self.bump.load(Ordering::Acquire))
    }

    fn note(&self, last: Position, bump: Position) {
        self.last.fetch_max(last.0, Ordering::AcqRel);
        self.bump.fetch_max(bump.0, Ordering::AcqRel);
    }
}

/// The rooms in memory: those in anyone's list.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    /// Guards the table. Held for moments only; no other lock but that of a summary is taken inside.
    rooms: Mutex<HashMap<RoomNr, Weak<RoomFacts>>>,
}

impl Registry {
    /// Notes what a part of the stream does to a room.
    pub(crate) fn note(&self, position: Position, item: &Item) {
        let (room_nr, is_state, is_bump) = match item {
            Item::Event(event) => (event.room_nr, event.is_state(), is_bump(&event.pdu.event_type)),
            Item::State(room_nr) => (*room_nr, true, false),
            _ => return,
        };
        let facts = self.lock().get(&room_nr).and_then(Weak::upgrade);
        if let Some(facts) = facts {
            facts.note(position, if is_bump { position } else { Position(0) });
            if is_state {
                facts.summary.forget();
            }
        }
    }

    /// Forgets all rooms: something may have happened that nobody noted.
    pub(crate) fn clear(&self) {
        self.lock().clear();
    }

    /// Lets go of rooms that are in nobody's list any more.
    pub(crate) fn sweep(&self) {
        self.lock().retain(|_, facts| facts.strong_count() > 0);
    }

    fn get(&self, rooms: Vec<Arc<RoomRow>>) -> Vec<Arc<RoomFacts>> {
        let mut known = self.lock();
        rooms
            .into_iter()
            .map(|room| {
                let entry = known.entry(room.nr).or_default();
                entry.upgrade().unwrap_or_else(|| {
                    let facts = Arc::new(RoomFacts {
                        room,
                        is_loaded: AtomicBool::new(false),
                        last: AtomicI64::new(0),
                        bump: AtomicI64::new(0),
                        summary: Remembered::default(),
                    });
                    *entry = Arc::downgrade(&facts);
                    facts
                })
            })
            .collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<RoomNr, Weak<RoomFacts>>> {
        self.rooms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A room in a user's list, with what the user is to it.
#[derive(Debug)]
pub(crate) struct ListedRoom {
    pub(crate) row: RoomMembership,
    pub(crate) facts: Arc<RoomFacts>,
}

impl ListedRoom {
    /// When something last happened in the room, as far as it concerns the user.
    pub(crate) fn last(&self) -> Position {
        match self.row.membership {
            Membership::Join => self.facts.last().max(self.row.position),
            _ => self.row.position,
        }
    }

    /// Whether the user is out of the room: left or banned.
    pub(crate) fn is_out(&self) -> bool {
        matches!(self.row.membership, Membership::Leave | Membership::Ban)
    }
}

/// All rooms that a user is or was something to, but for those that they have forgotten.
#[derive(Debug)]
pub(crate) struct UserList {
    /// What it was made from.
    made_from: Arc<UserRooms>,
    pub(crate) rooms: Vec<ListedRoom>,
    pub(crate) by_id: HashMap<OwnedRoomId, usize>,
    /// The rooms that somebody else removed the user from.
    pub(crate) removed: HashSet<RoomNr>,
}

impl UserList {
    /// The memberships that it was made from.
    pub(crate) fn made_from(&self) -> &Arc<UserRooms> {
        &self.made_from
    }
}

impl Sync {
    /// A user's rooms, as of now.
    pub(crate) async fn user_list(&self, user_nr: UserNr) -> Result<Arc<UserList>, Error> {
        let rooms = self.user_rooms(user_nr).await?;
        if let Some(known) = self.0.user_lists.get(&user_nr)
            && Arc::ptr_eq(&known.made_from, &rooms)
        {
            return Ok(known);
        }
        let rows: Vec<RoomMembership> = rooms.rows.iter().filter(|row| !row.forgotten).copied().collect();
        let numbers: Vec<RoomNr> = rows.iter().map(|row| row.room_nr).collect();
        let mut known = self.0.storage.get_rooms(&numbers).await?;
        let facts = self.facts(numbers.iter().filter_map(|nr| known.remove(nr)).collect()).await?;
        let mut by_nr: HashMap<RoomNr, Arc<RoomFacts>> =
            facts.into_iter().map(|facts| (facts.room.nr, facts)).collect();
        let rooms_listed: Vec<ListedRoom> =
            rows.into_iter().filter_map(|row| Some(ListedRoom { row, facts: by_nr.remove(&row.room_nr)? })).collect();
        let removed = if rooms_listed.iter().any(ListedRoom::is_out) {
            self.0.storage.list_rooms_removed_from(user_nr).await?.into_iter().collect()
        } else {
            HashSet::new()
        };
        let by_id = rooms_listed.iter().enumerate().map(|(nr, room)| (room.facts.room.id.clone(), nr)).collect();
        let list = Arc::new(UserList { made_from: rooms, rooms: rooms_listed, by_id, removed });
        self.0.user_lists.insert(user_nr, list.clone());
        Ok(list)
    }

    /// What is known of rooms; asks the database once for those that are not in memory.
    async fn facts(&self, rooms: Vec<Arc<RoomRow>>) -> Result<Vec<Arc<RoomFacts>>, Error> {
        // In the registry first: what happens while the database is asked is noted there.
        let facts = self.0.registry.get(rooms);
        let missing: Vec<RoomNr> =
            facts.iter().filter(|facts| !facts.is_loaded.load(Ordering::Acquire)).map(|facts| facts.room.nr).collect();
        if !missing.is_empty() {
            let found = self.0.storage.list_room_activity(&missing).await?;
            let mut found: HashMap<RoomNr, _> =
                found.into_iter().map(|activity| (activity.room_nr, activity)).collect();
            for facts in &facts {
                if let Some(activity) = found.remove(&facts.room.nr) {
                    facts.note(activity.last, activity.bump);
                    facts.is_loaded.store(true, Ordering::Release);
                }
            }
        }
        Ok(facts)
    }

    /// What rooms show of themselves; asks the database once for those that are not in memory.
    pub(crate) async fn summaries(
        &self,
        rooms: Vec<&Arc<RoomFacts>>,
    ) -> Result<HashMap<RoomNr, Arc<KnownSummary>>, Error> {
        let mut summaries = HashMap::new();
        let mut missing = HashMap::new();
        for facts in rooms {
            match facts.summary.get() {
                Ok(summary) => drop(summaries.insert(facts.room.nr, summary)),
                Err(forgotten) => drop(missing.insert(facts.room.nr, (facts, forgotten))),
            }
        }
        if !missing.is_empty() {
            let numbers: Vec<RoomNr> = missing.keys().copied().collect();
            for (room_nr, (shown, joined, invited)) in self.0.storage.get_summaries(&numbers).await? {
                let summary = Arc::new(KnownSummary { shown, joined, invited });
                if let Some((facts, forgotten)) = missing.get(&room_nr) {
                    facts.summary.keep(*forgotten, &summary);
                }
                summaries.insert(room_nr, summary);
            }
        }
        Ok(summaries)
    }
}
