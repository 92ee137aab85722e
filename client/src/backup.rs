//! The backup of room keys on the server. Client-Server API, "Server-side key backups".
//!
//! Algorithm `m.megolm_backup.v1.curve25519-aes-sha2`: who knows the backup's public key can put room keys in, who has the private key
//! can read them. The server cannot read what lies there, but it can put in what it likes: the format's MAC covers nothing (its own text
//! says so). A key that comes from a backup therefore opens messages and proves nothing about who wrote them.

use std::{borrow::Cow, collections::BTreeMap};

use ruma::{
    RoomId, UserId,
    api::client::backup::{EncryptedSessionDataInit, KeyBackupData, KeyBackupDataInit},
    serde::Base64,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use vodozemac::{
    Curve25519PublicKey, Curve25519SecretKey, Ed25519PublicKey,
    pk_encryption::{Message, PkDecryption, PkEncryption},
};
use zeroize::Zeroizing;

use crate::{
    Error, ExportedRoomKey, recovery_key,
    signatures::{Object, is_signed_by},
};

/// The name of the algorithm.
pub const ALGORITHM: &str = "m.megolm_backup.v1.curve25519-aes-sha2";
/// Largest encrypted room key that is taken from a backup, in bytes; usual ones have 600.
const SESSION_BYTES_MAX: usize = 64 * 1024;

/// The private key of a backup. "Decryption key".
pub struct BackupKey(PkDecryption);

impl Clone for BackupKey {
    fn clone(&self) -> Self {
        Self::from_bytes(&self.bytes())
    }
}

impl Serialize for BackupKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.secret_key().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for BackupKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Curve25519SecretKey::deserialize(deserializer).map(|key| Self(PkDecryption::from_key(key)))
    }
}

impl std::fmt::Debug for BackupKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BackupKey").field("public_key", &self.public_key()).finish_non_exhaustive()
    }
}

impl BackupKey {
    /// Makes a key.
    #[must_use]
    pub fn generate() -> Self {
        Self(PkDecryption::new())
    }

    /// Reads the form that lies in secret storage.
    ///
    /// # Errors
    ///
    /// [`Error::Forged`] when it is no key.
    pub fn from_base64(text: &str) -> Result<Self, Error> {
        let bytes: Base64<ruma::serde::base64::Standard, [u8; 32]> =
            Base64::parse(text).map_err(|_| Error::Forged("the backup's private key has another form"))?;
        Ok(Self::from_bytes(&Zeroizing::new(bytes.into_inner())))
    }

    /// Reads the form that is given to people.
    ///
    /// # Errors
    ///
    /// [`Error::MistypedKey`] when letters are wrong or missing.
    pub fn from_recovery_key(text: &str) -> Result<Self, Error> {
        Ok(Self::from_bytes(&recovery_key::decode(text)?))
    }

    fn from_bytes(bytes: &Zeroizing<[u8; 32]>) -> Self {
        Self(PkDecryption::from_key(Curve25519SecretKey::from_slice(bytes)))
    }

