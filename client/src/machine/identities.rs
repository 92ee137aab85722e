//! The identities of users as the server shows them, and the private keys of our own. Client-Server API, "Cross-signing".
//!
//! All identities are in memory, since every look at a device asks for its owner's; what is in memory is what is durable.

use std::collections::BTreeMap;

use ruma::{DeviceId, OwnedUserId, UserId, api::client::keys::get_keys, encryption::CrossSigningKey, serde::Raw};
use vodozemac::Ed25519PublicKey;
use zeroize::Zeroizing;

use super::{Machine, Work};
use crate::{
    Batch, Error, Kind, Store,
    account::Account,
    cross_signing::{Identity, IdentityTrust, PrivateKeys, PublicKeys},
    devices::{DEVICES, Device, LocalTrust},
    events::Event,
    secret_sharing::Requests,
    signatures::{Object, is_signed_by},
    verification::Party,
};

/// [`Identity`]s by user.
const IDENTITIES: Kind = Kind("identities");
/// [`PrivateKeys`]: those in use, and those of an identity that is about to be published.
const PRIVATE_KEYS: Kind = Kind("private cross-signing keys");
const OWN: &str = "own";
const NEXT: &str = "next";
/// Keys with our signature that the server is to be given, by user and key.
const SIGNATURES: Kind = Kind("signatures");
/// [`Requests`] of secrets.
const REQUESTS: Kind = Kind("requested secrets");

/// The identities that were seen.
#[derive(Debug)]
pub(super) struct Identities {
    own_user: OwnedUserId,
    known: BTreeMap<OwnedUserId, Identity>,
}

impl Identities {
    pub(super) async fn load(store: &Store, own_user: OwnedUserId) -> Result<Self, Error> {
        let known = store.list::<Identity>(IDENTITIES).await?.into_values();
        Ok(Self { own_user, known: known.map(|identity| (identity.keys.user_id().to_owned(), identity)).collect() })
    }

    pub(super) fn own(&self) -> Option<&Identity> {
        self.known.get(&self.own_user)
    }

    /// What became durable.
    pub(super) fn committed(&mut self, changed: BTreeMap<OwnedUserId, Identity>) {
        self.known.extend(changed);
    }

    /// Whether the device's owner says that it is theirs, by an identity that did not change.
    pub(super) fn vouch_for(&self, device: &Device) -> bool {
        let owner = self.known.get(&device.user_id);
        owner.is_some_and(|identity| identity.vouches_for(&device.keys, self.own()))
    }

    /// Whether the device's owner is verified and says that it is theirs.
    pub(super) fn verify(&self, device: &Device) -> bool {
        self.known.get(&device.user_id).is_some_and(|identity| {
            identity.trust(self.own()) == IdentityTrust::Verified && identity.vouches_for(&device.keys, self.own())
        })
    }
}

/// A key with our signature, for `/keys/signatures/upload`.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Signed {
    /// Whose key it is.
    pub user_id: OwnedUserId,
    /// The device's id, or the master key.
    pub name: String,
    /// The key.
    pub object: Object,
}

impl Machine {
    /// What is known of a user's identity.
    pub(crate) fn identity(&self, user_id: &UserId) -> Option<&Identity> {
        self.identities.known.get(user_id)
    }

    /// How far a user's identity is to be believed.
    pub(crate) fn identity_trust(&self, user_id: &UserId) -> Option<IdentityTrust> {
        self.identity(user_id).map(|identity| identity.trust(self.identities.own()))
    }

    /// Takes over the identity that the server shows for a user.
    pub(super) async fn learn_identity(
        &self,
        work: &mut Work,
        user_id: &UserId,
        answer: &get_keys::v3::Response,
    ) -> Result<(), Error> {
        // A server that shows none takes nothing away.
        let Some(master) = answer.master_keys.get(user_id).and_then(object) else { return Ok(()) };
        let self_signing = answer.self_signing_keys.get(user_id).and_then(object);
        let user_signing = answer.user_signing_keys.get(user_id).and_then(object).filter(|_| *user_id == self.user_id);
        let keys = match PublicKeys::check(user_id, master, self_signing, user_signing) {
            Ok(keys) => keys,
            Err(error) => {
                tracing::warn!(user.id = %user_id, %error, "an identity is not believed");
                return Ok(());
            }
        };
        let mut identity = match self.identity(user_id) {
            None => Identity::first_seen(keys),
            Some(known) if known.keys == keys => return Ok(()),
            Some(known) => {
                let mut identity = known.clone();
                if identity.update(keys)? {
                    work.events.push(Event::IdentityChanged { user_id: user_id.to_owned() });
                }
                identity
            }
        };
        if *user_id == self.user_id {
            let private = self.private_keys().await?;
            if private.own(&identity.keys.master) {
                let master = identity.keys.master.key;
                identity.verify(&master)?;
            }
        }
        let own = (*user_id != self.user_id).then(|| self.identities.own()).flatten();
        identity.note_verified(own);
        self.keep_identity(work, identity);
        Ok(())
    }

