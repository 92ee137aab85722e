//! What is new for this user since this token.
//!
//! One [`tail`] a process follows the stream and wakes those who wait; [`v3`] and [`sliding`] put answers together.

mod account_data;
mod ephemeral;
mod error;
mod heroes;
mod ignored_invites;
mod news;
mod peek;
mod presence;
mod presence_events;
mod remembered;
mod ring;
mod room_facts;
mod room_marks;
pub mod sliding;
mod stay;
mod stripped_state;
mod tail;
mod to_device;
mod told_members;
mod unread;
pub mod v3;

use std::{
    collections::HashSet,
    sync::{Arc, atomic::AtomicI64},
    time::Duration,
};

use event_bus::{Bus, Presence, Typing};
use model::{Membership, Position, RoomNr, UserNr};
use moka::sync::Cache;
use rooms::{Presences, Rooms};
use ruma::api::client::filter::FilterDefinition;
use storage::{Published, RoomMembership, Storage};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

pub use self::{error::Error, peek::RoomNews};
use self::{
    presence_events::PresenceEvents,
    remembered::Remembered,
    ring::Ring,
    room_facts::{Registry, UserList},
    room_marks::RoomMarks,
    sliding::Connections,
    tail::Waiters,
    told_members::ToldMembers,
};

/// Most users whose rooms are in memory.
const USERS_CACHED: u64 = 20_000;
/// Most devices of whose messages it is known how many were seen.
const DEVICES_CACHED: u64 = 50_000;

/// Most devices of which it is known what members they were told of: some hundred bytes each mostly, 200 KB at most.
const LAZY_DEVICES_CACHED: u64 = 5_000;

/// Most rooms in the lists that are in memory, of all users together.
const LISTED_ROOMS_CACHED: u64 = 2_000_000;

/// How many groups who follows the stream may be behind before they have to read the database.
const FOLLOWED_KEPT: usize = 1_024;

/// Most stored filters in memory.
const FILTERS_CACHED: u64 = 10_000;

/// What a user is to which rooms.
#[derive(Debug, Default)]
struct UserRooms {
    /// The memberships of every kind.
    rows: Vec<RoomMembership>,
    /// The rooms that the user is joined to.
    joined: Vec<RoomNr>,
    /// The same, for looking up.
    is_joined: HashSet<RoomNr>,
}

impl UserRooms {
    fn new(rows: Vec<RoomMembership>) -> Self {
        let joined: Vec<RoomNr> =
            rows.iter().filter(|row| row.membership == Membership::Join).map(|row| row.room_nr).collect();
        Self { is_joined: joined.iter().copied().collect(), joined, rows }
    }

    /// Whether both are joined to some room.
    fn share_any(&self, other: &Self) -> bool {
        let (few, many) = if self.joined.len() < other.joined.len() { (self, other) } else { (other, self) };
        few.joined.iter().any(|room| many.is_joined.contains(room))
    }
}

/// What lives in memory or in Redis.
#[derive(Clone, Debug)]
pub struct Ephemeral {
    /// Who is typing where.
    pub typing: Typing,
    /// Who is there; nothing where that is switched off.
    pub presence: Option<Presence>,
}

impl From<Typing> for Ephemeral {
    fn from(typing: Typing) -> Self {
        Self { typing, presence: None }
    }
}

/// Answers what is new. Cheap to clone.
#[derive(Clone)]
pub struct Sync(Arc<Inner>);

struct Inner {
    storage: Storage,
    rooms: Rooms,
    typing: Typing,
    presences: Presences,
    presence_events: PresenceEvents,
    ring: Ring,
    waiters: Waiters,
    /// What each user is to which rooms, as of the ring's newest position; dropped when it changes.
    user_rooms: Cache<UserNr, Arc<UserRooms>>,
    /// The rooms in memory, and the lists of the users who sync by lists.
    registry: Registry,
    user_lists: Cache<UserNr, Arc<UserList>>,
    room_marks: Cache<UserNr, Arc<Remembered<RoomMarks>>>,
    connections: Connections,
    /// Filters that were stored, which never change.
    filters: Cache<(UserNr, i64), Arc<FilterDefinition>>,
    /// Up to where each device has said that it has its messages: none of those wait any more.
    acknowledged: Cache<(UserNr, String), Arc<AtomicI64>>,
    /// What users have not read.
    tallies: Cache<UserNr, Arc<unread::Slot>>,
    /// Which members each device that loads them lazily by `/sync` has been told of.
    told_members: Cache<(UserNr, String), Arc<ToldMembers>>,
    /// What was taken into the ring, for others in this process who follow the stream.
    followed: broadcast::Sender<Arc<Published>>,
    stopping: CancellationToken,
}

