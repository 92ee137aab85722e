//! Room keys that this device lacks: why it was not given them, and those that devices of one user give each other.
//! Client-Server API, "Key requests" and "Reporting that decryption keys are withheld".
//!
//! Keys are asked of, given to, and believed from one's own verified devices only.

use rand::RngExt as _;
use ruma::{OwnedDeviceId, OwnedUserId, RoomId, UserId};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Machine, Work, now_ms, text};
use crate::{
    Error, Kind,
    account::MEGOLM,
    devices::Device,
    megolm::{INBOUND, Inbound, Undecryptable, session_key},
    signatures::Object,
};

/// [`Withheld`] by session.
const WITHHELD: Kind = Kind("withheld room keys");
/// [`Requested`] by session.
const REQUESTED: Kind = Kind("requested room keys");
/// [`Asked`] by device and request.
const ASKED: Kind = Kind("asked room keys");
/// Requests of our own devices that wait for an answer.
const ASKED_MAX: usize = 1_000;
/// Sessions of which we keep why we have no key, and how many of them go at once when there are too many.
const WITHHELD_MAX: u64 = 10_000;
const WITHHELD_GO: usize = 1_000;
/// Keys that are asked for, how many of them are given up at once when there are too many, and how many are asked for in one room at once.
const REQUESTED_MAX: u64 = 1_000;
const REQUESTED_GO: usize = 100;
const REQUESTED_OF_ROOM_MAX: usize = 20;
/// Longest text of others that is kept, in characters.
const TEXT_MAX: usize = 255;

#[derive(Deserialize, Serialize)]
struct Withheld {
    at_ms: u64,
    sender: OwnedUserId,
    code: String,
    reason: String,
}

/// A key that we asked for.
#[derive(Deserialize, Serialize)]
struct Requested {
    at_ms: u64,
    request_id: String,
}

/// A key that a device of ours asked for.
#[derive(Deserialize, Serialize)]
struct Asked {
    device_id: OwnedDeviceId,
    session: String,
    room_id: String,
    session_id: String,
}

/// The keys of the oldest rows.
fn oldest(rows: impl Iterator<Item = (u64, String)>, count: usize) -> impl Iterator<Item = String> {
    let mut rows: Vec<_> = rows.collect();
    rows.sort();
    rows.into_iter().take(count).map(|(_, key)| key)
}

impl Machine {
    pub(super) async fn note_withheld(
        &self,
        work: &mut Work,
        sender: &UserId,
        content: &Object,
        code: &str,
    ) -> Result<(), Error> {
        let (Some(room_id), Some(session_id)) = (text(content, "room_id"), text(content, "session_id")) else {
            return Err(Error::Malformed("withheld room key"));
        };
        let room_id = RoomId::parse(room_id).map_err(|_| Error::Malformed("withheld room key"))?;
        // Anybody may say so of any session; that must not fill the disk.
        if self.store.count(WITHHELD).await? >= WITHHELD_MAX {
            let all = self.store.list::<Withheld>(WITHHELD).await?.into_iter();
            let gone = oldest(all.map(|(key, withheld)| (withheld.at_ms, key)), WITHHELD_GO);
            gone.for_each(|key| work.batch.delete(WITHHELD, key));
        }
        let reason = text(content, "reason").unwrap_or("no reason given");
        let short = |text: &str| text.chars().take(TEXT_MAX).collect();
        let withheld =
            Withheld { at_ms: now_ms(), sender: sender.to_owned(), code: short(code), reason: short(reason) };
        work.batch.put(WITHHELD, session_key(&room_id, &short(session_id)), &withheld);
        Ok(())
    }

    /// The key has come, so it does not matter any more why not.
    pub(super) fn forget_withheld(&self, work: &mut Work, key: &str) {
        work.batch.delete(WITHHELD, key);
    }

