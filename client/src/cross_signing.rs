//! The identity of a user: three keys that say which devices are theirs and whom they have verified. Client-Server API, "Cross-signing".
//!
//! The *master key* is the identity. It signs the *self-signing key*, which signs the user's own devices, and the *user-signing key*, which
//! signs the master keys of others. Only the master key has to be compared by people; everything else follows from signatures.
//!
//! [`PublicKeys`] are checked before they exist. [`Identity`] is what this device remembers of a user: the master key that it saw first is
//! *pinned*; when the server comes with another one the identity has *changed*, and stays so until somebody looks at it.

use ruma::{OwnedUserId, UserId, encryption::KeyUsage};
use serde::{Deserialize, Serialize};
use vodozemac::{Ed25519PublicKey, Ed25519SecretKey};
use zeroize::Zeroizing;

use crate::{
    Error,
    secret_storage::names,
    signatures::{Object, add_signature, check_bounds, ed25519_key, is_signed_by},
};

/// A public cross-signing key, as it was published, whose form was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicKey {
    /// The object, with its signatures.
    pub object: Object,
    /// The key in it.
    pub key: Ed25519PublicKey,
}

impl PublicKey {
    /// Checks that the object is `user_id`'s key for `usage`, and that it goes by its own name.
    fn check(user_id: &UserId, usage: KeyUsage, mut object: Object) -> Result<Self, Error> {
        // Nobody signed it.
        object.remove("unsigned");
        check_bounds(&object)?;
        if object.get("user_id").and_then(|value| value.as_str()) != Some(user_id.as_str()) {
            return Err(Error::Forged("a cross-signing key belongs to another user"));
        }
        let usages = object.get("usage").and_then(|value| value.as_array());
        if !usages.is_some_and(|usages| usages.iter().any(|value| value.as_str() == Some(usage.as_str()))) {
            return Err(Error::Forged("a cross-signing key is made for another use"));
        }
        let keys = object.get("keys").and_then(|value| value.as_object());
        let (Some((id, key)), 1) = (keys.and_then(|keys| keys.iter().next()), keys.map_or(0, |keys| keys.len())) else {
            return Err(Error::Forged("a cross-signing key is not a single key"));
        };
        let text = key.as_str().unwrap_or_default();
        if id.strip_prefix("ed25519:") != Some(text) {
            return Err(Error::Forged("a cross-signing key goes by another name"));
        }
        let key = ed25519_key(text)?;
        Ok(Self { object, key })
    }

    /// Its name, which is the key itself.
    #[must_use]
    pub fn name(&self) -> String {
        self.key.to_base64()
    }

    fn signs(&self, user_id: &UserId, object: &Object) -> bool {
        is_signed_by(object, user_id.as_str(), &self.name(), &self.key)
    }
}

/// The public keys of a user. The master key signed the other two.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicKeys {
    user_id: OwnedUserId,
    /// The identity.
    pub master: PublicKey,
    /// Signs the user's devices.
    pub self_signing: Option<PublicKey>,
    /// Signs other users. Shown to its owner only.
    pub user_signing: Option<PublicKey>,
}

impl PublicKeys {
    /// Checks what a server says are `user_id`'s keys.
    ///
    /// # Errors
    ///
    /// [`Error::Forged`] when one of them is of another form, user or use, or not signed by the master key: none is believed then.
    pub fn check(
        user_id: &UserId,
        master: Object,
        self_signing: Option<Object>,
        user_signing: Option<Object>,
    ) -> Result<Self, Error> {
        let master = PublicKey::check(user_id, KeyUsage::Master, master)?;
        let signed = |usage, object: Option<Object>| {
            let Some(object) = object else { return Ok(None) };
            let key = PublicKey::check(user_id, usage, object)?;
            if !master.signs(user_id, &key.object) {
                return Err(Error::Forged("a cross-signing key is not signed by its master key"));
            }
            Ok(Some(key))
        };
        let self_signing = signed(KeyUsage::SelfSigning, self_signing)?;
        let user_signing = signed(KeyUsage::UserSigning, user_signing)?;
        Ok(Self { user_id: user_id.to_owned(), master, self_signing, user_signing })
    }

    /// Whose keys they are.
    #[must_use]
    pub fn user_id(&self) -> &UserId {
        &self.user_id
    }

    /// Whether the user themselves say that this device is theirs: their self-signing key signed its keys.
    #[must_use]
    pub fn sign_device(&self, device_keys: &Object) -> bool {
        self.self_signing.as_ref().is_some_and(|key| key.signs(&self.user_id, device_keys))
    }

