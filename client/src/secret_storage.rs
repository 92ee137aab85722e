//! Secrets that a user's devices share through the server, which cannot read them. Client-Server API, "Secrets".
//!
//! They lie in account data, encrypted with a key that the user keeps as letters on paper or as a passphrase ("Storage"), and travel
//! between verified devices of the user on request ("Sharing", `secret_sharing.rs`).

use aes::cipher::{KeyIvInit as _, StreamCipher as _};
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit as _, Mac as _};
use ruma::{
    KeyDerivationAlgorithm,
    events::secret_storage::{
        key::{
            PassPhrase, SecretStorageEncryptionAlgorithm, SecretStorageKeyEventContent,
            SecretStorageV1AesHmacSha2Properties,
        },
        secret::AesHmacSha2EncryptedData,
    },
    serde::Base64,
    uint,
};
use sha2::{Sha256, Sha512};
use zeroize::Zeroizing;

use crate::{Error, recovery_key};

/// The names of the secrets that the specification knows.
pub mod names {
    /// The private master key. Client-Server API, "Cross-signing".
    pub const MASTER: &str = "m.cross_signing.master";
    /// The private self-signing key.
    pub const SELF_SIGNING: &str = "m.cross_signing.self_signing";
    /// The private user-signing key.
    pub const USER_SIGNING: &str = "m.cross_signing.user_signing";
    /// The key that opens the backup of room keys. Client-Server API, "Decryption key".
    pub const BACKUP: &str = "m.megolm_backup.v1";
}

/// Rounds of PBKDF2 for a new passphrase, as other clients have it.
const ROUNDS: u32 = 500_000;
/// Most rounds that are worked through because a server says so: some ten seconds.
const ROUNDS_MAX: u64 = 10_000_000;
/// Longest secret that is decrypted, in bytes. Those of the specification have 43.
const SECRET_BYTES_MAX: usize = 64 * 1024;

type Aes256Ctr = ctr::Ctr128BE<aes::Aes256>;

/// A key that opens secrets. Algorithm `m.secret_storage.v1.aes-hmac-sha2`.
pub struct SecretStorageKey {
    id: String,
    key: Zeroizing<[u8; 32]>,
}

impl std::fmt::Debug for SecretStorageKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SecretStorageKey").field("id", &self.id).finish_non_exhaustive()
    }
}

impl SecretStorageKey {
    /// Makes a key, from the passphrase when there is one, and its description for account data. "Key storage".
    #[must_use]
    pub fn generate(passphrase: Option<&str>) -> (Self, SecretStorageKeyEventContent) {
        let mut key = Zeroizing::new([0; 32]);
        let passphrase = match passphrase {
            Some(passphrase) => {
                let salt: [u8; 24] = rand::random();
                let salt = Base64::<ruma::serde::base64::Standard, _>::new(salt).encode();
                pbkdf2::pbkdf2_hmac::<Sha512>(passphrase.as_bytes(), salt.as_bytes(), ROUNDS, &mut key[..]);
                Some(PassPhrase::new(salt, ROUNDS.into()))
            }
            None => {
                rand::fill(&mut key[..]);
                None
            }
        };
        let id: [u8; 24] = rand::random();
        let id = Base64::<ruma::serde::base64::UrlSafe, _>::new(id).encode();
        let iv = random_iv();
        let properties = SecretStorageV1AesHmacSha2Properties::new(
            Some(Base64::new(iv.to_vec())),
            Some(Base64::new(check(&key, iv))),
        );
        let mut description =
            SecretStorageKeyEventContent::new(id.clone(), SecretStorageEncryptionAlgorithm::V1AesHmacSha2(properties));
        description.passphrase = passphrase;
        (Self { id, key }, description)
    }

    /// Opens the storage that `description` is of with what the user typed: the recovery key or the passphrase.
    ///
    /// # Errors
    ///
    /// [`Error::WrongSecretStorageKey`] when it is another one, [`Error::MistypedKey`] when the typed text is neither of both,
    /// [`Error::Forged`] when the description is none that we understand.
    pub fn open(description: &SecretStorageKeyEventContent, typed: &str) -> Result<Self, Error> {
        let SecretStorageEncryptionAlgorithm::V1AesHmacSha2(properties) = &description.algorithm else {
            return Err(Error::Forged("the secret storage is of an unknown algorithm"));
        };
        let key = match (recovery_key::decode(typed), &description.passphrase) {
            (Ok(key), _) => key,
            (Err(_), Some(passphrase)) => from_passphrase(typed, passphrase)?,
            (Err(error), None) => return Err(error),
        };
        // A description without both has to be believed. A secret that is decrypted is checked anyway.
        if let (Some(iv), Some(mac)) = (&properties.iv, &properties.mac) {
            let iv = iv
                .as_bytes()
                .try_into()
                .map_err(|_| Error::Forged("the secret storage has a wrong initialization vector"))?;
            let [aes_key, mac_key] = derive(&key, "");
            let mut zeros = [0; 32];
            Aes256Ctr::new((&*aes_key).into(), &<[u8; 16]>::into(iv)).apply_keystream(&mut zeros);
            mac_of(&mac_key, &zeros).verify_slice(mac.as_bytes()).map_err(|_| Error::WrongSecretStorageKey)?;
        }
        Ok(Self { id: description.key_id.clone(), key })
    }

