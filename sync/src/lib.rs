//! What is new for this user since this token.
//!
//! One [`tail`] a process follows the stream and wakes those who wait; [`v3`] puts answers together.

mod error;
mod ring;
mod tail;
pub mod v3;

use std::{sync::Arc, time::Duration};

use accounts::Requester;
use event_bus::{Bus, Typing};
use model::{Position, UserNr};
use moka::sync::Cache;
use rooms::Rooms;
use storage::{RoomMembership, Storage};
use tokio_util::sync::CancellationToken;

pub use self::error::Error;
use self::{ring::Ring, tail::Waiters};

/// Most users whose rooms are in memory.
const USERS_CACHED: u64 = 20_000;

/// Answers what is new. Cheap to clone.
#[derive(Clone)]
pub struct Sync(Arc<Inner>);

struct Inner {
    storage: Storage,
    rooms: Rooms,
    typing: Typing,
    ring: Ring,
    waiters: Waiters,
    /// What each user is to which rooms, as of the ring's newest position; dropped when it changes.
    memberships: Cache<UserNr, Arc<Vec<RoomMembership>>>,
    stopping: CancellationToken,
}

impl Sync {
    /// Starts to follow the stream, and to tell `bus` and hear from it of other processes. Long polls end at once when `stopping` is cancelled.
    #[must_use]
    pub fn start(storage: Storage, rooms: Rooms, typing: Typing, bus: Bus, stopping: CancellationToken) -> Self {
        Self::start_asking(tail::ASK_EVERY, storage, rooms, typing, bus, stopping)
    }

    /// The same with another time between two looks at the database, which show what other processes wrote when the bus loses it: a test
    /// that wants to see what the bus does chooses a long one.
    #[must_use]
    pub fn start_asking(
        every: Duration,
        storage: Storage,
        rooms: Rooms,
        typing: Typing,
        bus: Bus,
        stopping: CancellationToken,
    ) -> Self {
        let stream = storage.subscribe();
        let sync = Self(Arc::new(Inner {
            ring: Ring::new(storage.published()),
            waiters: Waiters::default(),
            memberships: Cache::new(USERS_CACHED),
            storage,
            rooms,
            typing,
            stopping,
        }));
        tokio::spawn(tail::follow(sync.clone(), stream, bus, every));
        sync
    }

    /// The newest position that is shown to clients of this process.
    #[must_use]
    pub fn position(&self) -> Position {
        self.0.ring.newest()
    }

    async fn memberships(&self, requester: &Requester) -> Result<Arc<Vec<RoomMembership>>, Error> {
        let user_nr = requester.user_nr;
        if let Some(known) = self.0.memberships.get(&user_nr) {
            return Ok(known);
        }
        // What changes while it is read is seen by its version: only an undisturbed read is kept.
        let version = self.0.waiters.membership_version(user_nr);
        let rows = Arc::new(self.0.storage.list_rooms_of_user(user_nr).await?);
        self.0.waiters.if_unchanged(user_nr, version, || self.0.memberships.insert(user_nr, rows.clone()));
        Ok(rows)
    }
}

impl std::fmt::Debug for Sync {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sync").field("position", &self.position()).finish_non_exhaustive()
    }
}