    fn keep_identity(&self, work: &mut Work, identity: Identity) {
        let user_id = identity.keys.user_id().to_owned();
        work.batch.put(IDENTITIES, user_id.as_str(), &identity);
        work.identities.insert(user_id, identity);
    }

    /// Keeps that our own identity is the one with this master key, and so whom it vouches for.
    fn verify_own(&self, work: &mut Work, master: &Ed25519PublicKey) -> Result<(), Error> {
        let mut own = self.identities.own().cloned().ok_or(Error::NoIdentity)?;
        own.verify(master)?;
        for identity in self.identities.known.values().filter(|identity| identity.keys.user_id() != self.user_id) {
            let mut identity = identity.clone();
            if identity.note_verified(Some(&own)) {
                self.keep_identity(work, identity);
            }
        }
        self.keep_identity(work, own);
        Ok(())
    }

    /// Accepts the identity that the server shows for a user, though nobody compared it.
    pub(crate) async fn accept_identity(&mut self, user_id: &UserId) -> Result<(), Error> {
        let mut work = Work::default();
        let mut identity = self.identity(user_id).cloned().ok_or(Error::NoIdentity)?;
        identity.accept();
        self.keep_identity(&mut work, identity);
        self.commit(work).await.map(drop)
    }

    /// The private keys of our own identity, as far as this device has them.
    pub(crate) async fn private_keys(&self) -> Result<PrivateKeys, Error> {
        Ok(self.store.get(PRIVATE_KEYS, OWN).await?.unwrap_or_default())
    }

    /// A new identity to be published. It is durable: whatever happens on the way, publishing it again publishes the same.
    pub(crate) async fn next_identity(&mut self) -> Result<PublicKeys, Error> {
        let private = match self.store.get::<PrivateKeys>(PRIVATE_KEYS, NEXT).await? {
            Some(private) => private,
            None => {
                let private = PrivateKeys::generate();
                let mut batch = Batch::new();
                batch.put(PRIVATE_KEYS, NEXT, &private);
                self.store.commit(batch).await?;
                private
            }
        };
        let account = Account::load(&self.store, &Batch::new()).await?;
        private.publish(&self.user_id, |object| account.sign(object))
    }

    /// The master key of the identity that is being published, if one is.
    pub(crate) async fn next_master(&self) -> Result<Option<Ed25519PublicKey>, Error> {
        Ok(self.store.get::<PrivateKeys>(PRIVATE_KEYS, NEXT).await?.and_then(|private| private.master_key()))
    }

    /// The server has the new identity: it is ours from now on, and signs this device.
    pub(crate) async fn identity_published(&mut self, keys: PublicKeys) -> Result<(), Error> {
        let private: PrivateKeys = self.store.get(PRIVATE_KEYS, NEXT).await?.ok_or(Error::NoIdentity)?;
        let master = keys.master.key;
        let mut own = match self.identities.own() {
            Some(known) => {
                let mut own = known.clone();
                own.update(keys)?;
                own
            }
            None => Identity::first_seen(keys),
        };
        own.verify(&master)?;
        let mut work = Work::default();
        work.batch.put(PRIVATE_KEYS, OWN, &private);
        work.batch.delete(PRIVATE_KEYS, NEXT);
        self.keep_identity(&mut work, own);
        self.sign_own_device(&mut work, &private).await?;
        // Whom this device verified before it vouches for again.
        let verified: Vec<_> = self.identities.known.values().filter_map(Identity::verified_here).collect();
        for (user_id, master) in verified {
            if user_id == self.user_id {
                continue;
            }
            let object = private.sign_user(&self.user_id, &master.object)?;
            self.keep_signature(&mut work, Signed { user_id, name: master.name(), object });
        }
        self.commit(work).await.map(drop)
    }

