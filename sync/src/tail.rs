//! The tailer: follows the stream once for all who wait, and wakes them.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use event_bus::Bus;
use model::{EventNr, Position, RoomNr, UserNr};
use ruma::events::TimelineEventType;
use storage::{Item, Published};
use tokio::sync::{
    Notify,
    broadcast::{
        self,
        error::{RecvError, TryRecvError},
    },
};

use crate::{Sync, UserRooms, ring::Redacted};

/// How often the database is asked whether another process has written.
pub(crate) const ASK_EVERY: Duration = Duration::from_secs(1);

/// How often users who are gone are forgotten.
const SWEEP_EVERY: Duration = Duration::from_secs(30);

/// How often somebody is woken for others' presence at most, in milliseconds: what happens meanwhile comes with the next answer.
const PRESENCE_EVERY_MS: i64 = 10_000;
/// All requests of a user that look in the same moments are told together.
const SAME_MOMENT_MS: i64 = 500;

/// Who waits, by user and by room.
#[derive(Default)]
pub(crate) struct Waiters {
    /// Guards the tables. Held for moments only; no other lock is taken inside.
    tables: Mutex<Tables>,
}

#[derive(Default)]
struct Tables {
    users: HashMap<UserNr, WaitingUser>,
    /// Those of them in each room. Who has just been answered stays: the next request is about to come.
    rooms: HashMap<RoomNr, HashSet<UserNr>>,
    /// Those of them who are to be woken for others' presence later.
    presence_late: HashSet<UserNr>,
    /// Counts changes of anyone's memberships.
    version: u64,
}

struct WaitingUser {
    wake: Arc<Notify>,
    /// How many requests of the user wait.
    requests: usize,
    /// The rooms under which the user is registered.
    rooms: Arc<UserRooms>,
    /// Whether no request came since the last sweep.
    is_idle: bool,
    /// Whether any request of the user wants to hear of others' presence.
    wants_presence: bool,
    /// When the user was last woken or answered for others' presence alone, in milliseconds since 1970.
    presence_told_ms: i64,
}

impl Waiters {
    /// Counts the changes of anyone's memberships.
    pub(crate) fn membership_version(&self) -> u64 {
        self.lock().version
    }

    /// Does something unless memberships changed since that version was taken.
    pub(crate) fn if_unchanged(&self, version: u64, keep: impl FnOnce()) {
        if self.lock().version == version {
            keep();
        }
    }

    fn note_memberships(&self) {
        self.lock().version += 1;
    }

    /// Registers a request of a user who is in those rooms; it is taken off when the guard is dropped.
    pub(crate) fn wait(
        self: &Waiters,
        user_nr: UserNr,
        rooms: &Arc<UserRooms>,
        wants_presence: bool,
    ) -> (Arc<Notify>, Guard<'_>) {
        let mut tables = self.lock();
        let known = tables.users.get(&user_nr).is_some_and(|user| Arc::ptr_eq(&user.rooms, rooms));
        if !known {
            let old = tables.unregister(user_nr);
            tables.register(user_nr, rooms.clone(), old);
        }
        let user = tables.users.get_mut(&user_nr).expect("registered above");
        user.requests += 1;
        user.is_idle = false;
        user.wants_presence |= wants_presence;
        (user.wake.clone(), Guard { waiters: self, user_nr })
    }

    fn wake(&self, users: impl IntoIterator<Item = UserNr>, rooms: impl IntoIterator<Item = RoomNr>) {
        let tables = self.lock();
        let in_rooms = rooms.into_iter().filter_map(|room| tables.rooms.get(&room)).flatten().copied();
        for user in users.into_iter().chain(in_rooms).collect::<HashSet<_>>() {
            if let Some(user) = tables.users.get(&user) {
                user.wake.notify_waiters();
            }
        }
    }

