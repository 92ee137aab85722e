//! Who gets a room's key, and encryption for the room. Client-Server API, "m.megolm.v1.aes-sha2".

use std::collections::BTreeMap;

use ruma::{
    OneTimeKeyAlgorithm, OwnedDeviceId, OwnedEventId, OwnedUserId, RoomId, UserId, api::client::keys::claim_keys,
    to_device::DeviceIdOrAllDevices,
};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::{Machine, Work, now_ms};
use crate::{
    Batch, Error,
    account::{Account, MEGOLM},
    devices::{DEVICES, Device, DeviceList, LocalTrust},
    megolm::{INBOUND, Inbound, OUTBOUND, Outbound, session_key},
    olm::{OLM_SESSIONS, Sessions, check_one_time_key, encrypted, payload},
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

/// The devices of a room's readers: who gets its key, and who does not and why.
#[derive(Debug, Default)]
struct Readers {
    allowed: Vec<Device>,
    refused: Vec<(Device, &'static str, &'static str)>,
}

impl Machine {
    async fn readers(&self, room: &Room) -> Result<Readers, Error> {
        let users: Vec<&str> = room.readers().map(|user_id| user_id.as_str()).collect();
        let mut readers = Readers::default();
        for device in self
            .store
            .get_many::<DeviceList>(DEVICES, &users)
            .await?
            .into_values()
            .flat_map(|list| list.devices.into_values())
        {
            if self.is_own(&device) {
                continue;
            }
            if device.local_trust == LocalTrust::Blocked {
                readers.refused.push((device, "m.blacklisted", "the sender has blocked this device"));
            } else if self.only_verified && !self.is_verified(&device) {
                readers.refused.push((device, "m.unverified", "the sender has not verified this device"));
            } else {
                readers.allowed.push(device);
            }
        }
        Ok(readers)
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
        let keys: Vec<String> = devices.iter().map(|device| device.curve25519.to_base64()).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let known = self.store.get_many::<Sessions>(OLM_SESSIONS, &keys).await?;
        let now_ms = now_ms();
        self.in_vain_until_ms.retain(|_, until_ms| *until_ms > now_ms);
        let is_lacking = |device: &Device| {
            known.get(&device.curve25519.to_base64()).is_none_or(Sessions::is_empty)
                && !self.in_vain_until_ms.contains_key(&(device.user_id.clone(), Some(device.device_id.clone())))
        };
        Ok(devices.into_iter().filter(is_lacking).collect())
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
                Ok(()) => {}
                Err(error @ (Error::Store(_) | Error::StoreDamaged(_))) => return Err(error),
                Err(error) => {
                    tracing::warn!(user.id = %device.user_id, device.id = %device.device_id, %error, "no session with a device");
                    self.in_vain(&device.user_id, Some(&device.device_id));
                }
            }
        }
        self.commit(work).await.map(drop)
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
        let peer = device.curve25519.to_base64();
        let mut sessions: Sessions = self.store.get_with(batch, OLM_SESSIONS, &peer).await?.unwrap_or_default();
        sessions.begin(account, device.curve25519, one_time_key)?;
        batch.put(OLM_SESSIONS, peer, &sessions);
        Ok(())
    }

    /// Puts an event of a room into the outbox: encrypted if the room is, behind the messages that give its key to who lacks it.
    ///
    /// The devices of the room's readers are known by now, and there are sessions with those that can be reached.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownRoom`], [`Error::UnknownAlgorithm`].
    pub(crate) async fn post(
        &mut self,
        room_id: &RoomId,
        event_type: &str,
        content: &Value,
    ) -> Result<oneshot::Receiver<Result<OwnedEventId, Error>>, Error> {
        let room = self.room(room_id).await?;
        if room.membership != Membership::Join {
            return Err(Error::UnknownRoom(room_id.to_owned()));
        }
        let mut work = Work::default();
        let (event_type, content) = match room.encryption()? {
            Some(_) if !(self.only_verified && is_of_verification(event_type, content)) => {
                ("m.room.encrypted", self.encrypt(&mut work, &room, event_type, content).await?)
            }
            _ => (event_type, content.clone()),
        };
        let outgoing = Outgoing::Room { room_id: room_id.to_owned(), event_type: event_type.to_owned(), content };
        let number = self.outbox.post(&mut work.batch, &mut work.posted, outgoing);
        let answer = self.outbox.answer_to(number);
        self.commit(work).await?;
        Ok(answer)
    }

    async fn encrypt(
        &mut self,
        work: &mut Work,
        room: &Room,
        event_type: &str,
        content: &Value,
    ) -> Result<Value, Error> {
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
        self.share(work, room, &mut outbound, readers).await?;
        let sender_key = self.curve25519.to_base64();
        let encrypted = outbound.encrypt(&room.room_id, event_type, content, (&sender_key, &self.device_id));
        work.batch.put(OUTBOUND, room.room_id.as_str(), &outbound);
        Ok(encrypted)
    }

    /// Gives the room's key to those readers that lack it, and tells the others why they do not get it.
    async fn share(
        &self,
        work: &mut Work,
        room: &Room,
        outbound: &mut Outbound,
        readers: Readers,
    ) -> Result<(), Error> {
        let has = |of: &BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, String>>, device: &Device| {
            of.get(&device.user_id).is_some_and(|devices| devices.contains_key(&device.device_id))
        };
        let newcomers: Vec<Device> =
            readers.allowed.into_iter().filter(|device| !has(&outbound.shared_with, device)).collect();
        let mut keys = Vec::new();
        let mut withheld = Vec::new();
        if !newcomers.is_empty() {
            let account = Account::load(&self.store, &Batch::new()).await?;
            let own_keys = account.device_keys();
            let room_key = outbound.room_key(&room.room_id);
            let peers: Vec<String> = newcomers.iter().map(|device| device.curve25519.to_base64()).collect();
            let peers: Vec<&str> = peers.iter().map(String::as_str).collect();
            let mut known = self.store.get_many::<Sessions>(OLM_SESSIONS, &peers).await?;
            for device in newcomers {
                let peer = device.curve25519.to_base64();
                let mut sessions = known.remove(&peer).unwrap_or_default();
                match sessions.encrypt(&payload(&account, &own_keys, &device, "m.room_key", &room_key)) {
                    Some(message) => {
                        let devices = outbound.shared_with.entry(device.user_id.clone()).or_default();
                        devices.insert(device.device_id.clone(), peer.clone());
                        keys.push((device.clone(), encrypted(&account, &device, &message)));
                    }
                    // It is told once, until there was a session; it may begin one by itself.
                    None if !sessions.is_told_of_none => {
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
            if !has(&outbound.withheld_from, &device) {
                let devices = outbound.withheld_from.entry(device.user_id.clone()).or_default();
                devices.insert(device.device_id.clone(), code.to_owned());
                let content = self.withheld(Some((&room.room_id, &session_id)), code, reason);
                withheld.push((device, content));
            }
        }
        self.post_to_devices(work, "m.room.encrypted", keys);
        self.post_to_devices(work, "m.room_key.withheld", withheld);
        Ok(())
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
            self.outbox.post(&mut work.batch, &mut work.posted, outgoing);
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
        self.outbox.post(&mut work.batch, &mut work.posted, outgoing);
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
        let peer = device.curve25519.to_base64();
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

    /// Devices whose session seems broken and may be replaced, which is noted.
    pub(crate) async fn broken_devices(&mut self) -> Result<Vec<Device>, Error> {
        let mut work = Work::default();
        let mut devices = Vec::new();
        for (user_id, device_id) in std::mem::take(&mut self.broken) {
            let Some(device) = self.devices(&work, &user_id).await?.devices.remove(&device_id) else { continue };
            let peer = device.curve25519.to_base64();
            let mut sessions: Sessions = self.store.get(OLM_SESSIONS, &peer).await?.unwrap_or_default();
            if sessions.may_replace(now_ms()) {
                work.batch.put(OLM_SESSIONS, peer, &sessions);
                devices.push(device);
            }
        }
        self.commit(work).await?;
        Ok(devices)
    }
}
