//! Asks other servers for all devices of a user, and again until they answer. Server-Server API, "GET /user/devices/{userId}".
//!
//! What is missing is in the database: it is asked for until it is there, by any process, also after a restart. A list is forgotten when
//! its user shares no room with ours any more, because nobody tells of its changes then.

use std::{
    collections::HashMap,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use model::{RoomNr, UserNr};
use moka::sync::Cache;
use ruma::{OwnedServerName, OwnedUserId, ServerName, UserId, events::TimelineEventType};
use serde::Deserialize;
use storage::{Item, Published, StoredEvent};
use tokio::{
    sync::{Notify, Semaphore, broadcast::error::RecvError, watch},
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};
use tracing::{debug, warn};

use super::updates::{PAUSE, devices_of};
use crate::{Accounts, Error, RemoteError};

/// Most questions to one server at the same time.
const ASKED_OF_SERVER_AT_ONCE: usize = 4;
/// Most lists that are asked for at the same time because something is missing.
const ASKED_AT_ONCE: usize = 32;
/// For so long a list is one process's to ask for.
const TAKEN_FOR: Duration = Duration::from_secs(90);
/// How long a server that was not reached is left alone, in milliseconds.
const SILENT_FOR_MS: i64 = 15_000;
/// After the first failure it is tried again after this time; it doubles with each that follows.
const RETRY_MIN_MS: i64 = 10_000;
const RETRY_MAX_MS: i64 = 6 * 3_600_000;
/// Most servers of which it is known whether they can be asked.
const SERVERS_CACHED: u64 = 10_000;
/// How often it is looked for lists that are due.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often it is looked for lists that need not be followed any more and were missed.
const SWEEP_EVERY: Duration = Duration::from_secs(3_600);
/// Users that are looked at, and whose lists are deleted, at once.
const USERS_AT_ONCE: u32 = 200;
const DELETED_AT_ONCE: usize = 20;

/// What this process knows of the lists that are being asked for.
pub(crate) struct DeviceLists {
    /// Guards the questions that are under way. Held for moments only; no other lock is taken inside.
    under_way: Mutex<HashMap<UserNr, Arc<Question>>>,
    /// Limits the questions to each server.
    slots: Cache<OwnedServerName, Arc<Semaphore>>,
    /// Until when servers are left alone that were not reached a moment ago, in milliseconds since 1970.
    silent: Cache<OwnedServerName, i64>,
    due: Notify,
}

/// A question that is under way.
struct Question {
    /// Whether somebody was told that there is no answer, and is to be told when there is one.
    was_given_up: AtomicBool,
    /// Whether the list is complete; nothing while it is not known.
    is_complete: watch::Sender<Option<bool>>,
}

impl DeviceLists {
    pub(crate) fn new() -> Self {
        Self {
            under_way: Mutex::default(),
            slots: Cache::new(SERVERS_CACHED),
            silent: Cache::new(SERVERS_CACHED),
            due: Notify::new(),
        }
    }

    /// There may be lists to be asked for.
    pub(super) fn wake(&self) {
        self.due.notify_one();
    }

    pub(super) fn slots(&self, server: &ServerName) -> Arc<Semaphore> {
        self.slots.get_with(server.to_owned(), || Arc::new(Semaphore::new(ASKED_OF_SERVER_AT_ONCE)))
    }

    fn under_way(&self) -> MutexGuard<'_, HashMap<UserNr, Arc<Question>>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends a question however its task ends.
struct End(Accounts, UserNr, Arc<Question>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.0.device_lists.under_way().remove(&self.1);
        self.2
            .is_complete
            .send_if_modified(|is_complete| is_complete.is_none() && is_complete.replace(false).is_none());
    }
}

impl Accounts {
    /// Whether a server was not reached a moment ago.
    pub(super) fn is_silent(&self, server: &ServerName) -> bool {
        self.0.device_lists.silent.get(server).is_some_and(|until_ms| self.now_ms() < until_ms)
    }

    /// A server was not reached.
    pub(super) fn note_silent(&self, server: &ServerName) {
        self.0.device_lists.silent.insert(server.to_owned(), self.now_ms() + SILENT_FOR_MS);
    }

    /// Asks a user's server for all of their devices, and follows them from now on; whether their list is complete then. Who asks for the same user at
    /// the same time waits for the same answer, `patience` long. The question goes on when nobody waits any more.
    pub(super) async fn complete_device_list(
        &self,
        user_id: &UserId,
        user_nr: UserNr,
        as_server: OwnedServerName,
        patience: Duration,
    ) -> bool {
        let question = self.question(user_id, user_nr, as_server);
        let mut is_complete = question.is_complete.subscribe();
        let answered = tokio::time::timeout(patience, is_complete.wait_for(Option::is_some)).await;
        if let Ok(Ok(is_complete)) = answered {
            return *is_complete == Some(true);
        }
        question.was_given_up.store(true, Ordering::SeqCst);
        false
    }

    fn question(&self, user_id: &UserId, user_nr: UserNr, as_server: OwnedServerName) -> Arc<Question> {
        let mut under_way = self.0.device_lists.under_way();
        if let Some(question) = under_way.get(&user_nr) {
            return question.clone();
        }
        let question = Arc::new(Question { was_given_up: AtomicBool::new(false), is_complete: watch::channel(None).0 });
        under_way.insert(user_nr, question.clone());
        let end = End(self.clone(), user_nr, question.clone());
        let (accounts, user_id, to_answer) = (self.clone(), user_id.to_owned(), question.clone());
        tokio::spawn(async move {
            let _end = end;
            let is_complete = match accounts.ask_for_devices(&user_id, user_nr, &as_server, &to_answer).await {
                Ok(is_complete) => is_complete,
                Err(error) => {
                    warn!(user.id = %user_id, error = &error as &dyn std::error::Error, "a device list could not be kept");
                    false
                }
            };
            to_answer.is_complete.send_replace(Some(is_complete));
        });
        question
    }

    async fn ask_for_devices(
        &self,
        user_id: &UserId,
        user_nr: UserNr,
        as_server: &ServerName,
        question: &Question,
    ) -> Result<bool, Error> {
        let (storage, known) = (&self.0.storage, &self.0.device_lists);
        let server = user_id.server_name();
        let slots = known.slots(server);
        let _slot = slots.acquire().await;
        // Something may be said of the list while it is on its way: then it is asked for once more, and the next time later.
        for _ in 0..2 {
            let list = storage.begin_remote_device_list(user_nr, self.now_ms() + TAKEN_FOR.as_millis() as i64).await?;
            if list.ask_at_ms.is_none() {
                return Ok(true);
            }
            let answer = match self.is_silent(server) {
                true => None,
                false => match self.0.remote.devices(as_server, user_id).await {
                    Ok(answer) => devices_of(user_id, answer),
                    Err(error) => {
                        debug!(user.id = %user_id, error = &error as &dyn std::error::Error, "{server} gives no devices");
                        if matches!(error, RemoteError::Unavailable { .. }) {
                            self.note_silent(server);
                        }
                        None
                    }
                },
            };
            let Some((stream_id, all)) = answer else {
                let pause_ms = (RETRY_MIN_MS << list.failures.min(20)).min(RETRY_MAX_MS);
                storage.note_no_remote_devices(user_nr, self.now_ms() + pause_ms).await?;
                return Ok(false);
            };
            self.log_replaced_keys(user_id, user_nr, &all.cross_signing_keys).await?;
            let tells = list.failures > 0 || question.was_given_up.load(Ordering::SeqCst);
            if storage.settle_remote_devices(&list, stream_id, &all, tells).await? {
                self.follow_up(user_nr).await;
                return Ok(true);
            }
        }
        storage.note_gaps_in_remote_devices(&[user_nr], PAUSE.as_millis() as i64).await?;
        Ok(false)
    }

    /// Asks for what is missing of the lists that are followed, and forgets those that need not be, until `stop` ends. Run it as one
    /// task of each process.
    pub async fn follow_remote_devices(&self, stop: impl Future<Output = ()>) {
        let mut stop = pin!(stop);
        let mut stream = self.0.storage.subscribe();
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut sweep = interval(SWEEP_EVERY);
        let mut asking = JoinSet::new();
        loop {
            let done = tokio::select! {
                () = &mut stop => break,
                published = stream.recv() => match published {
                    Ok(published) => self.forget_who_left(&published).await,
                    Err(RecvError::Lagged(_)) => self.forget_unshared_lists(None).await,
                    Err(RecvError::Closed) => break,
                },
                _ = sweep.tick() => self.forget_unshared_lists(None).await,
                Some(_) = asking.join_next() => Ok(()),
                () = self.0.device_lists.due.notified() => self.ask_for_due_lists(&mut asking).await,
                _ = look.tick() => self.ask_for_due_lists(&mut asking).await,
            };
            if let Err(error) = done {
                warn!(error = &error as &dyn std::error::Error, "device lists of other servers could not be followed");
            }
        }
    }

    async fn ask_for_due_lists(&self, asking: &mut JoinSet<()>) -> Result<(), Error> {
        let place = ASKED_AT_ONCE.saturating_sub(asking.len());
        if place == 0 {
            return Ok(());
        }
        let (storage, known) = (&self.0.storage, &self.0.device_lists);
        let now_ms = self.now_ms();
        let due = storage.list_due_remote_device_lists(now_ms, USERS_AT_ONCE).await?;
        let due: Vec<UserNr> = due.into_iter().filter(|user_nr| !known.under_way().contains_key(user_nr)).collect();
        if due.is_empty() {
            return Ok(());
        }
        let names = storage.user_ids(&due).await?;
        let sharing = self.sharing(&due).await?;
        let mut place = place;
        for user_nr in due {
            let (Some(user_id), Some(as_server)) = (names.get(&user_nr), sharing.get(&user_nr)) else {
                storage.delete_remote_device_lists(&[user_nr]).await?;
                continue;
            };
            if place == 0 {
                break;
            }
            if known.slots(user_id.server_name()).available_permits() == 0 {
                // Others do not wait behind a server that is slow.
                storage.begin_remote_device_list(user_nr, now_ms + PAUSE.as_millis() as i64).await?;
                continue;
            }
            place -= 1;
            let (accounts, user_id, as_server) = (self.clone(), user_id.clone(), as_server.clone());
            asking.spawn(async move {
                accounts.complete_device_list(&user_id, user_nr, as_server, TAKEN_FOR).await;
            });
        }
        Ok(())
    }

    /// Of users who share a room with ours, one of our names in such a room.
    pub(super) async fn sharing(&self, users: &[UserNr]) -> Result<HashMap<UserNr, OwnedServerName>, Error> {
        Ok(self.0.storage.list_sharing(users, self.0.servers.iter().map(|server| &*server.name)).await?)
    }

    /// Forgets the lists of those who shared their last room with us until somebody left it.
    async fn forget_who_left(&self, published: &Published) -> Result<(), Error> {
        for (_, item) in &published.items {
            let Item::Event(event) = item else { continue };
            let Some(user_id) = who_left(event) else { continue };
            if !self.0.servers.has_user(&user_id) {
                if let Some(user_nr) = self.0.storage.find_user_nr(&user_id).await? {
                    self.forget_unshared(&[user_nr]).await?;
                }
            } else if !self.is_in(event.room_nr).await? {
                self.forget_unshared_lists(Some(event.room_nr)).await?;
            }
        }
        Ok(())
    }

    async fn is_in(&self, room_nr: RoomNr) -> Result<bool, Error> {
        Ok(self.0.storage.is_any_server_in(room_nr, self.0.servers.iter().map(|server| &*server.name)).await?)
    }

    /// Forgets the lists of those who share no room with ours: of all, or of those who are or were in a room.
    async fn forget_unshared_lists(&self, room: Option<RoomNr>) -> Result<(), Error> {
        let mut after = UserNr(0);
        loop {
            let users = self.0.storage.list_followed_users(room, after, USERS_AT_ONCE).await?;
            let Some(last) = users.last() else { return Ok(()) };
            after = *last;
            self.forget_unshared(&users).await?;
        }
    }

    async fn forget_unshared(&self, users: &[UserNr]) -> Result<(), Error> {
        let lists = self.0.storage.list_remote_device_lists(users).await?;
        if lists.is_empty() {
            return Ok(());
        }
        let followed: Vec<UserNr> = lists.into_keys().collect();
        let sharing = self.sharing(&followed).await?;
        let gone: Vec<UserNr> = followed.into_iter().filter(|user_nr| !sharing.contains_key(user_nr)).collect();
        for gone in gone.chunks(DELETED_AT_ONCE) {
            self.0.storage.delete_remote_device_lists(gone).await?;
        }
        Ok(())
    }
}

/// The user whom a member event says not to be joined.
fn who_left(event: &StoredEvent) -> Option<OwnedUserId> {
    #[derive(Deserialize)]
    struct Content {
        membership: String,
    }
    if event.pdu.event_type != TimelineEventType::RoomMember {
        return None;
    }
    let content: Content = serde_json::from_str(event.pdu.content.get()).ok()?;
    if content.membership == "join" {
        return None;
    }
    UserId::parse(event.pdu.state_key.as_deref()?).ok()
}
