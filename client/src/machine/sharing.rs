//! Who gets a room's key, and encryption for the room. Client-Server API, "m.megolm.v1.aes-sha2".

use std::collections::BTreeMap;

use ruma::{
    OneTimeKeyAlgorithm, OwnedDeviceId, OwnedEventId, OwnedUserId, RoomId, UserId, api::client::keys::claim_keys,
    to_device::DeviceIdOrAllDevices,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::{Machine, Work, now_ms};
use crate::{
    Batch, Error, Kind, Store,
    account::{Account, MEGOLM},
    cross_signing::IdentityTrust,
    devices::{DEVICES, Device, DeviceList, LocalTrust},
    megolm::{Holder, INBOUND, Inbound, OUTBOUND, Outbound, session_key},
    olm::{OLM_SESSIONS, RENEWALS, Sessions, check_one_time_key, encrypted, payload},
    outbox::{Messages, Outgoing},
    rooms::{Membership, Room},
    signatures::Object,
};

/// Whether an event is there to verify devices. Where these get no room keys before, it goes in clear: they could not read it.
/// Client-Server API, "Key verification framework".
fn is_of_verification(event_type: &str, content: &Value) -> bool {
    event_type.starts_with("m.key.verification.")
        || (event_type == "m.room.message"
            && content.get("msgtype").is_some_and(|kind| kind == "m.key.verification.request"))
}

/// Devices in one request: some 600 kB.
const DEVICES_MAX: usize = 250;

/// [`ShareWith`].
const SHARE_WITH: Kind = Kind("share with");
const OWN: &str = "own";

/// Which devices get room keys. Blocked ones never do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum ShareWith {
    /// All of a room's readers: their servers can add devices that read on.
    #[default]
    All,
    /// Those that their owners' identities vouch for. Client-Server API, "Recommended client behaviour".
    CrossSigned,
    /// Those that were verified, or whose owners were.
    Verified,
}

impl ShareWith {
    pub(super) async fn load(store: &Store) -> Result<Self, Error> {
        Ok(store.get(SHARE_WITH, OWN).await?.unwrap_or_default())
    }
}

/// The devices of a room's readers: who gets its key, and who does not and why.
#[derive(Debug, Default)]
struct Readers {
    allowed: Vec<Device>,
    refused: Vec<(Device, &'static str, &'static str)>,
    /// Whether there may be others, which can be asked for.
    are_outdated: bool,
}

impl Machine {
    async fn readers(&self, room: &Room) -> Result<Readers, Error> {
        let users: Vec<&str> = room.readers().map(|user_id| user_id.as_str()).collect();
        let mut lists = self.store.get_many::<DeviceList>(DEVICES, &users).await?;
        let mut readers = Readers::default();
        for user_id in room.readers() {
            let list = lists.remove(user_id.as_str()).unwrap_or_default();
            readers.are_outdated |= (!list.is_tracked || list.is_outdated()) && !self.is_in_vain(user_id, None);
            for device in list.devices.into_values().filter(|device| !self.is_own(device)) {
                if device.local_trust == LocalTrust::Blocked {
                    readers.refused.push((device, "m.blacklisted", "the sender has blocked this device"));
                } else if !self.may_get_keys(&device) {
                    readers.refused.push((device, "m.unverified", "the sender has not verified this device"));
                } else {
                    readers.allowed.push(device);
                }
            }
        }
        Ok(readers)
    }

    fn may_get_keys(&self, device: &Device) -> bool {
        match self.share_with {
            ShareWith::All => true,
            ShareWith::CrossSigned => self.identities.vouch_for(device) || self.is_verified(device),
            ShareWith::Verified => self.is_verified(device),
        }
    }

    /// Says which devices get room keys.
    pub(crate) async fn set_share_with(&mut self, share_with: ShareWith) -> Result<(), Error> {
        let mut batch = Batch::new();
        batch.put(SHARE_WITH, OWN, &share_with);
        self.store.commit(batch).await?;
        self.share_with = share_with;
        Ok(())
    }

    /// The room's readers whose identity was verified and is another one now.
    fn changed_readers(&self, room: &Room) -> Vec<OwnedUserId> {
        let changed = Some(IdentityTrust::Changed { was_verified: true });
        room.readers().filter(|user_id| self.identity_trust(user_id) == changed).cloned().collect()
    }

    /// The users whose devices have to be known before anything is encrypted for the room; nothing if it is not encrypted.
    pub(crate) async fn readers_of(&self, room_id: &RoomId) -> Result<Vec<OwnedUserId>, Error> {
        let room = self.room(room_id).await?;
        Ok(room.encryption()?.map(|_| room.readers().cloned().collect()).unwrap_or_default())
    }