    /// Takes private keys over that secret storage or another device of ours gave, as far as they belong to our identity. `anchored` says that
    /// whoever has the private master key has the identity: then it is verified, which else it must be already.
    ///
    /// # Errors
    ///
    /// [`Error::Forged`] when one belongs to another public key, [`Error::NoIdentity`] when there is none or it is not verified.
    pub(crate) async fn import_private_keys(
        &mut self,
        secrets: &[(&str, Zeroizing<String>)],
        anchored: bool,
    ) -> Result<(), Error> {
        let keys = self.identities.own().ok_or(Error::NoIdentity)?.keys.clone();
        let mut private = self.private_keys().await?;
        for (name, secret) in secrets {
            private.import(name, secret, &keys)?;
        }
        let mut work = Work::default();
        if anchored && private.own(&keys.master) {
            self.verify_own(&mut work, &keys.master.key)?;
        } else if self.identity_trust(&self.user_id) != Some(IdentityTrust::Verified) {
            return Err(Error::NoIdentity);
        }
        work.batch.put(PRIVATE_KEYS, OWN, &private);
        self.sign_own_device(&mut work, &private).await?;
        self.commit(work).await.map(drop)
    }

    /// The device logged in again: the server may have forgotten its keys together with its session, and our identity's signature with them.
    pub(crate) async fn publish_again(&mut self) -> Result<(), Error> {
        let mut work = Work::default();
        work.account(&self.store).await?.mark_forgotten();
        let private = self.private_keys().await?;
        self.sign_own_device(&mut work, &private).await?;
        self.key_counts = None;
        self.commit(work).await.map(drop)
    }

