//! Events of rooms, decrypted. Client-Server API, "m.megolm.v1.aes-sha2".

use std::collections::BTreeMap;

use ruma::{EventId, OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, UserId};
use serde_json::Value;
use vodozemac::Curve25519PublicKey;

use super::{Machine, Work, text};
use crate::{
    Error,
    devices::DeviceList,
    events::{Event, RoomEvent, Secrecy, Trust},
    megolm::{Decrypted, EncryptedContent, INBOUND, INDICES, Inbound, Origin, Undecryptable, index_key, session_key},
    signatures::{Object, ed25519_key},
};

/// Events that wait for one key, and keys that are waited for: the rest is found again in the room's history.
const PENDING_EVENTS_MAX: usize = 100;
const PENDING_KEYS_MAX: usize = 1_000;

/// An event whose key may come.
#[derive(Debug)]
pub(super) struct Pending {
    room_id: OwnedRoomId,
    event: Object,
}

/// What was read for several events.
#[derive(Debug, Default)]
pub(super) struct Seen {
    sessions: BTreeMap<String, Option<Inbound>>,
    devices: BTreeMap<OwnedUserId, DeviceList>,
}

impl Machine {
    /// Reads events of one room, and decrypts them if it can.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub(crate) async fn read_history(&mut self, room_id: &RoomId, events: &[Value]) -> Result<Vec<RoomEvent>, Error> {
        let mut work = Work::default();
        let mut seen = Seen::default();
        let mut read = Vec::new();
        for event in events.iter().filter_map(Value::as_object) {
            read.extend(self.read_event(&mut work, &mut seen, room_id, event).await?);
        }
        self.commit(work).await?;
        Ok(read)
    }

    /// Reads an event; nothing when it is none.
    pub(super) async fn read_event(
        &mut self,
        work: &mut Work,
        seen: &mut Seen,
        room_id: &RoomId,
        event: &Object,
    ) -> Result<Option<RoomEvent>, Error> {
        let event_id = text(event, "event_id").and_then(|id| EventId::parse(id).ok());
        let sender = text(event, "sender").and_then(|id| UserId::parse(id).ok());
        let (Some(event_id), Some(sender), Some(event_type), Some(Value::Object(content))) =
            (event_id, sender, text(event, "type"), event.get("content"))
        else {
            tracing::debug!(room.id = %room_id, "an event that cannot be read");
            return Ok(None);
        };
        let mut read = RoomEvent {
            room_id: room_id.to_owned(),
            event_id,
            sender,
            timestamp_ms: event.get("origin_server_ts").and_then(Value::as_u64).unwrap_or_default(),
            event_type: event_type.to_owned(),
            state_key: text(event, "state_key").map(str::to_owned),
            content: content.clone(),
            secrecy: Secrecy::Clear,
        };
        // State is never encrypted, and nothing is left of what was redacted.
        let is_redacted = event.get("unsigned").is_some_and(|unsigned| unsigned.get("redacted_because").is_some());
        if event_type != "m.room.encrypted" || read.state_key.is_some() || is_redacted {
            return Ok(Some(read));
        }
        read.secrecy = match EncryptedContent::read(content) {
            Err(reason) => Secrecy::Undecryptable(reason),
            Ok(encrypted) => match self.decrypt(work, seen, &read, &encrypted).await? {
                Ok((decrypted, trust)) => {
                    (read.event_type, read.content) = (decrypted.event_type, decrypted.content);
                    Secrecy::Encrypted(trust)
                }
                Err(reason) => {
                    self.wait_for_key(work, room_id, &encrypted.session_id, event, &reason).await?;
                    Secrecy::Undecryptable(reason)
                }
            },
        };
        Ok(Some(read))
    }

    async fn decrypt(
        &self,
        work: &mut Work,
        seen: &mut Seen,
        event: &RoomEvent,
        encrypted: &EncryptedContent,
    ) -> Result<Result<(Decrypted, Trust), Undecryptable>, Error> {
        let (room_id, sender) = (&event.room_id, &event.sender);
        let key = session_key(room_id, &encrypted.session_id);
        if !seen.sessions.contains_key(&key) {
            let inbound = self.store.get_with(&work.batch, INBOUND, &key).await?;
            seen.sessions.insert(key.clone(), inbound);
        }
        let Some(inbound) = seen.sessions.get_mut(&key).and_then(Option::as_mut) else {
            return Ok(Err(self.why_no_key(work, room_id, sender, &encrypted.session_id).await?));
        };
        let decrypted = match inbound.decrypt(room_id, sender, encrypted) {
            Ok(decrypted) => decrypted,
            Err(reason) => return Ok(Err(reason)),
        };
        // A server may show one encrypted text as several events. The same event may well be seen again.
        let index = index_key(room_id, &encrypted.session_id, decrypted.index);
        match self.store.get_with::<OwnedEventId>(&work.batch, INDICES, &index).await? {
            Some(first) if first != event.event_id => return Ok(Err(Undecryptable::Replayed)),
            Some(_) => {}
            None => work.batch.put(INDICES, index, &event.event_id),
        }
        if !seen.devices.contains_key(sender) {
            seen.devices.insert(sender.clone(), self.devices(work, sender).await?);
        }
        let trust = self.trust(inbound, sender, &seen.devices[sender]);
        Ok(Ok((decrypted, trust)))
    }

    /// What is known of the device that made a session.
    pub(super) fn trust(&self, inbound: &Inbound, sender: &UserId, devices: &DeviceList) -> Trust {
        if inbound.origin != Origin::Direct {
            return Trust::Imported;
        }
        let keys =
            (Curve25519PublicKey::from_base64(&inbound.sender_key), inbound.signing_key.as_deref().map(ed25519_key));
        let (Ok(curve25519), Some(Ok(ed25519))) = keys else { return Trust::UnknownDevice };
        if *sender == self.user_id && (curve25519, ed25519) == (self.curve25519, self.ed25519) {
            return Trust::Verified { device_id: self.device_id.clone() };
        }
        match devices.with_key(&curve25519).filter(|device| device.ed25519 == ed25519) {
            Some(device) if self.is_verified(device) => Trust::Verified { device_id: device.device_id.clone() },
            Some(device) => Trust::Unverified { device_id: device.device_id.clone() },
            None => Trust::UnknownDevice,
        }
    }

    /// Keeps an event until its key comes, and asks our other devices for that key.
    async fn wait_for_key(
        &mut self,
        work: &mut Work,
        room_id: &RoomId,
        session_id: &str,
        event: &Object,
        reason: &Undecryptable,
    ) -> Result<(), Error> {
        if !matches!(reason, Undecryptable::NoKey | Undecryptable::Withheld { .. } | Undecryptable::BeforeTheKey) {
            return Ok(());
        }
        let key = session_key(room_id, session_id);
        if self.pending.len() < PENDING_KEYS_MAX || self.pending.contains_key(&key) {
            let events = self.pending.entry(key).or_default();
            let is_known = events.iter().any(|known| known.event.get("event_id") == event.get("event_id"));
            if events.len() < PENDING_EVENTS_MAX && !is_known {
                events.push(Pending { room_id: room_id.to_owned(), event: event.clone() });
            }
        }
        self.request_key(work, room_id, session_id).await
    }

    /// Decrypts the events whose key has come.
    pub(super) async fn read_late_events(&mut self, work: &mut Work) -> Result<(), Error> {
        for key in std::mem::take(&mut work.imported) {
            let mut seen = Seen::default();
            for Pending { room_id, event } in self.pending.remove(&key).unwrap_or_default() {
                let read = self.read_event(work, &mut seen, &room_id, &event).await?;
                if let Some(read) = read.filter(|read| matches!(read.secrecy, Secrecy::Encrypted(_))) {
                    work.events.push(Event::Late(read));
                }
            }
        }
        Ok(())
    }
}
