//! Megolm: what is said in a room. Client-Server API, "m.megolm.v1.aes-sha2".
//!
//! [`Outbound`] is the session by which this device encrypts in a room, [`Inbound`] one by which messages of a device are decrypted.

use std::collections::BTreeMap;

use ruma::{OwnedDeviceId, OwnedRoomId, OwnedUserId, RoomId, UserId};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use vodozemac::megolm::{
    DecryptionError, ExportedSessionKey, GroupSession, InboundGroupSession, MegolmMessage, SessionConfig, SessionKey,
    SessionOrdering,
};
use zeroize::{Zeroize as _, Zeroizing};

use crate::{
    Error, Kind,
    account::MEGOLM,
    rooms::{Encryption, Room},
    signatures::Object,
};

/// [`Outbound`] by room.
pub(crate) const OUTBOUND: Kind = Kind("outbound room sessions");
/// [`Inbound`] by [`session_key`].
pub(crate) const INBOUND: Kind = Kind("inbound room sessions");
/// The event that a message index of a session decrypted to, by [`index_key`].
pub(crate) const INDICES: Kind = Kind("message indices");

/// The key of a room's session.
pub(crate) fn session_key(room_id: &RoomId, session_id: &str) -> String {
    format!("{room_id} {session_id}")
}

/// The key of a message index.
pub(crate) fn index_key(room_id: &RoomId, session_id: &str, index: u32) -> String {
    format!("{room_id} {session_id} {index}")
}

/// The session by which this device encrypts in a room, and who has its key.
#[derive(Deserialize, Serialize)]
pub(crate) struct Outbound {
    #[serde(with = "group_session")]
    session: GroupSession,
    created_at_ms: u64,
    /// Whether those who come later may be given the key, as the history visibility was when it was made.
    is_history_shared: bool,
    /// The Olm keys of the devices that have it.
    pub shared_with: BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, String>>,
    /// The devices that were told that they do not get it.
    pub withheld_from: BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, String>>,
}

impl Outbound {
    pub(crate) fn new(room: &Room, now_ms: u64) -> Self {
        Self {
            session: GroupSession::new(SessionConfig::version_1()),
            created_at_ms: now_ms,
            is_history_shared: room.is_history_shared(),
            shared_with: BTreeMap::new(),
            withheld_from: BTreeMap::new(),
        }
    }

    /// Whether it has served long enough, or `readers` lack somebody who has its key.
    ///
    /// That a member left deletes the session at once; this finds devices that are gone or blocked.
    pub(crate) fn must_rotate(
        &self,
        encryption: &Encryption,
        room: &Room,
        readers: &BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, String>>,
        now_ms: u64,
    ) -> bool {
        let is_reader = |user: &OwnedUserId, device: &OwnedDeviceId, key: &String| {
            readers.get(user).and_then(|devices| devices.get(device)) == Some(key)
        };
        let mut holders = self
            .shared_with
            .iter()
            .flat_map(|(user, devices)| devices.iter().map(move |(device, key)| (user, device, key)));
        now_ms.saturating_sub(self.created_at_ms) >= encryption.rotation_period_ms
            || u64::from(self.session.message_index()) >= encryption.rotation_period_msgs
            || self.is_history_shared != room.is_history_shared()
            || !holders.all(|(user, device, key)| is_reader(user, device, key))
    }

    pub(crate) fn session_id(&self) -> String {
        self.session.session_id()
    }

    /// The content of `m.room_key`: who has it reads what is encrypted from now on.
    pub(crate) fn room_key(&self, room_id: &RoomId) -> Value {
        json!({
            "algorithm": MEGOLM,
            "room_id": room_id,
            "session_id": self.session_id(),
            "session_key": self.session.session_key().to_base64(),
            "shared_history": self.is_history_shared,
        })
    }

