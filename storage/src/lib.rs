//! The database: all SQL, the committer and the migrations.
//!
//! [`Storage`] is the one handle. What clients learn by stream is written by [`Storage::commit`], which takes plain data
//! and gives it a place in the one ordered stream; everything else is written in short transactions of its own. Reads
//! are functions of `Storage` in the file of their tables.

mod account_data;
mod batch;
mod childless;
mod commit;
mod committer;
mod consumers;
mod db;
mod dehydrated_devices;
mod deployment;
mod destinations;
mod device_lists;
mod devices;
mod directory;
mod erased_users;
mod error;
mod event_graph;
mod events;
mod filters;
mod gathered;
mod group;
mod key_backups;
mod key_claims;
mod keys;
mod listed_events;
mod maintenance;
mod many_rooms;
mod media;
mod migrate;
mod numbers;
mod openid_tokens;
mod outgoing;
mod outliers;
mod packed;
mod partial_rooms;
mod presence;
mod profiles;
mod received_transactions;
mod redactions;
mod relations;
mod relations_fill;
mod remote_devices;
mod reports;
mod room_leases;
mod room_reads;
mod rooms;
mod rows;
mod sender_shares;
mod server_keys;
mod server_outages;
mod state_map;
mod statement;
mod stream;
mod sync_connections;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod thread_subscriptions;
mod to_device;
mod tokens;
mod uia_sessions;
mod unread;
mod user_work;
mod users;

use std::{path::PathBuf, sync::Arc};

use model::{Clock, Position, Random, RoomNr};
use moka::sync::Cache;
use tokio::sync::{broadcast, watch};

pub use self::{
    account_data::AccountDataRow,
    commit::{
        ChangedKeys, ChangedProfile, Commit, CommitError, Committed, Completion, Countable, DeviceListChange,
        MembershipChange, NewAccountData, NewEvent, NewOutgoingEdu, NewPartial, NewReceipt, NewRelatedRedaction,
        NewRelation, NewRoom, NewThreadSubscription, NewToDevice, NewTransaction, Placement, Redaction, RoomCommit,
        RoomSummary, StateChange, TransactionKey,
    },
    dehydrated_devices::DehydratedDeviceRow,
    destinations::DestinationRow,
    device_lists::DeviceListChangeRow,
    devices::{DeviceRow, DeviceSeen},
    directory::{ListedOn, ListedRoom, ListedRooms},
    error::Error,
    event_graph::EventNode,
    events::StoredEvent,
    key_backups::{BackedUpKeyRow, BackedUpKeys, BackupOutcome, KeyBackupContents, KeyBackupRow},
    key_claims::KeyClaim,
    keys::{DeviceKeyUpload, DeviceKeysOutcome, DeviceKeysRow, KeyCounts, KeyRow, KeySignatureRow, ONE_TIME_KEYS_MAX},
    listed_events::{EventBody, ListedEvent},
    media::{ContentHash, MediaContent, MediaDescription, MediaRow},
    outgoing::{ArrearsRow, ReadRow},
    partial_rooms::{CompletedEvent, PartialRoom},
    presence::PresenceRow,
    received_transactions::{NewReceivedTransaction, ReceivedTransactionKey},
    redactions::RelatedRedactionRow,
    relations::{Children, ChildrenQuery, ChildrenReader, RelationTypes, annotation_key},
    remote_devices::{RemoteDevice, RemoteDeviceList, RemoteDevices},
    reports::{NewReport, ReportRow},
    room_reads::{ReceiptRow, RoomMembership, TimelineDirection, TimelinePlace},
    rooms::{AliasRow, RoomActivity, RoomHead, RoomRow},
    sender_shares::{SENDER_SHARES, SenderShare},
    server_keys::{ServerKeyAnswer, ServerKeyRow, ServerKeysRow},
    server_outages::OutageRow,
    state_map::{NewNodes, StateKey, StateLook, StateNode},
    stream::{Item, Published},
    sync_connections::{ConnectionKey, ConnectionRow},
    thread_subscriptions::{ThreadSubscription, ThreadSubscriptionRow},
    tokens::{AccessTokenRow, NewSession, Refreshed, RegistrationTokenRow, SecretHash, SessionInserted},
    uia_sessions::UiaSessionRow,
    unread::{LISTED_OF_ROOM_MAX, ReadPositions, UnreadRange, UnreadRow},
    user_work::{ChangedKeysRow, UserWork, UserWorkRow},
    users::{NewUser, UserRow},
};
use self::{committer::Committer, db::Db, gathered::Gathered, numbers::Numbers, state_map::StateNodes};

/// Most rooms whose id and version are in memory.
const ROOMS_CACHED: u64 = 50_000;

/// Where the data is.
#[derive(Clone, Debug)]
pub enum Options {
    /// One file on this machine.
    Sqlite {
        /// The database file; its folder exists.
        path: PathBuf,
        /// Most connections that read at once.
        read_connections: u32,
    },
    /// A PostgreSQL server, version 14 or newer.
    Postgres {
        /// `postgres://user:password@host/database`.
        url: String,
        /// Most connections of this process.
        connections: u32,
    },
}

/// The database, shared by everything in this process. Cheap to clone.
#[derive(Clone)]
pub struct Storage(Arc<Inner>);

