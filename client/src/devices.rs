//! The devices of users: which there are, by which keys, and how far each is trusted.
//!
//! The devices of whoever shares an encrypted room with us are *tracked*: the server says in `/sync` whose changed, and they are asked for
//! before the next message is encrypted. That something changed becomes durable together with the sync token, so that no crash between the two
//! loses it; `wanted` and `known` number the changes, so that an answer that was asked for before a change does not count as knowing it.
//! Client-Server API, "Tracking the device list for a user".

use std::collections::{BTreeMap, BTreeSet};

use ruma::{DeviceId, OwnedDeviceId, OwnedUserId, UserId};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use vodozemac::{Curve25519PublicKey, Ed25519PublicKey};

use crate::{
    Error, Kind,
    account::{MEGOLM, OLM},
    olm::peer,
    signatures::{Object, check_bounds, ed25519_key, is_signed_by},
};

/// [`DeviceList`]s by user.
pub(crate) const DEVICES: Kind = Kind("devices");
/// Most devices of one user that are believed: each costs an encryption whenever a room key is shared.
const DEVICES_MAX: usize = 1_000;
/// Most devices of one user that are remembered although they are gone.
const GONE_MAX: usize = 100;

/// A device whose keys were checked: they name their owner and device, and the device signed them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Device {
    /// Whose it is.
    pub user_id: OwnedUserId,
    /// Its name within its owner's devices.
    pub device_id: OwnedDeviceId,
    /// The key that it is known by in Olm.
    pub curve25519: Curve25519PublicKey,
    /// The key that it signs by.
    pub ed25519: Ed25519PublicKey,
    /// What its owner calls it: nobody vouches for that.
    pub display_name: Option<String>,
    /// Its keys as it signed them, with all signatures that the server knows.
    pub keys: Object,
    /// What the user of this client said of it.
    pub local_trust: LocalTrust,
}

/// What the user of this client said of a device by itself, apart from cross-signing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LocalTrust {
    /// Nothing.
    #[default]
    Unset,
    /// It is who it claims to be.
    Verified,
    /// It gets no room keys.
    Blocked,
}

/// What is known of one user's devices.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct DeviceList {
    /// Whether the server tells of its changes.
    pub is_tracked: bool,
    /// How many changes were heard of.
    wanted: u64,
    /// How many of them the devices below include.
    known: u64,
    pub devices: BTreeMap<OwnedDeviceId, Device>,
    /// Devices that are gone. A server that leaves one out for once must not make us forget its keys, nor that it is blocked.
    gone: BTreeMap<OwnedDeviceId, Pinned>,
}

/// What is kept of a device for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pinned {
    /// The key that it is known by in Olm.
    pub curve25519: Curve25519PublicKey,
    /// The key that it signs by.
    pub ed25519: Ed25519PublicKey,
    /// What the user of this client said of it.
    pub local_trust: LocalTrust,
}

impl DeviceList {
    /// Something changed, or may have.
    pub(crate) fn mark_outdated(&mut self) {
        self.wanted += 1;
    }

    /// From now on the server tells of changes; what came before was missed.
    pub(crate) fn track(&mut self) {
        self.is_tracked = true;
        self.mark_outdated();
    }

    pub(crate) fn is_outdated(&self) -> bool {
        self.known < self.wanted
    }

    /// The changes that an answer will include if it is asked for now.
    pub(crate) fn wanted(&self) -> u64 {
        self.wanted
    }

