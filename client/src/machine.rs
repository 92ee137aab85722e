//! Everything that the client knows and does by itself: rooms, devices, keys.
//!
//! The machine talks to no server. It is given what the server said, and says what is to be asked or sent; [`Client`](crate::Client) carries
//! messages. One call is at it at a time, so no two messages use one state of a ratchet.
//!
//! What a call reads, it reads from the store; what it changes becomes durable in one [`Batch`] at its end, together with what is to be
//! sent. A call that is dropped on the way, or a program that is killed, has changed nothing. What is only in memory may be lost.

mod backing_up;
mod identities;
mod key_requests;
mod pending;
mod receive;
mod repair;
mod sharing;
mod strays;
mod timeline;
mod to_device;
mod tracking;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::SystemTime,
};

use ruma::{OwnedDeviceId, OwnedRoomId, OwnedUserId, RoomId};
use serde_json::Value;
use vodozemac::{Curve25519PublicKey, Ed25519PublicKey};

pub use self::sharing::ShareWith;
pub(crate) use self::{backing_up::Backup, receive::Gap};
use self::{identities::Identities, pending::PendingEvents};
use crate::{
    Batch, Error, Store,
    account::{Account, KeyCounts, Upload},
    cross_signing::Identity,
    devices::{DEVICES, Device, DeviceList, LocalTrust},
    events::Event,
    inbox::{Inbox, KeptEvent},
    outbox::Outbox,
    rooms::{ROOMS, Room},
};

/// The client's own state, but for connections.
#[derive(Debug)]
pub(crate) struct Machine {
    store: Store,
    outbox: Arc<Outbox>,
    inbox: Inbox,
    user_id: OwnedUserId,
    device_id: OwnedDeviceId,
    curve25519: Curve25519PublicKey,
    ed25519: Ed25519PublicKey,
    /// Which devices get room keys.
    share_with: ShareWith,
    /// Users whose devices may have changed; perhaps some more.
    outdated: BTreeSet<OwnedUserId>,
    /// Until when it is no use to ask for a user's devices or a device's keys: their server did not answer.
    in_vain_until_ms: BTreeMap<(OwnedUserId, Option<OwnedDeviceId>), u64>,
    /// What the server last said it has of our keys.
    key_counts: Option<KeyCounts>,
    /// How often keys were uploaded; and how often when the present `/sync` began, whose counts are of that time.
    uploads: (u64, u64),
    /// Devices whose session seems broken, by their Olm keys: as in the store.
    broken: BTreeSet<(OwnedUserId, String)>,
    identities: Identities,
    /// Whether the server may lack signatures of ours.
    has_signatures: bool,
    /// Whether room keys may have to be backed up.
    has_keys_to_back_up: bool,
    /// Whether devices of ours may wait for keys.
    has_key_requests: bool,
    /// Events whose key may come.
    pending: PendingEvents,
}

/// What a call changes, until it is durable.
#[derive(Debug, Default)]
struct Work {
    batch: Batch,
    account: Option<Account>,
    /// Sessions whose key came, or got better.
    imported: BTreeSet<String>,
    /// How many keys were asked for, by room.
    requested: BTreeMap<OwnedRoomId, usize>,
    /// Devices with which there is a new session in place of one that seemed broken.
    repaired: Vec<(OwnedUserId, String)>,
    /// Identities that changed.
    identities: BTreeMap<OwnedUserId, Identity>,
    events: Vec<Event>,
}

impl Work {
    async fn account(&mut self, store: &Store) -> Result<&mut Account, Error> {
        if self.account.is_none() {
            self.account = Some(Account::load(store, &self.batch).await?);
        }
        Ok(self.account.as_mut().expect("it was just loaded"))
    }
}

impl Machine {
    /// The machine of this store.
    pub(crate) async fn load(store: Store, outbox: Arc<Outbox>) -> Result<Self, Error> {
        let account = Account::load(&store, &Batch::new()).await?;
        let identities = Identities::load(&store, account.user_id().to_owned()).await?;
        let lists = store.list::<DeviceList>(DEVICES).await?;
        let outdated = lists.iter().filter(|(_, list)| list.is_tracked && list.is_outdated());
        Ok(Self {
            outdated: outdated.filter_map(|(user_id, _)| user_id.as_str().try_into().ok()).collect(),
            inbox: Inbox::load(&store).await?,
            outbox,
            user_id: account.user_id().to_owned(),
            device_id: account.device_id().to_owned(),
            curve25519: account.curve25519(),
            ed25519: account.ed25519(),
            share_with: ShareWith::load(&store).await?,
            in_vain_until_ms: BTreeMap::new(),
            key_counts: None,
            uploads: (0, 0),
            broken: repair::load(&store).await?,
            identities,
            has_signatures: true,
            has_keys_to_back_up: true,
            has_key_requests: true,
            pending: PendingEvents::default(),
            store,
        })
    }