    /// Why there is no key for messages that `sender` encrypted by this session.
    pub(super) async fn why_no_key(
        &self,
        work: &Work,
        room_id: &RoomId,
        sender: &UserId,
        session_id: &str,
    ) -> Result<Undecryptable, Error> {
        let withheld: Option<Withheld> =
            self.store.get_with(&work.batch, WITHHELD, &session_key(room_id, session_id)).await?;
        Ok(match withheld.filter(|withheld| withheld.sender == *sender) {
            Some(Withheld { code, reason, .. }) => Undecryptable::Withheld { code, reason },
            None => Undecryptable::NoKey,
        })
    }

    /// Our own verified devices, but for this one.
    pub(super) async fn trusted_devices(&self, work: &Work) -> Result<Vec<Device>, Error> {
        let devices = self.devices(work, &self.user_id).await?.devices.into_values();
        Ok(devices.filter(|device| !self.is_own(device) && self.is_verified(device)).collect())
    }

    /// Asks our other devices for the keys that events wait for.
    pub(super) async fn request_pending(&self, work: &mut Work) -> Result<(), Error> {
        for (room_id, session_id, sender_key) in self.pending.keys() {
            self.request_key(work, &room_id, &session_id, sender_key.as_deref()).await?;
        }
        Ok(())
    }

    /// Asks our other devices for a key, once; of many keys of one room that are lacking at once only for some, since anybody can say that
    /// there are sessions.
    pub(super) async fn request_key(
        &self,
        work: &mut Work,
        room_id: &RoomId,
        session_id: &str,
        sender_key: Option<&str>,
    ) -> Result<(), Error> {
        if work.requested.get(room_id).is_some_and(|count| *count >= REQUESTED_OF_ROOM_MAX) {
            return Ok(());
        }
        let key = session_key(room_id, session_id);
        let devices = self.trusted_devices(work).await?;
        if devices.is_empty() || self.store.get_with::<Requested>(&work.batch, REQUESTED, &key).await?.is_some() {
            return Ok(());
        }
        if self.store.count(REQUESTED).await? >= REQUESTED_MAX {
            let all = self.store.list::<Requested>(REQUESTED).await?.into_iter();
            let gone = oldest(all.map(|(key, requested)| (requested.at_ms, key)), REQUESTED_GO);
            gone.for_each(|key| work.batch.delete(REQUESTED, key));
        }
        *work.requested.entry(room_id.to_owned()).or_default() += 1;
        let request_id = format!("{:032x}", rand::rng().random::<u128>());
        let mut body = json!({ "algorithm": MEGOLM, "room_id": room_id, "session_id": session_id });
        // Deprecated, but some look the session up by it.
        if let Some(sender_key) = sender_key {
            body["sender_key"] = sender_key.into();
        }
        let content = json!({
            "action": "request",
            "body": body,
            "request_id": request_id,
            "requesting_device_id": self.device_id,
        });
        work.batch.put(REQUESTED, key, &Requested { at_ms: now_ms(), request_id });
        self.post_to_devices(
            work,
            "m.room_key_request",
            devices.into_iter().map(|device| (device, content.clone())).collect(),
        );
        Ok(())
    }

    /// The key has come: nobody has to look for it any more.
    pub(super) async fn cancel_key_request(&self, work: &mut Work, key: &str) -> Result<(), Error> {
        let requested: Option<Requested> = self.store.get_with(&work.batch, REQUESTED, key).await?;
        let Some(Requested { request_id, .. }) = requested else { return Ok(()) };
        work.batch.delete(REQUESTED, key);
        let content = json!({
            "action": "request_cancellation",
            "request_id": request_id,
            "requesting_device_id": self.device_id,
        });
        let devices = self.trusted_devices(work).await?;
        self.post_to_devices(
            work,
            "m.room_key_request",
            devices.into_iter().map(|device| (device, content.clone())).collect(),
        );
        Ok(())
    }