    /// The id under which account data knows the key.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The form for people. "Key representation".
    #[must_use]
    pub fn recovery_key(&self) -> Zeroizing<String> {
        recovery_key::encode(&self.key)
    }

    /// Encrypts a secret under its name. "Secret storage".
    #[must_use]
    pub fn encrypt(&self, name: &str, secret: &str) -> AesHmacSha2EncryptedData {
        self.encrypt_with(name, secret, random_iv())
    }

    fn encrypt_with(&self, name: &str, secret: &str, iv: [u8; 16]) -> AesHmacSha2EncryptedData {
        let [aes_key, mac_key] = derive(&self.key, name);
        let mut text = secret.as_bytes().to_vec();
        Aes256Ctr::new((&*aes_key).into(), &iv.into()).apply_keystream(&mut text);
        let mac = mac_of(&mac_key, &text).finalize().into_bytes().to_vec();
        AesHmacSha2EncryptedData::new(Base64::new(iv.to_vec()), Base64::new(text), Base64::new(mac))
    }

    /// Decrypts the secret of that name.
    ///
    /// # Errors
    ///
    /// [`Error::WrongSecretStorageKey`] when it was encrypted with another key or under another name, or changed since.
    pub fn decrypt(&self, name: &str, data: &AesHmacSha2EncryptedData) -> Result<Zeroizing<String>, Error> {
        let iv: [u8; 16] =
            data.iv.as_bytes().try_into().map_err(|_| Error::Forged("a secret has a wrong initialization vector"))?;
        if data.ciphertext.as_bytes().len() > SECRET_BYTES_MAX {
            return Err(Error::TooLarge { bytes_max: SECRET_BYTES_MAX as u64 });
        }
        let [aes_key, mac_key] = derive(&self.key, name);
        mac_of(&mac_key, data.ciphertext.as_bytes())
            .verify_slice(data.mac.as_bytes())
            .map_err(|_| Error::WrongSecretStorageKey)?;
        let mut text = Zeroizing::new(data.ciphertext.as_bytes().to_vec());
        Aes256Ctr::new((&*aes_key).into(), &iv.into()).apply_keystream(&mut text);
        let text = std::str::from_utf8(&text).map_err(|_| Error::Forged("a secret is no text"))?;
        Ok(Zeroizing::new(text.to_owned()))
    }
}

/// "Deriving keys from passphrases".
fn from_passphrase(typed: &str, passphrase: &PassPhrase) -> Result<Zeroizing<[u8; 32]>, Error> {
    let rounds = u64::from(passphrase.iterations);
    if passphrase.algorithm != KeyDerivationAlgorithm::Pbkfd2
        || passphrase.bits != uint!(256)
        || !(1..=ROUNDS_MAX).contains(&rounds)
    {
        return Err(Error::Forged(
            "the secret storage makes its key from a passphrase in an unknown or unreasonable way",
        ));
    }
    let mut key = Zeroizing::new([0; 32]);
    let rounds = u32::try_from(rounds).expect("it was compared above");
    pbkdf2::pbkdf2_hmac::<Sha512>(typed.as_bytes(), passphrase.salt.as_bytes(), rounds, &mut key[..]);
    Ok(key)
}

/// The keys for AES and for the MAC, by the name of what they are for.
fn derive(key: &[u8; 32], name: &str) -> [Zeroizing<[u8; 32]>; 2] {
    let mut both = Zeroizing::new([0; 64]);
    Hkdf::<Sha256>::new(Some(&[0; 32]), key).expand(name.as_bytes(), &mut both[..]).expect("HKDF gives 64 bytes");
    let mut keys = [Zeroizing::new([0; 32]), Zeroizing::new([0; 32])];
    keys[0].copy_from_slice(&both[..32]);
    keys[1].copy_from_slice(&both[32..]);
    keys
}

/// The MAC by which a description shows whether a key is the one it is of.
fn check(key: &[u8; 32], iv: [u8; 16]) -> Vec<u8> {
    let [aes_key, mac_key] = derive(key, "");
    let mut zeros = [0; 32];
    Aes256Ctr::new((&*aes_key).into(), &iv.into()).apply_keystream(&mut zeros);
    mac_of(&mac_key, &zeros).finalize().into_bytes().to_vec()
}

fn mac_of(key: &[u8; 32], text: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(text);
    mac
}