    /// The form for secret storage.
    #[must_use]
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(vodozemac::base64_encode(&self.bytes()[..]))
    }

    /// The form for people.
    #[must_use]
    pub fn recovery_key(&self) -> Zeroizing<String> {
        recovery_key::encode(&self.bytes())
    }

    fn bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(*self.0.secret_key().to_bytes())
    }

    /// The key that room keys are encrypted for.
    #[must_use]
    pub fn public_key(&self) -> Curve25519PublicKey {
        self.0.public_key()
    }

    /// What a new version of the backup says of itself; its maker signs it. `AuthData`.
    #[must_use]
    pub fn auth_data(&self) -> Object {
        Object::from_iter([("public_key".to_owned(), self.public_key().to_base64().into())])
    }

    /// Reads the key of a room's session out of the backup.
    ///
    /// # Errors
    ///
    /// [`Error::Forged`] when it is none that was encrypted for this key, [`Error::Malformed`] when it has another form.
    pub fn decrypt(&self, room_id: &RoomId, session_id: &str, data: &KeyBackupData) -> Result<ExportedRoomKey, Error> {
        let session = &data.session_data;
        if session.ciphertext.as_bytes().len() > SESSION_BYTES_MAX {
            return Err(Error::TooLarge { bytes_max: SESSION_BYTES_MAX as u64 });
        }
        let unreadable = || Error::Forged("a room key in the backup is not encrypted for it");
        let ephemeral_key = Curve25519PublicKey::from_slice(session.ephemeral.as_bytes()).map_err(|_| unreadable())?;
        let message = Message {
            ciphertext: session.ciphertext.as_bytes().to_vec(),
            mac: session.mac.as_bytes().to_vec(),
            ephemeral_key,
        };
        let text = Zeroizing::new(self.0.decrypt(&message).map_err(|_| unreadable())?);
        let session: BackedUpSessionData<'_> =
            serde_json::from_slice(&text).map_err(|_| Error::Malformed("room key in the backup"))?;
        Ok(ExportedRoomKey {
            algorithm: session.algorithm.into_owned(),
            room_id: room_id.to_owned(),
            session_id: session_id.to_owned(),
            session_key: session.session_key.into_owned(),
            sender_key: session.sender_key.into_owned(),
            sender_claimed_keys: session.sender_claimed_keys.into_owned(),
            forwarding_curve25519_key_chain: session.forwarding_curve25519_key_chain.into_owned(),
            shared_history: session.shared_history,
        })
    }
}

/// What is encrypted: an export without what the server knows anyway.
#[derive(Serialize, Deserialize)]
struct BackedUpSessionData<'a> {
    algorithm: Cow<'a, str>,
    #[serde(default)]
    forwarding_curve25519_key_chain: Cow<'a, [String]>,
    sender_key: Cow<'a, str>,
    sender_claimed_keys: Cow<'a, BTreeMap<String, String>>,
    session_key: Cow<'a, str>,
    #[serde(default)]
    shared_history: bool,
}

/// What the server may know of a room key, to choose between two. "Server-side key backups".
#[derive(Debug, Clone, Copy)]
pub struct Standing {
    /// The first message that it opens.
    pub first_message_index: u32,
    /// Through how many hands it went.
    pub forwarded_count: u32,
    /// Whether it came from a device that was verified.
    pub is_verified: bool,
}

/// Encrypts a room key for a backup.
///
/// # Errors
///
/// [`Error::Forged`] when `public_key` is one that gives no secrets.
pub fn encrypt(
    public_key: Curve25519PublicKey,
    key: &ExportedRoomKey,
    standing: Standing,
) -> Result<KeyBackupData, Error> {
    let session = BackedUpSessionData {
        algorithm: Cow::Borrowed(&key.algorithm),
        forwarding_curve25519_key_chain: Cow::Borrowed(&key.forwarding_curve25519_key_chain),
        sender_key: Cow::Borrowed(&key.sender_key),
        sender_claimed_keys: Cow::Borrowed(&key.sender_claimed_keys),
        session_key: Cow::Borrowed(&key.session_key),
        shared_history: key.shared_history,
    };
    let text = Zeroizing::new(serde_json::to_vec(&session).expect("a room key can be written"));
    let message =
        PkEncryption::from_key(public_key).encrypt(&text).map_err(|_| Error::Forged("the backup's public key"))?;
    Ok(KeyBackupDataInit {
        first_message_index: standing.first_message_index.into(),
        forwarded_count: standing.forwarded_count.into(),
        is_verified: standing.is_verified,
        session_data: EncryptedSessionDataInit {
            ephemeral: Base64::new(message.ephemeral_key.to_vec()),
            ciphertext: Base64::new(message.ciphertext),
            mac: Base64::new(message.mac),
        }
        .into(),
    }
    .into())
}

/// The public key of a version of the backup, which room keys may be encrypted for only when `auth_data` is trusted.
///
/// # Errors
///
/// [`Error::Forged`] when it is none.
pub fn public_key(auth_data: &Object) -> Result<Curve25519PublicKey, Error> {
    auth_data
        .get("public_key")
        .and_then(|key| Curve25519PublicKey::from_base64(key.as_str()?).ok())
        .ok_or(Error::Forged("the backup has no public key"))
}

