use std::collections::BTreeMap;

use proptest::prelude::*;
use ruma::{
    CanonicalJsonObject,
    serde::Base64,
    signatures::{PublicKeySet, verify_json},
};
use serde_json::{Value, json};
use vodozemac::olm::Account;

use super::*;

const USER: &str = "@alice:one.test";
const DEVICE: &str = "JLAFKJWSCS";

/// A device with its keys.
struct Device(Account);

impl Device {
    fn new() -> Self {
        Self(Account::new())
    }

    fn sign(&self, mut object: Value) -> Value {
        object["signatures"] =
            json!({ USER: { format!("ed25519:{DEVICE}"): self.0.sign(object.to_string()).to_base64() } });
        object
    }

    /// Its keys without a signature.
    fn keys(&self) -> Value {
        let keys = self.0.identity_keys();
        json!({
            "user_id": USER, "device_id": DEVICE, "algorithms": MESSAGING_ALGORITHMS[..2],
            "keys": {
                format!("ed25519:{DEVICE}"): keys.ed25519.to_base64(),
                format!("curve25519:{DEVICE}"): keys.curve25519.to_base64(),
            },
        })
    }

    fn one_time_key(&self) -> Value {
        self.sign(json!({ "key": self.0.identity_keys().curve25519.to_base64() }))
    }
}

fn device_keys(keys: Value) -> Result<Map<String, Value>, Error> {
    checked_device_keys(keys, USER, DEVICE)
}

fn one_time_keys(name: &str, key: Value, known: Option<&Value>) -> Result<DeviceKeyUpload, Error> {
    let upload = KeyUpload { one_time_keys: BTreeMap::from([(name.to_owned(), key)]), ..KeyUpload::default() };
    upload.checked(USER, DEVICE, known.and_then(Value::as_object))
}

#[test]
fn device_keys_are_the_devices_own_of_known_algorithms_and_signed() {
    let device = Device::new();
    let good = device.sign(device.keys());
    assert_eq!(Value::Object(device_keys(good.clone()).unwrap()), good);
    // Properly signed, but wrong.
    let changed = |path: &str, value: Value| {
        let mut keys = device.keys();
        *keys.pointer_mut(path).unwrap() = value;
        device_keys(device.sign(keys))
    };
    let (ed25519, curve25519) = (format!("/keys/ed25519:{DEVICE}"), format!("/keys/curve25519:{DEVICE}"));
    for (path, value) in [
        ("/user_id", json!("@bob:one.test")),
        ("/device_id", json!("OTHER")),
        ("/algorithms", json!(["m.olm.v1.curve25519-aes-sha2", "m.rot13"])),
        ("/algorithms", json!([1])),
        ("/algorithms", json!({})),
        ("/keys", json!({ format!("ed25519:{DEVICE}"): 5 })),
        ("/keys", json!({ "ed25519:OTHER": "A".repeat(43) })),
        ("/keys", json!({ format!("rot13:{DEVICE}"): "A".repeat(43) })),
        ("/keys", json!({})),
        (&*ed25519, json!("A".repeat(42))),
        (&*ed25519, json!("A".repeat(44))),
        (&*ed25519, json!("A".repeat(42) + "==")),
        (&*ed25519, json!(device.0.identity_keys().ed25519.to_base64() + "=")),
        (&*curve25519, json!("A".repeat(42))),
        (&*curve25519, json!("A".repeat(43) + "=")),
        (&*curve25519, json!("*".repeat(43))),
    ] {
        let refused = changed(path, value.clone());
        assert!(matches!(refused, Err(Error::InvalidParam(_))), "{path} {value}: {refused:?}");
    }
    let of_another = device_keys(Device::new().sign(device.keys()));
    assert!(matches!(of_another, Err(Error::InvalidSignature(_))), "{of_another:?}");
    let unsigned = device_keys(device.keys());
    assert!(matches!(unsigned, Err(Error::InvalidSignature(_))), "{unsigned:?}");
}