    /// The devices of the room with which there is no session yet.
    pub(crate) async fn without_session(&mut self, room_id: &RoomId) -> Result<Vec<Device>, Error> {
        let room = self.room(room_id).await?;
        let devices = self.readers(&room).await?.allowed;
        self.lacking(devices).await
    }

    /// Those of `devices` with which there is no session, and which it is worth asking for a key.
    pub(crate) async fn lacking(&mut self, devices: Vec<Device>) -> Result<Vec<Device>, Error> {
        let known = self.sessions(&devices).await?;
        let now_ms = now_ms();
        self.in_vain_until_ms.retain(|_, until_ms| *until_ms > now_ms);
        let is_lacking = |device: &Device| {
            known.get(&device.peer()).is_none_or(Sessions::is_empty)
                && !self.is_in_vain(&device.user_id, Some(&device.device_id))
        };
        Ok(devices.into_iter().filter(is_lacking).collect())
    }

    async fn sessions(&self, devices: &[Device]) -> Result<BTreeMap<String, Sessions>, Error> {
        let peers: Vec<String> = devices.iter().map(Device::peer).collect();
        let peers: Vec<&str> = peers.iter().map(String::as_str).collect();
        self.store.get_many(OLM_SESSIONS, &peers).await
    }

    /// Begins a session with each of `devices` for which the server gave a key that its device signed.
    pub(crate) async fn begin_sessions(
        &mut self,
        devices: &[Device],
        answer: &claim_keys::v3::Response,
    ) -> Result<(), Error> {
        let mut work = Work::default();
        let mut account = Account::load(&self.store, &work.batch).await?;
        for device in devices {
            match self.begin_session(&mut work.batch, &mut account, device, answer).await {
                Ok(()) => self.repaired(&mut work, device).await?,
                Err(error @ (Error::Store(_) | Error::StoreDamaged(_))) => return Err(error),
                Err(error) => {
                    tracing::warn!(user.id = %device.user_id, device.id = %device.device_id, %error, "no session with a device");
                    self.in_vain(&device.user_id, Some(&device.device_id));
                }
            }
        }
        let repaired = std::mem::take(&mut work.repaired);
        self.commit(work).await?;
        repaired.iter().for_each(|device| drop(self.broken.remove(device)));
        Ok(())
    }

    async fn begin_session(
        &self,
        batch: &mut Batch,
        account: &mut Account,
        device: &Device,
        answer: &claim_keys::v3::Response,
    ) -> Result<(), Error> {
        let keys = answer.one_time_keys.get(&device.user_id).and_then(|devices| devices.get(&device.device_id));
        let (_, key) = keys
            .into_iter()
            .flatten()
            .find(|(id, _)| id.algorithm() == OneTimeKeyAlgorithm::SignedCurve25519)
            .ok_or(Error::Malformed("one-time key: there is none"))?;
        let key: Object = serde_json::from_str(key.json().get()).map_err(|_| Error::Malformed("one-time key"))?;
        let one_time_key = check_one_time_key(device, &key)?;
        let peer = device.peer();
        let mut sessions: Sessions = self.store.get_with(batch, OLM_SESSIONS, &peer).await?.unwrap_or_default();
        sessions.begin(account, device.curve25519, one_time_key)?;
        batch.put(OLM_SESSIONS, peer, &sessions);
        Ok(())
    }

    /// Puts an event of a room into the outbox: encrypted if the room is, behind the messages that give its key to who lacks it.
    ///
    /// The devices of the room's readers are known by now, and there are sessions with those that can be reached. Does nothing and returns
    /// nothing when that is not so any more, unless this is the last try.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownRoom`], [`Error::UnknownAlgorithm`], [`Error::IdentityChanged`].
    pub(crate) async fn post(
        &mut self,
        room_id: &RoomId,
        event_type: &str,
        content: &Value,
        is_last: bool,
    ) -> Result<Option<oneshot::Receiver<Result<OwnedEventId, Error>>>, Error> {
        let room = self.room(room_id).await?;
        if room.membership != Membership::Join {
            return Err(Error::UnknownRoom(room_id.to_owned()));
        }
        let mut work = Work::default();
        let changed = self.changed_readers(&room);
        let goes_clear =
            is_of_verification(event_type, content) && (self.share_with != ShareWith::All || !changed.is_empty());
        let (event_type, content) = match room.encryption()? {
            Some(_) if !goes_clear => {
                if !changed.is_empty() {
                    return Err(Error::IdentityChanged(changed));
                }
                let encrypted = self.encrypt(&mut work, &room, (event_type, content), is_last).await?;
                let Some(encrypted) = encrypted else { return Ok(None) };
                ("m.room.encrypted", encrypted)
            }
            _ => (event_type, content.clone()),
        };
        let outgoing = Outgoing::Room { room_id: room_id.to_owned(), event_type: event_type.to_owned(), content };
        let number = self.outbox.post(&mut work.batch, outgoing);
        let answer = self.outbox.answer_to(number);
        self.commit(work).await?;
        Ok(Some(answer))
    }

