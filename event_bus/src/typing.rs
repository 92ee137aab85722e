//! Who is typing where. Client-Server API, "Typing Notifications".
//!
//! One process keeps it in memory. In a cluster it is in Redis, and each process has a copy that follows it; see [`redis`].

mod redis;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use model::{Clock, EphemeralPosition, Random, RoomNr, UserNr};
use tokio::sync::watch;

use self::redis::Change;
use crate::{
    BusError,
    following::{Place, Remote, new_incarnation},
};

/// Longest time that one request says somebody is typing, in milliseconds.
pub const TYPING_MS_MAX: i64 = 120_000;
/// Most users that are shown typing in one room: nobody reads more names.
const TYPING_USERS_MAX: usize = 50;
/// Most rooms whose last change is remembered; when in all of them somebody types, further rooms show nobody.
const ROOMS_MAX: usize = 10_000;

/// Who is typing where. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Typing {
    shared: Arc<Shared>,
    /// Where the state is, when it is not here.
    remote: Option<Remote<Change>>,
}

#[derive(Debug)]
struct Shared {
    clock: Clock,
    random: Random,
    /// Guards the state. Held for moments only; no other lock is taken inside.
    state: Mutex<State>,
    /// Counts the changes of the state.
    changes: watch::Sender<u64>,
}

/// Who is typing where, or a copy of it.
#[derive(Debug)]
struct State {
    /// Which life of the state this is: positions of another one mean nothing here.
    incarnation: u32,
    /// How many changes there were.
    position: u64,
    /// Rooms whose last change is not after this position may have been forgotten.
    floor: u64,
    rooms: HashMap<RoomNr, RoomTyping>,
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

/// What a reader is to be told, and where it stands then.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TypingNews {
    /// The rooms with a change.
    pub changes: Vec<TypingChange>,
    /// Where the reader stands once it knows them; the default one says that it sees nobody typing.
    pub position: EphemeralPosition,
}

impl Typing {
    /// Nobody is typing, and no other process has to know.
    #[must_use]
    pub fn new(clock: Clock, random: &Random) -> Self {
        Self { shared: Arc::new(Shared::new(clock, random.clone())), remote: None }
    }

    /// Shares who is typing with the other processes that use the same `name` in the Redis at `url`. Connects in the background,
    /// again and again; while Redis is away nobody is shown typing.
    ///
    /// # Errors
    ///
    /// [`BusError`] when `url` is none of Redis; not when nobody answers there.
    pub fn redis(url: &str, name: &str, clock: Clock, random: &Random) -> Result<Self, BusError> {
        let shared = Arc::new(Shared::new(clock, random.clone()));
        let place = Place { url, name, channel: name, bounds: [TYPING_USERS_MAX, ROOMS_MAX] };
        let remote = Remote::start(&place, shared.clone(), random.clone())?;
        Ok(Self { shared, remote: Some(remote) })
    }

    /// Says that a user is typing for so many milliseconds (at most [`TYPING_MS_MAX`]), or with `None` that they stopped.
    ///
    /// Returns at once. In a cluster it may be lost; then it is as if the user had said nothing, and time ends what was said before.
    pub fn set(&self, room_nr: RoomNr, user_nr: UserNr, for_ms: Option<i64>) {
        let for_ms = for_ms.map(|for_ms| for_ms.clamp(0, TYPING_MS_MAX));
        match &self.remote {
            Some(remote) => {
                remote.say(Change { room_nr, user_nr, for_ms });
            }
            None => {
                let until_ms = for_ms.map(|for_ms| self.shared.clock.now_ms() + for_ms);
                self.shared.change(|state| state.set(room_nr, user_nr, until_ms));
            }
        }
    }

    /// Tells when something changes.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// Where the state stands.
    #[must_use]
    pub fn position(&self) -> EphemeralPosition {
        self.shared.lock().position()
    }

    /// The rooms with a change since a position, and the position now; nothing when it may be any room.
    #[must_use]
    pub fn changed_rooms(&self, since: EphemeralPosition) -> Option<(Vec<RoomNr>, EphemeralPosition)> {
        let state = self.shared.lock();
        let is_known = since.incarnation == state.incarnation && since.position >= state.floor;
        is_known.then(|| {
            let changed = state.rooms.iter().filter(|(_, room)| room.changed > since.position);
            (changed.map(|(room_nr, _)| *room_nr).collect(), state.position())
        })
    }