    /// Takes over what the server answered to a question that was asked when `wanted` was this.
    ///
    /// Keys that are not to be believed are left out, and keys of a known device are never replaced, also when it had been gone. Nor does a
    /// device get a key that another one of the user has. Returns the devices that were refused.
    pub(crate) fn update(
        &mut self,
        user_id: &UserId,
        answer: BTreeMap<OwnedDeviceId, Value>,
        wanted: u64,
    ) -> Vec<(OwnedDeviceId, Error)> {
        let mut refused = Vec::new();
        let mut devices = BTreeMap::new();
        let (mut curve25519, mut ed25519) = (BTreeSet::new(), BTreeSet::new());
        // Those that are known come first, so that no new one takes their keys.
        let (known, new): (Vec<_>, Vec<_>) = answer.into_iter().partition(|(id, _)| self.devices.contains_key(id));
        for (device_id, keys) in known.into_iter().chain(new) {
            let known = self.devices.remove(&device_id);
            if devices.len() == DEVICES_MAX {
                refused.push((device_id, Error::ServerMisbehaved("the number of devices")));
                continue;
            }
            let pinned = known.as_ref().map(Device::pinned).or_else(|| self.gone.get(&device_id).copied());
            let checked = Device::check(user_id, &device_id, keys, pinned.as_ref()).and_then(|device| {
                let is_taken =
                    curve25519.contains(&device.curve25519.to_bytes()) || ed25519.contains(device.ed25519.as_bytes());
                if is_taken { Err(Error::Forged("device keys of another device")) } else { Ok(device) }
            });
            let device = match checked {
                Ok(device) => Some(device),
                Err(error) => {
                    refused.push((device_id.clone(), error));
                    known
                }
            };
            if let Some(device) = device {
                curve25519.insert(device.curve25519.to_bytes());
                ed25519.insert(*device.ed25519.as_bytes());
                self.gone.remove(&device_id);
                devices.insert(device_id, device);
            }
        }
        for (device_id, device) in std::mem::replace(&mut self.devices, devices) {
            self.remember(device_id, device.pinned());
        }
        self.known = self.known.max(wanted);
        refused
    }

    /// Remembers a device that is gone; of too many first those that nobody said anything of are forgotten.
    fn remember(&mut self, device_id: OwnedDeviceId, pinned: Pinned) {
        if self.gone.len() >= GONE_MAX {
            let is_unset = |pinned: &Pinned| pinned.local_trust == LocalTrust::Unset;
            let Some(least) = self.gone.iter().find(|(_, pinned)| is_unset(pinned)).map(|(id, _)| id.clone()) else {
                return;
            };
            self.gone.remove(&least);
        }
        self.gone.insert(device_id, pinned);
    }

    /// The device with this Olm key.
    pub(crate) fn with_key(&self, key: &Curve25519PublicKey) -> Option<&Device> {
        self.devices.values().find(|device| device.curve25519 == *key)
    }
}

impl Device {
    /// What it is known by in Olm.
    pub(crate) fn peer(&self) -> String {
        peer(&self.user_id, &self.curve25519)
    }

    fn pinned(&self) -> Pinned {
        Pinned { curve25519: self.curve25519, ed25519: self.ed25519, local_trust: self.local_trust }
    }

