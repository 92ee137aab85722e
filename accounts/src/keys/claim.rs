//! One-time keys for new sessions. Client-Server API, "POST /keys/claim".

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use model::{UserNr, content_object};
use ruma::{OwnedDeviceId, OwnedServerName, OwnedUserId, ServerName, UserId, api::federation::keys::claim_keys};
use serde_json::Value;

use crate::{Accounts, Error, Requester};

/// Most devices of one claim.
const DEVICES_MAX: usize = 5_000;
/// Largest key that another server gives, in bytes of JSON.
const KEY_BYTES_MAX: usize = 8_192;
/// Longest time that other servers are waited for.
const PATIENCE_MAX: Duration = Duration::from_secs(30);

/// Devices by user, each with the algorithm of the key that is wanted.
pub type KeyClaims = BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, String>>;

/// Keys that nobody else gets, as JSON.
#[derive(Clone, Debug, Default)]
pub struct Claimed {
    /// By user and device, under `<algorithm>:<id>`.
    pub one_time_keys: BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, BTreeMap<String, Value>>>,
    /// Servers that could not be asked.
    pub failures: BTreeMap<String, Value>,
}

impl Accounts {
    /// Claims a key of each device; devices that have none, not even a fallback key, are left out. Waits `patience` for other servers.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParam`] when there are too many devices.
    pub async fn claim_keys(
        &self,
        requester: &Requester,
        wanted: KeyClaims,
        patience: Duration,
    ) -> Result<Claimed, Error> {
        check_bound(&wanted)?;
        let mut local = KeyClaims::new();
        let mut remote: BTreeMap<OwnedServerName, KeyClaims> = BTreeMap::new();
        for (user_id, devices) in wanted {
            let of_server = match self.0.servers.has_user(&user_id) {
                true => &mut local,
                false => remote.entry(user_id.server_name().to_owned()).or_default(),
            };
            of_server.insert(user_id, devices);
        }
        let as_server = requester.user_id.server_name();
        let asking = self.ask_servers(remote, patience.min(PATIENCE_MAX), |server, claims: KeyClaims| {
            Box::pin(async move {
                let answer = self.0.remote.claim_keys(as_server, &server, claims.clone()).await?;
                Ok((claims, answer))
            })
        });
        let (one_time_keys, (said, failures)) = tokio::join!(self.claim_of(&local), asking);
        let mut claimed = Claimed { one_time_keys: one_time_keys?, failures };
        for (claims, answer) in said {
            claimed.add_said(&claims, answer);
        }
        Ok(claimed)
    }

    /// The same for another server, which gets keys of users of the name that it asked. Server-Server API, "POST /user/keys/claim".
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParam`] when there are too many devices.
    pub async fn claim_keys_for_server(&self, asked: &ServerName, mut wanted: KeyClaims) -> Result<Claimed, Error> {
        check_bound(&wanted)?;
        wanted.retain(|user_id, _| user_id.server_name() == asked);
        Ok(Claimed { one_time_keys: self.claim_of(&wanted).await?, failures: BTreeMap::new() })
    }

    /// Claims keys of users of ours.
    async fn claim_of(
        &self,
        wanted: &KeyClaims,
    ) -> Result<BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, BTreeMap<String, Value>>>, Error> {
        let storage = &self.0.storage;
        let users: Vec<&UserId> = wanted.keys().map(|user_id| &**user_id).collect();
        let numbers = storage.find_user_nrs(&users).await?;
        let names: HashMap<UserNr, &UserId> = numbers.iter().map(|(user_id, nr)| (*nr, *user_id)).collect();
        let claims = wanted.iter().filter_map(|(user_id, devices)| Some((*numbers.get(&**user_id)?, devices)));
        let claims = claims.flat_map(|(user_nr, devices)| {
            devices.iter().map(move |(device_id, algorithm)| (user_nr, device_id.to_string(), algorithm.clone()))
        });
        let mut claimed: BTreeMap<OwnedUserId, BTreeMap<_, _>> = BTreeMap::new();
        for ((user_nr, device_id, _), row) in storage.claim_one_time_keys(claims.collect()).await? {
            let Some(user_id) = names.get(&user_nr) else { continue };
            let key = serde_json::from_str(&row.key).unwrap_or(Value::Null);
            let name = format!("{}:{}", row.algorithm, row.key_id);
            let of_user = claimed.entry((*user_id).to_owned()).or_default();
            of_user.insert(OwnedDeviceId::from(device_id), BTreeMap::from([(name, key)]));
        }
        Ok(claimed)
    }
}

fn check_bound(wanted: &KeyClaims) -> Result<(), Error> {
    if wanted.values().map(BTreeMap::len).sum::<usize>() > DEVICES_MAX {
        return Err(Error::InvalidParam(format!("at most {DEVICES_MAX} devices at once")));
    }
    Ok(())
}

impl Claimed {
    /// Adds what a server gave of what it was asked for: a key of each device, of the wanted algorithm.
    fn add_said(&mut self, claims: &KeyClaims, said: claim_keys::v1::Response) {
        for (user_id, devices) in said.one_time_keys {
            for (device_id, keys) in devices {
                let Some(algorithm) = claims.get(&user_id).and_then(|devices| devices.get(&device_id)) else {
                    continue;
                };
                let is_wanted = |id: &str| id.split_once(':').is_some_and(|(name, _)| name == algorithm);
                let Some((id, key)) = keys.into_iter().find(|(id, _)| is_wanted(id.as_str())) else { continue };
                let text = key.json().get();
                let key = content_object(text).ok().filter(|_| text.len() <= KEY_BYTES_MAX);
                let Some(key) = key else { continue };
                let of_user = self.one_time_keys.entry(user_id.clone()).or_default();
                of_user.insert(device_id, BTreeMap::from([(id.to_string(), Value::Object(key))]));
            }
        }
    }
}