    /// Wakes those who see users whose presence changed, by themselves or by their rooms; who was woken for it a moment ago is woken later.
    pub(crate) fn presence_changed(
        &self,
        users: impl IntoIterator<Item = UserNr>,
        rooms: impl IntoIterator<Item = RoomNr>,
        now_ms: i64,
    ) {
        let tables = &mut *self.lock();
        let in_rooms = rooms.into_iter().filter_map(|room| tables.rooms.get(&room)).flatten().copied();
        for user_nr in users.into_iter().chain(in_rooms).collect::<HashSet<_>>() {
            let Some(user) = tables.users.get_mut(&user_nr).filter(|user| user.wants_presence) else { continue };
            if now_ms >= user.presence_told_ms + PRESENCE_EVERY_MS {
                user.wake.notify_waiters();
            } else {
                tables.presence_late.insert(user_nr);
            }
        }
    }

    /// Wakes those who were not woken for others' presence because they had been a moment before.
    pub(crate) fn wake_for_late_presence(&self, now_ms: i64) {
        let tables = &mut *self.lock();
        let users = &tables.users;
        tables.presence_late.retain(|user_nr| {
            let Some(user) = users.get(user_nr) else { return false };
            let is_due = now_ms >= user.presence_told_ms + PRESENCE_EVERY_MS;
            if is_due {
                user.wake.notify_waiters();
            }
            !is_due
        });
    }

    /// Whether a user may be answered for others' presence alone; if not, they are woken later.
    pub(crate) fn may_tell_presence(&self, user_nr: UserNr, now_ms: i64) -> bool {
        let tables = &mut *self.lock();
        let Some(user) = tables.users.get(&user_nr) else { return true };
        let is_early = (SAME_MOMENT_MS + 1..PRESENCE_EVERY_MS).contains(&(now_ms - user.presence_told_ms));
        if is_early && user.wants_presence {
            tables.presence_late.insert(user_nr);
        }
        !is_early
    }

    /// A user is answered for others' presence alone.
    pub(crate) fn presence_told(&self, user_nr: UserNr, now_ms: i64) {
        if let Some(user) = self.lock().users.get_mut(&user_nr)
            && now_ms >= user.presence_told_ms + PRESENCE_EVERY_MS
        {
            user.presence_told_ms = now_ms;
        }
    }

    /// Forgets users of whom nothing was heard since the last sweep.
    fn sweep(&self) {
        let mut tables = self.lock();
        let gone: Vec<UserNr> =
            tables.users.iter().filter(|(_, user)| user.requests == 0 && user.is_idle).map(|(nr, _)| *nr).collect();
        for user_nr in gone {
            tables.unregister(user_nr);
        }
        for user in tables.users.values_mut() {
            user.is_idle = true;
        }
    }

