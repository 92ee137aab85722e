//! A user's cross-signing keys. Client-Server API, "Cross-signing", "POST /keys/device_signing/upload".

use std::collections::BTreeMap;

use model::check_depth;
use serde_json::{Map, Value};

use super::verify::{ed25519_key, is_signed, only_key, signed_text, stored};
use crate::{Accounts, Error, Requester};

/// Largest key, in bytes of JSON.
const KEY_BYTES_MAX: usize = 16_384;

/// How often keys are checked, when what they are checked against changes each time before they are written.
const CHECKED_MAX: usize = 3;

/// The keys that a user has, by usage.
type Stored = BTreeMap<String, Map<String, Value>>;

/// What a user uploads, as JSON.
#[derive(Clone, Debug, Default)]
pub struct CrossSigningKeys {
    /// The key that the others are signed by.
    pub master_key: Option<Value>,
    /// The key that signs the user's devices.
    pub self_signing_key: Option<Value>,
    /// The key that signs other users' master keys.
    pub user_signing_key: Option<Value>,
}

impl CrossSigningKeys {
    fn by_usage(&self) -> impl Iterator<Item = (&'static str, &Value)> {
        let all = [
            ("master", &self.master_key),
            ("self_signing", &self.self_signing_key),
            ("user_signing", &self.user_signing_key),
        ];
        all.into_iter().filter_map(|(usage, key)| Some((usage, key.as_ref()?)))
    }
}

impl Accounts {
    /// Keeps a user's cross-signing keys if that needs no password: the first ones, and those that are there already. Otherwise does
    /// nothing, and says `false`.
    ///
    /// # Errors
    ///
    /// As [`Accounts::upload_cross_signing_keys`].
    pub async fn upload_exempt_cross_signing_keys(
        &self,
        requester: &Requester,
        keys: &CrossSigningKeys,
    ) -> Result<bool, Error> {
        self.keep_cross_signing_keys(requester, keys, needs_confirmation).await
    }

    /// Keeps a user's cross-signing keys, and tells who follows the user's devices. Keys that hang on a master key which is replaced are
    /// gone with it.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParam`] when a key is malformed or not the user's, [`Error::InvalidSignature`] when one is not signed by
    /// the master key, [`Error::MissingParam`] when there is no master key, [`Error::Forbidden`] when a key has the name of a device,
    /// [`Error::Busy`] when the keys change all the time.
    pub async fn upload_cross_signing_keys(&self, requester: &Requester, keys: &CrossSigningKeys) -> Result<(), Error> {
        self.keep_cross_signing_keys(requester, keys, |_, _| false).await.map(drop)
    }

    /// Keeps keys that are checked against what is there, unless `is_barred` by that. What is there when they are written is what they were
    /// checked against.
    async fn keep_cross_signing_keys(
        &self,
        requester: &Requester,
        keys: &CrossSigningKeys,
        is_barred: impl Fn(&Stored, &CrossSigningKeys) -> bool,
    ) -> Result<bool, Error> {
        let (user_nr, storage) = (requester.user_nr, &self.0.storage);
        for _ in 0..CHECKED_MAX {
            let before = storage.list_cross_signing_keys(&[user_nr]).await?;
            let there: Stored = before.iter().map(|(_, usage, key)| (usage.clone(), stored(key))).collect();
            if is_barred(&there, keys) {
                return Ok(false);
            }
            // What is signed is named by the id of a device or by a public key.
            let devices = storage.list_devices(user_nr).await?;
            let is_device = |id: &str| devices.iter().any(|device| device.device_id == id);
            let (changed, replaces_master) = changed_keys(requester.user_id.as_str(), keys, &there, is_device)?;
            if changed.is_empty() {
                return Ok(true);
            }
            if storage.upsert_cross_signing_keys(user_nr, &before, &changed, replaces_master).await? {
                self.follow_up(user_nr).await;
                return Ok(true);
            }
        }
        Err(Error::Busy)
    }
}

/// Whether an upload needs the user's password: not the first one, and not one that changes nothing.
fn needs_confirmation(there: &Stored, keys: &CrossSigningKeys) -> bool {
    let is_same = |usage: &str, key: &Value| {
        there.get(usage).is_some_and(|old| key.as_object().is_some_and(|new| signed_text(old) == signed_text(new)))
    };
    there.contains_key("master") && !keys.by_usage().all(|(usage, key)| is_same(usage, key))
}