/// Whether one of the user's own keys signed `auth_data`: the verified master key, or that of a verified device. `signers` are their
/// names and keys.
pub fn is_trusted<'a>(
    auth_data: &Object,
    user_id: &UserId,
    signers: impl IntoIterator<Item = (&'a str, &'a Ed25519PublicKey)>,
) -> bool {
    signers.into_iter().any(|(name, key)| is_signed_by(auth_data, user_id.as_str(), name, key))
}

#[cfg(test)]
mod tests {
    use ruma::{owned_room_id, room_id, user_id};
    use serde_json::json;
    use vodozemac::{
        Ed25519SecretKey,
        megolm::{GroupSession, InboundGroupSession, SessionConfig},
    };

    use super::*;
    use crate::signatures::add_signature;

    fn room_key() -> ExportedRoomKey {
        let group = GroupSession::new(SessionConfig::version_1());
        let inbound = InboundGroupSession::new(&group.session_key(), SessionConfig::version_1());
        ExportedRoomKey {
            algorithm: "m.megolm.v1.aes-sha2".to_owned(),
            room_id: owned_room_id!("!room:x"),
            session_id: inbound.session_id(),
            session_key: inbound.export_at_first_known_index().to_base64(),
            sender_key: "sender key".to_owned(),
            sender_claimed_keys: BTreeMap::from([("ed25519".to_owned(), "claimed".to_owned())]),
            forwarding_curve25519_key_chain: Vec::new(),
            shared_history: true,
        }
    }

    fn decrypt(key: &BackupKey, data: &KeyBackupData) -> Result<ExportedRoomKey, Error> {
        key.decrypt(room_id!("!room:x"), "session", data)
    }

    const STANDING: Standing = Standing { first_message_index: 3, forwarded_count: 1, is_verified: true };

    #[test]
    fn a_room_key_comes_back_out_of_the_backup_with_the_private_key_only() {
        let (key, room_key) = (BackupKey::generate(), room_key());
        let data = encrypt(key.public_key(), &room_key, STANDING).expect("it is encrypted");
        // As it travels: written into a request, and read from an answer.
        let data = serde_json::to_value(&data).expect("it is written");
        assert_eq!(
            (&data["first_message_index"], &data["forwarded_count"], &data["is_verified"]),
            (&json!(3), &json!(1), &json!(true))
        );
        let data: KeyBackupData = serde_json::from_value(data).expect("it is read");
        let restored =
            decrypt(&BackupKey::from_base64(&key.to_base64()).expect("it is a key"), &data).expect("it is decrypted");
        assert_eq!(restored.session_key, room_key.session_key);
        assert_eq!(restored.sender_claimed_keys, room_key.sender_claimed_keys);
        assert_eq!((restored.room_id.as_str(), restored.session_id.as_str()), ("!room:x", "session"));
        assert!(restored.shared_history);
        assert!(matches!(decrypt(&BackupKey::generate(), &data), Err(Error::Forged(_))));
    }

