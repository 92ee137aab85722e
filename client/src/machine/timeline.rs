//! Events of rooms, decrypted. Client-Server API, "m.megolm.v1.aes-sha2".

use std::collections::{BTreeMap, BTreeSet};

use ruma::{EventId, OwnedEventId, OwnedUserId, RoomId, UserId};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use vodozemac::Curve25519PublicKey;

use super::{Machine, Work, pending::Pending, text};
use crate::{
    Error,
    devices::{DEVICES, DeviceList},
    events::{Event, RoomEvent, Secrecy, Trust},
    megolm::{
        Claim, Decrypted, EncryptedContent, INBOUND, INDICES, Inbound, Origin, Undecryptable, index_key, session_key,
    },
    rooms::{ROOMS, Room},
    signatures::{Object, ed25519_key},
};

/// What was read for several events of one room.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Whether the events are told as news: each once, whatever a server repeats.
    are_news: bool,
    sessions: BTreeMap<String, Option<Inbound>>,
    devices: BTreeMap<OwnedUserId, DeviceList>,
    /// Whose devices have an Olm key, among the room's members.
    owners: Option<BTreeMap<String, BTreeSet<OwnedUserId>>>,
}

impl Seen {
    /// For events that are told as news.
    pub(super) fn news() -> Self {
        Self { are_news: true, ..Self::default() }
    }
}

