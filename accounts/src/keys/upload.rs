//! A device uploads its keys. Client-Server API, "POST /keys/upload".

use std::collections::BTreeMap;

use storage::{DeviceKeyUpload, DeviceKeysOutcome, ONE_TIME_KEYS_MAX};

use super::{
    uploaded::{KeyUpload, SIGNED_CURVE25519},
    verify::stored,
};
use crate::{Accounts, Error, Requester};

/// How often an upload is checked, when the device's identity changes each time before it is written.
const CHECKED_MAX: usize = 3;

impl Accounts {
    /// Keeps a device's keys, all or nothing; gives how many one-time keys are left by algorithm.
    ///
    /// A one-time key that was uploaded before is no mistake: the device may not have got the answer. If it was claimed since, it is not
    /// given out again.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParam`] when the keys are not the device's own, malformed, of an unknown algorithm or too many, or when a one-time key
    /// has the name of another one; [`Error::InvalidSignature`], [`Error::UnknownToken`] when the device was deleted meanwhile,
    /// [`Error::Busy`] when its identity changes all the time.
    pub async fn upload_keys(&self, requester: &Requester, upload: KeyUpload) -> Result<BTreeMap<String, u64>, Error> {
        let Some(device_id) = requester.device_id.as_ref().map(|id| id.as_str()) else {
            return Err(Error::InvalidParam("only a device has keys".to_owned()));
        };
        let (user_nr, storage) = (requester.user_nr, &self.0.storage);
        for _ in 0..CHECKED_MAX {
            let known = storage.get_device_keys(user_nr, device_id).await?;
            let identity = known.as_deref().map(stored);
            let checked = upload.clone().checked(requester.user_id.as_str(), device_id, identity.as_ref())?;
            match storage.upload_device_keys(user_nr, device_id, &DeviceKeyUpload { known, ..checked }).await? {
                DeviceKeysOutcome::Stored => {}
                DeviceKeysOutcome::Changed => continue,
                DeviceKeysOutcome::NoDevice => return Err(Error::UnknownToken { soft_logout: false }),
                DeviceKeysOutcome::TooMany => {
                    return Err(Error::InvalidParam(format!("a device has at most {ONE_TIME_KEYS_MAX} one-time keys")));
                }
                // In the words of Synapse: matrix-rust-sdk reads both keys out of them.
                DeviceKeysOutcome::Taken { old, new } => {
                    let name = format!("{}:{}", new.algorithm, new.key_id);
                    let (old, new) = (old.key, new.key);
                    let message = format!("One time key {name} already exists. Old key: {old}; new key: {new}");
                    return Err(Error::InvalidParam(message));
                }
            }
            if upload.device_keys.is_some() {
                self.follow_up(user_nr).await;
            }
            return self.one_time_key_counts(requester).await;
        }
        Err(Error::Busy)
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