    async fn encrypt(
        &mut self,
        work: &mut Work,
        room: &Room,
        (event_type, content): (&str, &Value),
        is_last: bool,
    ) -> Result<Option<Value>, Error> {
        let encryption = room.encryption()?.expect("the room is encrypted");
        let readers = self.readers(room).await?;
        let mut allowed: BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, String>> = BTreeMap::new();
        for device in &readers.allowed {
            let devices = allowed.entry(device.user_id.clone()).or_default();
            devices.insert(device.device_id.clone(), device.curve25519.to_base64());
        }
        let outbound: Option<Outbound> = self.store.get(OUTBOUND, room.room_id.as_str()).await?;
        let now_ms = now_ms();
        let mut outbound = match outbound.filter(|outbound| !outbound.must_rotate(encryption, room, &allowed, now_ms)) {
            Some(outbound) => outbound,
            None => {
                let outbound = Outbound::new(room, now_ms);
                let key = outbound.room_key(&room.room_id);
                let key = key.as_object().expect("a room key is an object");
                let (curve25519, ed25519) = (self.curve25519.to_base64(), self.ed25519.to_base64());
                let inbound = Inbound::from_room_key(key, &self.user_id, &curve25519, &ed25519)?;
                work.batch.put(INBOUND, session_key(&room.room_id, &inbound.session_id()), &inbound);
                self.mark_to_back_up(work, &inbound);
                outbound
            }
        };
        if !self.share(work, room, &mut outbound, readers, is_last).await? {
            return Ok(None);
        }
        let sender_key = self.curve25519.to_base64();
        let encrypted = outbound.encrypt(&room.room_id, event_type, content, (&sender_key, &self.device_id));
        work.batch.put(OUTBOUND, room.room_id.as_str(), &outbound);
        Ok(Some(encrypted))
    }

    /// Gives the room's key to those readers that lack it, and tells the others why they do not get it. Returns whether that was possible:
    /// else some are not met yet.
    async fn share(
        &self,
        work: &mut Work,
        room: &Room,
        outbound: &mut Outbound,
        readers: Readers,
        is_last: bool,
    ) -> Result<bool, Error> {
        if readers.are_outdated && !is_last {
            return Ok(false);
        }
        let peers: Vec<String> = readers.allowed.iter().map(Device::peer).collect();
        let peers: Vec<&str> = peers.iter().map(String::as_str).collect();
        let renewals = self.store.get_many::<u32>(RENEWALS, &peers).await?;
        let renewals = |device: &Device| renewals.get(&device.peer()).copied().unwrap_or_default();
        // Who was given the key in a session that was replaced since may have lost it.
        let has_key = |device: &Device| {
            let holder = outbound.shared_with.get(&device.user_id).and_then(|devices| devices.get(&device.device_id));
            holder.is_some_and(|holder| holder.renewals >= renewals(device))
        };
        let newcomers: Vec<Device> = readers.allowed.into_iter().filter(|device| !has_key(device)).collect();
        let mut keys = Vec::new();
        let mut withheld = Vec::new();
        if !newcomers.is_empty() {
            let account = Account::load(&self.store, &Batch::new()).await?;
            let own_keys = account.device_keys();
            let room_key = outbound.room_key(&room.room_id);
            let mut known = self.sessions(&newcomers).await?;
            for device in newcomers {
                let peer = device.peer();
                let mut sessions = known.remove(&peer).unwrap_or_default();
                let is_in_vain = self.is_in_vain(&device.user_id, Some(&device.device_id));
                if sessions.is_empty() && !is_in_vain && !is_last {
                    return Ok(false);
                }
                match sessions.encrypt(&payload(&account, &own_keys, &device, "m.room_key", &room_key)) {
                    Some(message) => {
                        let devices = outbound.shared_with.entry(device.user_id.clone()).or_default();
                        let holder = Holder { key: device.curve25519.to_base64(), renewals: renewals(&device) };
                        devices.insert(device.device_id.clone(), holder);
                        keys.push((device.clone(), encrypted(&account, &device, &message)));
                    }
                    // It is told once, until there was a session; it may begin one by itself.
                    None if is_in_vain && !sessions.is_told_of_none => {
                        sessions.is_told_of_none = true;
                        let content = self.withheld(None, "m.no_olm", "the sender has no session with this device");
                        withheld.push((device, content));
                    }
                    None => continue,
                }
                work.batch.put(OLM_SESSIONS, peer, &sessions);
            }
        }
        let session_id = outbound.session_id();
        for (device, code, reason) in readers.refused {
            let told = outbound.withheld_from.entry(device.user_id.clone()).or_default();
            if told.insert(device.device_id.clone(), code.to_owned()).is_none() {
                let content = self.withheld(Some((&room.room_id, &session_id)), code, reason);
                withheld.push((device, content));
            }
        }
        self.post_to_devices(work, "m.room.encrypted", keys);
        self.post_to_devices(work, "m.room_key.withheld", withheld);
        Ok(true)
    }

