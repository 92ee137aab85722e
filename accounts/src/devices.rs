//! Devices of the requester. Client-Server API, "Device Management".

use storage::DeviceRow;

use crate::{
    Accounts, Error, Requester,
    sessions::{DEVICES_MAX, check_device_id, check_device_name},
};

/// Most devices that one request deletes.
const DELETED_MAX: usize = 1_000;

impl Accounts {
    /// The requester's devices, oldest first.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn devices(&self, requester: &Requester) -> Result<Vec<DeviceRow>, Error> {
        self.write_seen().await;
        Ok(self.0.storage.list_devices(requester.user_nr).await?)
    }

    /// One of the requester's devices.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`].
    pub async fn device(&self, requester: &Requester, device_id: &str) -> Result<DeviceRow, Error> {
        self.write_seen().await;
        self.0.storage.get_device(requester.user_nr, device_id).await?.ok_or(Error::NotFound("device"))
    }

    /// Names a device. An application service makes it if there is none (Application Service API, "Device management").
    /// Returns whether it was made.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::InvalidParam`].
    pub async fn name_device(
        &self,
        requester: &Requester,
        device_id: &str,
        name: Option<String>,
    ) -> Result<bool, Error> {
        check_device_name(name.as_deref())?;
        let user_nr = requester.user_nr;
        if self.0.storage.get_device(user_nr, device_id).await?.is_none() {
            if requester.app_service.is_none() {
                return Err(Error::NotFound("device"));
            }
            check_device_id(device_id)?;
            if self.0.storage.insert_device(user_nr, device_id, name, DEVICES_MAX).await? {
                self.forget_user(user_nr);
                self.follow_up(user_nr).await;
            }
            return Ok(true);
        }
        // Without a name nothing is to be done.
        if name.is_some() {
            // Others see the name beside the device's keys.
            self.0.storage.update_device_name(user_nr, device_id, name).await?;
            self.follow_up(user_nr).await;
        }
        Ok(false)
    }

    /// Deletes devices; those that are not there are left out.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParam`] when there are too many.
    pub async fn delete_devices(&self, requester: &Requester, device_ids: &[String]) -> Result<(), Error> {
        if device_ids.len() > DELETED_MAX {
            return Err(Error::InvalidParam(format!("at most {DELETED_MAX} devices at once")));
        }
        self.remove_devices(requester.user_nr, device_ids).await
    }
}