    /// The key of another implementation's test ([RFC 7748], section 6.1), what OpenSSL derives and encrypts with it.
    ///
    /// [RFC 7748]: https://www.rfc-editor.org/rfc/rfc7748
    #[test]
    fn what_others_backed_up_is_read() {
        let key = BackupKey::from_base64("XasIfmJKikt54X+Lg4AO5m87sSkmGLb9HC+LJ/+I4Os").expect("it is a key");
        assert_eq!(key.public_key().to_base64(), "3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08");
        let data = serde_json::from_value(json!({
            "first_message_index": 0, "forwarded_count": 0, "is_verified": false,
            "session_data": { "ephemeral": "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo", "ciphertext": "MkPC1I1WOBnvg5G+V8KWiXUHfOmbRU0SBceh9m0VqGbuC7kF5CWN/oK5e9BncxuzhEWpJngYYBfqq8f7U2YpHL4vSwBUn9gKgDEABdUM5yzezNguoYqz2HujzsfR4lzV9pNiOTzdvPr+cL/JBNTJ7ZP64I/vIkcV8MTH870uqRbYe8rCG1nWBAwlfQCDNA0IEImqOM6oi5KMeEhMneQz+nAYyNkw1XhBAVTHHuPkaiy0MXIeYfvasEOwWfhy/1sXRmJZGgYvGyInAVooPxbW/PznHxWZDA+PJFY8LtRoBr6ihGWpNICDu1t4PhKAQnhWZHXWoqv4vHB8G2gK+2IGVNvBliqe466wqLSG4cnOKnc2cjTC20Q5ugWX3Riq/kg5YS77jAcdRW17h532VSfOy0iuyL9KcXnXgf5Fu87uXNij5HBFCpd6tBWleT11Q1jT9axM2+QlKFgCOesKf7xQ1oIZZ6iT46qJsQ3Rw4kUkRc2XPtt2GVS0s+izr89A8YbCxjmdbcneyJRUcyT1eTV/HvIX3L0wTzrOTMXsC0Dvt7q0jRBAtBPlqUN+sx4XLAFNDCwKhP/If0KipC3fbp9wkQ2tEdZHt5hkS9pqcl3bO8", "mac": "zpzU6BkZcNI" },
        }));
        let session = decrypt(&key, &data.expect("it has the form")).expect("it is decrypted");
        assert_eq!(session.sender_key, "RF3s+E7RkTQTGF2d8Deol0FkQvgII2aJDf3/Jp5mxVU");
    }

    #[test]
    fn the_private_key_has_a_form_for_people() {
        let key = BackupKey::generate();
        let read = BackupKey::from_recovery_key(&key.recovery_key()).expect("it is read");
        assert_eq!(read.public_key(), key.public_key());
        assert!(BackupKey::from_recovery_key("EsTc").is_err());
        let stored: BackupKey =
            serde_json::from_value(serde_json::to_value(&key).expect("it is written")).expect("it is read");
        assert_eq!(stored.public_key(), key.public_key());
        assert!(!format!("{key:?}").contains(&*key.to_base64()));
    }

    #[test]
    fn a_backup_is_trusted_when_one_of_our_keys_signed_it() {
        let (ours, others) = (Ed25519SecretKey::new(), Ed25519SecretKey::new());
        let alice = user_id!("@alice:x");
        let mut auth_data = BackupKey::generate().auth_data();
        let (ours_public, others_public) = (ours.public_key(), others.public_key());
        assert!(!is_trusted(&auth_data, alice, [("K", &ours_public)]));
        add_signature(&mut auth_data, alice.as_str(), "K", |bytes| ours.sign(bytes)).expect("it is signed");
        assert!(is_trusted(&auth_data, alice, [("L", &others_public), ("K", &ours_public)]));
        assert!(!is_trusted(&auth_data, alice, [("K", &others_public)]));
        auth_data.insert("public_key".to_owned(), BackupKey::generate().public_key().to_base64().into());
        assert!(!is_trusted(&auth_data, alice, [("K", &ours_public)]), "the server put in a key of its own");
    }

    #[test]
    fn what_is_no_room_key_is_refused_without_a_panic() {
        let key = BackupKey::generate();
        let good = serde_json::to_value(encrypt(key.public_key(), &room_key(), STANDING).expect("it is encrypted"))
            .expect("it is written");
        let zero = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
        for (field, value) in
            [("ephemeral", "AAAA"), ("ephemeral", zero), ("ciphertext", ""), ("ciphertext", "AAAA"), ("mac", "")]
        {
            let mut bad = good.clone();
            bad["session_data"][field] = value.into();
            let result = decrypt(&key, &serde_json::from_value(bad).expect("it has the form"));
            assert!(matches!(result, Err(Error::Forged(_))), "{field} {value}: {result:?}");
        }
        for public_key in [json!(null), json!(1), json!("AAAA"), json!("A".repeat(44))] {
            assert!(super::public_key(&Object::from_iter([("public_key".to_owned(), public_key)])).is_err());
        }
    }
}