    fn wake_all(&self) {
        for user in self.lock().users.values() {
            user.wake.notify_waiters();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tables {
    fn register(&mut self, user_nr: UserNr, rooms: Arc<UserRooms>, old: Option<WaitingUser>) {
        for room in &rooms.joined {
            self.rooms.entry(*room).or_default().insert(user_nr);
        }
        // Requests that wait since before the user's rooms changed go on to wait.
        let (wake, requests, wants_presence, presence_told_ms) =
            old.map(|old| (old.wake, old.requests, old.wants_presence, old.presence_told_ms)).unwrap_or_default();
        let user = WaitingUser { wake, requests, rooms, is_idle: false, wants_presence, presence_told_ms };
        self.users.insert(user_nr, user);
    }

    fn unregister(&mut self, user_nr: UserNr) -> Option<WaitingUser> {
        let user = self.users.remove(&user_nr)?;
        for room in &user.rooms.joined {
            if let Some(users) = self.rooms.get_mut(room) {
                users.remove(&user_nr);
                if users.is_empty() {
                    self.rooms.remove(room);
                }
            }
        }
        Some(user)
    }
}

/// Takes a request off the tables when it is dropped.
pub(crate) struct Guard<'a> {
    waiters: &'a Waiters,
    user_nr: UserNr,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if let Some(user) = self.waiters.lock().users.get_mut(&self.user_nr) {
            user.requests -= 1;
        }
    }
}

/// Follows the stream until the server stops.
pub(crate) async fn follow(sync: Sync, mut stream: broadcast::Receiver<Arc<Published>>, bus: Bus, ask_every: Duration) {
    // Inside of one process the stream itself tells everything.
    let mut notices = matches!(bus, Bus::Redis(_)).then(|| bus.subscribe());
    let mut ask = tokio::time::interval(ask_every);
    ask.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut sweep = tokio::time::interval(SWEEP_EVERY);
    let mut typing = sync.0.typing.watch();
    let mut typing_seen = sync.0.typing.position();
    let mut own = Vec::new();
    loop {
        tokio::select! {
            biased;
            () = sync.0.stopping.cancelled() => {
                sync.0.waiters.wake_all();
                return;
            }
            first = stream.recv() => {
                // Those who wait for the answer to what they sent have it first, mostly.
                tokio::task::yield_now().await;
                let mut told = next_notice_now(&mut notices);
                let mut next = first.map_err(|error| match error {
                    RecvError::Lagged(count) => TryRecvError::Lagged(count),
                    RecvError::Closed => TryRecvError::Closed,
                });
                loop {
                    match next {
                        Ok(published) => own.push(published),
                        Err(TryRecvError::Lagged(_)) => told = told.max(sync.0.storage.published()),
                        Err(TryRecvError::Empty) => break,
                        Err(TryRecvError::Closed) => return,
                    }
                    next = stream.try_recv();
                }
                if notices.is_some() && let Some(last) = own.last() {
                    // It is durable by now. The bus never makes anyone wait.
                    bus.publish(last.position);
                }
                advance(&sync, own.drain(..), told).await;
            }
            told = next_notice(&mut notices) => {
                let told = told.max(next_notice_now(&mut notices));
                advance(&sync, std::iter::empty(), told).await;
            }
            Ok(()) = typing.changed() => match sync.0.typing.changed_rooms(typing_seen) {
                Some((rooms, position)) => {
                    typing_seen = position;
                    sync.0.waiters.wake([], rooms);
                }
                None => {
                    typing_seen = sync.0.typing.position();
                    sync.0.waiters.wake_all();
                }
            },
            _ = sweep.tick() => {
                sync.0.waiters.sweep();
                sync.0.registry.sweep();
            }
            _ = ask.tick() => {
                sync.0.typing.expire();
                match sync.0.storage.newest_durable().await {
                    Ok(newest) => advance(&sync, std::iter::empty(), newest).await,
                    Err(error) => tracing::warn!(%error, "the newest position could not be read; it is asked again in a second"),
                }
            }
        }
    }
}

/// How far another process says that the stream is durable. Waits forever when there is no bus.
async fn next_notice(notices: &mut Option<broadcast::Receiver<Position>>) -> Position {
    loop {
        let Some(receiver) = notices else { return std::future::pending().await };
        match receiver.recv().await {
            Ok(position) => return position,
            // Those that are left are newer.
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => *notices = None,
        }
    }
}

/// The same without waiting: the newest of what was said by now.
fn next_notice_now(notices: &mut Option<broadcast::Receiver<Position>>) -> Position {
    let mut newest = Position(0);
    let Some(receiver) = notices else { return newest };
    loop {
        match receiver.try_recv() {
            Ok(position) => newest = newest.max(position),
            Err(TryRecvError::Lagged(_)) => {}
            Err(TryRecvError::Empty | TryRecvError::Closed) => return newest,
        }
    }
}

/// Follows groups of this process, and others' up to the position of which somebody said that all is durable.
async fn advance(sync: &Sync, own: impl Iterator<Item = Arc<Published>>, told: Position) {
    let mut upto = told;
    for published in own {
        upto = upto.max(published.position);
        // Where another process wrote in between, all of it is read below, at once.
        if published.previous == sync.position() {
            take(sync, published).await;
        }
    }
    if upto <= sync.position() {
        return;
    }
    match sync.0.storage.read_stream(sync.position(), upto).await {
        Ok(Some(published)) => take(sync, Arc::new(published)).await,
        Ok(None) => start_anew(sync).await,
        Err(error) => {
            tracing::warn!(%error, "what other processes wrote could not be read; it is tried again in a second")
        }
    }
}

/// Shows to this process's readers what directly follows on what they have.
async fn take(sync: &Sync, published: Arc<Published>) {
    if published.position <= sync.position() {
        return;
    }
    let mut redacted = Vec::new();
    let uncounted: HashMap<EventNr, bool> = published.uncounted.iter().copied().collect();
    for nr in &published.redacted {
        // Readers of the ring get what is left of the event.
        match sync.0.storage.get_event(*nr).await {
            Ok(Some(event)) => {
                redacted.extend(event.position.map(|position| Redacted {
                    room_nr: event.room_nr,
                    position,
                    counted_in_thread: uncounted.get(nr).copied(),
                }));
                sync.0.ring.replace(event);
            }
            _ => return start_anew(sync).await,
        }
    }
    let (mut users, mut rooms) = (Vec::new(), HashSet::new());
    for (position, item) in &published.items {
        sync.0.registry.note(*position, item);
        match item {
            Item::Event(event) => {
                rooms.insert(event.room_nr);
                if event.pdu.event_type == TimelineEventType::RoomMember
                    && let Some(Ok(user_id)) = event.pdu.state_key.as_deref().map(ruma::UserId::parse)
                    && let Ok(Some(user_nr)) = sync.0.storage.find_user_nr(&user_id).await
                {
                    sync.0.waiters.note_memberships();
                    sync.0.user_rooms.invalidate(&user_nr);
                    users.push(user_nr);
                }
            }
            Item::State(room_nr) => {
                // Resolution may have changed any membership in it.
                rooms.insert(*room_nr);
                sync.0.waiters.note_memberships();
                sync.0.user_rooms.invalidate_all();
            }
            Item::Receipt(room_nr, _) => drop(rooms.insert(*room_nr)),
            Item::AccountData(user) => {
                if let Some(marks) = sync.0.room_marks.get(user) {
                    marks.forget();
                }
                users.push(*user);
            }
            Item::ToDevice(user, _) | Item::ThreadSubscription(user) | Item::Signed(user) => users.push(*user),
            Item::DeviceList(user) => {
                users.push(*user);
                match sync.user_rooms(*user).await {
                    Ok(their) => rooms.extend(their.joined.iter().copied()),
                    // Whom it concerns is not known: all have a look.
                    Err(_) => sync.0.waiters.wake_all(),
                }
            }
            // Whom it concerns is worked out by those who read it.
            Item::Profile(_) | Item::Outgoing(..) => {}
        }
    }
    sync.0.ring.push(&published.items, published.position, &redacted);
    sync.0.waiters.wake(users, rooms);
    // There may be nobody.
    let _ = sync.0.followed.send(published);
}

/// Jumps to the newest position: what came before is in the database only, and everyone looks there.
async fn start_anew(sync: &Sync) {
    let newest = match sync.0.storage.newest_durable().await {
        Ok(newest) => newest,
        Err(error) => {
            tracing::warn!(%error, "the newest position could not be read; it is asked again in a second");
            return;
        }
    };
    if newest > sync.position() {
        // Any of them may have been redacted.
        sync.0.storage.forget_all();
        sync.0.registry.clear();
        sync.0.room_marks.invalidate_all();
        sync.0.waiters.note_memberships();
        sync.0.user_rooms.invalidate_all();
        sync.0.ring.restart(newest);
    }
    sync.0.waiters.wake_all();
}
