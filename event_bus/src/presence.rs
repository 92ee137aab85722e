//! Who is there. Client-Server API, "Presence".
//!
//! A user is as present as the most present of their devices. A device is there while it syncs, and for half a minute after. One process
//! keeps it in memory. In a cluster it is in Redis, and each process has a copy that follows it; see [`redis`]. What changes for one user
//! is in [`record`]; who may see it is not decided here.

mod record;
mod redis;

use std::{
    collections::{BTreeMap, HashMap},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use model::{Clock, EphemeralPosition, Random, UserNr};
use tokio::sync::watch;

pub use self::record::{Availability, Reported, SelfDescription, Shown};
use self::record::{Happening, Record};
use crate::{
    BusError,
    following::{Place, Remote, new_incarnation},
};

/// How long a device counts that does not sync any more, in milliseconds: those who sync say so every [`TOUCH_EVERY_MS`].
const DEVICE_MS: i64 = 40_000;
/// How often it is said again that a device syncs, in milliseconds.
const TOUCH_EVERY_MS: i64 = 10_000;
/// How often it is said again that somebody is active, in milliseconds.
const ACTIVE_EVERY_MS: i64 = 20_000;
/// Most devices of which one message to the state says that they sync still.
const TOUCHES_AT_ONCE: usize = 128;
/// Most changes that are looked at without letting others come to the state.
const CHANGES_AT_ONCE: usize = 1_000;
/// Most users of whom anything is known. When all of them are there, further ones are not shown.
const USERS_MAX: usize = 100_000;

/// Who is there. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Presence {
    shared: Arc<Shared>,
    /// Where the state is, when it is not here.
    remote: Option<Remote<Saying>>,
}

/// A user's presence; by default that of somebody of whom nothing is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserPresence {
    /// What others are shown.
    pub shown: Shown,
    /// How long ago the user did something, in milliseconds; nothing when it is not known.
    pub last_active_ago_ms: Option<i64>,
}

impl UserPresence {
    /// Whether others are told that the user is active now: only of who is online. Client-Server API, "m.presence".
    #[must_use]
    pub fn currently_active(&self) -> Option<bool> {
        (self.shown.availability == Availability::Online).then_some(self.shown.currently_active)
    }
}

/// Whose presence changed, for a reader.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PresenceNews {
    /// The users with the positions of their changes, oldest first.
    pub changes: Vec<(u64, UserNr)>,
    /// Where the reader stands once it knows them.
    pub position: EphemeralPosition,
}

/// What is remembered of a user of whom the state knows nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remembered {
    /// What they said of themselves.
    pub says: SelfDescription,
    /// When they last did something, in milliseconds since 1970; zero when it is not known.
    pub last_active_ms: i64,
}

/// Counts a device as one that syncs, until it is dropped.
#[derive(Debug)]
pub struct Syncing {
    shared: Arc<Shared>,
    key: DeviceKey,
}

type DeviceKey = (UserNr, String);

/// What a process says to the state.
#[derive(Debug)]
enum Saying {
    /// Something happened to a user; with what is remembered of them, should nothing be known.
    Happened(UserNr, Happening, Option<Remembered>),
    /// Devices sync still.
    Touch(Vec<DeviceKey>),
}

#[derive(Debug)]
struct Shared {
    clock: Clock,
    /// Guards the state. Held for moments only; no other lock is taken inside.
    state: Mutex<State>,
    /// The devices that sync with this process. Guards them; that of the state may be taken inside.
    devices: Mutex<HashMap<DeviceKey, LocalDevice>>,
    /// Counts the changes of the state.
    changes: watch::Sender<u64>,
}

/// A device that syncs with this process, or did moments ago.
#[derive(Clone, Debug, Default)]
struct LocalDevice {
    /// How many requests wait for news.
    requests: usize,
    is_idle: bool,
    /// When it was last said that it syncs; zero for never.
    told_ms: i64,
    /// When it was last said that it is active.
    active_told_ms: i64,
}