    /// Notes what a device of ours asks for; others' devices ask in vain.
    pub(super) async fn receive_key_request(
        &mut self,
        work: &mut Work,
        sender: &UserId,
        content: &Object,
    ) -> Result<(), Error> {
        const MALFORMED: Error = Error::Malformed("request for a room key");
        let (Some(device_id), Some(request_id)) = (text(content, "requesting_device_id"), text(content, "request_id"))
        else {
            return Err(MALFORMED);
        };
        if *sender != self.user_id || self.device_id == device_id || device_id.len().max(request_id.len()) > TEXT_MAX {
            return Ok(());
        }
        let key = format!("{device_id} {request_id}");
        if text(content, "action") == Some("request_cancellation") {
            work.batch.delete(ASKED, key);
            return Ok(());
        }
        let body = content.get("body").and_then(Value::as_object).ok_or(MALFORMED)?;
        let (Some(room_id), Some(session_id)) = (text(body, "room_id"), text(body, "session_id")) else {
            return Err(MALFORMED);
        };
        let parsed = RoomId::parse(room_id).map_err(|_| MALFORMED)?;
        if session_id.len() > TEXT_MAX {
            return Err(MALFORMED);
        }
        if self.store.list::<Asked>(ASKED).await?.len() < ASKED_MAX {
            let session = session_key(&parsed, session_id);
            let (room_id, session_id) = (room_id.to_owned(), session_id.to_owned());
            work.batch.put(ASKED, key, &Asked { device_id: device_id.into(), session, room_id, session_id });
            self.has_key_requests = true;
        }
        Ok(())
    }

    /// The devices that wait for keys which we have: there have to be sessions with them before they are answered.
    pub(crate) async fn asking_devices(&mut self) -> Result<Vec<Device>, Error> {
        if !self.has_key_requests {
            return Ok(Vec::new());
        }
        let asked = self.store.list::<Asked>(ASKED).await?;
        let trusted = self.trusted_devices(&Work::default()).await?;
        Ok(trusted
            .into_iter()
            .filter(|device| asked.values().any(|asked| asked.device_id == device.device_id))
            .collect())
    }

    /// Answers what our devices asked for: verified ones get the keys that we have.
    pub(crate) async fn answer_key_requests(&mut self) -> Result<(), Error> {
        if !self.has_key_requests {
            return Ok(());
        }
        let mut work = Work::default();
        let devices = self.devices(&work, &self.user_id).await?.devices;
        for (key, asked) in self.store.list::<Asked>(ASKED).await? {
            work.batch.delete(ASKED, key);
            let Some(device) = devices.get(&asked.device_id) else { continue };
            let inbound: Option<Inbound> = self.store.get(INBOUND, &asked.session).await?;
            let (code, reason) = match inbound {
                Some(inbound) if self.is_verified(device) => {
                    self.post_encrypted(&mut work, device, "m.forwarded_room_key", &inbound.forwarded()).await?;
                    continue;
                }
                None if self.is_verified(device) => {
                    ("m.unavailable", "the device that was asked has not got the key either")
                }
                _ => ("m.unverified", "the device that was asked has not verified this one"),
            };
            if let Ok(room_id) = RoomId::parse(&asked.room_id) {
                let content = self.withheld(Some((&room_id, &asked.session_id)), code, reason);
                self.post_to_devices(&mut work, "m.room_key.withheld", vec![(device.clone(), content)]);
            }
        }
        self.commit(work).await?;
        self.has_key_requests = false;
        Ok(())
    }

    /// A key that another device passes on: believed if it is a verified one of ours, which we asked.
    pub(super) async fn receive_forwarded_key(
        &mut self,
        work: &mut Work,
        device: Option<&Device>,
        content: &Object,
    ) -> Result<(), Error> {
        let is_trusted = |device: &&Device| device.user_id == self.user_id && self.is_verified(device);
        device.filter(is_trusted).ok_or(Error::Forged("a room key that a device passes on which is not ours"))?;
        let inbound = Inbound::from_forwarded(content)?;
        let key = session_key(&inbound.room_id, &inbound.session_id());
        if self.store.get_with::<Requested>(&work.batch, REQUESTED, &key).await?.is_none() {
            return Err(Error::Forged("a room key that was not asked for"));
        }
        self.import(work, inbound).await
    }
}