    /// Encrypts an event: the content of `m.room.encrypted`. What relates events stays outside, since servers aggregate by it.
    pub(crate) fn encrypt(
        &mut self,
        room_id: &RoomId,
        event_type: &str,
        content: &Value,
        sender: (&str, &ruma::DeviceId),
    ) -> Value {
        let plaintext =
            Zeroizing::new(json!({ "type": event_type, "content": content, "room_id": room_id }).to_string());
        let (sender_key, device_id) = sender;
        let mut encrypted = json!({
            "algorithm": MEGOLM,
            "sender_key": sender_key,
            "device_id": device_id,
            "session_id": self.session_id(),
            "ciphertext": self.session.encrypt(plaintext.as_bytes()).to_base64(),
        });
        if let Some(relation) = content.get("m.relates_to") {
            encrypted["m.relates_to"] = relation.clone();
        }
        encrypted
    }
}

/// A session by which messages of one device in one room are decrypted.
#[derive(Deserialize, Serialize)]
pub struct Inbound {
    #[serde(with = "inbound_group_session")]
    session: InboundGroupSession,
    /// Where it decrypts.
    pub room_id: OwnedRoomId,
    /// Whose messages it decrypts; not known of a session that came from a backup.
    pub sender: Option<OwnedUserId>,
    /// The Olm key of the device that made it.
    pub sender_key: String,
    /// The key by which that device signs, as far as it said so.
    pub signing_key: Option<String>,
    /// How it came here.
    pub origin: Origin,
    /// Whether those who come later may be given it. Client-Server API, "Shareable encryption sessions".
    pub is_history_shared: bool,
}

/// How a room key came here: how much it proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum Origin {
    /// From the device that made it, over Olm. That device wrote what it decrypts.
    Direct,
    /// From another device of ours.
    Forwarded,
    /// From a backup or an export: whoever has the backup's public key may have made it.
    Imported,
}

/// A room key as backups and exports hold it. Client-Server API, "Key export format".
#[derive(Clone, Deserialize, Serialize)]
pub struct ExportedRoomKey {
    /// `m.megolm.v1.aes-sha2`.
    pub algorithm: String,
    /// Where it decrypts.
    pub room_id: OwnedRoomId,
    /// Its id.
    pub session_id: String,
    /// The key, a secret.
    pub session_key: String,
    /// The Olm key of the device that made it.
    pub sender_key: String,
    /// The keys by which that device signs.
    #[serde(default)]
    pub sender_claimed_keys: BTreeMap<String, String>,
    /// The devices that passed it on.
    #[serde(default)]
    pub forwarding_curve25519_key_chain: Vec<String>,
    /// Whether those who come later may be given it.
    #[serde(default)]
    pub shared_history: bool,
}

impl std::fmt::Debug for ExportedRoomKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExportedRoomKey").field("session_id", &self.session_id).finish_non_exhaustive()
    }
}

impl Drop for ExportedRoomKey {
    fn drop(&mut self) {
        self.session_key.zeroize();
    }
}

/// `m.room_key`, and what `m.forwarded_room_key` has in common with it.
#[derive(Deserialize)]
struct RoomKey {
    algorithm: String,
    room_id: OwnedRoomId,
    session_id: String,
    session_key: String,
    #[serde(default)]
    shared_history: bool,
    #[serde(default)]
    sender_key: Option<String>,
    #[serde(default)]
    sender_claimed_ed25519_key: Option<String>,
}

/// Why a message of a room cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Undecryptable {
    /// The key has not come, or not yet.
    #[error("this device has not got the key")]
    NoKey,
    /// The sender said why it does not give the key.
    #[error("the sender gives this device no key: {reason} ({code})")]
    Withheld {
        /// Such as `m.unverified`.
        code: String,
        /// What the sender says to people.
        reason: String,
    },
    /// The key decrypts later messages only.
    #[error("this device got the key for later messages only")]
    BeforeTheKey,
    /// The same encrypted text was seen as another event: somebody repeats it.
    #[error("it repeats an earlier message")]
    Replayed,
    /// It is not what it claims to be; says in what.
    #[error("it is not to be believed: {0}")]
    Forged(&'static str),
    /// It is not as the specification says.
    #[error("it cannot be read")]
    Malformed,
    /// This client does not know the encryption.
    #[error("it is encrypted by `{0}`, which this client does not know")]
    UnknownAlgorithm(String),
}

/// The content of an event that was encrypted.
#[derive(Debug)]
pub(crate) struct Decrypted {
    pub event_type: String,
    pub content: Object,
    pub index: u32,
}

