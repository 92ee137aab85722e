//! Dehydrated devices: a device of a user that takes the keys of rooms while nobody is logged in. MSC3814.
//!
//! A client makes it, uploads it encrypted, and goes. Whoever logs in later brings it back to life, reads the messages that were sent to it,
//! and uploads another one.

use model::{Position, content_object, limits::is_name};
use ruma::OwnedDeviceId;
use serde_json::{Value, value::RawValue};
use storage::{DehydratedDeviceRow, ONE_TIME_KEYS_MAX};

use super::uploaded::KeyUpload;
use crate::{
    Accounts, Error, Requester,
    sessions::{check_device_id, check_device_name},
};

/// Largest `device_data`, in bytes of JSON: keys of a device with some thousand one-time keys.
const DEVICE_DATA_BYTES_MAX: usize = 131_072;
/// Longest name of an algorithm, in bytes.
const ALGORITHM_BYTES_MAX: usize = 255;
/// Most messages of one page.
const MESSAGES_MAX: u32 = 100;

/// A device to be kept while nobody uses it.
#[derive(Debug)]
pub struct NewDehydratedDevice {
    /// Its id.
    pub device_id: OwnedDeviceId,
    /// What it is called.
    pub display_name: Option<String>,
    /// What brings it back to life, a JSON object.
    pub device_data: Box<RawValue>,
    /// Its keys.
    pub keys: KeyUpload,
}

/// Messages that wait for a dehydrated device.
#[derive(Debug)]
pub struct DehydratedMessages {
    /// The messages, oldest first.
    pub events: Vec<Box<RawValue>>,
    /// Where they end.
    pub upto: Position,
    /// Whether there are more behind.
    pub has_more: bool,
}

impl Accounts {
    /// Keeps a dehydrated device of the requester; the one of before is gone, with its messages.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParam`] when the id is that of a device that is logged in; else as for an upload of keys, and [`Error::BadJson`] or
    /// [`Error::TooLarge`] for what brings it back to life.
    pub async fn put_dehydrated_device(&self, requester: &Requester, new: NewDehydratedDevice) -> Result<(), Error> {
        let device_id = new.device_id.as_str();
        check_device_id(device_id)?;
        check_device_name(new.display_name.as_deref())?;
        let data = new.device_data.get();
        if data.len() > DEVICE_DATA_BYTES_MAX {
            return Err(Error::TooLarge(DEVICE_DATA_BYTES_MAX));
        }
        let algorithm = content_object(data)?.remove("algorithm");
        if !algorithm.as_ref().and_then(Value::as_str).is_some_and(|name| is_name(name, ALGORITHM_BYTES_MAX)) {
            return Err(Error::InvalidParam("`device_data` names no `algorithm`".to_owned()));
        }
        if new.keys.one_time_keys.len() as u64 > ONE_TIME_KEYS_MAX {
            return Err(Error::InvalidParam(format!("a device has at most {ONE_TIME_KEYS_MAX} one-time keys")));
        }
        let keys = new.keys.checked(requester.user_id.as_str(), device_id, None)?;
        if keys.device_keys.is_none() {
            return Err(Error::MissingParam("`device_keys`"));
        }
        let row = DehydratedDeviceRow { device_id: device_id.to_owned(), device_data: data.to_owned() };
        let user_nr = requester.user_nr;
        if !self.0.storage.replace_dehydrated_device(user_nr, &row, new.display_name, &keys).await? {
            return Err(Error::InvalidParam("a device of this id is logged in".to_owned()));
        }
        self.forget_user(user_nr);
        self.follow_up(user_nr).await;
        Ok(())
    }

    /// The requester's dehydrated device.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] when there is none.
    pub async fn dehydrated_device(&self, requester: &Requester) -> Result<(OwnedDeviceId, Box<RawValue>), Error> {
        let row = self.0.storage.get_dehydrated_device(requester.user_nr).await?;
        let row = row.ok_or(Error::NotFound("dehydrated device"))?;
        let damaged = |error: serde_json::Error| storage::Error::Damaged(format!("dehydrated device: {error}"));
        Ok((row.device_id.into(), RawValue::from_string(row.device_data).map_err(damaged)?))
    }

    /// Deletes the requester's dehydrated device; gives its id.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] when there is none.
    pub async fn delete_dehydrated_device(&self, requester: &Requester) -> Result<OwnedDeviceId, Error> {
        let (device_id, _) = self.dehydrated_device(requester).await?;
        self.remove_devices(requester.user_nr, &[device_id.to_string()]).await?;
        Ok(device_id)
    }

    /// Messages that wait for the requester's dehydrated device after a position, a page of them. They stay: who is interrupted begins
    /// anew.
    ///
    /// # Errors
    ///
    /// [`Error::Forbidden`] when the device is not the requester's dehydrated one.
    pub async fn dehydrated_messages(
        &self,
        requester: &Requester,
        device_id: &str,
        after: Position,
    ) -> Result<DehydratedMessages, Error> {
        let (user_nr, storage) = (requester.user_nr, &self.0.storage);
        if storage.get_dehydrated_device(user_nr).await?.is_none_or(|row| row.device_id != device_id) {
            return Err(Error::Forbidden("this is not your dehydrated device"));
        }
        let to = storage.newest_durable().await?;
        let rows = storage.list_to_device(user_nr, device_id, after, to, MESSAGES_MAX).await?;
        let has_more = rows.len() == MESSAGES_MAX as usize;
        let upto = rows.last().map_or(after, |(position, _)| *position);
        let events = rows.into_iter().filter_map(|(_, message)| RawValue::from_string(message).ok()).collect();
        Ok(DehydratedMessages { events, upto, has_more })
    }
}