    /// What a reader who is in these rooms and stands at `since` has not been told.
    ///
    /// A position of another incarnation says that the reader may see somebody typing in any of its rooms: it is told of all. The
    /// default one says that it sees nobody: it is told who types, and is good for every incarnation. So a reader whose requests
    /// come to one process and to another is told of each change, and waits in between.
    #[must_use]
    pub fn news(&self, rooms: &[RoomNr], since: EphemeralPosition) -> TypingNews {
        self.shared.lock().news(rooms, since)
    }

    /// Ends the typing of those whose time is over; call it every second or so. In a cluster Redis does it.
    pub fn expire(&self) {
        if self.remote.is_none() {
            let now_ms = self.shared.clock.now_ms();
            self.shared.change(|state| state.expire(now_ms));
        }
    }
}

impl Shared {
    fn new(clock: Clock, random: Random) -> Self {
        let state = Mutex::new(State::new(&random));
        Self { clock, random, state, changes: watch::channel(0).0 }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, and tells those who wait if `change` says that it did.
    fn change(&self, change: impl FnOnce(&mut State) -> bool) {
        let has_changed = change(&mut self.lock());
        if has_changed {
            self.changes.send_modify(|count| *count += 1);
        }
    }
}

impl State {
    /// Nobody is typing, in a new life.
    fn new(random: &Random) -> Self {
        Self { incarnation: new_incarnation(random), position: 0, floor: 0, rooms: HashMap::new() }
    }

    /// Notes that a user is typing, or no longer; whether that is a change. A second "still typing" is none: nobody is woken for it.
    fn set(&mut self, room_nr: RoomNr, user_nr: UserNr, until_ms: Option<i64>) -> bool {
        let has_place = self.rooms.contains_key(&room_nr) || self.make_place();
        let (room, changed) = match until_ms {
            Some(until_ms) if has_place => {
                let room = self.rooms.entry(room_nr).or_default();
                let shown = room.users.len() < TYPING_USERS_MAX || room.users.contains_key(&user_nr);
                let is_new = shown && room.users.insert(user_nr, until_ms).is_none();
                (room, is_new)
            }
            Some(_) => return false,
            None => {
                let Some(room) = self.rooms.get_mut(&room_nr) else { return false };
                let was_typing = room.users.remove(&user_nr).is_some();
                (room, was_typing)
            }
        };
        if changed {
            self.position += 1;
            room.changed = self.position;
        }
        changed
    }

    /// Whether another room may be added; forgets those where nobody types when there are too many.
    fn make_place(&mut self) -> bool {
        if self.rooms.len() >= ROOMS_MAX {
            self.rooms.retain(|_, room| !room.users.is_empty());
            self.floor = self.position;
        }
        self.rooms.len() < ROOMS_MAX
    }

    fn expire(&mut self, now_ms: i64) -> bool {
        let before = self.position;
        for room in self.rooms.values_mut() {
            let count = room.users.len();
            room.users.retain(|_, until_ms| *until_ms > now_ms);
            if room.users.len() != count {
                self.position += 1;
                room.changed = self.position;
            }
        }
        self.position != before
    }

    fn position(&self) -> EphemeralPosition {
        EphemeralPosition { incarnation: self.incarnation, position: self.position }
    }

