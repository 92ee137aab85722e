//! How values are sealed, and under which key.
//!
//! A store has a secret of its own, made by chance. The header holds it sealed by the user's key, which argon2id makes of a passphrase. From
//! the secret come, by HKDF-SHA-256, the key of AES-256-GCM that seals values and the key of HMAC-SHA-256 that hides the keys of rows.
//! Nonces are 96 random bits: good for 2^32 writes.

use aes_gcm::{
    Aes256Gcm,
    aead::{Aead as _, KeyInit as _, Payload},
};
use hkdf::Hkdf;
use hmac::{Hmac, Mac as _};
use rand::Rng as _;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::Kind;
use crate::Error;

const NONCE_BYTES: usize = 12;
/// What is sealed in the header is bound to its place by this.
const HEADER: &[u8] = b"swiftchat-client store header";
/// Cost of a passphrase: half a second of an ordinary machine, once for each start.
const ARGON2_MEMORY_KIB: u32 = 65_536;
const ARGON2_PASSES: u32 = 3;
/// What a header may ask of this machine, in KiB and passes: it is read before anything says that it is ours.
const ARGON2_MEMORY_KIB_MAX: u32 = 1 << 20;
const ARGON2_PASSES_MAX: u32 = 16;

/// What opens a store.
pub struct StoreKey(Secret);

enum Secret {
    Passphrase(Zeroizing<String>),
    Raw(Zeroizing<[u8; 32]>),
}

impl StoreKey {
    /// A passphrase that somebody remembers.
    #[must_use]
    pub fn passphrase(passphrase: &str) -> Self {
        Self(Secret::Passphrase(Zeroizing::new(passphrase.to_owned())))
    }

    /// A key made by chance, which something keeps, such as the keyring of the system.
    #[must_use]
    pub fn raw(key: [u8; 32]) -> Self {
        Self(Secret::Raw(Zeroizing::new(key)))
    }

    /// The key that seals the header.
    async fn derive(&self, header: &Header) -> Result<Zeroizing<[u8; 32]>, Error> {
        let passphrase = match &self.0 {
            Secret::Raw(key) => return Ok(key.clone()),
            Secret::Passphrase(passphrase) => passphrase.clone(),
        };
        if header.memory_kib > ARGON2_MEMORY_KIB_MAX || header.passes > ARGON2_PASSES_MAX {
            return Err(Error::StoreDamaged("its header asks for too much"));
        }
        let damaged = || Error::StoreDamaged("its header has impossible numbers");
        let cost = argon2::Params::new(header.memory_kib, header.passes, 1, Some(32)).map_err(|_| damaged())?;
        let salt = header.salt;
        let key = tokio::task::spawn_blocking(move || {
            let argon2 = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, cost);
            let mut key = Zeroizing::new([0; 32]);
            argon2.hash_password_into(passphrase.as_bytes(), &salt, key.as_mut()).map(|()| key)
        });
        key.await.expect("making a key does not panic").map_err(|_| damaged())
    }
}

impl std::fmt::Debug for StoreKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StoreKey")
    }
}

#[derive(Deserialize, Serialize)]
struct Header {
    salt: [u8; 16],
    memory_kib: u32,
    passes: u32,
    sealed_secret: Vec<u8>,
}

/// Seals and opens the values of one store.
pub(super) struct Seal {
    values: Aes256Gcm,
    rows: Hmac<Sha256>,
}

impl std::fmt::Debug for Seal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seal")
    }
}

impl Seal {
    /// One for a new store, and its header.
    pub(super) async fn make(key: &StoreKey) -> Result<(Self, Vec<u8>), Error> {
        let mut secret = Zeroizing::new([0; 32]);
        rand::rng().fill_bytes(secret.as_mut());
        let mut salt = [0; 16];
        rand::rng().fill_bytes(&mut salt);
        let mut header =
            Header { salt, memory_kib: ARGON2_MEMORY_KIB, passes: ARGON2_PASSES, sealed_secret: Vec::new() };
        let cipher = cipher(&*key.derive(&header).await?);
        header.sealed_secret = seal(&cipher, HEADER, secret.as_ref());
        Ok((Self::of(&secret), serde_json::to_vec(&header).expect("a header can be JSON")))
    }

