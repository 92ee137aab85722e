//! The device's own Olm account: its identity keys, and the keys with which others begin sessions.
//!
//! One-time keys are kept at 50 on the server, and one fallback key serves when they run out. Keys are durable before they are uploaded, and
//! what was uploaded is marked afterwards: an upload that was cut off is made again with the same keys, which servers accept.
//! Client-Server API, "Key Distribution".

use ruma::{DeviceId, OwnedDeviceId, OwnedUserId, UserId};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use vodozemac::{
    Curve25519PublicKey, Ed25519PublicKey,
    olm::{self, AccountPickle},
};

use crate::{
    Batch, Error, Kind, Store,
    signatures::{Object, add_signature},
};

const ACCOUNT: Kind = Kind("account");
/// The one account of a store.
const OWN: &str = "own";

/// Olm. Client-Server API, "m.olm.v1.curve25519-aes-sha2".
pub(crate) const OLM: &str = "m.olm.v1.curve25519-aes-sha2";
/// Megolm. Client-Server API, "m.megolm.v1.aes-sha2".
pub(crate) const MEGOLM: &str = "m.megolm.v1.aes-sha2";

/// How long the key before the present fallback key is kept: until messages that used it have surely come.
const OLD_FALLBACK_KEPT_MS: u64 = 60 * 60 * 1000;

/// The keys of this device.
pub struct Account {
    user_id: OwnedUserId,
    device_id: OwnedDeviceId,
    olm: olm::Account,
    is_published: bool,
    fallback_made_at_ms: Option<u64>,
}

#[derive(Deserialize)]
struct Saved {
    user_id: OwnedUserId,
    device_id: OwnedDeviceId,
    olm: AccountPickle,
    is_published: bool,
    fallback_made_at_ms: Option<u64>,
}

#[derive(Serialize)]
struct Saving<'a> {
    user_id: &'a UserId,
    device_id: &'a DeviceId,
    olm: AccountPickle,
    is_published: bool,
    fallback_made_at_ms: Option<u64>,
}

/// What the server says it has of our keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct KeyCounts {
    /// Unclaimed one-time keys.
    pub one_time: u64,
    /// Whether the fallback key is unused; nothing when the server does not say so, as those before 1.2.
    pub is_fallback_unused: Option<bool>,
    /// Whether the answer brought messages to this device: there may be more behind them, from long ago.
    pub has_messages: bool,
}

/// Keys that the server is to be given.
#[derive(Debug, Default)]
pub(crate) struct Upload {
    pub device_keys: Option<Value>,
    pub one_time_keys: Vec<(String, Value)>,
    pub fallback_keys: Vec<(String, Value)>,
}

impl Upload {
    pub(crate) fn is_empty(&self) -> bool {
        self.device_keys.is_none() && self.one_time_keys.is_empty() && self.fallback_keys.is_empty()
    }
}

impl std::fmt::Debug for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Account")
            .field("user_id", &self.user_id)
            .field("device_id", &self.device_id)
            .finish_non_exhaustive()
    }
}

impl Account {
    /// New keys for a new device.
    pub(crate) fn new(user_id: OwnedUserId, device_id: OwnedDeviceId) -> Self {
        Self { user_id, device_id, olm: olm::Account::new(), is_published: false, fallback_made_at_ms: None }
    }

    /// The keys of the store's device, as they are after the changes of `batch`.
    ///
    /// # Errors
    ///
    /// [`Error::NotLoggedIn`] when there are none; [`Error::Store`].
    pub(crate) async fn load(store: &Store, batch: &Batch) -> Result<Self, Error> {
        let saved: Saved = store.get_with(batch, ACCOUNT, OWN).await?.ok_or(Error::NotLoggedIn)?;
        let Saved { user_id, device_id, olm, is_published, fallback_made_at_ms } = saved;
        Ok(Self { user_id, device_id, olm: olm.into(), is_published, fallback_made_at_ms })
    }

    /// Keeps what changed.
    pub(crate) fn save(&self, batch: &mut Batch) {
        let saving = Saving {
            user_id: &self.user_id,
            device_id: &self.device_id,
            olm: self.olm.pickle(),
            is_published: self.is_published,
            fallback_made_at_ms: self.fallback_made_at_ms,
        };
        batch.put(ACCOUNT, OWN, &saving);
    }