/// Who is there, or a copy of it.
#[derive(Debug)]
struct State {
    /// Which life of the state this is: positions of another one mean nothing here.
    incarnation: u32,
    /// How many changes there were.
    position: u64,
    /// Users whose last change is not after this position may have been forgotten.
    floor: u64,
    /// Whether this is the state: a copy is none before it was read first.
    is_known: bool,
    users: HashMap<UserNr, Known>,
    /// The users by the position of the last change that others are shown.
    by_change: BTreeMap<u64, UserNr>,
    /// When a device is gone, or, without one, when time alone changes what is shown of a user. In a cluster Redis has it.
    ends: HashMap<(UserNr, Option<String>), i64>,
    /// Who came or went, whether they are there now, and when they last did something.
    flips: HashMap<UserNr, (bool, i64)>,
}

/// Changes that a reader asked for, and how far they were looked at.
struct Asked {
    next: u64,
    /// Where the reader stands then.
    upto: EphemeralPosition,
    /// Whether only those who are there are told.
    believes_nothing: bool,
}

#[derive(Debug)]
struct Known {
    record: Record,
    /// The position of the last change.
    changed: u64,
    /// The position of the last change that others are shown.
    shown: u64,
}

impl Record {
    fn is_away(&self) -> bool {
        self.shown.availability == Availability::Offline
    }

    fn presence(&self, now_ms: i64) -> UserPresence {
        let last_active_ago_ms = (self.last_active_ms > 0).then(|| (now_ms - self.last_active_ms).max(0));
        UserPresence { shown: self.shown.clone(), last_active_ago_ms }
    }
}

impl Presence {
    /// Nobody is there, and no other process has to know.
    #[must_use]
    pub fn new(clock: Clock, random: &Random) -> Self {
        let mut state = State::new(new_incarnation(random));
        state.is_known = true;
        Self { shared: Arc::new(Shared::new(clock, state)), remote: None }
    }

    /// Shares who is there with the other processes that use the same `name` in the Redis at `url`. Connects in the background, again and
    /// again; while Redis is away what was known is shown on. The clocks of the processes must agree to some seconds.
    ///
    /// # Errors
    ///
    /// [`BusError`] when `url` is none of Redis; not when nobody answers there.
    pub fn redis(url: &str, name: &str, clock: Clock, random: &Random) -> Result<Self, BusError> {
        Self::redis_with(&Place { url, name, channel: name, bounds: [0, USERS_MAX] }, clock, random)
    }

    fn redis_with(place: &Place<'_>, clock: Clock, random: &Random) -> Result<Self, BusError> {
        let shared = Arc::new(Shared::new(clock, State::new(new_incarnation(random))));
        let remote = Remote::start(place, shared.clone(), random.clone())?;
        Ok(Self { shared, remote: Some(remote) })
    }

    /// Whether anything is known of a user: if not, say with [`Presence::syncs`] or [`Presence::set`] what is remembered.
    #[must_use]
    pub fn knows(&self, user_nr: UserNr) -> bool {
        self.shared.lock().users.contains_key(&user_nr)
    }

    /// A device syncs, as one that is in use or as one that is idle; until the end of what is returned, and for half a minute after.
    pub fn syncs(&self, user_nr: UserNr, device: &str, is_idle: bool, before: Option<Remembered>) -> Syncing {
        let key = (user_nr, device.to_owned());
        let now_ms = self.shared.clock.now_ms();
        let mut devices = self.shared.devices();
        let local = devices.entry(key.clone()).or_default();
        local.requests += 1;
        let is_new = local.told_ms == 0 || local.is_idle != is_idle || self.shared.lock().is_hidden(user_nr, device);
        let is_due = now_ms >= local.told_ms + TOUCH_EVERY_MS;
        local.is_idle = is_idle;
        if is_new || is_due {
            local.told_ms = now_ms;
        }
        drop(devices);
        if is_new {
            let syncs = Happening::Syncs { device: device.to_owned(), is_idle };
            if !self.say(Saying::Happened(user_nr, syncs, before)) {
                self.shared.not_told([&key]);
            }
        } else if is_due {
            self.still_sync(vec![(key.clone(), is_idle)]);
        }
        Syncing { shared: self.shared.clone(), key }
    }