    /// That of a store with this header.
    ///
    /// # Errors
    ///
    /// [`Error::WrongPassphrase`], [`Error::StoreDamaged`].
    pub(super) async fn open(header: &[u8], key: &StoreKey) -> Result<Self, Error> {
        let damaged = |_| Error::StoreDamaged("its header cannot be read");
        let header: Header = serde_json::from_slice(header).map_err(damaged)?;
        let cipher = cipher(&*key.derive(&header).await?);
        let secret = unseal(&cipher, HEADER, &header.sealed_secret).ok_or(Error::WrongPassphrase)?;
        let secret = secret.as_slice().try_into().map_err(|_| Error::StoreDamaged("its secret has another length"))?;
        Ok(Self::of(&Zeroizing::new(secret)))
    }

    fn of(secret: &Zeroizing<[u8; 32]>) -> Self {
        let hkdf = Hkdf::<Sha256>::new(None, secret.as_ref());
        let mut key = Zeroizing::new([0; 32]);
        let mut expand = |purpose: &[u8]| {
            hkdf.expand(purpose, key.as_mut()).expect("32 bytes are not too many");
            key.clone()
        };
        let values = cipher(&expand(b"values"));
        let rows = Hmac::new_from_slice(expand(b"rows").as_ref()).expect("HMAC takes keys of any length");
        Self { values, rows }
    }

    /// Where the value of a key is.
    pub(super) fn row(&self, kind: Kind, key: &str) -> [u8; 32] {
        let mut hash = self.rows.clone();
        hash.update(kind.0.as_bytes());
        hash.update(&[0]);
        hash.update(key.as_bytes());
        hash.finalize().into_bytes().into()
    }

    /// A value as it is written: its key in front, so that it can be listed.
    pub(super) fn seal(&self, kind: Kind, row: &[u8], key: &str, value: &[u8]) -> Vec<u8> {
        let length = u32::try_from(key.len()).expect("keys are short").to_le_bytes();
        let plain = Zeroizing::new([length.as_slice(), key.as_bytes(), value].concat());
        seal(&self.values, &place(kind, row), &plain)
    }

    /// The key and value that were written there.
    pub(super) fn unseal(&self, kind: Kind, row: &[u8], sealed: &[u8]) -> Result<(String, Zeroizing<Vec<u8>>), Error> {
        let damaged = || Error::StoreDamaged("a value was changed");
        let plain = unseal(&self.values, &place(kind, row), sealed).ok_or_else(damaged)?;
        let (length, rest) = plain.split_first_chunk().ok_or_else(damaged)?;
        let length = usize::try_from(u32::from_le_bytes(*length)).map_err(|_| damaged())?;
        let (key, value) = rest.split_at_checked(length).ok_or_else(damaged)?;
        let key = std::str::from_utf8(key).map_err(|_| damaged())?;
        Ok((key.to_owned(), Zeroizing::new(value.to_vec())))
    }
}

/// What a sealed value is bound to.
fn place(kind: Kind, row: &[u8]) -> Vec<u8> {
    [kind.0.as_bytes(), &[0], row].concat()
}

fn cipher(key: &[u8; 32]) -> Aes256Gcm {
    Aes256Gcm::new(key.into())
}

fn seal(cipher: &Aes256Gcm, aad: &[u8], msg: &[u8]) -> Vec<u8> {
    let mut nonce = [0; NONCE_BYTES];
    rand::rng().fill_bytes(&mut nonce);
    let sealed = cipher.encrypt(&nonce.into(), Payload { msg, aad }).expect("values are far below the limit of 64 GiB");
    [nonce.as_slice(), &sealed].concat()
}

fn unseal(cipher: &Aes256Gcm, aad: &[u8], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let (nonce, msg) = sealed.split_first_chunk::<NONCE_BYTES>()?;
    cipher.decrypt(&(*nonce).into(), Payload { msg, aad }).ok().map(Zeroizing::new)
}
