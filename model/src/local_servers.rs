//! The server names that this deployment answers for, and the signing key of each.

use std::{collections::BTreeMap, sync::Arc};

use base64::{
    Engine as _,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::STANDARD_NO_PAD},
};
use ed25519_dalek::{Signer as _, SigningKey};
use ruma::{
    OwnedServerName, OwnedServerSigningKeyId, ServerName, ServerSigningKeyVersion, SigningKeyAlgorithm, SigningKeyId,
    UserId, signatures,
};

use crate::Random;

/// Base64 as other homeservers write seeds: with or without padding, and with what is left over in the last letter. The
/// test vectors of the specification have such a seed.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The server names that are ours, and the signing key of each. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LocalServers(Arc<Names>);

#[derive(Debug)]
struct Names {
    primary: OwnedServerName,
    servers: BTreeMap<OwnedServerName, LocalServer>,
}

/// One of our server names.
#[derive(Debug)]
pub struct LocalServer {
    /// Its name.
    pub name: OwnedServerName,
    /// The key that signs its events and requests.
    pub key: KeyPair,
    /// The keys that did so before.
    pub old_keys: Vec<OldKey>,
}

impl LocalServer {
    /// A name with its first key.
    #[must_use]
    pub fn new(name: OwnedServerName, key: KeyPair) -> Self {
        Self { name, key, old_keys: Vec::new() }
    }
}

/// A key that signs no more: others still verify with it what was signed before its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OldKey {
    /// Its id, `ed25519:<version>`.
    pub id: OwnedServerSigningKeyId,
    /// Its public half, in unpadded base64.
    pub public_key: String,
    /// When it ended, in milliseconds since 1970.
    pub expired_ms: i64,
}

impl LocalServers {
    /// The servers of a deployment; the first is used where a request does not say which one it means.
    ///
    /// # Panics
    ///
    /// When `servers` is empty: the configuration always has a name.
    #[must_use]
    pub fn new(servers: Vec<LocalServer>) -> Self {
        let primary = servers.first().expect("a deployment has a server name").name.clone();
        let servers = servers.into_iter().map(|server| (server.name.clone(), server)).collect();
        Self(Arc::new(Names { primary, servers }))
    }

    /// The name used where a request does not say which one it means.
    #[must_use]
    pub fn primary(&self) -> &ServerName {
        &self.0.primary
    }

    /// Whether `name` is ours.
    #[must_use]
    pub fn is_local(&self, name: &ServerName) -> bool {
        self.0.servers.contains_key(name)
    }

    /// Whether the user is one of ours.
    #[must_use]
    pub fn has_user(&self, user_id: &UserId) -> bool {
        self.is_local(user_id.server_name())
    }

    /// The server of a name, if it is ours.
    #[must_use]
    pub fn get(&self, name: &ServerName) -> Option<&LocalServer> {
        self.0.servers.get(name)
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = &LocalServer> {
        self.0.servers.values()
    }
}

/// An ed25519 key pair with its version, `ed25519:<version>`.
pub struct KeyPair {
    key: SigningKey,
    id: OwnedServerSigningKeyId,
}

/// The text is not a key as [`KeyPair::to_text`] writes it.
#[derive(Debug, thiserror::Error)]
#[error("not a signing key: expected one line `ed25519 <version> <seed of 32 bytes in unpadded base64>`")]
pub struct KeyPairError;

impl KeyPair {
    /// Makes a new key.
    #[must_use]
    pub fn generate(random: &Random) -> Self {
        let version = format!("a_{}", random.alphanumeric(6));
        let version = <&ServerSigningKeyVersion>::try_from(version.as_str()).expect("letters and digits are a version");
        Self::from_seed(random.bytes(), version)
    }

    fn from_seed(seed: [u8; 32], version: &ServerSigningKeyVersion) -> Self {
        Self { key: SigningKey::from_bytes(&seed), id: SigningKeyId::from_parts(SigningKeyAlgorithm::Ed25519, version) }
    }

