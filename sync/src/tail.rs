//! The tailer: follows the stream once for all who wait, and wakes them.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use event_bus::{Bus, Notice};
use model::{RoomNr, UserNr};
use ruma::events::TimelineEventType;
use storage::{Item, Published};
use tokio::sync::{Notify, broadcast};

use crate::Sync;

/// How often the database is asked whether another process has written.
pub(crate) const ASK_EVERY: Duration = Duration::from_secs(1);

/// Who waits, by user and by room.
#[derive(Default)]
pub(crate) struct Waiters {
    /// Guards the tables. Held for moments only; no other lock is taken inside.
    tables: Mutex<Tables>,
}

#[derive(Default)]
struct Tables {
    users: HashMap<UserNr, WaitingUser>,
    /// The waiting users of each room.
    rooms: HashMap<RoomNr, HashSet<UserNr>>,
    /// Counts changes of anyone's memberships.
    version: u64,
    /// For users whose memberships changed while somebody may have been reading them, when.
    changed: HashMap<UserNr, u64>,
}

#[derive(Default)]
struct WaitingUser {
    wake: Arc<Notify>,
    /// How many requests of the user wait.
    requests: usize,
    rooms: Vec<RoomNr>,
}

/// Most users whose last change of membership is remembered; when there are more, all count as changed.
const CHANGED_MAX: usize = 10_000;

impl Waiters {
    pub(crate) fn membership_version(&self, user_nr: UserNr) -> u64 {
        let tables = self.lock();
        tables.changed.get(&user_nr).copied().unwrap_or(0).max(tables.version)
    }

    /// Does something unless memberships changed since that version was taken.
    pub(crate) fn if_unchanged(&self, user_nr: UserNr, version: u64, keep: impl FnOnce()) {
        let tables = self.lock();
        if tables.changed.get(&user_nr).copied().unwrap_or(0).max(tables.version) == version {
            keep();
        }
    }

    fn note_membership(&self, user_nr: UserNr) {
        let mut tables = self.lock();
        tables.version += 1;
        let version = tables.version;
        if tables.changed.len() >= CHANGED_MAX {
            tables.changed.clear();
        }
        tables.changed.insert(user_nr, version);
    }

    /// Registers a request of a user who is in those rooms; it is taken off when the guard is dropped.
    pub(crate) fn wait(self: &Waiters, user_nr: UserNr, rooms: &[RoomNr]) -> (Arc<Notify>, Guard<'_>) {
        let mut tables = self.lock();
        let tables = &mut *tables;
        let user = tables.users.entry(user_nr).or_default();
        user.requests += 1;
        for room in rooms {
            if tables.rooms.entry(*room).or_default().insert(user_nr) {
                user.rooms.push(*room);
            }
        }
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

    fn wake_all(&self) {
        for user in self.lock().users.values() {
            user.wake.notify_waiters();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a request off the tables when it is dropped.
pub(crate) struct Guard<'a> {
    waiters: &'a Waiters,
    user_nr: UserNr,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        let mut tables = self.waiters.lock();
        let tables = &mut *tables;
        let Some(user) = tables.users.get_mut(&self.user_nr) else { return };
        user.requests -= 1;
        if user.requests > 0 {
            return;
        }
        for room in tables.users.remove(&self.user_nr).map(|user| user.rooms).unwrap_or_default() {
            if let Some(users) = tables.rooms.get_mut(&room) {
                users.remove(&self.user_nr);
                if users.is_empty() {
                    tables.rooms.remove(&room);
                }
            }
        }
    }
}

/// Follows the stream until the server stops.
pub(crate) async fn follow(sync: Sync, mut stream: broadcast::Receiver<Arc<Published>>, bus: Bus, ask_every: Duration) {
    // Inside of one process the stream itself tells everything.
    let mut notices = matches!(bus, Bus::Redis(_)).then(|| bus.subscribe());
    let mut ask = tokio::time::interval(ask_every);
    ask.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut typing = sync.0.typing.watch();
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
            Ok(()) = typing.changed() => sync.0.waiters.wake_all(),
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
        catch_up_to(sync, published.position);
        return;
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
                    sync.0.waiters.note_membership(user_nr);
                    sync.0.memberships.invalidate(&user_nr);
                    users.push(user_nr);
                }
            }
            Item::Receipt(room_nr, _) | Item::State(room_nr) => drop(rooms.insert(*room_nr)),
            Item::AccountData(user) | Item::ToDevice(user, _) => users.push(*user),
            // Whom it concerns is worked out by those who read it.
            Item::DeviceList(_) | Item::Profile(_) => {}
        }
    }
    let has_device_lists = published.items.iter().any(|(_, item)| matches!(item, Item::DeviceList(_)));
    sync.0.ring.push(&published.items, published.position);
    if has_device_lists {
        sync.0.waiters.wake_all();
    } else {
        sync.0.waiters.wake(users, rooms);
    }
}

async fn catch_up(sync: &Sync) {
    match sync.0.storage.newest_durable().await {
        Ok(newest) => catch_up_to(sync, newest),
        Err(error) => tracing::warn!(%error, "the newest position could not be read; it is asked again in a second"),
    }
}

/// Jumps to a position whose items are in the database only: everyone looks there.
fn catch_up_to(sync: &Sync, position: model::Position) {
    if position > sync.position() {
        sync.0.waiters.lock().version += 1;
        sync.0.memberships.invalidate_all();
        sync.0.ring.restart(position);
    }
    sync.0.waiters.wake_all();
}