    /// A user did something on a device. Who does not sync is not shown by it.
    pub fn active(&self, user_nr: UserNr, device: &str) {
        let now_ms = self.shared.clock.now_ms();
        // Whether it would show at all.
        let is_shown = match self.shared.lock().users.get(&user_nr) {
            Some(known) if known.record.has_device(device) => {
                !known.record.shown.currently_active || known.record.is_idle(device)
            }
            _ => return,
        };
        let mut devices = self.shared.devices();
        let local = devices.entry((user_nr, device.to_owned())).or_default();
        if !is_shown && now_ms < local.active_told_ms + ACTIVE_EVERY_MS && self.remote.is_some() {
            return;
        }
        local.active_told_ms = now_ms;
        drop(devices);
        self.say(Saying::Happened(user_nr, Happening::Active { device: device.to_owned() }, None));
    }

    /// A user says how they are, with a status message or with none. Client-Server API, "PUT /presence/{userId}/status". Waits while more
    /// is said than Redis takes: the client does not say it again.
    pub async fn set(
        &self,
        user_nr: UserNr,
        device: &str,
        availability: Availability,
        status_msg: Option<String>,
        before: Option<Remembered>,
    ) {
        let sets = Happening::Sets { device: device.to_owned(), availability, status_msg };
        self.say_in_turn(Saying::Happened(user_nr, sets, before)).await;
    }

    /// The server of a user who is not ours says how they are: that counts until it says something else, half an hour at most. Waits as
    /// [`Presence::set`] does.
    pub async fn report(&self, user_nr: UserNr, reported: Reported) {
        let now_ms = self.shared.clock.now_ms();
        let active_ms = reported.last_active_ago_ms.map_or(0, |ago_ms| now_ms.saturating_sub(ago_ms.max(0)).max(0));
        self.say_in_turn(Saying::Happened(user_nr, Happening::Reported { reported, active_ms }, None)).await;
    }

    /// Name or picture of a user changed: others are told, if anything is known of the user. Waits as [`Presence::set`] does.
    pub async fn rename(&self, user_nr: UserNr, display_name: Option<String>, avatar_url: Option<String>) {
        if self.knows(user_nr) {
            let renamed = Happening::Renamed { display_name, avatar_url };
            self.say_in_turn(Saying::Happened(user_nr, renamed, None)).await;
        }
    }

    /// Brings back those who were there when the state was lost: for as long as a device counts that does not sync any more. Waits
    /// while more is said than Redis takes.
    pub async fn restore(&self, users: Vec<(UserNr, Remembered)>) {
        for (user_nr, before) in users {
            if self.knows(user_nr) {
                continue;
            }
            self.say_in_turn(Saying::Happened(user_nr, Happening::WasThere, Some(before))).await;
        }
    }

    /// Which life of the state this is; nothing while it is not known.
    #[must_use]
    pub fn incarnation(&self) -> Option<u32> {
        let state = self.shared.lock();
        state.is_known.then_some(state.incarnation)
    }

    /// A user's presence, if anything is known of them.
    #[must_use]
    pub fn get(&self, user_nr: UserNr) -> Option<UserPresence> {
        let now_ms = self.shared.clock.now_ms();
        Some(self.shared.lock().users.get(&user_nr)?.record.presence(now_ms))
    }

