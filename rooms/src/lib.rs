//! Events, authorization, state, membership, receipts, typing and presence.
//!
//! [`Rooms`] is the handle, and [`Presences`] that of who is there. Only this crate decides whether an event is allowed.

mod aggregations;
mod aliases;
mod by_time;
mod changes;
mod create;
mod directory;
mod draft;
mod elsewhere;
mod encryption;
mod erasure;
mod error;
mod graph_walk;
mod handshake;
mod head;
mod hierarchy;
mod in_thread;
mod invitations;
mod invited;
mod joined_state;
mod members;
mod membership;
mod mutual;
mod outliers;
mod partial;
mod policy_servers;
mod power;
mod presence;
mod preview;
mod profile_follower;
mod profiles;
mod push;
mod race;
mod read;
mod receipts;
mod receive;
mod redactions;
mod relations;
mod remote;
mod remote_spaces;
mod reports;
mod resolution;
mod restricted;
mod said_elsewhere;
mod send;
mod served;
mod served_spaces;
mod server_acls;
mod server_visibility;
mod space_children;
mod states_asked;
mod stripped_state;
#[cfg(feature = "testing")]
pub mod testing;
mod third_party_invites;
mod thread_subscriptions;
mod threads;
mod timeline;
mod told_events;
mod turn;
mod typed_state;
mod unread;
mod upgrade;
mod visibility;

use std::sync::Arc;

use accounts::Settings;
use model::{LocalServers, RoomNr, UserNr};
use moka::sync::Cache;
use ruma::{RoomId, RoomVersionId};
use storage::{RoomRow, Storage};

use self::turn::Turn;
pub use self::{
    create::{NewRoomRequest, Preset},
    directory::{DirectoryToken, Networks, PUBLIC_ROOMS_MAX, PublicRooms, PublicRoomsRequest},
    draft::Draft,
    encryption::EncryptionPolicy,
    error::Error,
    handshake::{Asker, Handshake, Template},
    hierarchy::{HIERARCHY_ROOMS_DEFAULT, Hierarchy, HierarchyRequest, HierarchyRoom},
    invitations::OutgoingInvite,
    joined_state::JoinedState,
    members::{MemberKinds, StateList},
    mutual::MutualRooms,
    policy_servers::PolicyAnswer,
    presence::{Flips, Presences},
    preview::Preview,
    receipts::{ReceiptKind, ReceiptRequest},
    receive::{Received, Source},
    relations::{RECURSION_LEVELS, RelationsRequest},
    remote::{Asking, EventSigners, JoinAnswer, MemberTemplate, RemoteError, RemoteEvents, RemoteServers, StateIds},
    said_elsewhere::RemoteReceipt,
    served::{BODIES_AT_ONCE, MissingEvents, ServedState},
    served_spaces::ServedSpace,
    thread_subscriptions::SubscribedThread,
    threads::Threads,
    timeline::{Context, Page, PageRequest, TimelineToken},
    unread::{Counts, Tally, Unread},
    visibility::{OwnTransactions, Reader},
};

/// Most rooms whose turn and head are in memory.
const TURNS_CACHED: u64 = 20_000;

/// How many users may mark at the same time what they have read.
const READINGS: usize = 64;

/// What the deployment decides about rooms.
#[derive(Clone, Debug)]
pub struct Options {
    /// The version of new rooms that do not ask for one.
    pub default_version: RoomVersionId,
    /// Whether threads notify only those who subscribed to them. MSC4306.
    pub thread_subscriptions: bool,
    /// Which rooms are encrypted that clients do not make so.
    pub encryption: EncryptionPolicy,
}

impl Default for Options {
    fn default() -> Self {
        Self { default_version: RoomVersionId::V12, thread_subscriptions: false, encryption: EncryptionPolicy::Off }
    }
}

/// The rooms of this deployment. Cheap to clone.
#[derive(Clone)]
pub struct Rooms(Arc<Inner>);

struct Inner {
    storage: Storage,
    servers: LocalServers,
    options: Options,
    turns: Cache<RoomNr, Arc<Turn>>,
    rows: Cache<ruma::OwnedRoomId, Arc<RoomRow>>,
    typed_state: typed_state::TypedStates,
    /// What users chose: their push rules, and whom they ignore.
    settings: Settings,
    /// The same, with their rules taken apart.
    chosen: push::ChosenByUser,
    /// What the default rules come to, in any room and for any user.
    default_plan: Arc<push::plan::Plan>,
    /// Guard how far users have read while that is compared and written; users share a lock with a few others. No lock inside but
    /// those of the database. Between processes the database compares receipts, and the last `m.fully_read` counts.
    readings: Vec<tokio::sync::Mutex<()>>,
    redaction_work: redactions::RedactionWork,
    remote: Arc<dyn RemoteServers>,
    walks: hierarchy::Walks,
    /// Guard joining a room through another server: one user after the other, across all that it takes.
    joining: Cache<ruma::OwnedRoomId, Arc<tokio::sync::Mutex<()>>>,
    remote_spaces: remote_spaces::RemoteSpaces,
    server_acls: server_acls::ServerAcls,
    resting_policy_servers: policy_servers::RestingServers,
    /// Guard asking a server for what is missing in a room: one after the other, across all that it takes. The room's turn comes inside.
    asking: Cache<(RoomNr, ruma::OwnedServerName), Arc<tokio::sync::Mutex<()>>>,
    /// Bounds how many whole states of other servers are in memory.
    states_asked: states_asked::StatesAsked,
    /// Told when a room came here whose members are asked for afterwards.
    completing: tokio::sync::Notify,
}