    /// Reads the one line that other homeservers use too: `ed25519 <version> <seed>`.
    ///
    /// # Errors
    ///
    /// [`KeyPairError`] when the text is anything else.
    pub fn from_text(text: &str) -> Result<Self, KeyPairError> {
        let mut words = text.split_ascii_whitespace();
        let (Some("ed25519"), Some(version), Some(seed), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(KeyPairError);
        };
        let version = <&ServerSigningKeyVersion>::try_from(version).map_err(|_| KeyPairError)?;
        let seed = LENIENT.decode(seed).map_err(|_| KeyPairError)?;
        Ok(Self::from_seed(seed.try_into().map_err(|_| KeyPairError)?, version))
    }

    /// The key as one line of text, secret included.
    #[must_use]
    pub fn to_text(&self) -> String {
        format!("ed25519 {} {}\n", self.id.key_name(), STANDARD_NO_PAD.encode(self.key.to_bytes()))
    }

    /// The key's id, `ed25519:<version>`.
    #[must_use]
    pub fn id(&self) -> &OwnedServerSigningKeyId {
        &self.id
    }

    /// The public half, in unpadded base64.
    #[must_use]
    pub fn public_key(&self) -> String {
        STANDARD_NO_PAD.encode(self.key.verifying_key().to_bytes())
    }
}

impl OldKey {
    /// A key that ends at `now_ms`.
    #[must_use]
    pub fn of(key: &KeyPair, now_ms: i64) -> Self {
        Self { id: key.id().clone(), public_key: key.public_key(), expired_ms: now_ms }
    }

    /// Reads one line, `ed25519 <version> <public key> <end>`: the end is in milliseconds since 1970.
    ///
    /// # Errors
    ///
    /// [`KeyPairError`] when the text is anything else.
    pub fn from_text(text: &str) -> Result<Self, KeyPairError> {
        let mut words = text.split_ascii_whitespace();
        let (Some("ed25519"), Some(version), Some(public_key), Some(expired_ms), None) =
            (words.next(), words.next(), words.next(), words.next(), words.next())
        else {
            return Err(KeyPairError);
        };
        let version = <&ServerSigningKeyVersion>::try_from(version).map_err(|_| KeyPairError)?;
        let bytes: [u8; 32] =
            LENIENT.decode(public_key).ok().and_then(|key| key.try_into().ok()).ok_or(KeyPairError)?;
        Ok(Self {
            id: SigningKeyId::from_parts(SigningKeyAlgorithm::Ed25519, version),
            public_key: STANDARD_NO_PAD.encode(bytes),
            expired_ms: expired_ms.parse().map_err(|_| KeyPairError)?,
        })
    }

    /// The key as one line of text.
    #[must_use]
    pub fn to_text(&self) -> String {
        format!("ed25519 {} {} {}\n", self.id.key_name(), self.public_key, self.expired_ms)
    }
}

impl signatures::KeyPair for KeyPair {
    fn sign(&self, message: &[u8]) -> signatures::Signature {
        let id = SigningKeyId::from_parts(SigningKeyAlgorithm::Ed25519, self.id.key_name().as_str().into());
        signatures::Signature::new(id, self.key.sign(message).to_vec())
    }
}

impl std::fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyPair").field("id", &self.id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_text_form() {
        let key = KeyPair::generate(&Random::seeded(1));
        let again = KeyPair::from_text(&key.to_text()).unwrap();
        assert_eq!((again.id(), again.public_key()), (key.id(), key.public_key()));
        assert!(!format!("{key:?}").contains(&key.to_text()[10..]), "the secret is not shown");
    }

    /// The test vector of the specification. Appendices, "Cryptographic Test Vectors", "JSON Signing".
    #[test]
    fn the_signing_key_of_the_specification_signs_as_it_says() {
        let key = KeyPair::from_text("ed25519 1 YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1").unwrap();
        assert_eq!(
            signatures::KeyPair::sign(&key, b"{}").base64(),
            "K8280/U9SSy9IVtjBuVeLr+HpOB4BQFWbg+UZaADMtTdGYI7Geitb76LTrr5QV/7Xg4ahLwYGYZzuHGZKM5ZAQ"
        );
        let old = OldKey::of(&key, 5);
        assert_eq!(OldKey::from_text(&old.to_text()).unwrap(), old);
        assert!(OldKey::from_text("ed25519 1 AAAA 5").is_err() && OldKey::from_text(&key.to_text()).is_err());
        for text in ["", "ed25519 1", "ed25519 1 AAAA", "rsa 1 YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1"] {
            assert!(KeyPair::from_text(text).is_err(), "{text}");
        }
    }
}
