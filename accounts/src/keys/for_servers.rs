//! The devices and keys of our users, for other servers. Server-Server API, "Device Management", "End-to-End Encryption".

use std::collections::{BTreeMap, HashMap};

use ruma::{OwnedDeviceId, OwnedUserId, ServerName, UserId};
use serde_json::{Value, value::RawValue};

use super::query::QueriedKeys;
use crate::{Accounts, Error};

/// Most users of one question.
const USERS_MAX: usize = 10_000;

/// All devices of a user that have keys.
#[derive(Clone, Debug)]
pub struct DeviceListOfUser {
    /// The position of the newest change of a device that is in it; what is told of later ones follows on it.
    pub stream_id: i64,
    /// The keys by device.
    pub devices: BTreeMap<OwnedDeviceId, Box<RawValue>>,
    /// The master key.
    pub master_key: Option<Value>,
    /// The self-signing key.
    pub self_signing_key: Option<Value>,
}

impl Accounts {
    /// All devices of a user of ours. Server-Server API, "GET /user/devices/{userId}".
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] when there is no such user.
    pub async fn device_list_of(&self, user_id: &OwnedUserId) -> Result<DeviceListOfUser, Error> {
        let storage = &self.0.storage;
        let user_nr = storage.get_user(user_id).await?.ok_or(Error::NotFound("user"))?.user_nr;
        // First: what changes while the rest is read gets a later name.
        let positions = storage.list_device_list_positions(&[user_nr], storage.published()).await?;
        let stream_id = positions.get(&user_nr).copied().unwrap_or_default();
        let (mut keys, all) = (QueriedKeys::default(), Vec::new());
        self.add_stored(&mut keys, &HashMap::from([(user_nr, (user_id, &all))]), None).await?;
        Ok(DeviceListOfUser {
            stream_id: stream_id.0,
            devices: keys.device_keys.remove(user_id).unwrap_or_default(),
            master_key: keys.master_keys.remove(user_id),
            self_signing_key: keys.self_signing_keys.remove(user_id),
        })
    }

    /// Keys of users of the name that another server asked. Server-Server API, "POST /user/keys/query".
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParam`] when there are too many users.
    pub async fn query_keys_for_server(
        &self,
        asked: &ServerName,
        wanted: &BTreeMap<OwnedUserId, Vec<OwnedDeviceId>>,
    ) -> Result<QueriedKeys, Error> {
        if wanted.len() > USERS_MAX {
            return Err(Error::InvalidParam(format!("at most {USERS_MAX} users at once")));
        }
        let ours = || wanted.iter().filter(|(user_id, _)| user_id.server_name() == asked);
        let users: Vec<&UserId> = ours().map(|(user_id, _)| &**user_id).collect();
        let numbers = self.0.storage.find_user_nrs(&users).await?;
        let users = ours().filter_map(|(user_id, devices)| Some((*numbers.get(&**user_id)?, (user_id, devices))));
        let mut answer = QueriedKeys::default();
        self.add_stored(&mut answer, &users.collect(), None).await?;
        Ok(answer)
    }
}