/// `m.room.encrypted` of Megolm.
pub(crate) struct EncryptedContent {
    pub session_id: String,
    message: MegolmMessage,
    relation: Option<Value>,
}

impl EncryptedContent {
    pub(crate) fn read(content: &Object) -> Result<Self, Undecryptable> {
        let text = |key: &str| content.get(key).and_then(Value::as_str);
        match text("algorithm") {
            Some(MEGOLM) => {}
            Some(other) => return Err(Undecryptable::UnknownAlgorithm(other.chars().take(100).collect())),
            None => return Err(Undecryptable::Malformed),
        }
        let (Some(session_id), Some(ciphertext)) = (text("session_id"), text("ciphertext")) else {
            return Err(Undecryptable::Malformed);
        };
        let message = MegolmMessage::from_base64(ciphertext).map_err(|_| Undecryptable::Malformed)?;
        Ok(Self { session_id: session_id.to_owned(), message, relation: content.get("m.relates_to").cloned() })
    }
}

impl Inbound {
    /// The session of an `m.room_key` that came over Olm from the device with these keys.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] and [`Error::Forged`].
    pub(crate) fn from_room_key(
        content: &Object,
        sender: &UserId,
        sender_key: &str,
        signing_key: &str,
    ) -> Result<Self, Error> {
        let key = RoomKey::read(content)?;
        let session = SessionKey::from_base64(&key.session_key).map_err(|_| Error::Malformed("room key"))?;
        let session = InboundGroupSession::new(&session, SessionConfig::version_1());
        let (sender_key, signing_key) = (sender_key.to_owned(), Some(signing_key.to_owned()));
        let (room_id, is_history_shared) = (key.room_id.clone(), key.shared_history);
        Self {
            session,
            room_id,
            sender: Some(sender.to_owned()),
            sender_key,
            signing_key,
            origin: Origin::Direct,
            is_history_shared,
        }
        .named(&key.session_id)
    }

    /// The session of an `m.forwarded_room_key`, which came over Olm from a device of ours that is trusted.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] and [`Error::Forged`].
    pub(crate) fn from_forwarded(content: &Object) -> Result<Self, Error> {
        let key = RoomKey::read(content)?;
        let sender_key = key.sender_key.clone().ok_or(Error::Malformed("forwarded room key"))?;
        let session = import(&key.session_key)?;
        let (room_id, signing_key) = (key.room_id.clone(), key.sender_claimed_ed25519_key.clone());
        // Whether the key may be given to others cannot be known of one that was passed on.
        Self {
            session,
            room_id,
            sender: None,
            sender_key,
            signing_key,
            origin: Origin::Forwarded,
            is_history_shared: false,
        }
        .named(&key.session_id)
    }

    /// The session of a backup or an export.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] and [`Error::Forged`].
    pub fn import(key: &ExportedRoomKey) -> Result<Self, Error> {
        if key.algorithm != MEGOLM {
            return Err(Error::Malformed("room key: it is of an unknown algorithm"));
        }
        Self {
            session: import(&key.session_key)?,
            room_id: key.room_id.clone(),
            sender: None,
            sender_key: key.sender_key.clone(),
            signing_key: key.sender_claimed_keys.get("ed25519").cloned(),
            origin: Origin::Imported,
            is_history_shared: key.shared_history,
        }
        .named(&key.session_id)
    }

    /// The session as backups and exports hold it, from the first message that it decrypts.
    #[must_use]
    pub fn export(&self) -> ExportedRoomKey {
        let claimed = self.signing_key.iter().map(|key| ("ed25519".to_owned(), key.clone()));
        ExportedRoomKey {
            algorithm: MEGOLM.to_owned(),
            room_id: self.room_id.clone(),
            session_id: self.session_id(),
            session_key: self.session.export_at_first_known_index().to_base64(),
            sender_key: self.sender_key.clone(),
            sender_claimed_keys: claimed.collect(),
            forwarding_curve25519_key_chain: Vec::new(),
            shared_history: self.is_history_shared,
        }
    }

    /// The content of `m.forwarded_room_key`.
    pub(crate) fn forwarded(&self) -> Value {
        json!({
            "algorithm": MEGOLM,
            "room_id": self.room_id,
            "session_id": self.session_id(),
            "session_key": self.session.export_at_first_known_index().to_base64(),
            "sender_key": self.sender_key,
            "sender_claimed_ed25519_key": self.signing_key.clone().unwrap_or_default(),
            "forwarding_curve25519_key_chain": [],
        })
    }