    /// Whose device it is.
    #[must_use]
    pub fn user_id(&self) -> &UserId {
        &self.user_id
    }

    /// Its name within its owner's devices.
    #[must_use]
    pub fn device_id(&self) -> &DeviceId {
        &self.device_id
    }

    /// Whether the server has its keys.
    pub(crate) fn is_published(&self) -> bool {
        self.is_published
    }

    /// The key that others know the device by in Olm.
    #[must_use]
    pub fn curve25519(&self) -> Curve25519PublicKey {
        self.olm.curve25519_key()
    }

    /// The key that the device signs by.
    #[must_use]
    pub fn ed25519(&self) -> Ed25519PublicKey {
        self.olm.ed25519_key()
    }

    /// The Olm account itself.
    pub(crate) fn olm(&mut self) -> &mut olm::Account {
        &mut self.olm
    }

    /// Adds this device's signature.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] when the object cannot be signed.
    pub fn sign(&self, object: &mut Object) -> Result<(), Error> {
        add_signature(object, self.user_id.as_str(), self.device_id.as_str(), |bytes| self.olm.sign(bytes))
    }

    /// What others learn of the device. Client-Server API, "Device keys".
    #[must_use]
    pub fn device_keys(&self) -> Object {
        self.signed(json!({
            "user_id": self.user_id,
            "device_id": self.device_id,
            "algorithms": [OLM, MEGOLM],
            "keys": {
                format!("curve25519:{}", self.device_id): self.curve25519().to_base64(),
                format!("ed25519:{}", self.device_id): self.ed25519().to_base64(),
            },
        }))
    }

    /// Makes the keys that the server lacks, unless some wait for their upload; forgets old ones.
    /// Client-Server API, "One-time and fallback keys".
    ///
    /// Returns whether anything changed.
    pub(crate) fn refill(&mut self, counts: KeyCounts, now_ms: u64) -> bool {
        let mut is_changed = false;
        let is_old = |made_at_ms| now_ms.saturating_sub(made_at_ms) >= OLD_FALLBACK_KEPT_MS;
        if self.fallback_made_at_ms.is_some_and(is_old) && !counts.has_messages {
            is_changed |= self.olm.forget_fallback_key();
        }
        // Two are kept, so another one drops the one before, by which messages may be under way.
        if self.olm.fallback_key().is_empty()
            && self.fallback_made_at_ms.is_none_or(|at_ms| is_old(at_ms) && counts.is_fallback_unused == Some(false))
        {
            self.olm.generate_fallback_key();
            self.fallback_made_at_ms = Some(now_ms);
            is_changed = true;
        }
        if self.olm.one_time_keys().is_empty() {
            let wanted = self.olm.max_number_of_one_time_keys();
            let missing = wanted.saturating_sub(usize::try_from(counts.one_time).unwrap_or(wanted));
            self.olm.generate_one_time_keys(missing);
            is_changed |= missing > 0;
        }
        is_changed
    }

    /// What the server was not given yet.
    #[must_use]
    pub(crate) fn to_upload(&self) -> Upload {
        let named = |id: vodozemac::KeyId| format!("signed_curve25519:{}", id.to_base64());
        let one_time = self.olm.one_time_keys().into_iter();
        let fallback = self.olm.fallback_key().into_iter();
        Upload {
            device_keys: (!self.is_published).then(|| Value::Object(self.device_keys())),
            one_time_keys: one_time
                .map(|(id, key)| (named(id), Value::Object(self.signed(json!({ "key": key.to_base64() })))))
                .collect(),
            fallback_keys: fallback
                .map(|(id, key)| {
                    (named(id), Value::Object(self.signed(json!({ "key": key.to_base64(), "fallback": true }))))
                })
                .collect(),
        }
    }

    /// The server has what [`to_upload`](Self::to_upload) gave.
    pub(crate) fn mark_uploaded(&mut self) {
        self.is_published = true;
        self.olm.mark_keys_as_published();
    }

    /// The server may have forgotten the device: everything is to be uploaded again.
    pub(crate) fn mark_forgotten(&mut self) {
        self.is_published = false;
    }

    fn signed(&self, value: Value) -> Object {
        let Value::Object(mut object) = value else { unreachable!("what we sign is an object") };
        self.sign(&mut object).expect("our own keys can be signed");
        object
    }
}

