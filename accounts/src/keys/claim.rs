//! One-time keys for new sessions. Client-Server API, "POST /keys/claim".

use std::collections::BTreeMap;

use ruma::{OwnedDeviceId, OwnedUserId};
use serde_json::{Value, json};

use crate::{Accounts, Error};

/// Most devices of one claim.
const DEVICES_MAX: usize = 5_000;

/// Keys that nobody else gets, as JSON.
#[derive(Clone, Debug, Default)]
pub struct Claimed {
    /// By user and device, under `<algorithm>:<id>`.
    pub one_time_keys: BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, BTreeMap<String, Value>>>,
    /// Servers that could not be asked.
    pub failures: BTreeMap<String, Value>,
}

impl Accounts {
    /// Claims a key of each device; devices that have none, not even a fallback key, are left out.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParam`] when there are too many devices.
    pub async fn claim_keys(
        &self,
        wanted: &BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, String>>,
    ) -> Result<Claimed, Error> {
        if wanted.values().map(BTreeMap::len).sum::<usize>() > DEVICES_MAX {
            return Err(Error::InvalidParam(format!("at most {DEVICES_MAX} devices at once")));
        }
        let storage = &self.0.storage;
        let mut claimed = Claimed::default();
        for (user_id, devices) in wanted {
            if !self.0.servers.has_user(user_id) {
                claimed.failures.insert(user_id.server_name().to_string(), json!({"message": "not reachable"}));
                continue;
            }
            let Some(user_nr) = storage.find_user_nr(user_id).await? else { continue };
            for (device_id, algorithm) in devices {
                let Some(row) = storage.claim_one_time_key(user_nr, device_id.as_str(), algorithm).await? else {
                    continue;
                };
                let key = serde_json::from_str(&row.key).unwrap_or(Value::Null);
                let name = format!("{}:{}", row.algorithm, row.key_id);
                let of_user = claimed.one_time_keys.entry(user_id.clone()).or_default();
                of_user.insert(device_id.clone(), BTreeMap::from([(name, key)]));
            }
        }
        Ok(claimed)
    }
}