    /// Whether the user verified the owner of this master key: their user-signing key signed it.
    #[must_use]
    pub fn sign_user(&self, master: &PublicKey) -> bool {
        self.user_signing.as_ref().is_some_and(|key| key.signs(&self.user_id, &master.object))
    }

    /// Whether one of the devices goes by the name of one of these keys, as only a server that cheats lets it. Such a user must not be
    /// verified. "Key and signature security".
    #[must_use]
    pub fn collide_with<'a>(&self, mut device_ids: impl Iterator<Item = &'a str>) -> bool {
        let names: Vec<_> = [Some(&self.master), self.self_signing.as_ref(), self.user_signing.as_ref()]
            .into_iter()
            .flatten()
            .map(PublicKey::name)
            .collect();
        device_ids.any(|device_id| names.iter().any(|name| name == device_id))
    }
}

/// What this device remembers of a user's identity.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Identity {
    /// The keys that the server shows now.
    pub keys: PublicKeys,
    /// The master key that counts as the user's: the first one seen, or the one accepted since.
    pinned: Ed25519PublicKey,
    /// The master key that this device knows from a verification, of the user's own identity from its private key.
    verified: Option<Ed25519PublicKey>,
    /// Whether a pinned key was ever verified: the loss of that must not pass in silence.
    was_verified: bool,
}

/// How far a user's identity is to be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum IdentityTrust {
    /// People compared it, here or on another verified device of ours.
    Verified,
    /// Nobody compared it, but it is the one that was seen first.
    Pinned,
    /// The server shows another master key than before, or does not show any more that we verified it. Nothing that it signs counts until
    /// somebody verifies or accepts it.
    Changed {
        /// The former one was verified: the stronger reason to be careful.
        was_verified: bool,
    },
}

impl Identity {
    /// Remembers a user who was not known.
    #[must_use]
    pub fn first_seen(keys: PublicKeys) -> Self {
        Self { pinned: keys.master.key, keys, verified: None, was_verified: false }
    }

    /// Takes what the server shows now; true when the master key is another one.
    ///
    /// # Errors
    ///
    /// [`Error::Forged`] when the keys are another user's.
    pub fn update(&mut self, keys: PublicKeys) -> Result<bool, Error> {
        if keys.user_id != self.keys.user_id {
            return Err(Error::Forged("a cross-signing key belongs to another user"));
        }
        let changed = keys.master.key != self.keys.master.key;
        self.keys = keys;
        Ok(changed)
    }

    /// How far the identity is to be believed. `own` is that of the user of this device; it may be the same.
    #[must_use]
    pub fn trust(&self, own: Option<&Self>) -> IdentityTrust {
        if self.is_verified(own) {
            IdentityTrust::Verified
        } else if self.keys.master.key == self.pinned && !self.was_verified {
            IdentityTrust::Pinned
        } else {
            IdentityTrust::Changed { was_verified: self.was_verified }
        }
    }

    /// The user and master key, if people compared it on this device.
    #[must_use]
    pub fn verified_here(&self) -> Option<(OwnedUserId, PublicKey)> {
        let master = &self.keys.master;
        (self.verified == Some(master.key)).then(|| (self.keys.user_id.clone(), master.clone()))
    }

    fn is_verified(&self, own: Option<&Self>) -> bool {
        if self.verified == Some(self.keys.master.key) {
            return true;
        }
        // Somebody else's identity, which our own and verified one vouches for.
        own.is_some_and(|own| {
            own.keys.user_id != self.keys.user_id
                && own.verified == Some(own.keys.master.key)
                && own.keys.sign_user(&self.keys.master)
        })
    }

    /// Keeps in mind that the identity is verified now, so that its loss is noticed; true when that is news.
    pub fn note_verified(&mut self, own: Option<&Self>) -> bool {
        if !self.is_verified(own) || (self.was_verified && self.pinned == self.keys.master.key) {
            return false;
        }
        self.pinned = self.keys.master.key;
        self.was_verified = true;
        true
    }

    /// Verifies the identity: `master` is what people compared, or what a private key that is ours belongs to.
    ///
    /// # Errors
    ///
    /// [`Error::Forged`] when the server shows another one meanwhile.
    pub fn verify(&mut self, master: &Ed25519PublicKey) -> Result<(), Error> {
        if *master != self.keys.master.key {
            return Err(Error::Forged("the master key changed during its verification"));
        }
        self.verified = Some(*master);
        self.pinned = *master;
        self.was_verified = true;
        Ok(())
    }

