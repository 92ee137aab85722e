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

/// Longest id of a session: it is an Ed25519 key in base64.
const SESSION_ID_BYTES_MAX: usize = 64;
/// Most who may claim to have made one session.
const CLAIMS_MAX: usize = 20;

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
    /// The devices that have it.
    pub shared_with: BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, Holder>>,
    /// The devices that were told that they do not get it.
    pub withheld_from: BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, String>>,
}

/// A device that was given a room key.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Holder {
    /// Its Olm key.
    pub key: String,
    /// How often the Olm session with it had been replaced: what it was given in an older one may be lost.
    pub renewals: u32,
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
        let is_reader = |user: &OwnedUserId, device: &OwnedDeviceId, holder: &Holder| {
            readers.get(user).and_then(|devices| devices.get(device)) == Some(&holder.key)
        };
        let mut holders = self
            .shared_with
            .iter()
            .flat_map(|(user, devices)| devices.iter().map(move |(device, holder)| (user, device, holder)));
        now_ms.saturating_sub(self.created_at_ms) >= encryption.rotation_period_ms
            || u64::from(self.session.message_index()) >= encryption.rotation_period_msgs
            || self.is_history_shared != room.is_history_shared()
            || !holders.all(|(user, device, holder)| is_reader(user, device, holder))
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
        let mut inner = content.clone();
        // A verification is bound to its content as it was sent.
        if let Some(content) = inner.as_object_mut().filter(|_| !event_type.starts_with("m.key.verification.")) {
            content.remove("m.relates_to");
        }
        let plaintext = Zeroizing::new(json!({ "type": event_type, "content": inner, "room_id": room_id }).to_string());
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
    /// Who may have made it, the one heard of first in front; there is one at least.
    pub claims: Vec<Claim>,
    /// Whether those who come later may be given it. Client-Server API, "Shareable encryption sessions".
    pub is_history_shared: bool,
}