    /// Its id.
    #[must_use]
    pub fn session_id(&self) -> String {
        self.session.session_id()
    }

    /// The first message that it decrypts.
    #[must_use]
    pub fn first_known_index(&self) -> u32 {
        self.session.first_known_index()
    }

    /// Joins what came later to what is known: the earliest message that can be decrypted, and the best proof of who wrote them.
    /// Nothing when `later` adds nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Forged`] when they are different sessions under one id.
    pub(crate) fn merge(mut self, mut later: Self) -> Result<Option<Self>, Error> {
        let order = self.session.compare(&mut later.session);
        if order == SessionOrdering::Unconnected {
            return Err(Error::Forged("a room key under the id of another"));
        }
        let is_proof = later.origin == Origin::Direct && self.origin != Origin::Direct;
        if order != SessionOrdering::Worse && !is_proof {
            return Ok(None);
        }
        // Whoever was given a key can pass it on as if it were their own: that takes nobody's messages from them.
        if later.origin == Origin::Direct
            && (self.sender_key != later.sender_key || (!is_proof && self.sender != later.sender))
        {
            return Err(Error::Forged("a room key of another device"));
        }
        let session = self.session.merge(&mut later.session).expect("what was compared can be merged");
        let better = if is_proof { later } else { self };
        Ok(Some(Self { session, ..better }))
    }

    /// Decrypts a message of the room.
    pub(crate) fn decrypt(
        &mut self,
        room_id: &RoomId,
        sender: &UserId,
        encrypted: &EncryptedContent,
    ) -> Result<Decrypted, Undecryptable> {
        if self.room_id != room_id {
            return Err(Undecryptable::Forged("its key is another room's"));
        }
        if self.sender.as_ref().is_some_and(|owner| owner != sender) {
            return Err(Undecryptable::Forged("its key is another user's"));
        }
        let decrypted = self.session.decrypt(&encrypted.message).map_err(|error| match error {
            DecryptionError::UnknownMessageIndex(..) => Undecryptable::BeforeTheKey,
            _ => Undecryptable::Forged("its key does not decrypt it"),
        })?;
        let plaintext = Zeroizing::new(decrypted.plaintext);
        #[derive(Deserialize)]
        struct Payload {
            #[serde(rename = "type")]
            event_type: String,
            content: Object,
            room_id: OwnedRoomId,
        }
        let payload: Payload = serde_json::from_slice(&plaintext).map_err(|_| Undecryptable::Malformed)?;
        if payload.room_id != room_id {
            return Err(Undecryptable::Forged("it was said in another room"));
        }
        let mut content = payload.content;
        // Servers aggregate by the relation outside, so that is where senders put it.
        if let Some(relation) = &encrypted.relation {
            content.entry("m.relates_to").or_insert_with(|| relation.clone());
        }
        Ok(Decrypted { event_type: payload.event_type, content, index: decrypted.message_index })
    }

    fn named(self, session_id: &str) -> Result<Self, Error> {
        if self.session_id() == session_id { Ok(self) } else { Err(Error::Forged("a room key under another id")) }
    }
}

impl std::fmt::Debug for Inbound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inbound")
            .field("session_id", &self.session_id())
            .field("origin", &self.origin)
            .finish_non_exhaustive()
    }
}

impl Drop for RoomKey {
    fn drop(&mut self) {
        self.session_key.zeroize();
    }
}

impl RoomKey {
    fn read(content: &Object) -> Result<Self, Error> {
        let key = Self::deserialize(content).map_err(|_| Error::Malformed("room key"))?;
        if key.algorithm == MEGOLM { Ok(key) } else { Err(Error::Malformed("room key: it is of an unknown algorithm")) }
    }
}

fn import(session_key: &str) -> Result<InboundGroupSession, Error> {
    let key = ExportedSessionKey::from_base64(session_key).map_err(|_| Error::Malformed("room key"))?;
    Ok(InboundGroupSession::import(&key, SessionConfig::version_1()))
}