    /// Accepts a changed identity without verifying it: from now on it is the pinned one.
    pub fn accept(&mut self) {
        self.pinned = self.keys.master.key;
        self.verified = self.verified.filter(|key| *key == self.pinned);
        self.was_verified = self.verified.is_some();
    }

    /// Whether the device belongs to its user, as far as the user's identity is to be believed.
    #[must_use]
    pub fn vouches_for(&self, device_keys: &Object, own: Option<&Self>) -> bool {
        !matches!(self.trust(own), IdentityTrust::Changed { .. }) && self.keys.sign_device(device_keys)
    }
}

/// The private keys of the user of this device, as far as the device has them.
#[derive(Default, Serialize, Deserialize)]
pub struct PrivateKeys {
    master: Option<Ed25519SecretKey>,
    self_signing: Option<Ed25519SecretKey>,
    user_signing: Option<Ed25519SecretKey>,
}

impl std::fmt::Debug for PrivateKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let present = |key: &Option<Ed25519SecretKey>| key.is_some();
        f.debug_struct("PrivateKeys")
            .field("master", &present(&self.master))
            .field("self_signing", &present(&self.self_signing))
            .field("user_signing", &present(&self.user_signing))
            .finish()
    }
}

impl PrivateKeys {
    /// Makes a new identity.
    #[must_use]
    pub fn generate() -> Self {
        let key = || Some(Ed25519SecretKey::new());
        Self { master: key(), self_signing: key(), user_signing: key() }
    }

    /// The public keys of an identity whose private keys are all here, to be published; `sign_as_device` signs the master key by the device
    /// that made it.
    ///
    /// # Errors
    ///
    /// [`Error::NoIdentity`] when a private key is missing.
    pub fn publish(
        &self,
        user_id: &UserId,
        sign_as_device: impl FnOnce(&mut Object) -> Result<(), Error>,
    ) -> Result<PublicKeys, Error> {
        let master = self.master.as_ref().ok_or(Error::NoIdentity)?;
        let object = |usage: KeyUsage, key: &Ed25519SecretKey| {
            let public = key.public_key().to_base64();
            let object = serde_json::json!({
                "user_id": user_id, "usage": [usage], "keys": { (format!("ed25519:{public}")): public },
            });
            let serde_json::Value::Object(object) = object else { unreachable!("it is written as an object") };
            object
        };
        let signed = |usage: KeyUsage, key: &Option<Ed25519SecretKey>| {
            let mut object = object(usage, key.as_ref().ok_or(Error::NoIdentity)?);
            let name = master.public_key().to_base64();
            add_signature(&mut object, user_id.as_str(), &name, |bytes| master.sign(bytes))?;
            Ok::<_, Error>(object)
        };
        let mut master_object = object(KeyUsage::Master, master);
        sign_as_device(&mut master_object)?;
        PublicKeys::check(
            user_id,
            master_object,
            Some(signed(KeyUsage::SelfSigning, &self.self_signing)?),
            Some(signed(KeyUsage::UserSigning, &self.user_signing)?),
        )
    }

    /// The private keys that are here by the names of their secrets, for secret storage and the user's other devices.
    pub fn secrets(&self) -> impl Iterator<Item = (&'static str, Zeroizing<String>)> {
        [
            (names::MASTER, &self.master),
            (names::SELF_SIGNING, &self.self_signing),
            (names::USER_SIGNING, &self.user_signing),
        ]
        .into_iter()
        .filter_map(|(name, key)| Some((name, Zeroizing::new(key.as_ref()?.to_base64()))))
    }

    /// Takes a private key over that another device or secret storage gave. It counts only when it belongs to the public key of that
    /// name which the server shows for us.
    ///
    /// # Errors
    ///
    /// [`Error::Forged`] when it belongs to another public key.
    pub fn import(&mut self, name: &str, secret: &str, keys: &PublicKeys) -> Result<(), Error> {
        let (place, public) = match name {
            names::MASTER => (&mut self.master, Some(&keys.master)),
            names::SELF_SIGNING => (&mut self.self_signing, keys.self_signing.as_ref()),
            names::USER_SIGNING => (&mut self.user_signing, keys.user_signing.as_ref()),
            _ => return Err(Error::Forged("a secret of this name is no cross-signing key")),
        };
        let bytes: ruma::serde::Base64<ruma::serde::base64::Standard, [u8; 32]> = ruma::serde::Base64::parse(secret)
            .map_err(|_| Error::Forged("a private cross-signing key has another form"))?;
        let key = Ed25519SecretKey::from_slice(&Zeroizing::new(bytes.into_inner()));
        if public.map(|public| public.key) != Some(key.public_key()) {
            return Err(Error::Forged("a private cross-signing key does not belong to the public one"));
        }
        *place = Some(key);
        Ok(())
    }

