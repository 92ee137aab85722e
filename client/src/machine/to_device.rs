//! What other devices send to this one.

use serde_json::Value;
use vodozemac::Curve25519PublicKey;

use ruma::{OwnedUserId, UserId};

use super::{Machine, Work, text};
use crate::{
    Error,
    devices::{DEVICES, Device},
    events::{Event, ToDeviceEvent},
    megolm::{INBOUND, Inbound, session_key},
    olm::{OLM_SESSIONS, Plaintext, Sessions, peer, read_encrypted, read_payload},
    rooms::{Membership, ROOMS, Room},
    signatures::Object,
};

/// What counts only if it was encrypted: anybody could send it in clear.
const ENCRYPTED_ONLY: &[&str] =
    &["m.room_key", "m.forwarded_room_key", "m.secret.send", "m.room_key_bundle", "m.dummy"];

impl Machine {
    /// Takes in one message. What is not as it should be is dropped: there is nobody to tell.
    pub(super) async fn receive_to_device(&mut self, work: &mut Work, message: &Object) -> Result<(), Error> {
        let sender = text(message, "sender").and_then(|sender| UserId::parse(sender).ok());
        let (Some(sender), Some(event_type), Some(Value::Object(content))) =
            (sender, text(message, "type"), message.get("content"))
        else {
            tracing::debug!("a message to this device that cannot be read");
            return Ok(());
        };
        let received = match event_type {
            "m.room.encrypted" => self.receive_encrypted(work, sender, content).await,
            "m.room_key_request" => self.receive_key_request(work, &sender, content).await,
            "m.room_key.withheld" => self.receive_withheld(work, &sender, content).await,
            event_type if ENCRYPTED_ONLY.contains(&event_type) => Err(Error::Forged("a secret that was not encrypted")),
            event_type => {
                let (event_type, content) = (event_type.to_owned(), content.clone());
                let event = ToDeviceEvent { sender, device_id: None, is_verified: false, event_type, content };
                work.events.push(Event::ToDevice(event));
                Ok(())
            }
        };
        match received {
            Err(error @ (Error::Malformed(_) | Error::Forged(_))) => {
                tracing::warn!(%error, "dropped a message to this device");
                Ok(())
            }
            other => other,
        }
    }

    async fn receive_encrypted(&mut self, work: &mut Work, sender: OwnedUserId, content: &Object) -> Result<(), Error> {
        let plaintext = self.decrypt_olm(work, &sender, content).await?;
        let device = self.sending_device(work, &plaintext).await?;
        match plaintext.event_type.as_str() {
            "m.room_key" => {
                let (curve25519, ed25519) = (plaintext.sender_key.to_base64(), plaintext.signing_key.to_base64());
                let inbound = Inbound::from_room_key(&plaintext.content, &sender, &curve25519, &ed25519)?;
                self.bound_room_keys(work, &sender, &inbound).await?;
                self.import(work, inbound).await
            }
            "m.forwarded_room_key" => self.receive_forwarded_key(work, device.as_ref(), &plaintext.content).await,
            // It told us of a session, which is there now.
            "m.dummy" => Ok(()),
            _ => {
                let is_verified = device.as_ref().is_some_and(|device| self.is_verified(device));
                let device_id = device.map(|device| device.device_id);
                let Plaintext { event_type, content, .. } = plaintext;
                work.events.push(Event::ToDevice(ToDeviceEvent {
                    sender,
                    device_id,
                    is_verified,
                    event_type,
                    content,
                }));
                Ok(())
            }
        }
    }

    async fn decrypt_olm(&mut self, work: &mut Work, sender: &UserId, content: &Object) -> Result<Plaintext, Error> {
        let (sender_key, message) = read_encrypted(work.account(&self.store).await?, content)?;
        let peer = peer(sender, &sender_key);
        let mut sessions: Sessions = self.store.get_with(&work.batch, OLM_SESSIONS, &peer).await?.unwrap_or_default();
        let is_first = sessions.is_empty();
        let account = work.account(&self.store).await?;
        let (plaintext, is_renewed) = match sessions.decrypt(account, sender_key, &message) {
            Ok((plaintext, is_renewed)) => (zeroize::Zeroizing::new(plaintext), is_renewed),
            Err(error) => {
                self.mark_broken(work, sender, &sender_key).await?;
                return Err(error);
            }
        };
        // The ratchet has moved, whatever the message turns out to be.
        work.batch.put(OLM_SESSIONS, &peer, &sessions);
        if is_renewed {
            self.mark_renewed(work, &peer).await?;
        }
        if is_first {
            self.bound_sessions(work, sender, &sender_key).await?;
        }
        let account = work.account(&self.store).await?;
        read_payload(account, &self.user_id, sender, sender_key, &plaintext)
    }