/// Of keys, those that are not `there` yet, with their usages, and whether the master key is one of them and so all others are gone.
fn changed_keys(
    user_id: &str,
    keys: &CrossSigningKeys,
    there: &Stored,
    is_device: impl Fn(&str) -> bool,
) -> Result<(Vec<(&'static str, String)>, bool), Error> {
    let mut checked: Vec<(&str, Map<String, Value>)> = Vec::new();
    for (usage, key) in keys.by_usage() {
        checked.push((usage, check(user_id, usage, key)?));
    }
    if checked.is_empty() {
        return Ok((Vec::new(), false));
    }
    let new_master = checked.iter().find(|(usage, _)| *usage == "master").map(|(_, master)| master);
    let master = new_master.or(there.get("master")).and_then(only_key);
    let (master_id, master_key) = master.ok_or(Error::MissingParam("`master_key`"))?;
    for (usage, key) in &checked {
        if only_key(key).is_some_and(|(_, public)| is_device(&public)) {
            return Err(Error::Forbidden("a key has the name of one of your devices"));
        }
        if *usage != "master" && !is_signed(key, user_id, &master_id, &master_key) {
            return Err(Error::InvalidSignature(format!("the {usage} key is not signed by the master key")));
        }
    }
    // The same keys again change nothing, not even the signatures that they came with: for that nobody asks for a password.
    let is_there = |usage: &str, key: &Map<String, Value>| {
        there.get(usage).is_some_and(|old| signed_text(old) == signed_text(key))
    };
    let replaces_master = new_master.is_some_and(|master| !is_there("master", master));
    checked.retain(|(usage, key)| replaces_master || !is_there(usage, key));
    Ok((checked.into_iter().map(|(usage, key)| (usage, Value::Object(key).to_string())).collect(), replaces_master))
}

pub(super) fn check(user_id: &str, usage: &str, key: &Value) -> Result<Map<String, Value>, Error> {
    let invalid = |what: &str| Error::InvalidParam(format!("the {usage} key: {what}"));
    check_depth(key)?;
    let Value::Object(key) = key else { return Err(invalid("not an object")) };
    let mut key = key.clone();
    key.remove("unsigned");
    if key.get("user_id").and_then(Value::as_str) != Some(user_id) {
        return Err(invalid("`user_id` is not the requester's"));
    }
    if !key.get("usage").and_then(Value::as_array).is_some_and(|all| all.iter().any(|one| one.as_str() == Some(usage)))
    {
        return Err(invalid("`usage` is another"));
    }
    if !only_key(&key).is_some_and(|(_, public)| ed25519_key(&public).is_some()) {
        return Err(invalid("`keys` is not one ed25519 key under its own name"));
    }
    let is_too_large = |key: &Map<String, Value>| Value::Object(key.clone()).to_string().len() > KEY_BYTES_MAX;
    if usage == "master" && is_too_large(&key) {
        // Each device that its user ever had may have signed it, and it is as good without.
        key.remove("signatures");
    }
    if is_too_large(&key) {
        return Err(invalid("too large"));
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const USER: &str = "@alice:one.test";

    /// A user without a master key looks as if somebody had taken their identity away.
    #[test]
    fn a_master_key_is_taken_however_many_devices_signed_it() {
        let public = vodozemac::Ed25519SecretKey::new().public_key().to_base64();
        let key = |usage: &str, signatures: usize, more: usize| {
            let signatures: Map<String, Value> =
                (0..signatures).map(|n| (format!("ed25519:DEVICE{n}"), json!("A".repeat(86)))).collect();
            json!({
                "user_id": USER, "usage": [usage], "keys": {format!("ed25519:{public}"): public},
                "signatures": {USER: signatures}, "more": "x".repeat(more),
            })
        };
        let few = key("master", 100, 1);
        assert_eq!(Value::Object(check(USER, "master", &few).unwrap()), few);
        let mut expected = key("master", 1_000, 1);
        let taken = check(USER, "master", &expected).unwrap();
        expected.as_object_mut().unwrap().remove("signatures");
        assert_eq!(Value::Object(taken), expected);
        // What is too large without them, or of a kind that needs one, is not.
        for (usage, key) in [("master", key("master", 1, 20_000)), ("self_signing", key("self_signing", 1_000, 1))] {
            assert!(matches!(check(USER, usage, &key), Err(Error::InvalidParam(_))), "{usage}");
        }
    }
}