    /// The presence of a user of whom the state knows nothing: they are not there.
    #[must_use]
    pub fn remembered(&self, before: Remembered) -> UserPresence {
        Record::new(before).presence(self.shared.clock.now_ms())
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

    /// Whose presence a reader who stands at `since` has not been told.
    ///
    /// Somebody with a position of another life may believe of anybody that they are there: all are told. The default position says that
    /// the reader believes nothing: those who are there are told.
    #[must_use]
    pub fn news(&self, since: EphemeralPosition) -> PresenceNews {
        let mut asked = match self.shared.lock().asked(since) {
            Ok(asked) => asked,
            Err(position) => return PresenceNews { changes: Vec::new(), position },
        };
        let mut changes = Vec::new();
        // Others come to the state in between: a reader with a position of another life is told of up to 100,000 users.
        while self.shared.lock().take_changes(&mut asked, &mut changes) {}
        PresenceNews { changes, position: asked.upto }
    }

    /// Ends what has had its time, and says again who syncs here; call it every second or so.
    pub fn tick(&self) {
        let now_ms = self.shared.clock.now_ms();
        self.still_sync(self.shared.devices_to_tell(now_ms));
        if self.remote.is_none() {
            self.shared.change(|state| state.end_due(now_ms));
        }
    }

    /// Who came or went since the last question in this process: whether they are there, and when they last did something.
    #[must_use]
    pub fn take_flips(&self) -> Vec<(UserNr, bool, i64)> {
        let flips = mem::take(&mut self.shared.lock().flips);
        flips.into_iter().map(|(user_nr, (is_there, active_ms))| (user_nr, is_there, active_ms)).collect()
    }

    /// Devices that sync are kept, and come back when they were lost. What cannot be said now is due again with the next tick.
    fn still_sync(&self, devices: Vec<(DeviceKey, bool)>) {
        let mut touched = Vec::new();
        for (key, is_idle) in devices {
            let (user_nr, device) = &key;
            let is_there = self.shared.lock().users.get(user_nr).is_some_and(|known| known.record.has_device(device));
            let syncs = || Happening::Syncs { device: device.clone(), is_idle };
            if is_there {
                touched.push(key);
            } else if !self.say(Saying::Happened(*user_nr, syncs(), None)) {
                self.shared.not_told([&key]);
            }
        }
        for keys in touched.chunks(TOUCHES_AT_ONCE) {
            if !self.say(Saying::Touch(keys.to_vec())) {
                self.shared.not_told(keys);
            }
        }
    }

    /// Says something to the state, once there is place.
    async fn say_in_turn(&self, saying: Saying) {
        match &self.remote {
            Some(remote) => remote.say_in_turn(saying).await,
            None => {
                self.say(saying);
            }
        }
    }

    /// Says something to the state; whether it was taken.
    fn say(&self, saying: Saying) -> bool {
        let Some(remote) = &self.remote else {
            let now_ms = self.shared.clock.now_ms();
            self.shared.change(|state| match saying {
                Saying::Happened(user_nr, happening, before) => state.note(user_nr, &happening, before, now_ms),
                Saying::Touch(keys) => {
                    let ends = keys.into_iter().map(|(user_nr, device)| ((user_nr, Some(device)), now_ms + DEVICE_MS));
                    state.ends.extend(ends);
                    false
                }
            });
            return true;
        };
        remote.say(saying)
    }
}

impl Drop for Syncing {
    fn drop(&mut self) {
        if let Some(local) = self.shared.devices().get_mut(&self.key) {
            local.requests -= 1;
        }
    }
}

impl Shared {
    fn new(clock: Clock, state: State) -> Self {
        Self { clock, state: Mutex::new(state), devices: Mutex::default(), changes: watch::channel(0).0 }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn devices(&self) -> MutexGuard<'_, HashMap<DeviceKey, LocalDevice>> {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, and tells those who wait if `change` says that it did.
    fn change(&self, change: impl FnOnce(&mut State) -> bool) {
        let has_changed = change(&mut self.lock());
        if has_changed {
            self.changes.send_modify(|count| *count += 1);
        }
    }

    /// The devices that sync here and of which it has to be said again; forgets those that are gone.
    fn devices_to_tell(&self, now_ms: i64) -> Vec<(DeviceKey, bool)> {
        let mut due = Vec::new();
        self.devices().retain(|key, local| {
            if local.requests > 0 && now_ms >= local.told_ms + TOUCH_EVERY_MS {
                local.told_ms = now_ms;
                due.push((key.clone(), local.is_idle));
            }
            local.requests > 0 || now_ms < local.told_ms.max(local.active_told_ms) + DEVICE_MS
        });
        due
    }

    /// Of these devices nothing could be said: they are due again.
    fn not_told<'a>(&self, keys: impl IntoIterator<Item = &'a DeviceKey>) {
        let mut devices = self.devices();
        for key in keys {
            if let Some(local) = devices.get_mut(key) {
                local.told_ms = 0;
            }
        }
    }

    /// What was said was lost: it is said again.
    fn forget_told(&self) {
        for local in self.devices().values_mut() {
            local.told_ms = 0;
        }
    }
}

impl State {
    fn new(incarnation: u32) -> Self {
        Self {
            incarnation,
            position: 0,
            floor: 0,
            is_known: false,
            users: HashMap::new(),
            by_change: BTreeMap::new(),
            ends: HashMap::new(),
            flips: HashMap::new(),
        }
    }