impl Sync {
    /// Starts to follow the stream, and to tell `bus` and hear from it of other processes. Long polls end at once when `stopping` is cancelled.
    #[must_use]
    pub fn start(
        storage: Storage,
        rooms: Rooms,
        ephemeral: impl Into<Ephemeral>,
        bus: Bus,
        stopping: CancellationToken,
    ) -> Self {
        Self::start_asking(tail::ASK_EVERY, storage, rooms, ephemeral, bus, stopping)
    }

    /// The same with another time between two looks at the database, which show what other processes wrote when the bus loses it: a test
    /// that wants to see what the bus does chooses a long one.
    #[must_use]
    pub fn start_asking(
        every: Duration,
        storage: Storage,
        rooms: Rooms,
        ephemeral: impl Into<Ephemeral>,
        bus: Bus,
        stopping: CancellationToken,
    ) -> Self {
        let Ephemeral { typing, presence } = ephemeral.into();
        let presences = Presences::new(storage.clone(), rooms.servers().clone(), presence.clone());
        let stream = storage.subscribe();
        let sync = Self(Arc::new(Inner {
            ring: Ring::new(storage.published()),
            waiters: Waiters::default(),
            user_rooms: Cache::new(USERS_CACHED),
            registry: Registry::default(),
            user_lists: Cache::builder()
                .max_capacity(LISTED_ROOMS_CACHED)
                .weigher(|_, list: &Arc<UserList>| list.rooms.len() as u32 + 10)
                .build(),
            room_marks: Cache::new(USERS_CACHED),
            connections: Connections::default(),
            filters: Cache::new(FILTERS_CACHED),
            acknowledged: Cache::new(DEVICES_CACHED),
            tallies: unread::cache(),
            told_members: Cache::new(LAZY_DEVICES_CACHED),
            storage,
            rooms,
            typing,
            presences,
            presence_events: PresenceEvents::default(),
            followed: broadcast::channel(FOLLOWED_KEPT).0,
            stopping,
        }));
        tokio::spawn(tail::follow(sync.clone(), stream, bus, every));
        if let Some(presence) = presence {
            tokio::spawn(presence::follow(sync.clone(), presence));
        }
        sync
    }

    /// What all processes commit from now on, in order, each part once clients of this process see it. Where one does not begin at the end
    /// of the one before, something is missing, and is in the database: so it is for a receiver that falls behind.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Published>> {
        self.0.followed.subscribe()
    }

    /// The newest position that is shown to clients of this process.
    #[must_use]
    pub fn position(&self) -> Position {
        self.0.ring.newest()
    }

    /// A filter that a user stored, if there is one of that number.
    ///
    /// # Errors
    ///
    /// When the database fails or what is stored is no filter.
    pub async fn filter(&self, user_nr: UserNr, filter_nr: i64) -> Result<Option<Arc<FilterDefinition>>, Error> {
        let key = (user_nr, filter_nr);
        if let Some(filter) = self.0.filters.get(&key) {
            return Ok(Some(filter));
        }
        let Some(content) = self.0.storage.get_filter(user_nr, filter_nr).await? else { return Ok(None) };
        let filter = serde_json::from_str(&content)
            .map_err(|error| storage::Error::Damaged(format!("filter {filter_nr} of user {user_nr}: {error}")))?;
        let filter = Arc::new(filter);
        self.0.filters.insert(key, Arc::clone(&filter));
        Ok(Some(filter))
    }

    async fn user_rooms(&self, user_nr: UserNr) -> Result<Arc<UserRooms>, Error> {
        if let Some(known) = self.0.user_rooms.get(&user_nr) {
            return Ok(known);
        }
        // What changes while it is read is seen by its version: only an undisturbed read is kept.
        let version = self.0.waiters.membership_version();
        let rooms = Arc::new(UserRooms::new(self.0.storage.list_rooms_of_user(user_nr).await?));
        self.0.waiters.if_unchanged(version, || self.0.user_rooms.insert(user_nr, rooms.clone()));
        Ok(rooms)
    }
}

impl std::fmt::Debug for Sync {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sync").field("position", &self.position()).finish_non_exhaustive()
    }
}