    /// Whether the private keys of `keys` are here, as far as they are needed to sign devices and users.
    #[must_use]
    pub fn belong_to(&self, keys: &PublicKeys) -> bool {
        let same = |private: &Option<Ed25519SecretKey>, public: Option<&PublicKey>| matches!((private, public), (Some(private), Some(public)) if private.public_key() == public.key);
        same(&self.self_signing, keys.self_signing.as_ref()) && same(&self.user_signing, keys.user_signing.as_ref())
    }

    /// The public key of the private master key, if that is here.
    #[must_use]
    pub fn master_key(&self) -> Option<Ed25519PublicKey> {
        self.master.as_ref().map(Ed25519SecretKey::public_key)
    }

    /// Whether this is the private key of that master key: then the identity is ours, whatever a server says.
    #[must_use]
    pub fn own(&self, master: &PublicKey) -> bool {
        self.master_key() == Some(master.key)
    }

    /// Signs the keys of a device of the user's own, for `/keys/signatures/upload`.
    ///
    /// # Errors
    ///
    /// [`Error::NoIdentity`] when the self-signing key is not here.
    pub fn sign_device(&self, user_id: &UserId, device_keys: &Object) -> Result<Object, Error> {
        sign(self.self_signing.as_ref(), user_id, device_keys)
    }

    /// Signs the master key of another user who was verified, for `/keys/signatures/upload`.
    ///
    /// # Errors
    ///
    /// [`Error::NoIdentity`] when the user-signing key is not here.
    pub fn sign_user(&self, user_id: &UserId, master: &Object) -> Result<Object, Error> {
        sign(self.user_signing.as_ref(), user_id, master)
    }

    /// Signs something else with the master key: what a backup says of itself.
    ///
    /// # Errors
    ///
    /// [`Error::NoIdentity`] when the master key is not here.
    pub fn sign_with_master(&self, user_id: &UserId, object: &mut Object) -> Result<(), Error> {
        let key = self.master.as_ref().ok_or(Error::NoIdentity)?;
        add_signature(object, user_id.as_str(), &key.public_key().to_base64(), |bytes| key.sign(bytes))
    }
}

/// The object with our signature alone: the server has the others, and may not show ours to everybody.
fn sign(key: Option<&Ed25519SecretKey>, user_id: &UserId, object: &Object) -> Result<Object, Error> {
    let key = key.ok_or(Error::NoIdentity)?;
    let mut object = object.clone();
    object.remove("signatures");
    object.remove("unsigned");
    add_signature(&mut object, user_id.as_str(), &key.public_key().to_base64(), |bytes| key.sign(bytes))?;
    Ok(object)
}

#[cfg(test)]
mod tests {
    use ruma::user_id;
    use serde_json::{Value, json};

    use super::*;