    /// Checks the keys that somebody says are those of this device; `known` is what is known of it.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] and [`Error::Forged`].
    pub fn check(user_id: &UserId, device_id: &DeviceId, keys: Value, known: Option<&Pinned>) -> Result<Self, Error> {
        let Value::Object(mut keys) = keys else { return Err(Error::Malformed("device keys")) };
        // Nobody signed it.
        let display_name =
            keys.remove("unsigned").and_then(|mut unsigned| Some(unsigned.get_mut("device_display_name")?.take()));
        check_bounds(&keys)?;
        let text = |key: &str| keys.get(key).and_then(Value::as_str);
        if text("user_id") != Some(user_id.as_str()) || text("device_id") != Some(device_id.as_str()) {
            return Err(Error::Forged("device keys of another device"));
        }
        let algorithms = keys.get("algorithms").and_then(Value::as_array).ok_or(Error::Malformed("device keys"))?;
        if ![OLM, MEGOLM].iter().all(|known| algorithms.iter().any(|algorithm| algorithm == known)) {
            return Err(Error::Malformed("device keys: it speaks neither Olm nor Megolm"));
        }
        let key = |algorithm: &str| {
            let key = keys.get("keys").and_then(|keys| keys.get(format!("{algorithm}:{device_id}")));
            key.and_then(Value::as_str).ok_or(Error::Malformed("device keys"))
        };
        let ed25519 = ed25519_key(key("ed25519")?)?;
        let curve25519 =
            Curve25519PublicKey::from_base64(key("curve25519")?).map_err(|_| Error::Malformed("Curve25519 key"))?;
        if !is_signed_by(&keys, user_id.as_str(), device_id.as_str(), &ed25519) {
            return Err(Error::Forged("device keys that the device did not sign"));
        }
        if known.is_some_and(|known| known.ed25519 != ed25519 || known.curve25519 != curve25519) {
            return Err(Error::Forged("a device whose keys were replaced"));
        }
        Ok(Self {
            user_id: user_id.to_owned(),
            device_id: device_id.to_owned(),
            curve25519,
            ed25519,
            display_name: display_name.as_ref().and_then(Value::as_str).map(|name| name.chars().take(100).collect()),
            keys,
            local_trust: known.map(|known| known.local_trust).unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use ruma::{device_id, user_id};
    use serde_json::json;

    use super::*;
    use crate::account::Account;

    fn account(device: &str) -> Account {
        Account::new(user_id!("@bob:example.org").to_owned(), device.into())
    }

    fn keys(account: &Account) -> Value {
        Value::Object(account.device_keys())
    }

    fn check(keys: Value, known: Option<&Pinned>) -> Result<Device, Error> {
        Device::check(user_id!("@bob:example.org"), device_id!("PHONE"), keys, known)
    }

    #[test]
    fn keys_are_believed_if_the_device_signed_them() {
        let account = account("PHONE");
        let mut with_name = keys(&account);
        with_name["unsigned"] = json!({ "device_display_name": "Bob's phone" });
        let device = check(with_name, None).unwrap();
        assert_eq!((device.curve25519, device.ed25519), (account.curve25519(), account.ed25519()));
        assert_eq!(device.display_name.as_deref(), Some("Bob's phone"));
    }

    /// What a server may try: none of it is believed.
    #[test]
    fn forged_device_keys_are_refused() {
        let (account, other) = (account("PHONE"), account("LAPTOP"));
        assert!(check(keys(&other), None).is_err(), "another device's keys");

        let mut changed = keys(&account);
        changed["keys"]["curve25519:PHONE"] = json!(other.curve25519().to_base64());
        assert!(check(changed, None).is_err(), "a key that was not signed");

        let mut unsigned = keys(&account);
        unsigned["signatures"] = json!({});
        assert!(check(unsigned, None).is_err(), "no signature");

        let mut foreign = keys(&account);
        foreign["user_id"] = json!("@mallory:example.org");
        assert!(check(foreign, None).is_err(), "another user's keys");

        let mut short = keys(&account);
        short["keys"]["ed25519:PHONE"] = json!("AAAA");
        assert!(check(short, None).is_err(), "a key that is none");
        for nonsense in [json!(null), json!([]), json!({}), json!({ "keys": 1 })] {
            assert!(check(nonsense, None).is_err());
        }
    }

    /// A server that replaces the keys of a device would read what is encrypted for it.
    #[test]
    fn keys_of_a_known_device_are_never_replaced() {
        let (first, second) = (account("PHONE"), account("PHONE"));
        let mut list = DeviceList::default();
        let answer = |account: &Account| BTreeMap::from([(OwnedDeviceId::from("PHONE"), keys(account))]);
        let bob = user_id!("@bob:example.org");
        assert!(list.update(bob, answer(&first), 0).is_empty());
        let refused = list.update(bob, answer(&second), 0);
        assert!(matches!(refused.as_slice(), [(_, Error::Forged(_))]), "{refused:?}");
        assert_eq!(list.devices.values().next().unwrap().ed25519, first.ed25519());
    }

    #[test]
    fn what_was_said_of_a_device_stays_and_devices_that_are_gone_go() {
        let account = account("PHONE");
        let mut list = DeviceList::default();
        let bob = user_id!("@bob:example.org");
        let answer = || BTreeMap::from([(OwnedDeviceId::from("PHONE"), keys(&account))]);
        list.update(bob, answer(), 0);
        list.devices.values_mut().next().unwrap().local_trust = LocalTrust::Blocked;
        list.update(bob, answer(), 0);
        assert_eq!(list.with_key(&account.curve25519()).unwrap().local_trust, LocalTrust::Blocked);
        list.update(bob, BTreeMap::new(), 0);
        assert!(list.devices.is_empty());
    }

    /// A server that leaves a device out for once would have it unblocked, or put keys of its own in place of the device's.
    #[test]
    fn a_device_that_comes_back_is_the_one_that_it_was() {
        let (account, other) = (account("PHONE"), account("PHONE"));
        let bob = user_id!("@bob:example.org");
        let answer = |account: &Account| BTreeMap::from([(OwnedDeviceId::from("PHONE"), keys(account))]);
        let mut list = DeviceList::default();
        list.update(bob, answer(&account), 0);
        list.devices.values_mut().next().unwrap().local_trust = LocalTrust::Blocked;
        list.update(bob, BTreeMap::new(), 0);
        let mut list: DeviceList = serde_json::from_value(serde_json::to_value(list).unwrap()).unwrap();
        assert!(matches!(list.update(bob, answer(&other), 0).as_slice(), [(_, Error::Forged(_))]));
        assert!(list.devices.is_empty());
        assert!(list.update(bob, answer(&account), 0).is_empty());
        assert_eq!(list.devices.values().next().unwrap().local_trust, LocalTrust::Blocked);
    }

    /// Device keys with another device's Curve25519 key, signed by a key of its own.
    fn with_key_of(device: &str, other: &Account) -> Value {
        let account = account(device);
        let mut keys = account.device_keys();
        keys.remove("signatures");
        keys["keys"][format!("curve25519:{device}")] = other.curve25519().to_base64().into();
        account.sign(&mut keys).unwrap();
        Value::Object(keys)
    }

    /// A planted device with the key of a genuine one would be found in its place.
    #[test]
    fn a_device_with_another_ones_key_is_refused() {
        let genuine = account("PHONE");
        let bob = user_id!("@bob:example.org");
        let mut list = DeviceList::default();
        let mut answer = BTreeMap::from([(OwnedDeviceId::from("PHONE"), keys(&genuine))]);
        list.update(bob, answer.clone(), 0);
        answer.insert("A".into(), with_key_of("A", &genuine));
        let refused = list.update(bob, answer, 0);
        assert!(matches!(refused.as_slice(), [(id, Error::Forged(_))] if id == "A"), "{refused:?}");
        assert_eq!(list.with_key(&genuine.curve25519()).unwrap().device_id, "PHONE");
    }

    /// JSON can be written deeper than it can be read: a store with such a value in it would be lost.
    #[test]
    fn device_keys_that_could_not_be_read_again_are_refused() {
        let account = account("PHONE");
        let signed = |extra: Value| {
            let mut keys = account.device_keys();
            keys.remove("signatures");
            keys.insert("x".to_owned(), extra);
            account.sign(&mut keys).unwrap();
            Value::Object(keys)
        };
        let nested = |levels: usize| (0..levels).fold(json!(1), |value, _| json!([value]));
        assert!(check(signed(nested(10)), None).is_ok());
        for extra in [nested(100), json!("x".repeat(100_000))] {
            assert!(matches!(check(signed(extra), None), Err(Error::Malformed(_))));
        }
        let mut deep = keys(&account);
        deep["unsigned"] = json!({ "x": nested(100) });
        let device = check(deep, None).unwrap();
        assert_eq!(serde_json::from_slice::<Device>(&serde_json::to_vec(&device).unwrap()).unwrap(), device);
    }

    /// Client-Server API, "Tracking the device list for a user", the warning about two questions at once.
    #[test]
    fn an_answer_to_an_older_question_does_not_hide_a_later_change() {
        let mut list = DeviceList::default();
        list.track();
        let asked = list.wanted();
        list.mark_outdated();
        list.update(user_id!("@bob:example.org"), BTreeMap::new(), asked);
        assert!(list.is_outdated());
        let asked = list.wanted();
        list.update(user_id!("@bob:example.org"), BTreeMap::new(), asked);
        assert!(!list.is_outdated());
    }
}