    /// The sender's device that a message came from, if it is known.
    ///
    /// # Errors
    ///
    /// [`Error::Forged`] when the message has other keys than the sender's device.
    async fn sending_device(&mut self, work: &mut Work, plaintext: &Plaintext) -> Result<Option<Device>, Error> {
        let mut list = self.devices(work, &plaintext.sender).await?;
        if let Some(device) = list.with_key(&plaintext.sender_key) {
            if device.ed25519 != plaintext.signing_key {
                return Err(Error::Forged("a message with the keys of another device"));
            }
            return Ok(Some(device.clone()));
        }
        if let Some(claimed) = &plaintext.device
            && list.devices.contains_key(&claimed.device_id)
        {
            return Err(Error::Forged("a device whose keys were replaced"));
        }
        // The device may be newer than what we know: the server is asked again.
        if list.is_tracked {
            list.mark_outdated();
            work.batch.put(DEVICES, plaintext.sender.as_str(), &list);
            self.outdated.insert(plaintext.sender.clone());
        }
        Ok(None)
    }

    /// Anybody can begin sessions, by any number of keys. Those with devices that nobody knows are bounded.
    async fn bound_sessions(&self, work: &mut Work, sender: &UserId, key: &Curve25519PublicKey) -> Result<(), Error> {
        if self.devices(work, sender).await?.with_key(key).is_some() {
            return Ok(());
        }
        for gone in self.note_stray(work, OLM_SESSIONS, sender, &peer(sender, key)).await? {
            let owner = gone.split_once(' ').and_then(|(owner, _)| UserId::parse(owner).ok());
            let is_known = match owner {
                Some(owner) => self.devices(work, &owner).await?.devices.values().any(|device| device.peer() == gone),
                None => false,
            };
            if !is_known {
                work.batch.delete(OLM_SESSIONS, gone);
            }
        }
        Ok(())
    }

    /// Anybody can send room keys, of any room. Those of rooms that we are not in are bounded: one may come before its room.
    async fn bound_room_keys(&self, work: &mut Work, sender: &UserId, inbound: &Inbound) -> Result<(), Error> {
        if self.is_in(work, inbound.room_id.as_str()).await? {
            return Ok(());
        }
        let key = session_key(&inbound.room_id, &inbound.session_id());
        if self.store.get_with::<Inbound>(&work.batch, INBOUND, &key).await?.is_some() {
            return Ok(());
        }
        for gone in self.note_stray(work, INBOUND, sender, &key).await? {
            let room_id = gone.split_once(' ').map_or("", |(room_id, _)| room_id);
            if !self.is_in(work, room_id).await? {
                self.forget_room_key(work, &gone);
            }
        }
        Ok(())
    }

    async fn is_in(&self, work: &Work, room_id: &str) -> Result<bool, Error> {
        let room: Option<Room> = self.store.get_with(&work.batch, ROOMS, room_id).await?;
        Ok(room.is_some_and(|room| matches!(room.membership, Membership::Join | Membership::Invite)))
    }

    /// Keeps the key of a room's session, if it is better than what there is.
    ///
    /// # Errors
    ///
    /// [`Error::Forged`] when it is another session under the same id.
    pub(super) async fn import(&mut self, work: &mut Work, inbound: Inbound) -> Result<(), Error> {
        let key = session_key(&inbound.room_id, &inbound.session_id());
        let known: Option<Inbound> = self.store.get_with(&work.batch, INBOUND, &key).await?;
        let better = match known {
            None => Some(inbound),
            Some(known) => known.merge(inbound)?,
        };
        if let Some(better) = better {
            work.batch.put(INBOUND, &key, &better);
            self.mark_to_back_up(work, &better);
            self.cancel_key_request(work, &key).await?;
            self.forget_withheld(work, &key);
            work.imported.insert(key);
        }
        Ok(())
    }

    /// Why a device does not give a key. Anybody could say so in clear, so it is told only where there is no key.
    async fn receive_withheld(&mut self, work: &mut Work, sender: &UserId, content: &Object) -> Result<(), Error> {
        let code = text(content, "code").ok_or(Error::Malformed("withheld room key"))?;
        if code == "m.no_olm" {
            // They reached none of our keys; we may reach theirs.
            let key = text(content, "sender_key").and_then(|key| Curve25519PublicKey::from_base64(key).ok());
            return self.mark_broken(work, sender, &key.ok_or(Error::Malformed("withheld room key"))?).await;
        }
        self.note_withheld(work, sender, content, code).await
    }
}
