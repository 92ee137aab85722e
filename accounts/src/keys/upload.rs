//! A device uploads its keys. Client-Server API, "POST /keys/upload".

use std::collections::BTreeMap;

use storage::DeviceKeysOutcome;

use super::{
    uploaded::{KeyUpload, SIGNED_CURVE25519},
    verify::stored,
};
use crate::{Accounts, Error, Requester};

/// Most one-time keys that a device may have.
const ONE_TIME_KEYS_MAX: u64 = 2_000;

impl Accounts {
    /// Keeps a device's keys, all or nothing; gives how many one-time keys are left by algorithm.
    ///
    /// A one-time key that was uploaded before is no mistake: the device may not have got the answer. If it was claimed since, it is not
    /// given out again.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParam`] when the keys are not the device's own, malformed, of an unknown algorithm or too many, or when a one-time key
    /// has the name of another one; [`Error::InvalidSignature`], [`Error::UnknownToken`] when the device was deleted meanwhile.
    pub async fn upload_keys(&self, requester: &Requester, upload: KeyUpload) -> Result<BTreeMap<String, u64>, Error> {
        let Some(device_id) = requester.device_id.as_ref().map(|id| id.as_str()) else {
            return Err(Error::InvalidParam("only a device has keys".to_owned()));
        };
        let (user_nr, storage) = (requester.user_nr, &self.0.storage);
        let known = storage.get_device_keys(user_nr, device_id).await?.map(|keys| stored(&keys));
        let upload = upload.checked(requester.user_id.as_str(), device_id, known.as_ref())?;
        if !upload.one_time_keys.is_empty() {
            let there = storage.count_one_time_keys(user_nr, device_id).await?;
            let there: u64 = there.iter().map(|(_, count)| count).sum();
            if there + upload.one_time_keys.len() as u64 > ONE_TIME_KEYS_MAX {
                return Err(Error::InvalidParam(format!("a device has at most {ONE_TIME_KEYS_MAX} one-time keys")));
            }
        }
        match storage.upload_device_keys(user_nr, device_id, &upload).await? {
            DeviceKeysOutcome::Stored => {}
            DeviceKeysOutcome::NoDevice => return Err(Error::UnknownToken { soft_logout: false }),
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
