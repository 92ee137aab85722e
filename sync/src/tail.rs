//! The tailer: follows the stream once for all who wait, and wakes them.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use event_bus::{Bus, Notice};
use model::{Position, RoomNr, UserNr};
use ruma::events::TimelineEventType;
use storage::{Item, Published};
use tokio::sync::{Notify, broadcast};

use crate::{Sync, UserRooms};

/// How often the database is asked whether another process has written.
pub(crate) const ASK_EVERY: Duration = Duration::from_secs(1);

/// How often users who are gone are forgotten.
const SWEEP_EVERY: Duration = Duration::from_secs(30);

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
    pub(crate) fn wait(self: &Waiters, user_nr: UserNr, rooms: &Arc<UserRooms>) -> (Arc<Notify>, Guard<'_>) {
        let mut tables = self.lock();
        let known = tables.users.get(&user_nr).is_some_and(|user| Arc::ptr_eq(&user.rooms, rooms));
        if !known {
            let old = tables.unregister(user_nr);
            tables.register(user_nr, rooms.clone(), old);
        }
        let user = tables.users.get_mut(&user_nr).expect("registered above");
        user.requests += 1;
        user.is_idle = false;
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
        let (wake, requests) = old.map(|old| (old.wake, old.requests)).unwrap_or_default();
        self.users.insert(user_nr, WaitingUser { wake, requests, rooms, is_idle: false });
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
    loop {
        tokio::select! {
            biased;
            () = sync.0.stopping.cancelled() => {
                sync.0.waiters.wake_all();
                return;
            }
            published = stream.recv() => match published {
                Ok(published) => {
                    // It is durable by now. The bus never makes anyone wait.
                    if notices.is_some() {
                        bus.publish(notice_of(&published));
                    }
                    take(&sync, &published).await;
                }
                Err(broadcast::error::RecvError::Lagged(_)) => catch_up(&sync).await,
                Err(broadcast::error::RecvError::Closed) => return,
            },
            notice = next_notice(&mut notices) => {
                // What it tells of is read from the database; nothing is believed but that it is worth a look.
                if notice.is_none_or(|notice| notice.position > sync.position()) {
                    catch_up(&sync).await;
                }
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
            _ = sweep.tick() => sync.0.waiters.sweep(),
            _ = ask.tick() => {
                sync.0.typing.expire();
                match sync.0.storage.newest_durable().await {
                    Ok(newest) if newest > sync.position() => catch_up(&sync).await,
                    Ok(_) => {}
                    Err(error) => tracing::warn!(%error, "the newest position could not be read; it is asked again in a second"),
                }
            }
        }
    }
}

/// The next notice of another process, or nothing when some were lost. Waits forever when there is no bus.
async fn next_notice(notices: &mut Option<broadcast::Receiver<Arc<Notice>>>) -> Option<Arc<Notice>> {
    loop {
        let Some(receiver) = notices else { return std::future::pending().await };
        match receiver.recv().await {
            Ok(notice) => return Some(notice),
            Err(broadcast::error::RecvError::Lagged(_)) => return None,
            Err(broadcast::error::RecvError::Closed) => *notices = None,
        }
    }
}

fn notice_of(published: &Published) -> Notice {
    let (mut rooms, mut users) = (HashSet::new(), HashSet::new());
    for (_, item) in &published.items {
        match item {
            Item::Event(event) => drop(rooms.insert(event.room_nr)),
            Item::State(room) => drop(rooms.insert(*room)),
            Item::Receipt(room, user) => {
                rooms.insert(*room);
                users.insert(*user);
            }
            Item::AccountData(user) | Item::ToDevice(user, _) | Item::DeviceList(user) | Item::Profile(user) => {
                users.insert(*user);
            }
        }
    }
    Notice {
        previous: published.previous,
        position: published.position,
        kinds: 0,
        rooms: rooms.into_iter().collect(),
        users: users.into_iter().collect(),
    }
}

async fn take(sync: &Sync, published: &Published) {
    if published.position <= sync.position() {
        return;
    }
    if published.previous > sync.position() {
        // Another process wrote in between: what it wrote is in the database only.
        catch_up_to(sync, published.position).await;
        return;
    }
    for nr in &published.redacted {
        // Readers of the ring get what is left of the event.
        match sync.0.storage.get_event(*nr).await {
            Ok(Some(event)) => sync.0.ring.replace(event),
            _ => return catch_up_to(sync, published.position).await,
        }
    }
    let (mut users, mut rooms) = (Vec::new(), HashSet::new());
    for (_, item) in &published.items {
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
            Item::AccountData(user) | Item::ToDevice(user, _) => users.push(*user),
            Item::DeviceList(user) => {
                users.push(*user);
                match sync.user_rooms(*user).await {
                    Ok(their) => rooms.extend(their.joined.iter().copied()),
                    // Whom it concerns is not known: all have a look.
                    Err(_) => sync.0.waiters.wake_all(),
                }
            }
            // Whom it concerns is worked out by those who read it.
            Item::Profile(_) => {}
        }
    }
    sync.0.ring.push(&published.items, published.position);
    sync.0.waiters.wake(users, rooms);
}

async fn catch_up(sync: &Sync) {
    match sync.0.storage.newest_durable().await {
        Ok(newest) => catch_up_to(sync, newest).await,
        Err(error) => tracing::warn!(%error, "the newest position could not be read; it is asked again in a second"),
    }
}

/// Jumps to a position whose items are in the database only: everyone looks there.
async fn catch_up_to(sync: &Sync, position: Position) {
    if position > sync.position() {
        if let Err(error) = sync.0.storage.forget_redacted(sync.position(), position).await {
            tracing::warn!(%error, "redactions could not be read; all events are forgotten");
            sync.0.storage.forget_events();
        }
        sync.0.waiters.note_memberships();
        sync.0.user_rooms.invalidate_all();
        sync.0.ring.restart(position);
    }
    sync.0.waiters.wake_all();
}