    fn news(&self, rooms: &[RoomNr], since: EphemeralPosition) -> TypingNews {
        let here = self.position();
        let same_life = since.incarnation == self.incarnation && since.position >= self.floor;
        if same_life && since.position >= here.position {
            // All is known; or this copy is a moment behind the one that the reader saw last.
            return TypingNews { changes: Vec::new(), position: since };
        }
        let sees_nobody = since == EphemeralPosition::default();
        let mut news = TypingNews::default();
        if sees_nobody && self.rooms.is_empty() {
            return news;
        }
        for room_nr in rooms {
            let room = self.rooms.get(room_nr);
            if room.is_some_and(|room| !room.users.is_empty()) {
                news.position = here;
            }
            let is_news = match room {
                Some(room) if same_life => room.changed > since.position,
                Some(room) => !sees_nobody || !room.users.is_empty(),
                None => !same_life && !sees_nobody,
            };
            if is_news {
                let users = room.map(|room| room.users.keys().copied().collect()).unwrap_or_default();
                news.changes.push(TypingChange { room_nr: *room_nr, users });
            }
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: RoomNr = RoomNr(1);
    const ALICE: UserNr = UserNr(1);
    const BOB: UserNr = UserNr(2);

    fn typing() -> (Typing, Clock) {
        let clock = Clock::manual(1_000);
        (Typing::new(clock.clone(), &Random::seeded(1)), clock)
    }

    fn change(room_nr: RoomNr, users: &[UserNr]) -> TypingChange {
        TypingChange { room_nr, users: users.to_vec() }
    }

    #[test]
    fn typing_starts_stops_and_runs_out() {
        let (typing, clock) = typing();
        let mut changed = typing.watch();
        typing.set(ROOM, ALICE, Some(5_000));
        typing.set(ROOM, BOB, Some(30_000));
        let seen = typing.news(&[ROOM], EphemeralPosition::default());
        assert_eq!(seen.changes, [change(ROOM, &[ALICE, BOB])]);
        changed.mark_unchanged();
        typing.set(ROOM, BOB, Some(30_000));
        assert!(!changed.has_changed().unwrap(), "still typing is no change");
        assert_eq!(typing.news(&[ROOM], seen.position).changes, []);
        clock.advance_ms(6_000);
        typing.expire();
        let seen = typing.news(&[ROOM], seen.position);
        assert_eq!(seen.changes, [change(ROOM, &[BOB])]);
        typing.set(ROOM, BOB, None);
        let seen = typing.news(&[ROOM, RoomNr(2)], seen.position);
        assert_eq!(seen.changes, [change(ROOM, &[])]);
        assert_eq!(seen.position, EphemeralPosition::default(), "nobody types: nothing is to be cleared later");
        assert_eq!(typing.news(&[ROOM], seen.position), seen_nothing(), "nothing to tell a new reader");
    }

    fn seen_nothing() -> TypingNews {
        TypingNews::default()
    }

    /// Otherwise a client would show somebody typing until the end of days, or be answered at once each time that it asks.
    #[test]
    fn a_reader_from_another_life_is_told_once_who_stopped() {
        let (typing, _) = typing();
        let other = EphemeralPosition { incarnation: 7, position: 12 };
        let told = typing.news(&[ROOM, RoomNr(2)], other);
        assert_eq!(told.changes, [change(ROOM, &[]), change(RoomNr(2), &[])]);
        assert_eq!(typing.news(&[ROOM, RoomNr(2)], told.position), seen_nothing());
        typing.set(ROOM, ALICE, Some(5_000));
        let told = typing.news(&[ROOM, RoomNr(2)], other);
        assert_eq!(told.changes, [change(ROOM, &[ALICE]), change(RoomNr(2), &[])]);
        assert_eq!(typing.news(&[ROOM, RoomNr(2)], told.position).changes, []);
    }

    /// Its position is kept, so that what it has seen elsewhere is not taken back here.
    #[test]
    fn a_reader_who_is_ahead_of_this_copy_waits() {
        let (typing, _) = typing();
        typing.set(ROOM, ALICE, Some(5_000));
        let here = typing.news(&[ROOM], EphemeralPosition::default()).position;
        let ahead = EphemeralPosition { position: here.position + 1, ..here };
        assert_eq!(typing.news(&[ROOM], ahead), TypingNews { changes: vec![], position: ahead });
        typing.set(ROOM, BOB, Some(5_000));
        typing.set(ROOM, BOB, None);
        assert_eq!(typing.news(&[ROOM], ahead).changes, [change(ROOM, &[ALICE])]);
    }

    #[test]
    fn rooms_and_users_are_bounded() {
        let (typing, _) = typing();
        for user in 0..=TYPING_USERS_MAX as i64 {
            typing.set(ROOM, UserNr(user), Some(1_000));
        }
        let seen = typing.news(&[ROOM], EphemeralPosition::default());
        assert_eq!(seen.changes[0].users.len(), TYPING_USERS_MAX);
        for room in 2..=ROOMS_MAX as i64 {
            typing.set(RoomNr(room), ALICE, Some(1_000));
            typing.set(RoomNr(room), ALICE, None);
        }
        let late = RoomNr(ROOMS_MAX as i64 + 1);
        typing.set(late, ALICE, Some(1_000));
        assert_eq!(typing.shared.state.lock().unwrap().rooms.len(), 2, "rooms where nobody types are forgotten");
        // Who saw somebody type before that is told of all its rooms.
        let news = typing.news(&[ROOM, RoomNr(2), late], seen.position);
        assert_eq!(news.changes.len(), 3);
        assert_eq!(news.changes[1], change(RoomNr(2), &[]));
        for room in 0..ROOMS_MAX as i64 {
            typing.set(RoomNr(20_000 + room), ALICE, Some(1_000));
        }
        assert_eq!(typing.shared.state.lock().unwrap().rooms.len(), ROOMS_MAX, "more rooms show nobody");
    }
}