    /// Signs this device by our identity, if its key is here.
    async fn sign_own_device(&mut self, work: &mut Work, private: &PrivateKeys) -> Result<(), Error> {
        let account = Account::load(&self.store, &Batch::new()).await?;
        match private.sign_device(&self.user_id, &account.device_keys()) {
            Ok(object) => {
                let name = self.device_id.to_string();
                self.keep_signature(work, Signed { user_id: self.user_id.clone(), name, object });
                Ok(())
            }
            Err(Error::NoIdentity) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn keep_signature(&mut self, work: &mut Work, signed: Signed) {
        work.batch.put(SIGNATURES, format!("{} {}", signed.user_id, signed.name), &signed);
        self.has_signatures = true;
    }

    /// The signatures that the server is to be given.
    pub(crate) async fn signatures(&mut self) -> Result<BTreeMap<String, Signed>, Error> {
        if !self.has_signatures {
            return Ok(BTreeMap::new());
        }
        let signatures = self.store.list(SIGNATURES).await?;
        self.has_signatures = !signatures.is_empty();
        Ok(signatures)
    }

    /// The server has these signatures, or will never take them.
    pub(crate) async fn signatures_uploaded(&mut self, keys: impl Iterator<Item = String>) -> Result<(), Error> {
        let mut work = Work::default();
        keys.for_each(|key| work.batch.delete(SIGNATURES, key));
        // Whose signatures they carry is known when their owners are asked for again.
        self.commit(work).await.map(drop)
    }

    /// This device, with the keys that it lets others verify: its own, and our identity when that is verified.
    pub(crate) fn own_party(&self) -> Party {
        let mut keys = BTreeMap::from([(format!("ed25519:{}", self.device_id), self.ed25519.to_base64())]);
        if let Some(own) = self.identities.own().filter(|own| own.trust(None) == IdentityTrust::Verified) {
            keys.insert(format!("ed25519:{}", own.keys.master.name()), own.keys.master.name());
        }
        Party { user_id: self.user_id.clone(), device_id: self.device_id.clone(), keys }
    }

    /// Another device, with the keys that are known of it and its owner; nothing when there is none, or when its server tries to have one key
    /// taken for another. Client-Server API, "Key and signature security".
    pub(crate) async fn party(&self, user_id: &UserId, device_id: &DeviceId) -> Result<Option<Party>, Error> {
        let list = self.devices(&Work::default(), user_id).await?;
        let Some(device) = list.devices.get(device_id) else { return Ok(None) };
        let mut keys = BTreeMap::from([(format!("ed25519:{device_id}"), device.ed25519.to_base64())]);
        if let Some(identity) = self.identity(user_id) {
            if identity.keys.collide_with(list.devices.keys().map(|device_id| device_id.as_str())) {
                tracing::warn!(user.id = %user_id, "a device has the name of its owner's identity: nothing of theirs is verified");
                return Ok(None);
            }
            keys.insert(format!("ed25519:{}", identity.keys.master.name()), identity.keys.master.name());
        }
        Ok(Some(Party { user_id: user_id.to_owned(), device_id: device_id.to_owned(), keys }))
    }

    /// Keeps what a verification found: signs what is ours to sign. Returns whether our own identity was verified and its private keys are not
    /// here.
    pub(crate) async fn verified(
        &mut self,
        user_id: &UserId,
        device_id: &DeviceId,
        keys: &BTreeMap<String, String>,
    ) -> Result<bool, Error> {
        let mut work = Work::default();
        let private = self.private_keys().await?;
        let mut lacks_keys = false;
        let identity = self.identity(user_id).cloned();
        let master = identity.filter(|identity| {
            let name = identity.keys.master.name();
            keys.get(&format!("ed25519:{name}")) == Some(&name)
        });
        let is_own = *user_id == self.user_id;
        if let Some(mut identity) = master.clone() {
            let master = identity.keys.master.clone();
            if is_own {
                self.verify_own(&mut work, &master.key)?;
                lacks_keys = !private.belong_to(&identity.keys);
            } else {
                identity.verify(&master.key)?;
                self.keep_identity(&mut work, identity);
                if let Ok(object) = private.sign_user(&self.user_id, &master.object) {
                    self.keep_signature(&mut work, Signed { user_id: user_id.to_owned(), name: master.name(), object });
                }
            }
        }
        let mut list = self.devices(&work, user_id).await?;
        let is_device = list
            .devices
            .get(device_id)
            .is_some_and(|device| keys.get(&format!("ed25519:{device_id}")) == Some(&device.ed25519.to_base64()));
        if master.is_none() && !is_device {
            return Err(Error::Forged("the keys changed during their verification"));
        }
        if let Some(device) = list.devices.get_mut(device_id).filter(|_| is_device)
            && (is_own || master.is_none())
        {
            device.local_trust = LocalTrust::Verified;
            if let Some(object) = is_own.then(|| private.sign_device(user_id, &device.keys)).and_then(Result::ok) {
                self.keep_signature(
                    &mut work,
                    Signed { user_id: user_id.to_owned(), name: device_id.to_string(), object },
                );
            }
            work.batch.put(DEVICES, user_id.as_str(), &list);
        }
        self.commit(work).await?;
        if is_own {
            // There is somebody now who may have the keys that are lacking.
            let mut work = Work::default();
            self.request_pending(&mut work).await?;
            self.commit(work).await?;
        }
        Ok(lacks_keys)
    }

    /// Whether a device is verified.
    pub(crate) async fn is_known_verified(&self, user_id: &UserId, device_id: &DeviceId) -> Result<bool, Error> {
        let list = self.devices(&Work::default(), user_id).await?;
        let unknown = || Error::UnknownDevice { user_id: user_id.to_owned(), device_id: device_id.to_owned() };
        list.devices.get(device_id).map(|device| self.is_verified(device)).ok_or_else(unknown)
    }

    /// Our other devices that are verified.
    pub(crate) async fn own_verified_devices(&self) -> Result<Vec<Device>, Error> {
        self.trusted_devices(&Work::default()).await
    }

    /// Whether something that our user is to trust is signed by our verified identity, or by a verified device of ours.
    pub(crate) async fn is_signed_by_us(&self, object: &Object) -> Result<bool, Error> {
        let signs = |name: &str, key: &Ed25519PublicKey| is_signed_by(object, self.user_id.as_str(), name, key);
        let own = self.identities.own().filter(|own| own.trust(None) == IdentityTrust::Verified);
        if own.is_some_and(|own| signs(&own.keys.master.name(), &own.keys.master.key))
            || signs(self.device_id.as_str(), &self.ed25519)
        {
            return Ok(true);
        }
        Ok(self.own_verified_devices().await?.iter().any(|device| signs(device.device_id.as_str(), &device.ed25519)))
    }

    /// Signs something by this device, and by our identity if its master key is here.
    pub(crate) async fn sign(&self, object: &mut Object) -> Result<(), Error> {
        let account = Account::load(&self.store, &Batch::new()).await?;
        account.sign(object)?;
        match self.private_keys().await?.sign_with_master(&self.user_id, object) {
            Err(Error::NoIdentity) => Ok(()),
            signed => signed,
        }
    }

    /// The secrets that were asked for.
    pub(crate) async fn secret_requests(&self) -> Result<Requests, Error> {
        Ok(self.store.get(REQUESTS, OWN).await?.unwrap_or_default())
    }

    pub(crate) async fn keep_secret_requests(&mut self, requests: &Requests) -> Result<(), Error> {
        let mut batch = Batch::new();
        batch.put(REQUESTS, OWN, requests);
        self.store.commit(batch).await
    }
}

fn object(key: &Raw<CrossSigningKey>) -> Option<Object> {
    serde_json::from_str(key.json().get()).ok()
}
