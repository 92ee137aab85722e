//! What a device may upload. Client-Server API, "Key algorithms", "Device keys", "One-time and fallback keys".
//!
//! The server checks all that it can: that keys are keys, of algorithms that are known, under the names of their own user and device, and
//! signed by the device.

use std::collections::BTreeMap;

use model::{check_depth, limits::is_name};
use serde_json::{Map, Value};
use storage::{DeviceKeyUpload, KeyRow};
use vodozemac::Curve25519PublicKey;

use super::verify::{ed25519_key, is_signed};
use crate::Error;

/// Largest key, in bytes of JSON.
const KEY_BYTES_MAX: usize = 8_192;
/// Longest id of a key, in bytes.
const KEY_ID_BYTES_MAX: usize = 255;
/// The algorithm of one-time and fallback keys.
pub(super) const SIGNED_CURVE25519: &str = "signed_curve25519";
/// How devices may encrypt. Client-Server API, "Messaging Algorithms"; and the next versions of both, as vodozemac has them.
const MESSAGING_ALGORITHMS: [&str; 4] =
    ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2", "m.olm.v2.curve25519-aes-sha2", "m.megolm.v2.aes-sha2"];

/// What a device uploads, as JSON.
#[derive(Clone, Debug, Default)]
pub struct KeyUpload {
    /// Its identity.
    pub device_keys: Option<Value>,
    /// Keys to be used once, by `<algorithm>:<id>`.
    pub one_time_keys: BTreeMap<String, Value>,
    /// Keys to be used when none of the others is left.
    pub fallback_keys: BTreeMap<String, Value>,
}

impl KeyUpload {
    /// The upload as it is stored, if all of it is of this device of this user; `known` is the identity that the device has so far.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParam`] when keys are not the device's own, no keys, of an unknown algorithm or too large, or when keys come before
    /// the identity that they are signed by; [`Error::InvalidSignature`], [`Error::BadJson`].
    pub(super) fn checked(
        self,
        user_id: &str,
        device_id: &str,
        known: Option<&Map<String, Value>>,
    ) -> Result<DeviceKeyUpload, Error> {
        let signer = format!("ed25519:{device_id}");
        let known = known.and_then(|keys| identity_key(keys, &signer));
        let device_keys = self.device_keys.map(|keys| checked_device_keys(keys, user_id, device_id)).transpose()?;
        let new = device_keys.as_ref().and_then(|keys| identity_key(keys, &signer));
        let check = |keys| checked_keys(keys, user_id, &signer, new.or(known));
        let fallback_keys = check(self.fallback_keys)?;
        if fallback_keys.len() > 1 {
            return Err(Error::InvalidParam("a device has one fallback key of an algorithm".to_owned()));
        }
        Ok(DeviceKeyUpload {
            known: None,
            one_time_keys: check(self.one_time_keys)?,
            fallback_keys,
            replaces_identity: matches!((known, new), (Some(known), Some(new)) if known != new),
            device_keys: device_keys.map(|keys| Value::Object(keys).to_string()),
        })
    }
}

/// The key of a device by which it signs.
fn identity_key<'a>(device_keys: &'a Map<String, Value>, signer: &str) -> Option<&'a str> {
    device_keys.get("keys")?.get(signer)?.as_str()
}

fn checked_device_keys(keys: Value, user_id: &str, device_id: &str) -> Result<Map<String, Value>, Error> {
    let invalid = |what: &str| Error::InvalidParam(format!("device keys: {what}"));
    check_depth(&keys)?;
    let Value::Object(mut keys) = keys else { return Err(invalid("not an object")) };
    keys.remove("unsigned");
    if keys.get("user_id").and_then(Value::as_str) != Some(user_id) {
        return Err(invalid("`user_id` is not the requester's"));
    }
    if keys.get("device_id").and_then(Value::as_str) != Some(device_id) {
        return Err(invalid("`device_id` is not that of the device"));
    }
    let algorithms = keys.get("algorithms").and_then(Value::as_array);
    for algorithm in algorithms.ok_or_else(|| invalid("`algorithms` is not a list"))? {
        if !algorithm.as_str().is_some_and(|name| MESSAGING_ALGORITHMS.contains(&name)) {
            return Err(invalid(&format!("the algorithm {algorithm} is unknown")));
        }
    }
    let listed = keys.get("keys").and_then(Value::as_object).ok_or_else(|| invalid("`keys` is not an object"))?;
    for (name, key) in listed {
        let Some((algorithm, of_device)) = name.split_once(':') else {
            return Err(invalid(&format!("the key `{name}` has no algorithm")));
        };
        if of_device != device_id {
            return Err(invalid(&format!("the key `{name}` is not one of this device")));
        }
        let key = key.as_str().unwrap_or_default();
        let is_key = match algorithm {
            "ed25519" => ed25519_key(key).is_some(),
            "curve25519" => is_curve25519(key),
            _ => return Err(invalid(&format!("the algorithm of the key `{name}` is unknown"))),
        };
        if !is_key {
            return Err(invalid(&format!("`{name}` is no key of that algorithm in unpadded Base64")));
        }
    }
    let signer = format!("ed25519:{device_id}");
    let key = identity_key(&keys, &signer).ok_or_else(|| invalid("there is no ed25519 key"))?;
    if Value::Object(keys.clone()).to_string().len() > KEY_BYTES_MAX {
        return Err(invalid("too large"));
    }
    if !is_signed(&keys, user_id, &signer, key) {
        return Err(Error::InvalidSignature("the device keys are not signed by the device".to_owned()));
    }
    Ok(keys)
}

/// One-time or fallback keys, signed by a device whose key is `identity`.
fn checked_keys(
    keys: BTreeMap<String, Value>,
    user_id: &str,
    signer: &str,
    identity: Option<&str>,
) -> Result<Vec<KeyRow>, Error> {
    let mut rows = Vec::with_capacity(keys.len());
    for (name, key) in keys {
        let invalid = |what: &str| Error::InvalidParam(format!("key {name}: {what}"));
        let Some((algorithm, key_id)) = name.split_once(':') else { return Err(invalid("it has no algorithm")) };
        if !is_name(&name, KEY_ID_BYTES_MAX) || key_id.is_empty() {
            return Err(invalid("its name is too long or too short, or has a zero byte"));
        }
        if algorithm != SIGNED_CURVE25519 {
            return Err(invalid("its algorithm is unknown; it has to be `signed_curve25519`"));
        }
        check_depth(&key)?;
        let Value::Object(object) = &key else { return Err(invalid("it is not an object")) };
        if !object.get("key").and_then(Value::as_str).is_some_and(is_curve25519) {
            return Err(invalid("`key` is no Curve25519 key in unpadded Base64"));
        }
        let identity = identity.ok_or_else(|| invalid("the device has to upload `device_keys` first"))?;
        if !is_signed(object, user_id, signer, identity) {
            return Err(Error::InvalidSignature(format!("key {name} is not signed by the device")));
        }
        let row = KeyRow { algorithm: algorithm.to_owned(), key_id: key_id.to_owned(), key: key.to_string() };
        if row.key.len() > KEY_BYTES_MAX {
            return Err(invalid("too large"));
        }
        rows.push(row);
    }
    Ok(rows)
}

/// Whether this is a key in unpadded Base64.
fn is_curve25519(text: &str) -> bool {
    Curve25519PublicKey::from_base64(text).is_ok_and(|key| key.to_base64() == text)
}

#[cfg(test)]
mod tests;