#[cfg(test)]
mod tests {
    use ruma::{device_id, user_id};

    use super::*;
    use crate::signatures::is_signed_by;

    fn account() -> Account {
        Account::new(user_id!("@alice:example.org").to_owned(), device_id!("PHONE").to_owned())
    }

    #[test]
    fn a_new_device_uploads_its_keys_fifty_one_time_keys_and_a_fallback_key_all_signed() {
        let mut account = account();
        assert!(account.refill(KeyCounts::default(), 0));
        let upload = account.to_upload();
        assert_eq!((upload.one_time_keys.len(), upload.fallback_keys.len()), (50, 1));
        assert_eq!(upload.fallback_keys[0].1["fallback"], true);
        let objects = upload
            .device_keys
            .iter()
            .chain(upload.one_time_keys.iter().chain(&upload.fallback_keys).map(|(_, key)| key));
        for object in objects {
            let object = object.as_object().unwrap();
            assert!(is_signed_by(object, "@alice:example.org", "PHONE", &account.ed25519()), "{object:?}");
        }
    }

    /// An upload that was cut off is made again with the same keys: others under the same ids would be refused.
    #[test]
    fn what_is_not_known_to_have_arrived_is_uploaded_again_unchanged() {
        let mut account = account();
        account.refill(KeyCounts::default(), 0);
        let sorted = |account: &Account| {
            let mut keys = account.to_upload().one_time_keys;
            keys.sort_by(|(a, _), (b, _)| a.cmp(b));
            keys
        };
        let first = sorted(&account);
        assert!(!account.refill(KeyCounts::default(), 1), "keys that wait are enough");
        assert_eq!(sorted(&account), first);
        account.mark_uploaded();
        assert!(account.to_upload().is_empty());
    }

    #[test]
    fn only_what_was_used_is_made_anew() {
        let mut account = account();
        account.refill(KeyCounts::default(), 0);
        account.mark_uploaded();
        let counts = |one_time, is_fallback_unused| KeyCounts {
            one_time,
            is_fallback_unused: Some(is_fallback_unused),
            has_messages: false,
        };
        assert!(!account.refill(counts(50, true), 1));
        assert!(account.refill(counts(47, true), 1));
        let upload = account.to_upload();
        assert_eq!((upload.one_time_keys.len(), upload.fallback_keys.len()), (3, 0));
        account.mark_uploaded();
        assert!(account.refill(counts(50, false), OLD_FALLBACK_KEPT_MS));
        assert_eq!(account.to_upload().fallback_keys.len(), 1);
    }

    /// Client-Server API, "Uploading keys": a fallback key must not decrypt the past for ever.
    #[test]
    fn the_fallback_key_before_the_present_one_is_forgotten_after_an_hour() {
        let mut account = account();
        account.refill(KeyCounts::default(), 0);
        account.mark_uploaded();
        let used = KeyCounts { one_time: 50, is_fallback_unused: Some(false), has_messages: false };
        let unused = KeyCounts { is_fallback_unused: Some(true), ..used };
        account.refill(used, OLD_FALLBACK_KEPT_MS);
        account.mark_uploaded();
        assert!(!account.refill(unused, 2 * OLD_FALLBACK_KEPT_MS - 1));
        let busy = KeyCounts { has_messages: true, ..unused };
        assert!(!account.refill(busy, 2 * OLD_FALLBACK_KEPT_MS), "there may be messages that used it");
        assert!(account.refill(unused, 2 * OLD_FALLBACK_KEPT_MS));
        assert!(!account.refill(unused, 2 * OLD_FALLBACK_KEPT_MS + 1));
    }

    /// Client-Server API, "Uploading keys", the warning: a third key would drop the first, which may have been used a moment ago.
    #[test]
    fn a_fallback_key_serves_for_an_hour_however_often_it_is_used() {
        let mut account = account();
        account.refill(KeyCounts::default(), 0);
        account.mark_uploaded();
        let used = KeyCounts { one_time: 50, is_fallback_unused: Some(false), has_messages: false };
        assert!(!account.refill(used, OLD_FALLBACK_KEPT_MS - 1));
        assert!(account.refill(used, OLD_FALLBACK_KEPT_MS));
        account.mark_uploaded();
        assert!(!account.refill(used, OLD_FALLBACK_KEPT_MS + 1));
    }
}
