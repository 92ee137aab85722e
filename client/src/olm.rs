//! Olm: what devices say to each other alone. Client-Server API, "m.olm.v1.curve25519-aes-sha2".

use ruma::{OwnedDeviceId, OwnedUserId, UserId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use vodozemac::{
    Curve25519PublicKey, Ed25519PublicKey,
    olm::{OlmMessage, Session, SessionConfig},
};
use zeroize::Zeroizing;

use crate::{
    Error, Kind,
    account::{Account, OLM},
    devices::Device,
    signatures::{Object, ed25519_key, is_signed_by},
};

/// [`Sessions`] by [`peer`].
pub(crate) const OLM_SESSIONS: Kind = Kind("olm sessions");
/// How often the session with a device was replaced, by [`peer`]; no row if never.
pub(crate) const RENEWALS: Kind = Kind("olm session renewals");
/// Most sessions that are kept with one device; the specification wants at least 4.
const SESSIONS_MAX: usize = 5;
/// A session that seems broken is replaced no more often. Client-Server API, "Recovering from undecryptable messages".
const REPLACED_EVERY_MS: u64 = 60 * 60 * 1000;

/// What another device is known by in Olm. A device signs its Curve25519 key but does not prove that it has it, so that anybody can claim
/// somebody else's: with its owner the name is theirs alone. Client-Server API, "Verification of the sending user for incoming events".
pub(crate) fn peer(user_id: &UserId, key: &Curve25519PublicKey) -> String {
    format!("{user_id} {}", key.to_base64())
}

/// The sessions with one other device, the one used last at the end.
#[derive(Default, Deserialize, Serialize)]
pub(crate) struct Sessions {
    #[serde(with = "pickles")]
    sessions: Vec<Session>,
    replaced_at_ms: Option<u64>,
    /// Whether the device was told that there is no session with it.
    pub is_told_of_none: bool,
}

/// A message to this device, decrypted and checked.
#[derive(Clone, Debug)]
pub(crate) struct Plaintext {
    pub sender: OwnedUserId,
    /// The Olm key of the device that sent it. Whether that device is the sender's says the sender's device list, or `device`.
    pub sender_key: Curve25519PublicKey,
    /// The key by which the sending device signs, as the message says.
    pub signing_key: Ed25519PublicKey,
    /// The sender's device, if the message brought its keys along; they were checked.
    pub device: Option<Device>,
    pub event_type: String,
    pub content: Object,
}

#[derive(Deserialize)]
struct Payload {
    sender: OwnedUserId,
    recipient: OwnedUserId,
    recipient_keys: SigningKeys,
    keys: SigningKeys,
    #[serde(default)]
    sender_device_keys: Option<Value>,
    #[serde(rename = "type")]
    event_type: String,
    content: Object,
}

#[derive(Deserialize)]
struct SigningKeys {
    ed25519: String,
}

impl Sessions {
    /// Whether there is one.
    pub(crate) fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// Begins a session with a one-time or fallback key of theirs, whose signature was checked.
    ///
    /// # Errors
    ///
    /// [`Error::Forged`] when the keys make no secret.
    pub(crate) fn begin(
        &mut self,
        account: &mut Account,
        identity_key: Curve25519PublicKey,
        one_time_key: Curve25519PublicKey,
    ) -> Result<(), Error> {
        let session = account.olm().create_outbound_session(SessionConfig::version_1(), identity_key, one_time_key);
        self.keep(session.map_err(|_| Error::Forged("a one-time key that makes no secret"))?);
        self.is_told_of_none = false;
        Ok(())
    }

    /// Whether a session that seems broken may be replaced now.
    pub(crate) fn may_replace(&self, now_ms: u64) -> bool {
        self.replaced_at_ms.is_none_or(|at_ms| now_ms.saturating_sub(at_ms) >= REPLACED_EVERY_MS)
    }

    /// Notes that a session that seemed broken was replaced.
    pub(crate) fn mark_replaced(&mut self, now_ms: u64) {
        self.replaced_at_ms = Some(now_ms);
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Encrypts for the other device, in the session by which it was last heard; nothing when there is none.
    pub(crate) fn encrypt(&mut self, plaintext: &[u8]) -> Option<OlmMessage> {
        self.sessions.last_mut()?.encrypt(plaintext).ok()
    }

    /// Decrypts what the device with `identity_key` sent: in the session that it belongs to, or in a new one, which is kept only if it
    /// decrypts. Also returns whether it is in a new one in place of others: what was sent to the device in those may be lost.
    ///
    /// # Errors
    ///
    /// [`Error::Forged`] when no session decrypts it; then nothing changed.
    pub(crate) fn decrypt(
        &mut self,
        account: &mut Account,
        identity_key: Curve25519PublicKey,
        message: &OlmMessage,
    ) -> Result<(Vec<u8>, bool), Error> {
        // The newest first: it is the likeliest.
        for index in (0..self.sessions.len()).rev() {
            let session = &mut self.sessions[index];
            let is_its_own = match message {
                OlmMessage::PreKey(message) => message.session_id() == session.session_id(),
                OlmMessage::Normal(_) => false,
            };
            // What does not decrypt leaves a session as it was.
            if let Ok(plaintext) = session.decrypt(message) {
                let session = self.sessions.remove(index);
                self.keep(session);
                return Ok((plaintext, false));
            }
            if is_its_own {
                return Err(Error::Forged("a message that its session does not decrypt"));
            }
        }
        let OlmMessage::PreKey(message) = message else {
            return Err(Error::Forged("a message of no session that is known"));
        };
        let created = account.olm().create_inbound_session(SessionConfig::version_1(), identity_key, message);
        let created = created.map_err(|_| Error::Forged("a message that begins no session"))?;
        let is_renewed = !self.sessions.is_empty();
        self.keep(created.session);
        self.is_told_of_none = false;
        Ok((created.plaintext, is_renewed))
    }

    fn keep(&mut self, session: Session) {
        if self.sessions.len() >= SESSIONS_MAX {
            self.sessions.remove(0);
        }
        self.sessions.push(session);
    }
}

/// Sessions as they are stored.
mod pickles {
    use serde::{Deserialize as _, Deserializer, Serializer};
    use vodozemac::olm::{Session, SessionPickle};

    pub(super) fn serialize<S: Serializer>(sessions: &[Session], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(sessions.iter().map(Session::pickle))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Session>, D::Error> {
        Ok(Vec::<SessionPickle>::deserialize(deserializer)?.into_iter().map(Session::from_pickle).collect())
    }
}

/// What is encrypted for another device: an event, bound to both ends.
///
/// `own_keys` are [`Account::device_keys`], which it is worth signing once for many recipients.
pub(crate) fn payload(
    account: &Account,
    own_keys: &Object,
    to: &Device,
    event_type: &str,
    content: &Value,
) -> Zeroizing<Vec<u8>> {
    let payload = json!({
        "type": event_type,
        "content": content,
        "sender": own_keys["user_id"],
        "recipient": to.user_id,
        "recipient_keys": { "ed25519": to.ed25519.to_base64() },
        "keys": { "ed25519": account.ed25519().to_base64() },
        "sender_device_keys": own_keys,
    });
    Zeroizing::new(payload.to_string().into_bytes())
}

/// The content of `m.room.encrypted` for one device.
pub(crate) fn encrypted(account: &Account, to: &Device, message: &OlmMessage) -> Value {
    json!({
        "algorithm": OLM,
        "sender_key": account.curve25519().to_base64(),
        "ciphertext": { to.curve25519.to_base64(): message },
    })
}

/// The sender's key and the message for this device in an `m.room.encrypted` of Olm.
///
/// # Errors
///
/// [`Error::Malformed`], also when it is for another device.
pub(crate) fn read_encrypted(account: &Account, content: &Object) -> Result<(Curve25519PublicKey, OlmMessage), Error> {
    const MALFORMED: Error = Error::Malformed("Olm message");
    let sender_key = content.get("sender_key").and_then(Value::as_str).ok_or(MALFORMED)?;
    let sender_key = Curve25519PublicKey::from_base64(sender_key).map_err(|_| MALFORMED)?;
    let message = content.get("ciphertext").and_then(|texts| texts.get(account.curve25519().to_base64()));
    let message = message.ok_or(Error::Malformed("Olm message: it is not for this device"))?;
    Ok((sender_key, OlmMessage::deserialize(message).map_err(|_| MALFORMED)?))
}

/// Reads what a message of `sender` said. Client-Server API, "Validation of incoming decrypted events".
///
/// # Errors
///
/// [`Error::Malformed`] and [`Error::Forged`]: the message is to be dropped.
pub(crate) fn read_payload(
    account: &Account,
    own: &UserId,
    sender: &UserId,
    sender_key: Curve25519PublicKey,
    plaintext: &[u8],
) -> Result<Plaintext, Error> {
    let payload: Payload = serde_json::from_slice(plaintext).map_err(|_| Error::Malformed("Olm plaintext"))?;
    if payload.sender != sender {
        return Err(Error::Forged("a message of another sender"));
    }
    if payload.recipient != own || payload.recipient_keys.ed25519 != account.ed25519().to_base64() {
        return Err(Error::Forged("a message for another recipient"));
    }
    let signing_key = ed25519_key(&payload.keys.ed25519)?;
    let device = match payload.sender_device_keys {
        None => None,
        Some(keys) => {
            let device_id = keys.get("device_id").and_then(Value::as_str).ok_or(Error::Malformed("device keys"))?;
            let device = Device::check(sender, &OwnedDeviceId::from(device_id), keys, None)?;
            if device.curve25519 != sender_key || device.ed25519 != signing_key {
                return Err(Error::Forged("a message with the keys of another device"));
            }
            Some(device)
        }
    };
    let (event_type, content) = (payload.event_type, payload.content);
    Ok(Plaintext { sender: payload.sender, sender_key, signing_key, device, event_type, content })
}

/// Checks a one-time or fallback key that the server says is this device's.
///
/// # Errors
///
/// [`Error::Malformed`] and [`Error::Forged`].
pub(crate) fn check_one_time_key(device: &Device, key: &Map<String, Value>) -> Result<Curve25519PublicKey, Error> {
    if !is_signed_by(key, device.user_id.as_str(), device.device_id.as_str(), &device.ed25519) {
        return Err(Error::Forged("a one-time key that its device did not sign"));
    }
    let text = key.get("key").and_then(Value::as_str).ok_or(Error::Malformed("one-time key"))?;
    Curve25519PublicKey::from_base64(text).map_err(|_| Error::Malformed("one-time key"))
}

#[cfg(test)]
mod tests {
    use ruma::user_id;

    use super::*;
    use crate::account::KeyCounts;

    struct Person {
        account: Account,
        sessions: Sessions,
    }

    fn person(user: &UserId) -> Person {
        let mut account = Account::new(user.to_owned(), "PHONE".into());
        account.refill(KeyCounts::default(), 0);
        Person { account, sessions: Sessions::default() }
    }

    fn device(person: &Person, user: &UserId) -> Device {
        Device::check(user, "PHONE".into(), Value::Object(person.account.device_keys()), None).unwrap()
    }

    fn alice() -> &'static UserId {
        user_id!("@alice:example.org")
    }

    fn bob() -> &'static UserId {
        user_id!("@bob:example.org")
    }

    fn one_time_key(person: &Person, index: usize) -> Object {
        person.account.to_upload().one_time_keys[index].1.as_object().unwrap().clone()
    }

    /// What goes from one to the other, as far as it is believed.
    fn say(from: &mut Person, to: &mut Person, users: (&UserId, &UserId), body: &str) -> Result<Plaintext, Error> {
        let device = device(to, users.1);
        let payload = payload(&from.account, &from.account.device_keys(), &device, "m.dummy", &json!({ "body": body }));
        let message = from.sessions.encrypt(&payload).expect("a session");
        let content = encrypted(&from.account, &device, &message);
        hear(to, users, content.as_object().unwrap())
    }

    fn hear(to: &mut Person, users: (&UserId, &UserId), content: &Object) -> Result<Plaintext, Error> {
        let (sender_key, message) = read_encrypted(&to.account, content)?;
        let (plaintext, _) = to.sessions.decrypt(&mut to.account, sender_key, &message)?;
        read_payload(&to.account, users.1, users.0, sender_key, &plaintext)
    }

    fn begun() -> (Person, Person) {
        let (mut a, b) = (person(alice()), person(bob()));
        let key = check_one_time_key(&device(&b, bob()), &one_time_key(&b, 0)).unwrap();
        a.sessions.begin(&mut a.account, b.account.curve25519(), key).unwrap();
        (a, b)
    }

    #[test]
    fn two_devices_talk_to_each_other_over_one_session() {
        let (mut a, mut b) = begun();
        for round in 0..3 {
            let heard = say(&mut a, &mut b, (alice(), bob()), &format!("{round} there")).unwrap();
            assert_eq!(heard.content["body"], format!("{round} there"));
            assert_eq!(heard.device.unwrap().ed25519, a.account.ed25519());
            let heard = say(&mut b, &mut a, (bob(), alice()), &format!("{round} back")).unwrap();
            assert_eq!(heard.content["body"], format!("{round} back"));
        }
        assert_eq!((a.sessions.sessions.len(), b.sessions.sessions.len()), (1, 1));
    }

    #[test]
    fn a_message_is_decrypted_once() {
        let (mut a, mut b) = begun();
        let device = device(&b, bob());
        let payload = payload(&a.account, &a.account.device_keys(), &device, "m.dummy", &json!({}));
        let message = a.sessions.encrypt(&payload).unwrap();
        let content = encrypted(&a.account, &device, &message);
        hear(&mut b, (alice(), bob()), content.as_object().unwrap()).unwrap();
        assert!(hear(&mut b, (alice(), bob()), content.as_object().unwrap()).is_err());
    }

    /// Client-Server API, "Validation of incoming decrypted events": what a server could relabel is inside, too.
    #[test]
    fn a_message_counts_only_from_its_sender_and_for_its_recipient() {
        let carol = user_id!("@carol:example.org");
        let (mut a, mut b) = begun();
        let to_b = device(&b, bob());
        for (claimed_sender, recipient) in [(carol, bob()), (alice(), carol)] {
            let to = Device { user_id: recipient.to_owned(), ..to_b.clone() };
            let payload = payload(&a.account, &a.account.device_keys(), &to, "m.dummy", &json!({}));
            let message = a.sessions.encrypt(&payload).unwrap();
            let content = encrypted(&a.account, &to_b, &message);
            let error = hear(&mut b, (claimed_sender, bob()), content.as_object().unwrap()).unwrap_err();
            assert!(matches!(error, Error::Forged(_)), "{error:?}");
        }
        assert!(say(&mut a, &mut b, (alice(), bob()), "still well").is_ok());
    }

    #[test]
    fn a_one_time_key_counts_only_if_its_device_signed_it() {
        let (a, b) = (person(alice()), person(bob()));
        let good = one_time_key(&b, 0);
        assert!(check_one_time_key(&device(&b, bob()), &good).is_ok());
        assert!(check_one_time_key(&device(&a, alice()), &good).is_err());
        let mut changed = good;
        changed.insert("key".to_owned(), one_time_key(&b, 1)["key"].clone());
        assert!(check_one_time_key(&device(&b, bob()), &changed).is_err());
    }

    /// A peer cannot make us replace sessions all the time, and we cannot use up a peer's one-time keys.
    #[test]
    fn a_broken_session_is_replaced_once_an_hour() {
        let mut sessions = Sessions::default();
        assert!(sessions.may_replace(5));
        sessions.mark_replaced(5);
        assert!(!sessions.may_replace(5 + REPLACED_EVERY_MS - 1));
        assert!(sessions.may_replace(5 + REPLACED_EVERY_MS));
    }

    #[test]
    fn a_few_sessions_are_kept_and_the_one_heard_last_is_used() {
        let (mut a, mut b) = (person(alice()), person(bob()));
        for index in 0..SESSIONS_MAX + 2 {
            let key = check_one_time_key(&device(&b, bob()), &one_time_key(&b, index)).unwrap();
            a.sessions.begin(&mut a.account, b.account.curve25519(), key).unwrap();
            say(&mut a, &mut b, (alice(), bob()), "hello").unwrap();
        }
        assert_eq!((a.sessions.sessions.len(), b.sessions.sessions.len()), (SESSIONS_MAX, SESSIONS_MAX));
        say(&mut b, &mut a, (bob(), alice()), "heard").unwrap();
    }
}