    /// A room that the user is a member of.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownRoom`].
    pub(crate) async fn room(&self, room_id: &RoomId) -> Result<Room, Error> {
        let room: Option<Room> = self.store.get(ROOMS, room_id.as_str()).await?;
        room.ok_or_else(|| Error::UnknownRoom(room_id.to_owned()))
    }

    /// What is to be uploaded of our keys, if anything; what is made for it is durable.
    pub(crate) async fn keys_to_upload(&mut self) -> Result<Upload, Error> {
        let mut account = Account::load(&self.store, &Batch::new()).await?;
        let counts = match self.key_counts {
            Some(counts) => counts,
            // Before the server said anything only a new device makes keys.
            None if account.is_published() => return Ok(account.to_upload()),
            None => KeyCounts::default(),
        };
        if account.refill(counts, now_ms()) {
            let mut batch = Batch::new();
            account.save(&mut batch);
            self.store.commit(batch).await?;
        }
        Ok(account.to_upload())
    }

    /// What was to be uploaded has arrived; the server has so many one-time keys now.
    pub(crate) async fn keys_uploaded(&mut self, one_time: u64) -> Result<(), Error> {
        let mut account = Account::load(&self.store, &Batch::new()).await?;
        account.mark_uploaded();
        let mut batch = Batch::new();
        account.save(&mut batch);
        self.store.commit(batch).await?;
        self.uploads.0 += 1;
        // Of messages to this device an upload says nothing, so there may be some.
        self.key_counts = Some(KeyCounts { one_time, is_fallback_unused: None, has_messages: true });
        Ok(())
    }

    /// Keeps what happens in rooms from now on until its listener has worked it off.
    pub(crate) async fn inbox_open(&mut self) -> Result<(), Error> {
        self.inbox.open(&self.store).await
    }

    /// The oldest events that are kept, with their numbers.
    pub(crate) async fn kept_events(&self, max: usize) -> Result<Vec<(u64, KeptEvent)>, Error> {
        self.inbox.oldest(&self.store, max).await
    }

    /// Forgets what is kept up to this number.
    pub(crate) async fn forget_kept(&mut self, number: u64) -> Result<(), Error> {
        self.inbox.forget(&self.store, number).await
    }

    /// What is known of somebody's devices.
    async fn devices(&self, work: &Work, user_id: &ruma::UserId) -> Result<DeviceList, Error> {
        Ok(self.store.get_with(&work.batch, DEVICES, user_id.as_str()).await?.unwrap_or_default())
    }

    /// Somebody's devices, as far as they were asked for.
    pub(crate) async fn known_devices(&self, user_id: &ruma::UserId) -> Result<Vec<Device>, Error> {
        Ok(self.devices(&Work::default(), user_id).await?.devices.into_values().collect())
    }

    /// Keeps what the user says of a device.
    pub(crate) async fn set_local_trust(
        &mut self,
        user_id: &ruma::UserId,
        device_id: &ruma::DeviceId,
        trust: LocalTrust,
    ) -> Result<(), Error> {
        let mut work = Work::default();
        let mut list = self.devices(&work, user_id).await?;
        let unknown = || Error::UnknownDevice { user_id: user_id.to_owned(), device_id: device_id.to_owned() };
        list.devices.get_mut(device_id).ok_or_else(unknown)?.local_trust = trust;
        work.batch.put(DEVICES, user_id.as_str(), &list);
        self.commit(work).await.map(drop)
    }

    /// Whether somebody made sure of a device: of itself, or of its owner, who says that it is theirs.
    fn is_verified(&self, device: &Device) -> bool {
        match device.local_trust {
            LocalTrust::Verified => true,
            LocalTrust::Unset => self.identities.verify(device),
            LocalTrust::Blocked => false,
        }
    }

    fn is_own(&self, device: &Device) -> bool {
        device.user_id == self.user_id && device.device_id == self.device_id
    }

    /// Makes what was done durable, what is to be sent included. Returns what there is to tell.
    async fn commit(&mut self, work: Work) -> Result<Vec<Event>, Error> {
        let Work { mut batch, account, identities, events, .. } = work;
        if let Some(account) = account {
            account.save(&mut batch);
        }
        self.inbox.deliver(&mut batch, &events);
        self.store.commit(batch).await?;
        self.identities.committed(identities);
        Ok(events)
    }
}

/// The time, in milliseconds.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A text within an object.
fn text<'a>(object: &'a crate::signatures::Object, key: &str) -> Option<&'a str> {
    object.get(key).and_then(Value::as_str)
}
