//! Who is typing where. Client-Server API, "Typing Notifications".

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use model::{Clock, EphemeralPosition, Random, RoomNr, UserNr};
use tokio::sync::watch;

/// Longest time that one request says somebody is typing, in milliseconds.
pub const TYPING_MS_MAX: i64 = 120_000;
/// Most users that are shown typing in one room: nobody reads more names.
const TYPING_USERS_MAX: usize = 50;

/// Who is typing where, in this process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Typing(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    clock: Clock,
    incarnation: u32,
    /// Guards the rooms. Held for moments only; no other lock is taken inside.
    rooms: Mutex<HashMap<RoomNr, RoomTyping>>,
    position: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct RoomTyping {
    /// Until when each is typing, in milliseconds since 1970.
    users: BTreeMap<UserNr, i64>,
    /// The position of the last change.
    changed: u64,
}

/// The users who are typing in a room, after a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypingChange {
    /// The room.
    pub room_nr: RoomNr,
    /// Who is typing there now.
    pub users: Vec<UserNr>,
}

impl Typing {
    /// Nobody is typing.
    #[must_use]
    pub fn new(clock: Clock, random: &Random) -> Self {
        let incarnation = u32::from_le_bytes(random.bytes()).max(1);
        let (position, _) = watch::channel(0);
        Self(Arc::new(Shared { clock, incarnation, rooms: Mutex::default(), position }))
    }

    /// Says that a user is typing for so many milliseconds (at most [`TYPING_MS_MAX`]), or with `None` that they stopped.
    pub fn set(&self, room_nr: RoomNr, user_nr: UserNr, for_ms: Option<i64>) {
        let now_ms = self.0.clock.now_ms();
        let mut rooms = self.0.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        let room = rooms.entry(room_nr).or_default();
        let changed = match for_ms {
            Some(for_ms) if room.users.len() < TYPING_USERS_MAX || room.users.contains_key(&user_nr) => {
                room.users.insert(user_nr, now_ms + for_ms.clamp(0, TYPING_MS_MAX)).is_none()
            }
            Some(_) => false,
            None => room.users.remove(&user_nr).is_some(),
        };
        if changed {
            self.note_change(room);
        }
    }

    // A second "still typing" is no change: listeners are not woken for it.
    fn note_change(&self, room: &mut RoomTyping) {
        self.0.position.send_modify(|position| *position += 1);
        room.changed = *self.0.position.borrow();
    }

    /// Where the stream of changes stands.
    #[must_use]
    pub fn position(&self) -> EphemeralPosition {
        EphemeralPosition { incarnation: self.0.incarnation, position: *self.0.position.borrow() }
    }

    /// Tells when the stream of changes moves on.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.0.position.subscribe()
    }

    /// Who is typing in those of the rooms that changed after `since`; a `since` of another life gives all who type.
    #[must_use]
    pub fn changes(&self, rooms: &[RoomNr], since: EphemeralPosition) -> Vec<TypingChange> {
        let same_life = since.incarnation == self.0.incarnation;
        let after = if same_life { since.position } else { 0 };
        let known = self.0.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changes = Vec::new();
        for room_nr in rooms {
            let Some(room) = known.get(room_nr) else { continue };
            if room.changed > after && (same_life || !room.users.is_empty()) {
                changes.push(TypingChange { room_nr: *room_nr, users: room.users.keys().copied().collect() });
            }
        }
        changes
    }

    /// Ends the typing of those whose time is over; call it every second or so.
    pub fn expire(&self) {
        let now_ms = self.0.clock.now_ms();
        let mut rooms = self.0.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        for room in rooms.values_mut() {
            let before = room.users.len();
            room.users.retain(|_, until_ms| *until_ms > now_ms);
            if room.users.len() != before {
                self.note_change(room);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typing_starts_stops_and_runs_out() {
        let clock = Clock::manual(1_000);
        let typing = Typing::new(clock.clone(), &Random::seeded(1));
        let (room, alice, bob) = (RoomNr(1), UserNr(1), UserNr(2));
        let start = typing.position();
        typing.set(room, alice, Some(5_000));
        typing.set(room, bob, Some(30_000));
        assert_eq!(typing.changes(&[room], start), [TypingChange { room_nr: room, users: vec![alice, bob] }]);
        let seen = typing.position();
        typing.set(room, bob, Some(30_000));
        assert_eq!(typing.position(), seen, "still typing is no change");
        clock.advance_ms(6_000);
        typing.expire();
        assert_eq!(typing.changes(&[room], seen), [TypingChange { room_nr: room, users: vec![bob] }]);
        typing.set(room, bob, None);
        assert_eq!(typing.changes(&[room, RoomNr(2)], seen), [TypingChange { room_nr: room, users: vec![] }]);
        assert_eq!(
            typing.changes(&[room], EphemeralPosition::default()),
            [],
            "nobody types: nothing to tell a new reader"
        );
    }
}