    /// The content of `m.room_key.withheld`. Client-Server API, "Reporting that decryption keys are withheld".
    pub(super) fn withheld(&self, of: Option<(&RoomId, &str)>, code: &str, reason: &str) -> Value {
        let mut content = json!({
            "algorithm": MEGOLM,
            "sender_key": self.curve25519.to_base64(),
            "code": code,
            "reason": reason,
        });
        if let Some((room_id, session_id)) = of {
            content["room_id"] = room_id.as_str().into();
            content["session_id"] = session_id.into();
        }
        content
    }

    /// Puts messages to devices into the outbox, a bounded number in each request.
    pub(super) fn post_to_devices(&self, work: &mut Work, event_type: &str, messages: Vec<(Device, Value)>) {
        let mut messages = messages.into_iter().peekable();
        while messages.peek().is_some() {
            let mut of_users = Messages::new();
            for (device, content) in messages.by_ref().take(DEVICES_MAX) {
                let devices = of_users.entry(device.user_id).or_default();
                devices.insert(DeviceIdOrAllDevices::DeviceId(device.device_id), content);
            }
            let outgoing = Outgoing::ToDevice { event_type: event_type.to_owned(), messages: of_users };
            self.outbox.post(&mut work.batch, outgoing);
        }
    }

    /// Puts one message in clear to devices into the outbox that may be unknown, such as all of a user's: `*`.
    pub(crate) async fn post_to_ids(
        &mut self,
        user_id: &UserId,
        device_ids: &[OwnedDeviceId],
        event_type: &str,
        content: &Value,
    ) -> Result<(), Error> {
        let devices = device_ids.iter().map(|device_id| match device_id.as_str() {
            "*" => DeviceIdOrAllDevices::AllDevices,
            _ => DeviceIdOrAllDevices::DeviceId(device_id.clone()),
        });
        let messages =
            Messages::from([(user_id.to_owned(), devices.map(|device| (device, content.clone())).collect())]);
        let outgoing = Outgoing::ToDevice { event_type: event_type.to_owned(), messages };
        let mut work = Work::default();
        self.outbox.post(&mut work.batch, outgoing);
        self.commit(work).await.map(drop)
    }

    /// Encrypts for one device and puts it into the outbox; does nothing when there is no session.
    pub(super) async fn post_encrypted(
        &self,
        work: &mut Work,
        device: &Device,
        event_type: &str,
        content: &Value,
    ) -> Result<bool, Error> {
        let account = Account::load(&self.store, &Batch::new()).await?;
        let peer = device.peer();
        let mut sessions: Sessions = self.store.get_with(&work.batch, OLM_SESSIONS, &peer).await?.unwrap_or_default();
        let Some(message) = sessions.encrypt(&payload(&account, &account.device_keys(), device, event_type, content))
        else {
            return Ok(false);
        };
        work.batch.put(OLM_SESSIONS, peer, &sessions);
        let content = encrypted(&account, device, &message);
        self.post_to_devices(work, "m.room.encrypted", vec![(device.clone(), content)]);
        Ok(true)
    }

    /// Encrypts for devices of which there are sessions, and puts it into the outbox. Returns how many it is for.
    pub(crate) async fn post_to(
        &mut self,
        devices: &[Device],
        event_type: &str,
        content: &Value,
    ) -> Result<usize, Error> {
        let mut work = Work::default();
        let mut count = 0;
        for device in devices {
            count += usize::from(self.post_encrypted(&mut work, device, event_type, content).await?);
        }
        self.commit(work).await?;
        Ok(count)
    }

    /// Puts messages in clear to devices into the outbox.
    pub(crate) async fn post_clear(
        &mut self,
        event_type: &str,
        devices: &[Device],
        content: &Value,
    ) -> Result<(), Error> {
        let mut work = Work::default();
        let messages = devices.iter().map(|device| (device.clone(), content.clone())).collect();
        self.post_to_devices(&mut work, event_type, messages);
        self.commit(work).await.map(drop)
    }
}

#[cfg(test)]
mod tests;