/// A session as it is stored.
macro_rules! pickled {
    ($name:ident, $session:ident, $pickle:ident) => {
        mod $name {
            use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};
            use vodozemac::megolm::{$pickle, $session};

            pub(super) fn serialize<S: Serializer>(session: &$session, serializer: S) -> Result<S::Ok, S::Error> {
                session.pickle().serialize(serializer)
            }

            pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<$session, D::Error> {
                $pickle::deserialize(deserializer).map($session::from_pickle)
            }
        }
    };
}

pickled!(group_session, GroupSession, GroupSessionPickle);
pickled!(inbound_group_session, InboundGroupSession, InboundGroupSessionPickle);

#[cfg(test)]
mod tests {
    use ruma::{device_id, room_id, user_id};

    use super::*;

    fn room() -> Room {
        Room::new(room_id!("!room:example.org").to_owned())
    }

    fn alice() -> &'static UserId {
        user_id!("@alice:example.org")
    }

    fn encryption() -> Encryption {
        Encryption { algorithm: MEGOLM.to_owned(), rotation_period_ms: 1_000, rotation_period_msgs: 3 }
    }

    fn inbound(outbound: &Outbound, sender: &UserId) -> Inbound {
        let key = outbound.room_key(&room().room_id);
        Inbound::from_room_key(key.as_object().unwrap(), sender, "curve", "ed").unwrap()
    }

    fn say(outbound: &mut Outbound, body: &str) -> EncryptedContent {
        let device = ("curve", device_id!("PHONE"));
        let content = outbound.encrypt(&room().room_id, "m.room.message", &json!({ "body": body }), device);
        EncryptedContent::read(content.as_object().unwrap()).unwrap()
    }

    #[test]
    fn what_one_encrypts_the_others_decrypt_from_when_they_got_the_key() {
        let mut outbound = Outbound::new(&room(), 0);
        let first = say(&mut outbound, "one");
        let mut inbound = inbound(&outbound, alice());
        let second = say(&mut outbound, "two");
        assert_eq!(inbound.decrypt(&room().room_id, alice(), &first).unwrap_err(), Undecryptable::BeforeTheKey);
        let decrypted = inbound.decrypt(&room().room_id, alice(), &second).unwrap();
        assert_eq!((decrypted.content["body"].as_str(), decrypted.index), (Some("two"), 1));
    }

    /// What a server could relabel: the room, the sender, the text.
    #[test]
    fn a_message_counts_only_in_its_room_and_from_its_sender() {
        let mut outbound = Outbound::new(&room(), 0);
        let mut inbound = inbound(&outbound, alice());
        let message = say(&mut outbound, "one");
        let other_room = room_id!("!other:example.org");
        assert!(matches!(inbound.decrypt(other_room, alice(), &message), Err(Undecryptable::Forged(_))));
        let mallory = user_id!("@mallory:example.org");
        assert!(matches!(inbound.decrypt(&room().room_id, mallory, &message), Err(Undecryptable::Forged(_))));
        inbound.room_id = other_room.to_owned();
        assert_eq!(
            inbound.decrypt(other_room, alice(), &message).unwrap_err(),
            Undecryptable::Forged("it was said in another room")
        );
        let foreign = say(&mut Outbound::new(&room(), 0), "one");
        inbound.room_id = room().room_id;
        assert!(matches!(inbound.decrypt(&room().room_id, alice(), &foreign), Err(Undecryptable::Forged(_))));
    }

    #[test]
    fn a_session_is_replaced_by_age_by_count_and_when_somebody_may_not_read_on() {
        let device = |key: &str| BTreeMap::from([(OwnedDeviceId::from("PHONE"), key.to_owned())]);
        let readers = BTreeMap::from([(alice().to_owned(), device("key"))]);
        let mut outbound = Outbound::new(&room(), 5_000);
        outbound.shared_with = readers.clone();
        let rotates =
            |outbound: &Outbound, readers: &_, now_ms| outbound.must_rotate(&encryption(), &room(), readers, now_ms);
        assert!(!rotates(&outbound, &readers, 5_999));
        assert!(rotates(&outbound, &readers, 6_000), "age");
        assert!(rotates(&outbound, &BTreeMap::new(), 5_000), "a user who is gone");
        assert!(
            rotates(&outbound, &BTreeMap::from([(alice().to_owned(), BTreeMap::new())]), 5_000),
            "a device that is gone"
        );
        assert!(rotates(&outbound, &BTreeMap::from([(alice().to_owned(), device("other"))]), 5_000), "another device");
        for _ in 0..2 {
            say(&mut outbound, "text");
        }
        assert!(!rotates(&outbound, &readers, 5_000));
        say(&mut outbound, "text");
        assert!(rotates(&outbound, &readers, 5_000), "count");

        let mut closed = room();
        closed.history_visibility = "joined".to_owned();
        let fresh = Outbound { shared_with: readers.clone(), ..Outbound::new(&room(), 5_000) };
        assert!(fresh.must_rotate(&encryption(), &closed, &readers, 5_000), "history that is not shared any more");
    }

    /// Client-Server API, "m.megolm.v1.aes-sha2", on updating a session: an earlier index wins, another session never does.
    #[test]
    fn keys_of_one_session_are_joined_and_others_are_refused() {
        let mut outbound = Outbound::new(&room(), 0);
        let early = inbound(&outbound, alice());
        say(&mut outbound, "one");
        let late = || inbound(&outbound, alice());
        assert_eq!(late().merge(Inbound { ..inbound_again(&early) }).unwrap().unwrap().first_known_index(), 0);
        assert!(inbound_again(&early).merge(late()).unwrap().is_none());

        let forwarded = Inbound::from_forwarded(early.forwarded().as_object().unwrap()).unwrap();
        assert_eq!((forwarded.origin, forwarded.sender.as_ref()), (Origin::Forwarded, None));
        let merged = forwarded.merge(late()).unwrap().unwrap();
        assert_eq!((merged.origin, merged.first_known_index()), (Origin::Direct, 0));
        assert_eq!(merged.sender.as_deref(), Some(alice()));

        let passed_on = outbound.room_key(&room().room_id);
        let passed_on = || {
            let mallory = user_id!("@mallory:example.org");
            Inbound::from_room_key(passed_on.as_object().unwrap(), mallory, "mallory's", "mallory's").unwrap()
        };
        let known = Inbound::from_forwarded(early.forwarded().as_object().unwrap()).unwrap();
        assert!(known.merge(passed_on()).is_err(), "a key that somebody else passes on as theirs");
        assert!(late().merge(passed_on()).is_ok_and(|merged| merged.is_none()));

        let mut other = Outbound::new(&room(), 0).room_key(&room().room_id);
        other["session_id"] = json!(outbound.session_id());
        assert!(Inbound::from_room_key(other.as_object().unwrap(), alice(), "curve", "ed").is_err());
        assert!(inbound_again(&early).merge(inbound(&Outbound::new(&room(), 0), alice())).is_err());
    }

    fn inbound_again(inbound: &Inbound) -> Inbound {
        serde_json::from_value(serde_json::to_value(inbound).unwrap()).unwrap()
    }

    #[test]
    fn an_exported_key_decrypts_but_proves_nothing_of_its_sender() {
        let mut outbound = Outbound::new(&room(), 0);
        let message = say(&mut outbound, "one");
        let mut outbound = Outbound::new(&room(), 0);
        let exported = inbound(&outbound, alice()).export();
        let message_of_it = say(&mut outbound, "two");
        let mut imported = Inbound::import(&exported).unwrap();
        assert_eq!(imported.origin, Origin::Imported);
        assert_eq!(imported.decrypt(&room().room_id, alice(), &message_of_it).unwrap().content["body"], "two");
        assert!(imported.decrypt(&room().room_id, alice(), &message).is_err());
    }

    #[test]
    fn what_is_no_encrypted_message_is_told_so() {
        let read = |content: Value| EncryptedContent::read(content.as_object().unwrap()).err();
        assert_eq!(read(json!({})), Some(Undecryptable::Malformed));
        assert_eq!(
            read(json!({ "algorithm": MEGOLM, "session_id": "x", "ciphertext": "?" })),
            Some(Undecryptable::Malformed)
        );
        assert_eq!(read(json!({ "algorithm": "rot13" })), Some(Undecryptable::UnknownAlgorithm("rot13".to_owned())));
    }
}
