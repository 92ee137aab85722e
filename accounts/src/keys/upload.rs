//! A device uploads its keys. Client-Server API, "POST /keys/upload".

use std::collections::{BTreeMap, BTreeSet};

use model::{check_depth, limits::is_name};
use serde_json::{Map, Value};
use storage::KeyRow;

use super::verify::{is_signed, stored};
use crate::{Accounts, Error, Requester};

/// Most one-time keys that a device may have.
const ONE_TIME_KEYS_MAX: u64 = 2_000;
/// Most fallback keys that a device may have, one of an algorithm.
const FALLBACK_KEYS_MAX: usize = 20;
/// Largest key, in bytes of JSON.
const KEY_BYTES_MAX: usize = 8_192;
/// Longest id of a key, in bytes.
const KEY_ID_BYTES_MAX: usize = 255;
/// The algorithm of one-time keys in use.
const SIGNED_CURVE25519: &str = "signed_curve25519";

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

impl Accounts {
    /// Keeps a device's keys; gives how many one-time keys are left by algorithm.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParam`] when the keys are not the device's own, malformed or too many, [`Error::InvalidSignature`].
    pub async fn upload_keys(&self, requester: &Requester, upload: KeyUpload) -> Result<BTreeMap<String, u64>, Error> {
        let Some(device_id) = requester.device_id.as_ref().map(|id| id.as_str()) else {
            return Err(Error::InvalidParam("only a device has keys".to_owned()));
        };
        let user_nr = requester.user_nr;
        let storage = &self.0.storage;

        // 1. Check all before anything is written.
        let device_keys = match upload.device_keys {
            Some(keys) => Some(checked_device_keys(keys, requester.user_id.as_str(), device_id)?),
            None => None,
        };
        let identity = match &device_keys {
            Some(keys) => Some(keys.clone()),
            None => storage.get_device_keys(user_nr, device_id).await?.map(|keys| stored(&keys)),
        };
        let identity =
            identity.and_then(|keys| Some(keys.get("keys")?.get(format!("ed25519:{device_id}"))?.as_str()?.to_owned()));
        let check = |keys| checked_keys(keys, requester.user_id.as_str(), device_id, identity.as_deref());
        let one_time_keys = check(upload.one_time_keys)?;
        let fallback_keys = check(upload.fallback_keys)?;
        if !fallback_keys.is_empty() {
            let there = storage.list_fallback_algorithms(user_nr, device_id).await?;
            let new = fallback_keys.iter().map(|key| &key.algorithm);
            if there.iter().chain(new).collect::<BTreeSet<_>>().len() > FALLBACK_KEYS_MAX {
                return Err(Error::InvalidParam(format!("a device has at most {FALLBACK_KEYS_MAX} fallback keys")));
            }
        }
        if !one_time_keys.is_empty() {
            let there: u64 =
                storage.count_one_time_keys(user_nr, device_id).await?.iter().map(|(_, count)| count).sum();
            if there + one_time_keys.len() as u64 > ONE_TIME_KEYS_MAX {
                return Err(Error::InvalidParam(format!("a device has at most {ONE_TIME_KEYS_MAX} one-time keys")));
            }
        }

        // 2. Write.
        if let Some(taken) = storage.insert_one_time_keys(user_nr, device_id, &one_time_keys).await?.first() {
            let name = format!("{}:{}", taken.algorithm, taken.key_id);
            return Err(Error::InvalidParam(format!("one-time key {name} already exists and is another")));
        }
        if !fallback_keys.is_empty() {
            storage.upsert_fallback_keys(user_nr, device_id, &fallback_keys).await?;
        }
        if let Some(keys) = device_keys {
            storage.upsert_device_keys(user_nr, device_id, &Value::Object(keys).to_string()).await?;
            self.follow_up(user_nr).await;
        }
        self.one_time_key_counts(requester).await
    }

    /// How many one-time keys the requester's device has left, by algorithm; the one in use is always named.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn one_time_key_counts(&self, requester: &Requester) -> Result<BTreeMap<String, u64>, Error> {
        let mut counts = BTreeMap::from([(SIGNED_CURVE25519.to_owned(), 0)]);
        counts.extend(self.0.storage.count_one_time_keys(requester.user_nr, requester.device()).await?);
        Ok(counts)
    }
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
        return Err(invalid("`device_id` is not the requester's"));
    }
    if !keys.get("algorithms").and_then(Value::as_array).is_some_and(|all| all.iter().all(Value::is_string)) {
        return Err(invalid("`algorithms` is not a list of names"));
    }
    let key_id = format!("ed25519:{device_id}");
    let listed = keys.get("keys").and_then(Value::as_object).ok_or_else(|| invalid("`keys` is not an object"))?;
    let belongs = |id: &String| id.split_once(':').is_some_and(|(_, device)| device == device_id);
    if !listed.keys().all(belongs) || !listed.values().all(Value::is_string) {
        return Err(invalid("`keys` has something else than keys of this device"));
    }
    let key = listed.get(&key_id).and_then(Value::as_str);
    let key = key.ok_or_else(|| invalid("there is no ed25519 key"))?.to_owned();
    if Value::Object(keys.clone()).to_string().len() > KEY_BYTES_MAX {
        return Err(invalid("too large"));
    }
    if !is_signed(&keys, user_id, &key_id, &key) {
        return Err(Error::InvalidSignature("the device keys are not signed by the device".to_owned()));
    }
    Ok(keys)
}

fn checked_keys(
    keys: BTreeMap<String, Value>,
    user_id: &str,
    device_id: &str,
    identity: Option<&str>,
) -> Result<Vec<KeyRow>, Error> {
    let mut rows = Vec::with_capacity(keys.len());
    for (name, key) in keys {
        let invalid = |what: &str| Error::InvalidParam(format!("key {name}: {what}"));
        let Some((algorithm, key_id)) = name.split_once(':') else { return Err(invalid("it has no algorithm")) };
        if !is_name(&name, KEY_ID_BYTES_MAX) || algorithm.is_empty() || key_id.is_empty() {
            return Err(invalid("its name is too long or too short, or has a zero byte"));
        }
        check_depth(&key)?;
        let is_signed_kind = algorithm == SIGNED_CURVE25519;
        match &key {
            Value::Object(object) => {
                if !object.get("key").is_some_and(Value::is_string) {
                    return Err(invalid("`key` is missing"));
                }
                let signer = format!("ed25519:{device_id}");
                if is_signed_kind && identity.is_some_and(|identity| !is_signed(object, user_id, &signer, identity)) {
                    return Err(Error::InvalidSignature(format!("key {name} is not signed by the device")));
                }
            }
            Value::String(_) if !is_signed_kind => {}
            _ => return Err(invalid("it is neither an object nor a text")),
        }
        let row = KeyRow { algorithm: algorithm.to_owned(), key_id: key_id.to_owned(), key: key.to_string() };
        if row.key.len() > KEY_BYTES_MAX {
            return Err(invalid("too large"));
        }
        rows.push(row);
    }
    Ok(rows)
}