impl Rooms {
    /// The rooms in a database, for the server names that are ours; no other servers are asked.
    #[must_use]
    pub fn new(storage: Storage, servers: LocalServers, options: Options) -> Self {
        Self::federating(storage, servers, options, Arc::new(remote::Nobody))
    }

    /// The same, with other servers to ask.
    #[must_use]
    pub fn federating(
        storage: Storage,
        servers: LocalServers,
        options: Options,
        remote: Arc<dyn RemoteServers>,
    ) -> Self {
        let (turns, rows) = (Cache::new(TURNS_CACHED), Cache::new(TURNS_CACHED));
        let readings = (0..READINGS).map(|_| tokio::sync::Mutex::default()).collect();
        let typed_state = typed_state::TypedStates::new();
        let settings = Settings::new(storage.clone(), options.thread_subscriptions);
        let default_plan = Arc::new(push::plan::Plan::of_defaults(options.thread_subscriptions));
        let redaction_work = redactions::RedactionWork::default();
        let walks = hierarchy::Walks::new();
        Self(Arc::new(Inner {
            storage,
            servers,
            options,
            turns,
            rows,
            typed_state,
            settings,
            chosen: push::ChosenByUser::new(),
            default_plan,
            readings,
            redaction_work,
            remote,
            walks,
            joining: Cache::new(TURNS_CACHED),
            remote_spaces: remote_spaces::RemoteSpaces::new(),
            server_acls: server_acls::ServerAcls::new(),
            resting_policy_servers: policy_servers::RestingServers::new(),
            asking: Cache::new(TURNS_CACHED),
            states_asked: states_asked::StatesAsked::new(),
            completing: tokio::sync::Notify::new(),
        }))
    }

    pub(crate) fn redaction_work(&self) -> &redactions::RedactionWork {
        &self.0.redaction_work
    }

    pub(crate) fn remote(&self) -> &dyn RemoteServers {
        &*self.0.remote
    }

    /// The version of new rooms that do not ask for one.
    #[must_use]
    pub fn default_version(&self) -> &RoomVersionId {
        &self.0.options.default_version
    }

    /// Whether threads notify only those who subscribed to them. MSC4306.
    #[must_use]
    pub fn has_thread_subscriptions(&self) -> bool {
        self.0.options.thread_subscriptions
    }

    /// The server names that are ours.
    #[must_use]
    pub fn servers(&self) -> &LocalServers {
        &self.0.servers
    }

    /// The room of an id.
    ///
    /// # Errors
    ///
    /// [`Error::RoomUnknown`] when we know no such room.
    pub async fn room(&self, room_id: &RoomId) -> Result<Arc<RoomRow>, Error> {
        if let Some(row) = self.0.rows.get(room_id) {
            return Ok(row);
        }
        let row = self.storage().find_room(room_id).await?.ok_or(Error::RoomUnknown)?;
        let row = Arc::new(row);
        self.remember(&row);
        Ok(row)
    }

    /// The rooms of those ids, of those that we know: one query at most.
    pub(crate) async fn find_rooms(&self, room_ids: &[&RoomId]) -> Result<Vec<Arc<RoomRow>>, Error> {
        let mut found = Vec::with_capacity(room_ids.len());
        let mut missing = Vec::new();
        for room_id in room_ids {
            match self.0.rows.get(*room_id) {
                Some(row) => found.push(row),
                None => missing.push(*room_id),
            }
        }
        if !missing.is_empty() {
            for row in self.storage().find_rooms(&missing).await? {
                let row = Arc::new(row);
                self.remember(&row);
                found.push(row);
            }
        }
        Ok(found)
    }

    /// Keeps a room in memory, from when on it does not change what it is.
    fn remember(&self, row: &Arc<RoomRow>) {
        if row.has_state {
            self.0.rows.insert(row.id.clone(), row.clone());
        }
    }

    pub(crate) fn storage(&self) -> &Storage {
        &self.0.storage
    }

    /// Waits until the user's other marks are written.
    async fn reading_turn(&self, user_nr: UserNr) -> tokio::sync::MutexGuard<'_, ()> {
        self.0.readings[user_nr.0.unsigned_abs() as usize % READINGS].lock().await
    }

    fn turn(&self, room_nr: RoomNr) -> Arc<Turn> {
        self.0.turns.get_with(room_nr, || Arc::new(Turn::default()))
    }
}

/// Does in a task of its own what must not stop half-way when nobody waits for it any more: a client may hang up.
pub(crate) async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    match tokio::spawn(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The process ends.
        Err(_) => Err(Error::Busy),
    }
}

impl std::fmt::Debug for Rooms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rooms").field("servers", &self.0.servers).finish_non_exhaustive()
    }
}