struct Inner {
    db: Db,
    clock: Clock,
    random: Random,
    /// Names this process among those of the deployment.
    process: String,
    numbers: Numbers,
    state_nodes: StateNodes,
    event_cache: events::EventCache,
    account_data_versions: account_data::AccountDataVersions,
    childless: childless::Childless,
    room_rows: Cache<RoomNr, Arc<RoomRow>>,
    key_counts: keys::KeyCountsCache,
    claims: Gathered<key_claims::KeyClaims>,
    to_device_reads: Gathered<to_device::ToDeviceRead>,
    to_device_seen: Gathered<to_device::ToDeviceSeen>,
    #[cfg(test)]
    doubled: Gathered<gathered::tests::Doubled>,
    erased_users: erased_users::ErasedUsers,
    committer: Committer,
    published: watch::Sender<Position>,
    stream: broadcast::Sender<Arc<Published>>,
}

impl Storage {
    /// Opens the database, brings its schema up to date and starts the committer.
    ///
    /// # Errors
    ///
    /// When the database cannot be reached or has a newer schema.
    pub async fn open(options: Options, clock: Clock, random: Random) -> Result<Self, Error> {
        let db = Db::open(&options).await?;
        migrate::migrate(&db, clock.now_ms()).await?;
        maintenance::make_partitions(&db, clock.now_ms()).await?;
        let (published, _) = watch::channel(committer::newest_position(&db).await?);
        let (stream, _) = broadcast::channel(committer::PUBLISHED_KEPT);
        let process = random.alphanumeric(12);
        let event_cache = events::EventCache::new();
        let account_data_versions = account_data::AccountDataVersions::new();
        let childless = childless::Childless::new();
        let committer = Committer::start(committer::Parts {
            db: db.clone(),
            clock: clock.clone(),
            process: process.clone(),
            published: published.clone(),
            stream: stream.clone(),
            events: event_cache.clone(),
            account_data: account_data_versions.clone(),
            childless: childless.clone(),
        });
        let numbers = Numbers::new(db.clone());
        let key_counts = keys::KeyCountsCache::new(&db);
        let state_nodes = StateNodes::new(db.clone());
        let erased_users = erased_users::ErasedUsers::load(&db).await?;
        let storage = Self(Arc::new(Inner {
            db,
            clock,
            random,
            process,
            numbers,
            state_nodes,
            event_cache,
            account_data_versions,
            childless,
            room_rows: Cache::new(ROOMS_CACHED),
            key_counts,
            claims: Gathered::default(),
            to_device_reads: Gathered::default(),
            to_device_seen: Gathered::default(),
            #[cfg(test)]
            doubled: Gathered::default(),
            erased_users,
            committer,
            published,
            stream,
        }));
        storage.fill_relations().await?;
        Ok(storage)
    }

    /// Makes a commit durable and gives it its place in the stream.
    ///
    /// It passes whole or not at all. Returns when a power loss cannot undo it.
    ///
    /// # Errors
    ///
    /// [`CommitError`] says what to do: build it anew, answer with what exists, or give up.
    pub async fn commit(&self, commit: Commit) -> Result<Committed, CommitError> {
        self.0.committer.commit(commit).await
    }

    /// The newest position that readers may see: all at or below it is durable and in the database.
    #[must_use]
    pub fn published(&self) -> Position {
        *self.0.published.borrow()
    }

    /// Asks the database for the newest position, of any process, and makes sure that all up to there is durable.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn newest_durable(&self) -> Result<Position, Error> {
        let newest = committer::newest_position(self.db()).await?;
        if newest > self.published() {
            self.db().make_durable().await?;
            self.publish_upto(newest);
        }
        Ok(newest)
    }

    /// Notes that all up to `position` is durable and may be shown.
    fn publish_upto(&self, position: Position) {
        self.0.published.send_if_modified(|published| {
            let newer = position > *published;
            *published = position.max(*published);
            newer
        });
    }

    /// The same as [`Storage::published`] for somebody who stands at `position` already: another process, which is ahead of this one,
    /// may have told them. Asks the database only then.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn published_for(&self, position: Position) -> Result<Position, Error> {
        if position > self.published() {
            self.newest_durable().await?;
        }
        Ok(self.published())
    }

    /// Makes sure that what was read, as of `position`, is durable before anybody is shown it: another process may have written it and
    /// not flushed it yet. Costs something only then.
    pub(crate) async fn settle(&self, position: Position) -> Result<(), Error> {
        if position > self.published() { self.db().make_durable().await } else { Ok(()) }
    }

    /// What this process commits from now on, in order. A receiver that falls behind reads the database instead.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Published>> {
        self.0.stream.subscribe()
    }

    /// The clock of this deployment.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// The randomness of this deployment.
    #[must_use]
    pub fn random(&self) -> &Random {
        &self.0.random
    }

    /// Finishes what is queued, then closes the database. Later commits are refused.
    pub async fn close(&self) {
        self.0.committer.close().await;
        self.0.db.close().await;
    }

    /// What names this process among those of the deployment.
    pub(crate) fn process(&self) -> &str {
        &self.0.process
    }

    pub(crate) fn db(&self) -> &Db {
        &self.0.db
    }
}

impl std::fmt::Debug for Storage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Storage").field("published", &self.published()).finish_non_exhaustive()
    }
}