#[test]
fn a_one_time_key_is_a_key_and_signed_by_the_device() {
    let device = Device::new();
    let (known, key) = (device.keys(), device.one_time_key());
    assert_eq!(one_time_keys("signed_curve25519:A", key.clone(), Some(&known)).unwrap().one_time_keys.len(), 1);
    for (name, key) in [
        ("signed_curve25519:", key.clone()),
        ("curve25519:A", json!("A".repeat(43))),
        ("signed_rot13:A", key.clone()),
        ("A", key.clone()),
        ("signed_curve25519:A", json!("A".repeat(43))),
        ("signed_curve25519:A", device.sign(json!({ "key": "A".repeat(42) }))),
        ("signed_curve25519:A", device.sign(json!({ "key": "AAAA" }))),
        ("signed_curve25519:A", device.sign(json!({ "key": "A".repeat(43) + "=" }))),
    ] {
        let refused = one_time_keys(name, key.clone(), Some(&known));
        assert!(matches!(refused, Err(Error::InvalidParam(_))), "{name} {key}: {refused:?}");
    }
    let without_identity = one_time_keys("signed_curve25519:A", key.clone(), None);
    assert!(matches!(without_identity, Err(Error::InvalidParam(_))), "{without_identity:?}");
    // Replayed beside another identity, and altered.
    let mut altered = key.clone();
    altered["fallback"] = json!(true);
    for (key, known) in [(key, Device::new().keys()), (altered, known)] {
        let refused = one_time_keys("signed_curve25519:A", key, Some(&known));
        assert!(matches!(refused, Err(Error::InvalidSignature(_))), "{refused:?}");
    }
}

#[test]
fn another_identity_is_noticed() {
    let (device, other) = (Device::new(), Device::new());
    let known = device.keys();
    let replaces = |new: &Device| {
        let upload = KeyUpload { device_keys: Some(new.sign(new.keys())), ..KeyUpload::default() };
        upload.checked(USER, DEVICE, known.as_object()).unwrap().replaces_identity
    };
    assert_eq!((replaces(&device), replaces(&other)), (false, true));
}

/// The places in a value, as JSON pointers.
fn places(value: &Value, here: &str, all: &mut Vec<String>) {
    all.push(here.to_owned());
    match value {
        Value::Object(object) => object.iter().for_each(|(name, value)| places(value, &format!("{here}/{name}"), all)),
        Value::Array(list) => list.iter().enumerate().for_each(|(n, value)| places(value, &format!("{here}/{n}"), all)),
        _ => {}
    }
}

/// What stands in the place of something, wherever it fits.
fn anything() -> impl Strategy<Value = Value> {
    let deep = (0..200).fold(json!(1), |inner, _| json!([inner]));
    prop_oneof![
        Just(Value::Null),
        any::<i64>().prop_map(Value::from),
        ".{0,60}".prop_map(Value::from),
        "[A-Za-z0-9+/]{43}".prop_map(Value::from),
        "[A-Za-z0-9+/]{86}".prop_map(Value::from),
        Just(json!([])),
        Just(json!({})),
        Just(json!(USER)),
        Just(json!({ USER: { format!("ed25519:{DEVICE}"): "A".repeat(86) } })),
        Just(json!("x".repeat(KEY_BYTES_MAX))),
        Just(deep),
    ]
}

proptest! {
    /// Judged by ruma: nothing that a signature does not cover gets through, and nothing is a reason to panic.
    #[test]
    fn what_is_accepted_is_signed_whatever_is_changed(
        changes in prop::collection::vec((any::<prop::sample::Index>(), anything(), any::<bool>()), 1..4),
        signs_again in any::<bool>(),
    ) {
        let device = Device::new();
        let mut keys = device.sign(device.keys());
        for (place, value, removes) in changes {
            let mut all = Vec::new();
            places(&keys, "", &mut all);
            let place = place.get(&all);
            match place.rsplit_once('/') {
                Some((parent, name)) if removes => {
                    if let Some(parent) = keys.pointer_mut(parent).and_then(Value::as_object_mut) {
                        parent.remove(name);
                    }
                }
                _ => *keys.pointer_mut(place).unwrap() = value,
            }
        }
        if signs_again && keys.is_object() {
            keys.as_object_mut().unwrap().remove("signatures");
            keys = device.sign(keys);
        }
        if let Ok(kept) = device_keys(keys) {
            let name = format!("ed25519:{DEVICE}");
            let public = kept["keys"][&name].as_str().unwrap().to_owned();
            prop_assert_eq!((&kept["user_id"], &kept["device_id"]), (&json!(USER), &json!(DEVICE)));
            let set = PublicKeySet::from([(name, Base64::parse(public).unwrap())]);
            let object: CanonicalJsonObject = serde_json::from_value(Value::Object(kept)).unwrap();
            verify_json(&BTreeMap::from([(USER.to_owned(), set)]), &object).unwrap();
        }
    }
}