    fn alice() -> &'static UserId {
        user_id!("@alice:x")
    }

    fn bob() -> &'static UserId {
        user_id!("@bob:x")
    }

    fn identity(user_id: &UserId) -> (PrivateKeys, Identity) {
        let private = PrivateKeys::generate();
        let keys = private.publish(user_id, |_| Ok(())).expect("all keys are here");
        (private, Identity::first_seen(keys))
    }

    /// As keys come from a server.
    fn shown(keys: &PublicKeys) -> Result<PublicKeys, Error> {
        let object = |key: &Option<PublicKey>| key.as_ref().map(|key| key.object.clone());
        PublicKeys::check(
            keys.user_id(),
            keys.master.object.clone(),
            object(&keys.self_signing),
            object(&keys.user_signing),
        )
    }

    fn device_keys(user_id: &UserId) -> Object {
        json!({ "user_id": user_id, "device_id": "D", "keys": { "ed25519:D": "key" } })
            .as_object()
            .expect("an object")
            .clone()
    }

    #[test]
    fn what_is_published_passes_the_check_and_carries_the_devices_signature() {
        let (private, device) = (PrivateKeys::generate(), Ed25519SecretKey::new());
        let keys = private
            .publish(alice(), |object| add_signature(object, "@alice:x", "DEVICE", |bytes| device.sign(bytes)))
            .expect("all keys are here");
        assert_eq!(shown(&keys).expect("they are right"), keys);
        assert!(is_signed_by(&keys.master.object, "@alice:x", "DEVICE", &device.public_key()));
        assert!(private.own(&keys.master) && private.belong_to(&keys));
    }

    #[test]
    fn keys_that_a_server_changed_are_refused() {
        let (_, alice_identity) = identity(alice());
        let (_, other) = identity(alice());
        let keys = &alice_identity.keys;
        let with = |change: &dyn Fn(&mut PublicKeys)| {
            let mut keys = keys.clone();
            change(&mut keys);
            shown(&keys)
        };
        assert!(with(&|_| {}).is_ok());
        let changes: [&dyn Fn(&mut PublicKeys); 9] = [
            &|keys| keys.self_signing = other.keys.self_signing.clone(),
            &|keys| keys.user_signing = other.keys.user_signing.clone(),
            &|keys| keys.master = other.keys.master.clone(),
            &|keys| keys.self_signing = keys.user_signing.clone(),
            &|keys| _ = keys.self_signing.as_mut().and_then(|key| key.object.remove("signatures")),
            &|keys| _ = keys.master.object.insert("user_id".to_owned(), "@bob:x".into()),
            &|keys| _ = keys.master.object.insert("usage".to_owned(), json!(["self_signing"])),
            &|keys| _ = keys.master.object.insert("keys".to_owned(), json!({ "ed25519:other": keys.master.name() })),
            &|keys| keys.master.object["keys"]["ed25519:more"] = "more".into(),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            assert!(matches!(with(change), Err(Error::Forged(_))), "change {number}");
        }
        for odd in [json!(null), json!([]), json!({ "ed25519:": "" }), json!({ "ed25519:A": "A" }), json!({ "a": 1 })] {
            assert!(with(&|keys| _ = keys.master.object.insert("keys".to_owned(), odd.clone())).is_err(), "{odd}");
        }
    }

    #[test]
    fn a_user_is_verified_by_the_signature_of_our_verified_identity_only() {
        let (private, mut own) = identity(alice());
        let (_, mut others) = identity(bob());
        assert_eq!(others.trust(Some(&own)), IdentityTrust::Pinned);
        let signed = private.sign_user(alice(), &others.keys.master.object).expect("the key is here");
        let mut keys = others.keys.clone();
        keys.master.object = signed;
        assert!(!others.update(shown(&keys).expect("they are right")).expect("they are the same user's"));
        assert_eq!(others.trust(Some(&own)), IdentityTrust::Pinned, "our own identity is not verified");
        own.verify(&own.keys.master.key.clone()).expect("it is this one");
        assert_eq!(others.trust(Some(&own)), IdentityTrust::Verified);
        assert_eq!(others.trust(None), IdentityTrust::Pinned);
        let (_, mut stranger) = identity(alice());
        stranger.verify(&stranger.keys.master.key.clone()).expect("it is this one");
        assert_eq!(others.trust(Some(&stranger)), IdentityTrust::Pinned, "another identity signed it");
    }

    #[test]
    fn an_identity_that_the_server_replaces_is_not_trusted_until_somebody_looked() {
        let (_, mut others) = identity(bob());
        let (private, replacement) = identity(bob());
        let device = private.sign_device(bob(), &device_keys(bob())).expect("the key is here");
        assert!(others.update(replacement.keys.clone()).expect("it is the same user's"));
        assert_eq!(others.trust(None), IdentityTrust::Changed { was_verified: false });
        assert!(others.keys.sign_device(&device) && !others.vouches_for(&device, None));
        // As after a restart.
        let mut others: Identity =
            serde_json::from_value(serde_json::to_value(&others).expect("it is written")).expect("it is read");
        assert_eq!(others.trust(None), IdentityTrust::Changed { was_verified: false });
        others.accept();
        assert_eq!(others.trust(None), IdentityTrust::Pinned);
        assert!(others.vouches_for(&device, None));
    }

    #[test]
    fn a_verified_identity_that_is_replaced_stays_noticed_until_it_is_accepted() {
        let (private, mut own) = identity(alice());
        own.verify(&own.keys.master.key.clone()).expect("it is this one");
        let (_, mut others) = identity(bob());
        let mut keys = others.keys.clone();
        keys.master.object = private.sign_user(alice(), &keys.master.object).expect("the key is here");
        others.update(keys.clone()).expect("they are the same user's");
        assert!(others.note_verified(Some(&own)));
        assert!(!others.note_verified(Some(&own)), "it is no news any more");
        let (_, replacement) = identity(bob());
        others.update(replacement.keys).expect("they are the same user's");
        assert!(!others.note_verified(Some(&own)));
        assert_eq!(others.trust(Some(&own)), IdentityTrust::Changed { was_verified: true });
        // The server takes our signature away, too: that does not make it better.
        keys.master.object.remove("signatures");
        others.update(keys).expect("they are the same user's");
        assert_eq!(others.trust(Some(&own)), IdentityTrust::Changed { was_verified: true });
        others.accept();
        assert_eq!(others.trust(Some(&own)), IdentityTrust::Pinned);
    }

    #[test]
    fn a_replaced_identity_of_our_own_is_not_verified_and_verifies_nobody() {
        let (_, mut own) = identity(alice());
        own.verify(&own.keys.master.key.clone()).expect("it is this one");
        let (private, replacement) = identity(alice());
        let compared = own.keys.master.key;
        own.update(replacement.keys).expect("they are the same user's");
        assert_eq!(own.trust(Some(&own)), IdentityTrust::Changed { was_verified: true });
        assert!(matches!(own.verify(&compared), Err(Error::Forged(_))), "what was compared is not what is shown");
        let (_, mut others) = identity(bob());
        others.keys.master.object = private.sign_user(alice(), &others.keys.master.object).expect("the key is here");
        assert_eq!(others.trust(Some(&own)), IdentityTrust::Pinned);
    }

    #[test]
    fn a_device_belongs_to_its_user_by_the_self_signing_key() {
        let (private, others) = identity(bob());
        let (stranger, _) = identity(bob());
        let device = device_keys(bob());
        assert!(!others.vouches_for(&device, None));
        assert!(others.vouches_for(&private.sign_device(bob(), &device).expect("the key is here"), None));
        assert!(!others.vouches_for(&stranger.sign_device(bob(), &device).expect("the key is here"), None));
        assert!(
            !others.vouches_for(&private.sign_user(bob(), &device).expect("the key is here"), None),
            "the user-signing key signs no devices"
        );
        let mut changed = private.sign_device(bob(), &device).expect("the key is here");
        changed["keys"]["ed25519:D"] = "another".into();
        assert!(!others.vouches_for(&changed, None));
    }

    #[test]
    fn private_keys_travel_as_secrets_and_are_taken_only_for_our_public_ones() {
        let (private, own) = identity(alice());
        let (_, stranger) = identity(alice());
        let mut other_device = PrivateKeys::default();
        for (name, secret) in private.secrets() {
            assert!(matches!(other_device.import(name, &secret, &stranger.keys), Err(Error::Forged(_))));
            assert!(!other_device.belong_to(&own.keys), "{name} is still missing");
            other_device.import(name, &secret, &own.keys).expect("it belongs to it");
        }
        assert!(other_device.own(&own.keys.master) && other_device.belong_to(&own.keys));
        let (_, secret) = private.secrets().next().expect("there are keys");
        assert!(other_device.import(names::BACKUP, &secret, &own.keys).is_err());
        assert!(other_device.import(names::MASTER, "", &own.keys).is_err());
        assert!(other_device.import(names::MASTER, &"A".repeat(44), &own.keys).is_err());
        assert_eq!(format!("{private:?}"), "PrivateKeys { master: true, self_signing: true, user_signing: true }");
    }

    #[test]
    fn a_device_that_goes_by_the_name_of_a_key_is_noticed() {
        let (_, others) = identity(bob());
        let name = others.keys.master.name();
        assert!(others.keys.collide_with(["D", &name].into_iter()));
        assert!(!others.keys.collide_with(["D", "E"].into_iter()));
    }

    #[test]
    fn an_upload_carries_our_signature_alone() {
        let (private, own) = identity(alice());
        let mut device = device_keys(alice());
        device.insert("signatures".to_owned(), json!({ "@alice:x": { "ed25519:D": "other" } }));
        device.insert("unsigned".to_owned(), json!({ "device_display_name": "phone" }));
        let signed = private.sign_device(alice(), &device).expect("the key is here");
        let names: Vec<_> = signed["signatures"]
            .as_object()
            .and_then(|all| all["@alice:x"].as_object())
            .into_iter()
            .flat_map(Object::keys)
            .collect();
        let name = own.keys.self_signing.as_ref().expect("it was made").name();
        assert_eq!(names, [&format!("ed25519:{name}")]);
        assert_eq!(signed.get("unsigned"), None::<&Value>);
    }
}
