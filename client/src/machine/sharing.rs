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
        let number = self.outbox.post(&mut work.batch, outgoing);
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ruma::{UserId, room_id, serde::Raw, user_id};

    use super::*;
    use crate::{
        Kind, Store, StoreKey,
        account::KeyCounts,
        olm::{read_encrypted, read_payload},
        outbox::Outbox,
        rooms::ROOMS,
    };

    const OUTBOX: Kind = Kind("outbox");

    fn alice() -> &'static UserId {
        user_id!("@alice:example.org")
    }

    fn bob() -> &'static UserId {
        user_id!("@bob:example.org")
    }

    fn room() -> Room {
        let mut room = Room::new(room_id!("!room:example.org").to_owned());
        room.membership = Membership::Join;
        for (event_type, state_key, content) in [
            ("m.room.encryption", "", json!({ "algorithm": MEGOLM })),
            ("m.room.member", alice().as_str(), json!({ "membership": "join" })),
            ("m.room.member", bob().as_str(), json!({ "membership": "join" })),
        ] {
            room.apply(event_type, state_key, content.as_object().unwrap());
        }
        room
    }

    /// Alice's machine, which knows a room with Bob and his devices and has a session with each.
    async fn machine(folder: &tempfile::TempDir, bobs: &mut [Account]) -> Machine {
        let store = Store::open(&folder.path().join("store"), &StoreKey::raw([1; 32])).await.unwrap();
        let mut batch = Batch::new();
        Account::new(alice().to_owned(), "PHONE".into()).save(&mut batch);
        batch.put(ROOMS, room().room_id.as_str(), &room());
        let mut list = DeviceList::default();
        let keys = bobs.iter().map(|account| (account.device_id().to_owned(), Value::Object(account.device_keys())));
        assert!(list.update(bob(), keys.collect(), 0).is_empty());
        batch.put(DEVICES, bob().as_str(), &list);
        store.commit(batch).await.unwrap();
        let outbox = Arc::new(Outbox::load(&store).await.unwrap());
        let mut machine = Machine::load(store, outbox).await.unwrap();

        let mut claimed = BTreeMap::new();
        for account in bobs {
            account.refill(KeyCounts { one_time: 49, is_fallback_unused: None }, 0);
            let (id, key) = account.to_upload().one_time_keys.remove(0);
            let key = Raw::new(&key).unwrap().cast_unchecked();
            claimed.insert(account.device_id().to_owned(), BTreeMap::from([(id.as_str().try_into().unwrap(), key)]));
        }
        let answer = claim_keys::v3::Response::new(BTreeMap::from([(bob().to_owned(), claimed)]));
        let devices = machine.without_session(&room().room_id).await.unwrap();
        machine.begin_sessions(&devices, &answer).await.unwrap();
        assert!(machine.without_session(&room().room_id).await.unwrap().is_empty());
        machine
    }

    /// What was put into the outbox since this was asked last, in order: to-device messages, and events.
    async fn posted(machine: &Machine) -> (Vec<Value>, usize) {
        let mut entries: Vec<(u64, Value)> = machine
            .store
            .list::<Value>(OUTBOX)
            .await
            .unwrap()
            .into_iter()
            .map(|(number, entry)| (number.parse().unwrap(), entry))
            .collect();
        entries.sort_by_key(|(number, _)| *number);
        let mut batch = Batch::new();
        entries.iter().for_each(|(number, _)| batch.delete(OUTBOX, number.to_string()));
        machine.store.commit(batch).await.unwrap();
        let is_event = |entry: &Value| entry["outgoing"].get("Room").is_some();
        let events = entries.iter().filter(|(_, entry)| is_event(entry)).count();
        assert!(entries.last().is_some_and(|(_, entry)| is_event(entry)), "keys leave before the message");
        let messages =
            entries.iter().map(|(_, entry)| entry["outgoing"]["ToDevice"]["messages"][bob().as_str()].clone());
        (messages.filter(|messages| !messages.is_null()).collect(), events)
    }

    fn device_count(requests: &[Value]) -> Vec<usize> {
        requests.iter().map(|devices| devices.as_object().unwrap().len()).collect()
    }

    /// Each device gets the key once, many in a request; whoever is gone ends it.
    #[tokio::test]
    async fn all_devices_of_a_room_get_its_key_once_until_one_of_them_is_gone() {
        let mut bobs: Vec<Account> =
            (0..520).map(|index| Account::new(bob().to_owned(), format!("D{index:03}").into())).collect();
        let folder = tempfile::tempdir().unwrap();
        let mut machine = machine(&folder, &mut bobs).await;
        let (room_id, content) = (room().room_id, json!({ "body": "hello" }));
        machine.post(&room_id, "m.room.message", &content).await.unwrap();
        let (requests, events) = posted(&machine).await;
        assert_eq!((device_count(&requests), events), (vec![250, 250, 20], 1));

        let last = bobs.last_mut().unwrap();
        let message = requests[2][last.device_id().as_str()].as_object().unwrap().clone();
        let (sender_key, message) = read_encrypted(last, &message).unwrap();
        let plaintext = Sessions::default().decrypt(last, sender_key, &message).unwrap();
        let plaintext = read_payload(last, bob(), alice(), sender_key, &plaintext).unwrap();
        assert_eq!((plaintext.event_type.as_str(), plaintext.sender_key), ("m.room_key", machine.curve25519));
        let first_session = plaintext.content["session_id"].clone();
        Inbound::from_room_key(&plaintext.content, alice(), "", "").unwrap();

        machine.post(&room_id, "m.room.message", &content).await.unwrap();
        let (requests, events) = posted(&machine).await;
        assert_eq!((device_count(&requests), events), (vec![], 1), "they have it");

        let mut list: DeviceList = machine.store.get(DEVICES, bob().as_str()).await.unwrap().unwrap();
        list.devices.remove(bobs[0].device_id());
        let mut batch = Batch::new();
        batch.put(DEVICES, bob().as_str(), &list);
        machine.store.commit(batch).await.unwrap();
        machine.post(&room_id, "m.room.message", &content).await.unwrap();
        let (requests, events) = posted(&machine).await;
        assert_eq!((device_count(&requests), events), (vec![250, 250, 19], 1));
        let outbound: Outbound = machine.store.get(OUTBOUND, room_id.as_str()).await.unwrap().unwrap();
        assert_ne!(json!(outbound.session_id()), first_session);
    }

    /// A device without a session is told so once, and gets the key when there is one.
    #[tokio::test]
    async fn a_device_that_cannot_be_reached_is_told_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut machine = machine(&folder, &mut []).await;
        let account = Account::new(bob().to_owned(), "LAPTOP".into());
        let mut list = DeviceList::default();
        list.update(bob(), BTreeMap::from([("LAPTOP".into(), Value::Object(account.device_keys()))]), 0);
        let mut batch = Batch::new();
        batch.put(DEVICES, bob().as_str(), &list);
        machine.store.commit(batch).await.unwrap();
        let (room_id, content) = (room().room_id, json!({ "body": "hello" }));
        machine.post(&room_id, "m.room.message", &content).await.unwrap();
        let (requests, events) = posted(&machine).await;
        assert_eq!((requests[0]["LAPTOP"]["code"].as_str(), requests.len(), events), (Some("m.no_olm"), 1, 1));
        assert_eq!(requests[0]["LAPTOP"].get("session_id"), None, "it is about all sessions");
        machine.post(&room_id, "m.room.message", &content).await.unwrap();
        assert_eq!(posted(&machine).await, (vec![], 1));
    }
}
