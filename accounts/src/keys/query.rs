//! The keys of users and their devices. Client-Server API, "POST /keys/query".

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    time::Duration,
};

use model::{Position, UserNr};
use ruma::{OwnedDeviceId, OwnedUserId, UserId};
use serde::Serialize;
use serde_json::{Value, value::RawValue};

use super::{
    elsewhere::Wanted,
    shown::{Signature, add_signatures, shown},
    verify::{only_key, stored},
};
use crate::{Accounts, Error, Requester};

/// Most users of one query.
const USERS_MAX: usize = 10_000;
/// Longest time that other servers are waited for.
const PATIENCE_MAX: Duration = Duration::from_secs(30);
/// No user has this number.
const NOBODY: UserNr = UserNr(0);

/// The keys that somebody may see, as JSON: written as it is, the answer to a client.
#[derive(Clone, Debug, Default, Serialize)]
pub struct QueriedKeys {
    /// Of devices.
    pub device_keys: BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, Box<RawValue>>>,
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

    /// The keys of users: of the devices that are named, or of all where none is. Waits `patience` for other servers.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParam`] when there are too many users.
    pub async fn query_keys(
        &self,
        requester: &Requester,
        wanted: &BTreeMap<OwnedUserId, Vec<OwnedDeviceId>>,
        patience: Duration,
    ) -> Result<QueriedKeys, Error> {
        if wanted.len() > USERS_MAX {
            return Err(Error::InvalidParam(format!("at most {USERS_MAX} users at once")));
        }
        let all: Vec<&UserId> = wanted.keys().map(|user_id| &**user_id).collect();
        let numbers = self.0.storage.find_user_nrs(&all).await?;
        let (local, remote): (Wanted<'_>, Wanted<'_>) =
            wanted.iter().partition(|(user_id, _)| self.0.servers.has_user(user_id));
        let elsewhere = self.find_elsewhere(requester, remote.clone(), &numbers, patience.min(PATIENCE_MAX)).await?;
        let mut answer = QueriedKeys { failures: elsewhere.failures, ..QueriedKeys::default() };
        answer.device_keys.extend(local.keys().map(|user_id| ((*user_id).clone(), BTreeMap::new())));
        answer.add_said(&remote, elsewhere.said);
        let kept: HashSet<UserNr> = elsewhere.kept.into_iter().collect();
        let users = wanted.iter().filter_map(|(user_id, devices)| {
            let user_nr = *numbers.get(&**user_id)?;
            let is_here = self.0.servers.has_user(user_id) || kept.contains(&user_nr);
            is_here.then_some((user_nr, (user_id, devices)))
        });
        self.add_stored(&mut answer, &users.collect(), Some(requester.user_nr)).await?;
        // What the requester signed of keys that are not kept here.
        let others = remote.keys().filter_map(|user_id| Some((*numbers.get(&***user_id)?, *user_id)));
        let others: HashMap<UserNr, &OwnedUserId> = others.filter(|(user_nr, _)| !kept.contains(user_nr)).collect();
        if answer.master_keys.keys().any(|user_id| others.values().any(|other| *other == user_id)) {
            let signatures = self.signatures(others.keys().copied().collect(), Some(requester.user_nr)).await?;
            for (user_nr, user_id) in others {
                if let Some(Value::Object(key)) = answer.master_keys.get_mut(user_id) {
                    let target = only_key(key).map(|(_, public)| (user_nr, public));
                    add_signatures(key, target.and_then(|target| signatures.get(&target)));
                }
            }
        }
        Ok(answer)
    }

    /// Adds the keys that are stored of users, each with the devices that are wanted. Without a viewer it is another server that asks.
    pub(super) async fn add_stored(
        &self,
        answer: &mut QueriedKeys,
        users: &HashMap<UserNr, (&OwnedUserId, &Vec<OwnedDeviceId>)>,
        viewer: Option<UserNr>,
    ) -> Result<(), Error> {
        let storage = &self.0.storage;
        let (local, remote): (Vec<UserNr>, Vec<UserNr>) =
            users.keys().partition(|user_nr| self.0.servers.has_user(users[*user_nr].0));
        let signatures = self.signatures(users.keys().copied().collect(), viewer).await?;
        let mut rows = storage.list_device_keys(&local).await?;
        if !remote.is_empty() {
            rows.extend(storage.list_remote_devices(&remote).await?);
        }
        for (user_id, _) in users.values() {
            answer.device_keys.entry((*user_id).clone()).or_default();
        }
        for row in rows {
            let Some((user_id, devices)) = users.get(&row.user_nr) else { continue };
            let device_id = OwnedDeviceId::from(row.device_id.as_str());
            if !devices.is_empty() && !devices.contains(&device_id) {
                continue;
            }
            let more = signatures.get(&(row.user_nr, row.device_id));
            // What people call their devices is for those who share rooms with them, not for servers.
            let name = row.display_name.as_deref().filter(|_| viewer.is_some());
            let (Some(of_user), Some(keys)) = (answer.device_keys.get_mut(*user_id), shown(&row.keys, more, name))
            else {
                continue;
            };
            of_user.insert(device_id, keys);
        }
        let numbers: Vec<UserNr> = users.keys().copied().collect();
        for (user_nr, usage, key) in storage.list_cross_signing_keys(&numbers).await? {
            let Some((user_id, _)) = users.get(&user_nr) else { continue };
            let mut key = stored(&key);
            let into = match &*usage {
                "master" => {
                    let target = only_key(&key).map(|(_, public)| (user_nr, public));
                    add_signatures(&mut key, target.and_then(|target| signatures.get(&target)));
                    &mut answer.master_keys
                }
                "self_signing" => &mut answer.self_signing_keys,
                "user_signing" if Some(user_nr) == viewer => &mut answer.user_signing_keys,
                _ => continue,
            };
            into.insert((*user_id).clone(), Value::Object(key));
        }
        Ok(())
    }

    /// Signatures that were added to keys of users by themselves and by the viewer, by user and signed key.
    async fn signatures(
        &self,
        users: Vec<UserNr>,
        viewer: Option<UserNr>,
    ) -> Result<HashMap<(UserNr, String), Vec<Signature>>, Error> {
        let mut signatures: HashMap<(UserNr, String), Vec<Signature>> = HashMap::new();
        for row in self.0.storage.list_key_signatures(&users, viewer.unwrap_or(NOBODY)).await? {
            signatures.entry((row.user_nr, row.target)).or_default().push((row.signer, row.key_id, row.signature));
        }
        Ok(signatures)
    }
}
