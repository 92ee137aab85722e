//! The keys of users and their devices. Client-Server API, "POST /keys/query".

use std::collections::{BTreeMap, BTreeSet, HashMap};

use model::{Position, UserNr};
use ruma::{OwnedDeviceId, OwnedUserId};
use serde_json::{Map, Value, json};

use super::verify::{only_key, stored};
use crate::{Accounts, Error, Requester};

/// Most users of one query.
const USERS_MAX: usize = 10_000;

/// Who signed, with which key, the signature.
type Signature = (String, String, String);

/// The keys that somebody may see, as JSON.
#[derive(Clone, Debug, Default)]
pub struct QueriedKeys {
    /// Of devices.
    pub device_keys: BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, Value>>,
    /// Master keys.
    pub master_keys: BTreeMap<OwnedUserId, Value>,
    /// Self-signing keys.
    pub self_signing_keys: BTreeMap<OwnedUserId, Value>,
    /// The requester's own user-signing key.
    pub user_signing_keys: BTreeMap<OwnedUserId, Value>,
    /// Servers that could not be asked.
    pub failures: BTreeMap<String, Value>,
}

impl Accounts {
    /// The users whose keys may have changed for somebody, and those whom they need not follow any more. Client-Server API,
    /// "GET /keys/changes", which calls `to` a hint: a change after it is told too, because of several changes of a user only the newest
    /// is kept.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn key_changes(
        &self,
        requester: &Requester,
        from: Position,
        to: Position,
    ) -> Result<(Vec<OwnedUserId>, Vec<OwnedUserId>), Error> {
        let (user_nr, storage) = (requester.user_nr, &self.0.storage);
        let newest = storage.published_for(to).await?;
        let to = to.min(newest);
        let mut changed: BTreeSet<UserNr> =
            storage.list_device_list_changes(user_nr, from, newest).await?.into_iter().collect();
        changed.extend(storage.list_newcomers(user_nr, from, to).await?);
        let left = storage.list_left(user_nr, from, to).await?;
        let changed: Vec<UserNr> = changed.into_iter().collect();
        let names = async |users: &[UserNr]| -> Result<Vec<OwnedUserId>, Error> {
            let mut names: Vec<_> = storage.user_ids(users).await?.into_values().collect();
            names.sort_unstable();
            Ok(names)
        };
        Ok((names(&changed).await?, names(&left).await?))
    }

    /// The keys of users of ours: of the devices that are named, or of all where none is.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParam`] when there are too many users.
    pub async fn query_keys(
        &self,
        requester: &Requester,
        wanted: &BTreeMap<OwnedUserId, Vec<OwnedDeviceId>>,
    ) -> Result<QueriedKeys, Error> {
        if wanted.len() > USERS_MAX {
            return Err(Error::InvalidParam(format!("at most {USERS_MAX} users at once")));
        }
        let storage = &self.0.storage;
        let mut answer = QueriedKeys::default();
        let mut users: HashMap<UserNr, &OwnedUserId> = HashMap::new();
        for user_id in wanted.keys() {
            if !self.0.servers.has_user(user_id) {
                answer.failures.insert(user_id.server_name().to_string(), json!({"message": "not reachable"}));
                continue;
            }
            answer.device_keys.insert(user_id.clone(), BTreeMap::new());
            if let Some(user_nr) = storage.find_user_nr(user_id).await? {
                users.insert(user_nr, user_id);
            }
        }
        let numbers: Vec<UserNr> = users.keys().copied().collect();

        let mut signatures: HashMap<(UserNr, String), Vec<Signature>> = HashMap::new();
        for row in storage.list_key_signatures(&numbers, requester.user_nr).await? {
            signatures.entry((row.user_nr, row.target)).or_default().push((row.signer, row.key_id, row.signature));
        }
        for row in storage.list_device_keys(&numbers).await? {
            let Some(&user_id) = users.get(&row.user_nr) else { continue };
            let device_id = OwnedDeviceId::from(row.device_id.as_str());
            let asked = wanted.get(user_id).is_some_and(|devices| devices.is_empty() || devices.contains(&device_id));
            if !asked {
                continue;
            }
            let mut keys = stored(&row.keys);
            add_signatures(&mut keys, signatures.get(&(row.user_nr, row.device_id)));
            if let Some(name) = row.display_name {
                keys.insert("unsigned".to_owned(), json!({"device_display_name": name}));
            }
            answer.device_keys.entry(user_id.clone()).or_default().insert(device_id, Value::Object(keys));
        }
        for (user_nr, usage, key) in storage.list_cross_signing_keys(&numbers).await? {
            let Some(&user_id) = users.get(&user_nr) else { continue };
            let mut key = stored(&key);
            let into = match &*usage {
                "master" => {
                    let target = only_key(&key).map(|(_, public)| (user_nr, public));
                    add_signatures(&mut key, target.and_then(|target| signatures.get(&target)));
                    &mut answer.master_keys
                }
                "self_signing" => &mut answer.self_signing_keys,
                "user_signing" if user_nr == requester.user_nr => &mut answer.user_signing_keys,
                _ => continue,
            };
            into.insert(user_id.clone(), Value::Object(key));
        }
        Ok(answer)
    }
}

/// Puts signatures that came later beside those that a key was uploaded with.
fn add_signatures(key: &mut Map<String, Value>, more: Option<&Vec<Signature>>) {
    for (signer, key_id, signature) in more.into_iter().flatten() {
        let all = key.entry("signatures").or_insert_with(|| json!({}));
        let Some(all) = all.as_object_mut() else { return };
        let own = all.entry(signer).or_insert_with(|| json!({}));
        if let Some(own) = own.as_object_mut() {
            own.insert(key_id.clone(), Value::String(signature.clone()));
        }
    }
}