    /// Begins another life, or the same one anew.
    fn begin(&mut self, incarnation: u32, floor: u64) {
        let flips = mem::take(&mut self.flips);
        *self = Self { floor, flips, ..Self::new(incarnation) };
    }

    fn position(&self) -> EphemeralPosition {
        EphemeralPosition { incarnation: self.incarnation, position: self.position }
    }

    fn known(&self, user_nr: UserNr) -> Option<(Record, u64)> {
        self.users.get(&user_nr).map(|known| (known.record.clone(), known.changed))
    }

    fn insert(&mut self, user_nr: UserNr, record: Record, changed: u64, shown: u64) {
        if let Some(old) = self.users.insert(user_nr, Known { record, changed, shown })
            && self.by_change.get(&old.shown) == Some(&user_nr)
        {
            self.by_change.remove(&old.shown);
        }
        if shown > 0 {
            self.by_change.insert(shown, user_nr);
        }
    }

    fn is_hidden(&self, user_nr: UserNr, device: &str) -> bool {
        self.users.get(&user_nr).is_some_and(|known| known.record.is_hidden(device))
    }

    /// Notes what happened to a user; whether others are to be told.
    fn note(&mut self, user_nr: UserNr, happening: &Happening, before: Option<Remembered>, now_ms: i64) -> bool {
        if !self.users.contains_key(&user_nr) {
            if !self.make_place() {
                return false;
            }
            let record = Record::new(before.unwrap_or_default());
            self.users.insert(user_nr, Known { record, changed: 0, shown: 0 });
        }
        let Some(known) = self.users.get_mut(&user_nr) else { return false };
        let was_away = known.record.is_away();
        let is_told = known.record.note(happening, now_ms);
        if let Some(device) = happening.shows_device() {
            self.ends.insert((user_nr, Some(device.to_owned())), now_ms + happening.shows_for_ms());
        }
        match known.record.next_change_ms() {
            Some(at_ms) => drop(self.ends.insert((user_nr, None), at_ms)),
            None => drop(self.ends.remove(&(user_nr, None))),
        }
        if known.record.is_away() != was_away {
            self.flips.insert(user_nr, (was_away, known.record.last_active_ms));
        }
        if is_told {
            self.position += 1;
            self.by_change.remove(&mem::replace(&mut known.shown, self.position));
            known.changed = self.position;
            self.by_change.insert(self.position, user_nr);
        }
        is_told
    }

    /// Ends what has had its time; whether others are to be told.
    fn end_due(&mut self, now_ms: i64) -> bool {
        let due: Vec<_> = self.ends.extract_if(|_, end_ms| *end_ms <= now_ms).map(|(key, _)| key).collect();
        let mut is_told = false;
        for (user_nr, device) in due {
            let happening = device.map_or(Happening::Waited, |device| Happening::Gone { device });
            is_told |= self.users.contains_key(&user_nr) && self.note(user_nr, &happening, None, now_ms);
        }
        is_told
    }

    /// Whether another user may be added; forgets those who are away when there are too many.
    fn make_place(&mut self) -> bool {
        if self.users.len() >= USERS_MAX {
            self.users.retain(|_, known| !known.record.is_away());
            let users = &self.users;
            self.by_change.retain(|_, user_nr| users.contains_key(user_nr));
            self.floor = self.position;
        }
        self.users.len() < USERS_MAX
    }

    /// Forgets those who are away and did not change after a position, as Redis has.
    fn forget_before(&mut self, floor: u64) {
        self.users.retain(|_, known| known.changed > floor || !known.record.is_away());
        let users = &self.users;
        self.by_change.retain(|_, user_nr| users.contains_key(user_nr));
    }

    /// What a reader who stands at `since` has not been told, or where they stand if that is nothing.
    fn asked(&self, since: EphemeralPosition) -> Result<Asked, EphemeralPosition> {
        if !self.is_known {
            return Err(since);
        }
        let same_life = since.incarnation == self.incarnation && since.position >= self.floor;
        if same_life && since.position >= self.position {
            // All is known; or this copy is a moment behind the one that the reader saw last.
            return Err(since);
        }
        let next = if same_life { since.position + 1 } else { 0 };
        Ok(Asked { next, upto: self.position(), believes_nothing: since == EphemeralPosition::default() })
    }

