//! Which members a device has been told of. Client-Server API, "Lazy-loading room members".
//!
//! It is remembered with each member in which answer they were told, by its position. A device that comes with the token of an earlier
//! answer did not get the later ones: what was told there counts no more. What is forgotten, and what another process told, is told again.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use model::{EventNr, Position, RoomNr, UserNr};
use moka::sync::Cache;
use storage::{StateKey, StoredEvent};

/// Most members that are remembered of one device.
const MEMBERS_MAX: usize = 3_000;
/// Most devices of which anything is remembered: a few hundred bytes each mostly, a few hundred kilobytes at most.
const DEVICES_MAX: u64 = 5_000;

/// What each device has been told.
#[derive(Clone)]
pub(crate) struct ToldMembers(Cache<(UserNr, String), Arc<Device>>);

/// What one device has been told. Guards the members, for moments only.
#[derive(Default)]
pub(crate) struct Device(Mutex<Members>);

#[derive(Default)]
struct Members {
    told: HashMap<(RoomNr, StateKey), Told>,
    /// The position of the last answer that told of any.
    newest: Position,
}

/// The event by which a device was told of a member, and the position of the answer.
type Told = (EventNr, Position);

impl Default for ToldMembers {
    fn default() -> Self {
        Self(Cache::new(DEVICES_MAX))
    }
}

impl ToldMembers {
    /// What a device that comes with `since` has been told.
    pub(crate) fn of(&self, user_nr: UserNr, device: &str, since: Option<Position>) -> Arc<Device> {
        let device = self.0.get_with((user_nr, device.to_owned()), Arc::default);
        let mut known = device.lock();
        if since.is_none_or(|since| known.newest > since) {
            known.told.retain(|_, (_, answer)| since.is_some_and(|since| *answer <= since));
            known.newest = since.unwrap_or_default();
        }
        drop(known);
        device
    }
}

impl Device {
    /// Whether the device knows a member by that event.
    pub(crate) fn knows(&self, room_nr: RoomNr, key: StateKey, event_nr: EventNr) -> bool {
        self.lock().told.get(&(room_nr, key)).is_some_and(|(told, _)| *told == event_nr)
    }

    /// Notes that an answer that ends at a position tells of members.
    pub(crate) fn note<'a>(&self, members: impl IntoIterator<Item = (StateKey, &'a StoredEvent)>, answer: Position) {
        let mut known = self.lock();
        for (key, event) in members {
            if known.told.len() >= MEMBERS_MAX {
                known.told.clear();
            }
            known.newest = known.newest.max(answer);
            known.told.insert((event.room_nr, key), (event.nr, answer));
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Members> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