/// That a device made a session. A room key is signed by its session and not by a device, so whoever was given it can pass it on as their own:
/// such a claim says something of the claimant's messages, and takes nothing from others.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Claim {
    /// Whose messages it decrypts; not known of a session that came from a backup.
    pub sender: Option<OwnedUserId>,
    /// The Olm key of the device that made it.
    pub sender_key: String,
    /// The key by which that device signs, as far as it said so.
    pub signing_key: Option<String>,
    /// How the key came here.
    pub origin: Origin,
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
    /// The Olm key of the sending device, which some clients still want to hear in a request for its key. Nothing is believed by it.
    pub sender_key: Option<String>,
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
        if session_id.len() > SESSION_ID_BYTES_MAX {
            return Err(Undecryptable::Malformed);
        }
        let message = MegolmMessage::from_base64(ciphertext).map_err(|_| Undecryptable::Malformed)?;
        let sender_key = text("sender_key").filter(|key| key.len() <= SESSION_ID_BYTES_MAX).map(str::to_owned);
        let relation = content.get("m.relates_to").cloned();
        Ok(Self { session_id: session_id.to_owned(), sender_key, message, relation })
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
        let claim = Claim {
            sender: Some(sender.to_owned()),
            sender_key: sender_key.to_owned(),
            signing_key: Some(signing_key.to_owned()),
            origin: Origin::Direct,
        };
        let (room_id, is_history_shared) = (key.room_id.clone(), key.shared_history);
        Self { session, room_id, claims: vec![claim], is_history_shared }.named(&key.session_id)
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
        let claim = Claim { sender: None, sender_key, signing_key, origin: Origin::Forwarded };
        // Whether the key may be given to others cannot be known of one that was passed on.
        Self { session, room_id, claims: vec![claim], is_history_shared: false }.named(&key.session_id)
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
        let claim = Claim {
            sender: None,
            sender_key: key.sender_key.clone(),
            signing_key: key.sender_claimed_keys.get("ed25519").cloned(),
            origin: Origin::Imported,
        };
        Self {
            session: import(&key.session_key)?,
            room_id: key.room_id.clone(),
            claims: vec![claim],
            is_history_shared: key.shared_history,
        }
        .named(&key.session_id)
    }

    /// The session as backups and exports hold it, from the first message that it decrypts.
    #[must_use]
    pub fn export(&self) -> ExportedRoomKey {
        let first = self.claims.first();
        let claimed = first.and_then(|claim| claim.signing_key.clone()).map(|key| ("ed25519".to_owned(), key));
        ExportedRoomKey {
            algorithm: MEGOLM.to_owned(),
            room_id: self.room_id.clone(),
            session_id: self.session_id(),
            session_key: self.session.export_at_first_known_index().to_base64(),
            sender_key: first.map(|claim| claim.sender_key.clone()).unwrap_or_default(),
            sender_claimed_keys: claimed.into_iter().collect(),
            forwarding_curve25519_key_chain: Vec::new(),
            shared_history: self.is_history_shared,
        }
    }

    /// The content of `m.forwarded_room_key`.
    pub(crate) fn forwarded(&self) -> Value {
        let exported = self.export();
        json!({
            "algorithm": MEGOLM,
            "room_id": exported.room_id,
            "session_id": exported.session_id,
            "session_key": exported.session_key,
            "sender_key": exported.sender_key,
            "sender_claimed_ed25519_key": exported.sender_claimed_keys.get("ed25519").cloned().unwrap_or_default(),
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

    /// Joins what came later to what is known: the earliest message that can be decrypted, and all who claim to have made the session.
    /// Nothing when `later` adds nothing. Client-Server API, "m.megolm.v1.aes-sha2", on updating a session.
    ///
    /// # Errors
    ///
    /// [`Error::Forged`] when they are different sessions under one id.
    pub(crate) fn merge(mut self, mut later: Self) -> Result<Option<Self>, Error> {
        let order = self.session.compare(&mut later.session);
        if order == SessionOrdering::Unconnected {
            // An `m.room_key` is signed by its session. What a backup or an export holds is not: anybody could have made it.
            return match (self.is_proven(), later.is_proven()) {
                (false, true) => Ok(Some(later)),
                _ => Err(Error::Forged("a room key under the id of another")),
            };
        }
        let mut is_better = order == SessionOrdering::Worse;
        for claim in std::mem::take(&mut later.claims) {
            is_better |= self.add_claim(claim);
        }
        if !is_better {
            return Ok(None);
        }
        let session = self.session.merge(&mut later.session).expect("what was compared can be merged");
        Ok(Some(Self { session, ..self }))
    }

    fn is_proven(&self) -> bool {
        self.claims.iter().any(|claim| claim.origin == Origin::Direct)
    }

    /// Notes who says to have made it; true when that is news.
    fn add_claim(&mut self, later: Claim) -> bool {
        let is_same = |claim: &&mut Claim| {
            claim.sender_key == later.sender_key
                && (claim.sender == later.sender || claim.sender.is_none() || later.sender.is_none())
        };
        let count = self.claims.len();
        match self.claims.iter_mut().find(is_same) {
            Some(claim) if claim.origin != Origin::Direct && later.origin == Origin::Direct => *claim = later,
            None if count < CLAIMS_MAX => self.claims.push(later),
            _ => return false,
        }
        true
    }

    /// Who may have made it, if `sender` sent what it decrypts.
    pub(crate) fn claims_of<'a>(&'a self, sender: &'a UserId) -> impl Iterator<Item = &'a Claim> {
        self.claims.iter().filter(move |claim| claim.sender.as_ref().is_none_or(|claimant| claimant == sender))
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
        if self.claims_of(sender).next().is_none() {
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
        // Servers aggregate by the relation outside, so that is the one that counts. Client-Server API, "Editing encrypted events".
        if let Some(relation) = &encrypted.relation {
            content.insert("m.relates_to".to_owned(), relation.clone());
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
            .field("claims", &self.claims)
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
mod tests;