/// What a message index of a session decrypted to.
#[derive(Deserialize, Serialize)]
struct Read {
    event_id: OwnedEventId,
    /// Whether it was told as news.
    is_told: bool,
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
                Ok((_, None)) => return Ok(None),
                Ok((decrypted, Some(trust))) => {
                    (read.event_type, read.content) = (decrypted.event_type, decrypted.content);
                    Secrecy::Encrypted(trust)
                }
                Err(reason) => {
                    self.wait_for_key(work, &read, encrypted, event, &reason).await?;
                    Secrecy::Undecryptable(reason)
                }
            },
        };
        Ok(Some(read))
    }

    /// Decrypts an event. There is no trust in one that was told as news and is told again.
    async fn decrypt(
        &self,
        work: &mut Work,
        seen: &mut Seen,
        event: &RoomEvent,
        encrypted: &EncryptedContent,
    ) -> Result<Result<(Decrypted, Option<Trust>), Undecryptable>, Error> {
        let (room_id, sender) = (&event.room_id, &event.sender);
        let key = session_key(room_id, &encrypted.session_id);
        if !seen.sessions.contains_key(&key) {
            let inbound = self.store.get_with(&work.batch, INBOUND, &key).await?;
            seen.sessions.insert(key.clone(), inbound);
        }
        if self.is_others(work, seen, &key, event).await? {
            return Ok(Err(Undecryptable::Forged("its key is another user's")));
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
        let first: Option<Read> = self.store.get_with(&work.batch, INDICES, &index).await?;
        if first.as_ref().is_some_and(|first| first.event_id != event.event_id) {
            return Ok(Err(Undecryptable::Replayed));
        }
        let is_told = first.as_ref().is_some_and(|first| first.is_told);
        if is_told && seen.are_news {
            return Ok(Ok((decrypted, None)));
        }
        if first.is_none() || seen.are_news {
            work.batch.put(INDICES, index, &Read { event_id: event.event_id.clone(), is_told: seen.are_news });
        }
        if !seen.devices.contains_key(sender) {
            seen.devices.insert(sender.clone(), self.devices(work, sender).await?);
        }
        let trust = self.trust(inbound, sender, &seen.devices[sender]);
        Ok(Ok((decrypted, Some(trust))))
    }

    /// Whether all that is known of a session's maker is an Olm key, and that is another member's: a backup names no users.
    async fn is_others(&self, work: &Work, seen: &mut Seen, key: &str, event: &RoomEvent) -> Result<bool, Error> {
        let Some(inbound) = seen.sessions.get(key).and_then(Option::as_ref) else { return Ok(false) };
        let mut claims = inbound.claims_of(&event.sender).peekable();
        if claims.peek().is_none() || claims.any(|claim| claim.sender.is_some()) {
            return Ok(false);
        }
        if seen.owners.is_none() {
            let room: Option<Room> = self.store.get_with(&work.batch, ROOMS, event.room_id.as_str()).await?;
            let members = room.map(|room| room.members).unwrap_or_default();
            let members: Vec<&str> = members.keys().map(|user_id| user_id.as_str()).collect();
            let mut owners: BTreeMap<String, BTreeSet<OwnedUserId>> = BTreeMap::new();
            for list in self.store.get_many::<DeviceList>(DEVICES, &members).await?.into_values() {
                for device in list.devices.into_values() {
                    owners.entry(device.curve25519.to_base64()).or_default().insert(device.user_id);
                }
            }
            seen.owners = Some(owners);
        }
        let owners = seen.owners.as_ref().expect("they were just read");
        let is_others = |claim: &Claim| owners.get(&claim.sender_key).is_some_and(|of| !of.contains(&event.sender));
        Ok(inbound.claims_of(&event.sender).all(is_others))
    }

    /// What is known of the device that made a session: the best that anybody's word is good for, since a device that is verified claims only
    /// what it made.
    pub(super) fn trust(&self, inbound: &Inbound, sender: &UserId, devices: &DeviceList) -> Trust {
        let trusts = inbound.claims_of(sender).map(|claim| self.trust_in(claim, sender, devices));
        let rank = |trust: &Trust| match trust {
            Trust::Verified { .. } => 3,
            Trust::Unverified { .. } => 2,
            Trust::UnknownDevice => 1,
            Trust::Imported => 0,
        };
        trusts.max_by_key(rank).unwrap_or(Trust::UnknownDevice)
    }

    fn trust_in(&self, claim: &Claim, sender: &UserId, devices: &DeviceList) -> Trust {
        if claim.origin != Origin::Direct {
            return Trust::Imported;
        }
        let keys = (Curve25519PublicKey::from_base64(&claim.sender_key), claim.signing_key.as_deref().map(ed25519_key));
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
        read: &RoomEvent,
        encrypted: EncryptedContent,
        event: &Object,
        reason: &Undecryptable,
    ) -> Result<(), Error> {
        if !matches!(reason, Undecryptable::NoKey | Undecryptable::Withheld { .. } | Undecryptable::BeforeTheKey) {
            return Ok(());
        }
        let EncryptedContent { session_id, sender_key, .. } = encrypted;
        self.request_key(work, &read.room_id, &session_id, sender_key.as_deref()).await?;
        self.pending.add(Pending {
            key: session_key(&read.room_id, &session_id),
            room_id: read.room_id.clone(),
            sender: read.sender.clone(),
            session_id,
            sender_key,
            event: event.clone(),
        });
        Ok(())
    }

    /// Decrypts the events whose key has come.
    pub(super) async fn read_late_events(&mut self, work: &mut Work) -> Result<(), Error> {
        for key in std::mem::take(&mut work.imported) {
            let mut seen = Seen::news();
            for Pending { room_id, event, .. } in self.pending.take(&key) {
                let read = self.read_event(work, &mut seen, &room_id, &event).await?;
                if let Some(read) = read.filter(|read| matches!(read.secrecy, Secrecy::Encrypted(_))) {
                    work.events.push(Event::Late(read));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ruma::{RoomId, room_id, user_id};
    use serde_json::json;

    use super::*;
    use crate::{
        Batch, Store, StoreKey,
        account::Account,
        megolm::Outbound,
        outbox::Outbox,
        rooms::Room,
    };

    fn room_id() -> &'static RoomId {
        room_id!("!room:example.org")
    }

    fn alice() -> &'static UserId {
        user_id!("@alice:example.org")
    }

    fn mallory() -> &'static UserId {
        user_id!("@mallory:example.org")
    }

    /// Bob's machine, in a room with Alice and Mallory, and Alice's device.
    async fn machine(folder: &tempfile::TempDir) -> (Machine, Account) {
        let store = Store::open(&folder.path().join("store"), &StoreKey::raw([1; 32])).await.unwrap();
        let mut batch = Batch::new();
        Account::new(user_id!("@bob:example.org").to_owned(), "PHONE".into()).save(&mut batch);
        let alices = Account::new(alice().to_owned(), "PHONE".into());
        let mut list = DeviceList::default();
        list.update(alice(), BTreeMap::from([("PHONE".into(), Value::Object(alices.device_keys()))]), 0);
        batch.put(DEVICES, alice().as_str(), &list);
        let mut room = Room::new(room_id().to_owned());
        for user in [alice(), mallory()] {
            room.apply("m.room.member", user.as_str(), json!({ "membership": "join" }).as_object().unwrap());
        }
        batch.put(ROOMS, room_id().as_str(), &room);
        store.commit(batch).await.unwrap();
        let outbox = Arc::new(Outbox::load(&store).await.unwrap());
        (Machine::load(store, outbox).await.unwrap(), alices)
    }

    /// A session of Alice's device, and what she says by it.
    fn said(alices: &Account) -> (Inbound, Value) {
        let mut outbound = Outbound::new(&Room::new(room_id().to_owned()), 0);
        let (curve25519, ed25519) = (alices.curve25519().to_base64(), alices.ed25519().to_base64());
        let key = outbound.room_key(room_id());
        let inbound = Inbound::from_room_key(key.as_object().unwrap(), alice(), &curve25519, &ed25519).unwrap();
        let device = (curve25519.as_str(), alices.device_id());
        let content = outbound.encrypt(room_id(), "m.room.message", &json!({ "body": "deploy now" }), device);
        let event = json!({ "type": "m.room.encrypted", "event_id": "$1", "sender": alice(), "content": content });
        (inbound, event)
    }

    async fn read(machine: &mut Machine, mut seen: Seen, event: &Value) -> Option<Secrecy> {
        let mut work = Work::default();
        let event = event.as_object().unwrap();
        let read = machine.read_event(&mut work, &mut seen, room_id(), event).await.unwrap();
        machine.commit(work).await.unwrap();
        read.map(|read| read.secrecy)
    }

    /// Client-Server API, "m.megolm.v1.aes-sha2", on replay attacks: a bot must not do the same twice because a server says it twice.
    #[tokio::test]
    async fn an_event_is_told_as_news_once_and_read_in_the_history_however_often() {
        let folder = tempfile::tempdir().unwrap();
        let (mut machine, alices) = machine(&folder).await;
        let (inbound, event) = said(&alices);
        let mut work = Work::default();
        machine.import(&mut work, inbound).await.unwrap();
        machine.commit(work).await.unwrap();
        let known = Some(Secrecy::Encrypted(Trust::Unverified { device_id: "PHONE".into() }));
        assert_eq!(read(&mut machine, Seen::default(), &event).await, known);
        assert_eq!(read(&mut machine, Seen::news(), &event).await, known, "it was only looked at before");
        assert_eq!(read(&mut machine, Seen::news(), &event).await, None);
        assert_eq!(read(&mut machine, Seen::default(), &event).await, known);
    }

    /// A backup does not say whose a session is, but by which device it was made.
    #[tokio::test]
    async fn with_a_restored_key_nobody_passes_anothers_message_off_as_theirs() {
        let folder = tempfile::tempdir().unwrap();
        let (mut machine, alices) = machine(&folder).await;
        let (inbound, event) = said(&alices);
        machine.import_backed_up(vec![inbound.export()]).await.unwrap();
        let mut copy = event.clone();
        (copy["sender"], copy["event_id"]) = (json!(mallory()), json!("$2"));
        let forged = Some(Secrecy::Undecryptable(Undecryptable::Forged("its key is another user's")));
        assert_eq!(read(&mut machine, Seen::default(), &copy).await, forged);
        let imported = Some(Secrecy::Encrypted(Trust::Imported));
        assert_eq!(read(&mut machine, Seen::default(), &event).await, imported, "the copy did not take its place");
    }

    /// Anybody can say that there are sessions: they must not fill the outbox in front of the user's next message.
    #[tokio::test]
    async fn made_up_sessions_are_asked_for_a_few_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let (mut machine, alices) = machine(&folder).await;
        let own = user_id!("@bob:example.org");
        let laptop = Account::new(own.to_owned(), "LAPTOP".into());
        let mut list = DeviceList::default();
        list.update(own, BTreeMap::from([("LAPTOP".into(), Value::Object(laptop.device_keys()))]), 0);
        let mut batch = Batch::new();
        batch.put(DEVICES, own.as_str(), &list);
        machine.store.commit(batch).await.unwrap();
        let events: Vec<Value> = (0..100).map(|_| said(&alices).1).collect();
        machine.read_history(room_id(), &events).await.unwrap();
        let requests = async |machine: &Machine| machine.store.count(crate::Kind("outbox")).await.unwrap();
        assert_eq!(requests(&machine).await, 0, "there is nobody to ask");
        // Now there is: what was shown as undecryptable before is asked for.
        let keys = BTreeMap::from([("ed25519:LAPTOP".to_owned(), laptop.ed25519().to_base64())]);
        machine.verified(own, "LAPTOP".into(), &keys).await.unwrap();
        assert_eq!(requests(&machine).await, 20);
    }
}