fn random_iv() -> [u8; 16] {
    let mut iv: [u8; 16] = rand::random();
    // Bit 63: some implementations count with 64 bits, some with 128.
    iv[8] &= 0x7f;
    iv
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn known_key() -> SecretStorageKey {
        SecretStorageKey { id: "id".to_owned(), key: Zeroizing::new(std::array::from_fn(|n| n as u8)) }
    }

    fn description(content: serde_json::Value) -> SecretStorageKeyEventContent {
        use ruma::events::EventContentFromType as _;
        let raw = serde_json::value::to_raw_value(&content).expect("it is written");
        SecretStorageKeyEventContent::from_parts("m.secret_storage.key.id", &raw).expect("it is a description")
    }

    /// Keys derived and MACs made with Python's `hmac` and `hashlib`, encrypted with `openssl enc -aes-256-ctr`.
    #[test]
    fn secrets_are_encrypted_as_the_specification_says() {
        let iv = *b"\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f\x10";
        let data = known_key().encrypt_with(names::BACKUP, "a secret of some length, say 43 characters.", iv);
        assert_eq!(data.ciphertext.encode(), "uhAu1ognX0GbaFgoOqtbdCmL1LSSquWjMKtvcrbYBfrrvlrQsgUtLw1qkw");
        assert_eq!(data.mac.encode(), "ckgBSU/97Kk93WuQBFxvXRdNam+jEjurz/Cl33bGwxU");
        assert_eq!(
            Base64::<ruma::serde::base64::Standard, _>::new(check(&known_key().key, iv)).encode(),
            "6wZcvPeJyzu0rdcRNFiaNirMeTi9UBsn6QtStDkwHTg"
        );
        assert_eq!(
            *known_key().decrypt(names::BACKUP, &data).expect("it is read"),
            "a secret of some length, say 43 characters."
        );
    }

    #[test]
    fn a_passphrase_gives_the_key_that_python_makes_of_it() {
        let passphrase = PassPhrase::new("MmMsAlty".to_owned(), uint!(1000));
        let key = from_passphrase("it is a secret", &passphrase).expect("the parameters are in bounds");
        assert_eq!(&*recovery_key::encode(&key), "EsUB A87M 7bHx YgUw oxp6 UM6d zQaA veid JQzh NMQU VjsD QgsA");
    }

    #[test]
    fn storage_opens_with_its_recovery_key_and_its_passphrase_only() {
        let (key, plain) = SecretStorageKey::generate(None);
        let data = key.encrypt("name", "secret");
        let opened = SecretStorageKey::open(&plain, &key.recovery_key()).expect("it is the key");
        assert_eq!(*opened.decrypt("name", &data).expect("it is the key"), "secret");
        assert_eq!(opened.id(), plain.key_id);
        let other = SecretStorageKey::generate(None).0.recovery_key();
        assert!(matches!(SecretStorageKey::open(&plain, &other), Err(Error::WrongSecretStorageKey)));
        assert!(matches!(SecretStorageKey::open(&plain, "a passphrase"), Err(Error::MistypedKey)));

        let (key, described) = SecretStorageKey::generate(Some("a passphrase"));
        for typed in ["a passphrase", &key.recovery_key()] {
            let opened = SecretStorageKey::open(&described, typed).expect("it is the key");
            assert_eq!(*opened.decrypt("name", &key.encrypt("name", "secret")).expect("it is the key"), "secret");
        }
        assert!(matches!(SecretStorageKey::open(&described, "a pass phrase"), Err(Error::WrongSecretStorageKey)));
    }

    #[test]
    fn a_secret_that_was_changed_or_renamed_is_refused() {
        let (key, _) = SecretStorageKey::generate(None);
        let data = key.encrypt("name", "secret");
        assert!(matches!(key.decrypt("other name", &data), Err(Error::WrongSecretStorageKey)));
        let mut changed = data.ciphertext.clone().into_inner();
        changed[0] ^= 1;
        let changed = AesHmacSha2EncryptedData::new(data.iv.clone(), Base64::new(changed), data.mac.clone());
        assert!(matches!(key.decrypt("name", &changed), Err(Error::WrongSecretStorageKey)));
        let shorter = AesHmacSha2EncryptedData::new(data.iv.clone(), data.ciphertext.clone(), Base64::new(Vec::new()));
        assert!(matches!(key.decrypt("name", &shorter), Err(Error::WrongSecretStorageKey)));
        let odd = AesHmacSha2EncryptedData::new(Base64::new(vec![0; 12]), data.ciphertext, data.mac);
        assert!(matches!(key.decrypt("name", &odd), Err(Error::Forged(_))));
    }

    #[test]
    fn a_server_cannot_keep_us_busy_with_a_passphrase() {
        for (field, value) in [
            ("iterations", json!(10_000_001)),
            ("iterations", json!(0)),
            ("bits", json!(1_u64 << 40)),
            ("algorithm", json!("m.other")),
        ] {
            let mut content = json!({
                "algorithm": "m.secret_storage.v1.aes-hmac-sha2",
                "passphrase": { "algorithm": "m.pbkdf2", "salt": "salt", "iterations": 1000 },
            });
            content["passphrase"][field] = value;
            assert!(
                matches!(SecretStorageKey::open(&description(content), "a passphrase"), Err(Error::Forged(_))),
                "{field}"
            );
        }
    }

    #[test]
    fn a_key_is_not_shown_in_logs() {
        let (key, _) = SecretStorageKey::generate(None);
        assert_eq!(format!("{key:?}"), format!("SecretStorageKey {{ id: {:?}, .. }}", key.id()));
    }
}