    /// Takes some of the changes that were asked for; whether there may be more. Who changes meanwhile is told the next time.
    fn take_changes(&self, asked: &mut Asked, changes: &mut Vec<(u64, UserNr)>) -> bool {
        if self.incarnation != asked.upto.incarnation {
            // Another life has begun: the next question is answered with all of it.
            return false;
        }
        let is_there = |user_nr: &UserNr| self.users.get(user_nr).is_some_and(|known| !known.record.is_away());
        let mut looked_at = 0;
        for (at, user_nr) in self.by_change.range(asked.next..=asked.upto.position).take(CHANGES_AT_ONCE) {
            (looked_at, asked.next) = (looked_at + 1, at + 1);
            if !asked.believes_nothing || is_there(user_nr) {
                changes.push((*at, *user_nr));
            }
        }
        looked_at == CHANGES_AT_ONCE && asked.next <= asked.upto.position
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: UserNr = UserNr(1);
    const BOB: UserNr = UserNr(2);
    const NOTHING: EphemeralPosition = EphemeralPosition { incarnation: 0, position: 0 };

    fn presence() -> (Presence, Clock) {
        let clock = Clock::manual(1_000_000);
        (Presence::new(clock.clone(), &Random::seeded(1)), clock)
    }

    fn changed(presence: &Presence, since: EphemeralPosition) -> Vec<UserNr> {
        presence.news(since).changes.into_iter().map(|(_, user_nr)| user_nr).collect()
    }

    fn availability(presence: &Presence, user_nr: UserNr) -> Option<Availability> {
        presence.get(user_nr).map(|known| known.shown.availability)
    }

    /// Time goes by as it does for a server: with a look every second.
    fn wait(presence: &Presence, clock: &Clock, seconds: i64) {
        for _ in 0..seconds {
            clock.advance_ms(1_000);
            presence.tick();
        }
    }

    #[test]
    fn who_syncs_is_there_as_long_as_they_do_and_half_a_minute_more() {
        let (presence, clock) = presence();
        let syncing = presence.syncs(ALICE, "A", false, None);
        assert_eq!(availability(&presence, ALICE), Some(Availability::Online));
        let seen = presence.news(NOTHING);
        assert_eq!(seen.changes.len(), 1);
        wait(&presence, &clock, 50);
        assert_eq!(changed(&presence, seen.position), [], "who goes on to sync is no news");
        drop(syncing);
        wait(&presence, &clock, 5);
        let again = presence.syncs(ALICE, "A", false, None);
        wait(&presence, &clock, 4);
        assert_eq!(changed(&presence, seen.position), []);
        drop(again);
        wait(&presence, &clock, 29);
        assert_ne!(availability(&presence, ALICE), Some(Availability::Offline));
        wait(&presence, &clock, 12);
        assert_eq!(availability(&presence, ALICE), Some(Availability::Offline));
        assert_eq!(changed(&presence, seen.position), [ALICE]);
        assert_eq!(changed(&presence, NOTHING), [], "who knows nothing need not be told who is not there");
        let other_life = EphemeralPosition { incarnation: 99, position: 1 };
        assert_eq!(changed(&presence, other_life), [ALICE], "who may believe that they are there is told");
    }

    #[test]
    fn a_user_is_idle_after_a_while_and_active_when_they_do_something() {
        let (presence, clock) = presence();
        let _syncing = presence.syncs(ALICE, "A", false, None);
        wait(&presence, &clock, 61);
        let shown = presence.get(ALICE).unwrap();
        assert_eq!((shown.shown.availability, shown.shown.currently_active), (Availability::Online, false));
        assert_eq!(shown.last_active_ago_ms, Some(61_000));
        wait(&presence, &clock, 240);
        assert_eq!(availability(&presence, ALICE), Some(Availability::Unavailable));
        let seen = presence.position();
        presence.active(BOB, "B");
        presence.active(ALICE, "another device");
        assert_eq!(changed(&presence, seen), [], "who does not sync does not show");
        presence.active(ALICE, "A");
        assert_eq!(availability(&presence, ALICE), Some(Availability::Online));
        assert_eq!(presence.get(ALICE).unwrap().last_active_ago_ms, Some(0));
        wait(&presence, &clock, 30);
        let seen = presence.news(seen).position;
        presence.active(ALICE, "A");
        assert_eq!(changed(&presence, seen), [], "more of the same is no news");
        wait(&presence, &clock, 59);
        assert!(presence.get(ALICE).unwrap().shown.currently_active, "but it counts");
    }

    #[tokio::test]
    async fn who_wants_to_be_offline_is_until_they_sync_anew() {
        let (presence, clock) = presence();
        let syncing = presence.syncs(ALICE, "A", false, None);
        presence.set(ALICE, "A", Availability::Offline, Some("away".to_owned()), None).await;
        wait(&presence, &clock, 20);
        assert_eq!(
            availability(&presence, ALICE),
            Some(Availability::Offline),
            "the request that waits does not count"
        );
        assert_eq!(presence.get(ALICE).unwrap().shown.says.status_msg.as_deref(), Some("away"));
        drop(syncing);
        let _syncing = presence.syncs(ALICE, "A", false, None);
        assert_eq!(availability(&presence, ALICE), Some(Availability::Online));
    }

    #[tokio::test]
    async fn who_was_there_before_a_restart_is_so_until_it_is_sure_that_they_are_not() {
        let (presence, clock) = presence();
        let says = SelfDescription { status_msg: Some("here".to_owned()), ..SelfDescription::default() };
        let before = Remembered { says, last_active_ms: 990_000 };
        presence.restore(vec![(ALICE, before.clone()), (BOB, before)]).await;
        assert_eq!(availability(&presence, BOB), Some(Availability::Online));
        let _syncing = presence.syncs(ALICE, "A", false, None);
        let seen = presence.news(NOTHING);
        assert_eq!(seen.changes.len(), 2);
        wait(&presence, &clock, 41);
        assert_eq!(availability(&presence, BOB), Some(Availability::Offline));
        assert_eq!(availability(&presence, ALICE), Some(Availability::Online));
        assert_eq!(changed(&presence, seen.position), [BOB]);
        let flips = presence.take_flips();
        assert!(flips.contains(&(BOB, false, 990_000)) && flips.iter().any(|flip| (flip.0, flip.1) == (ALICE, true)));
        assert_eq!(presence.take_flips(), []);
    }

    #[tokio::test]
    async fn a_reader_is_told_of_each_change_once_in_order() {
        let (presence, _) = presence();
        let _alice = presence.syncs(ALICE, "A", false, None);
        let _bob = presence.syncs(BOB, "B", false, None);
        let first = presence.news(NOTHING);
        assert_eq!(changed(&presence, NOTHING), [ALICE, BOB]);
        presence.set(ALICE, "A", Availability::Unavailable, None, None).await;
        assert_eq!(changed(&presence, first.position), [ALICE]);
        assert_eq!(changed(&presence, NOTHING), [BOB, ALICE], "by their last change");
        let ahead = EphemeralPosition { position: presence.position().position + 5, ..presence.position() };
        assert_eq!(presence.news(ahead), PresenceNews { changes: Vec::new(), position: ahead });
    }

    /// More users than are looked at without letting others come to the state.
    #[tokio::test]
    async fn a_reader_of_another_life_is_told_of_everybody() {
        let (presence, _) = presence();
        let users = CHANGES_AT_ONCE as i64 * 2 + 1;
        presence.restore((1..=users).map(|nr| (UserNr(nr), Remembered::default())).collect()).await;
        let made_up = EphemeralPosition { incarnation: 99, position: 7 };
        for since in [made_up, NOTHING] {
            let news = presence.news(since);
            assert_eq!(news.position, presence.position());
            let told: Vec<i64> = news.changes.iter().map(|(_, user_nr)| user_nr.0).collect();
            assert_eq!(told, (1..=users).collect::<Vec<_>>());
        }
        let middle = EphemeralPosition { position: 5, ..presence.position() };
        assert_eq!(presence.news(middle).changes.len() as i64, users - 5);
    }
}
