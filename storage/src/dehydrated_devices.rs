//! The device of a user that takes messages while nobody is logged in with it. MSC3814.

use model::UserNr;

use crate::{
    DeviceKeyUpload, DeviceKeysOutcome, Error, Storage,
    db::args,
    devices::{delete_devices, upsert_device},
    statement::{Statement, statements},
};

statements! {
    /// Two uploads of a user wait for each other here.
    LOCK_USER = ["SELECT user_nr FROM users WHERE user_nr = $1", (for_update)];
    GET = ["SELECT device_id, device_data FROM dehydrated_devices WHERE user_nr = $1"];
    GET_DEVICE = ["SELECT device_id FROM devices WHERE user_nr = $1 AND device_id = $2"];
    INSERT = ["INSERT INTO dehydrated_devices (user_nr, device_id, device_data) VALUES ($1, $2, $3)"];
    DELETE = ["DELETE FROM dehydrated_devices WHERE user_nr = $1 AND device_id", (in_list 2)];
}

/// Forgets that devices are dehydrated, in the transaction that deletes them or logs them in.
pub(crate) const DELETE_DEHYDRATED: &Statement = &DELETE;

/// A dehydrated device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DehydratedDeviceRow {
    /// Its id.
    pub device_id: String,
    /// What the user's clients bring it back to life with, a JSON object.
    pub device_data: String,
}

impl Storage {
    /// The dehydrated device of a user.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn get_dehydrated_device(&self, user_nr: UserNr) -> Result<Option<DehydratedDeviceRow>, Error> {
        let row = self.db().read_one(&GET, args![user_nr]).await?;
        row.map(|row| Ok(DehydratedDeviceRow { device_id: row.get(0)?, device_data: row.get(1)? })).transpose()
    }

    /// Gives a user another dehydrated device: the one of before is deleted with its keys, which is to be told, as its
    /// messages are to be deleted. Does nothing,
    /// and says `false`, when a device of that id is there that is not dehydrated.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn replace_dehydrated_device(
        &self,
        user_nr: UserNr,
        new: &DehydratedDeviceRow,
        display_name: Option<String>,
        keys: &DeviceKeyUpload,
    ) -> Result<bool, Error> {
        let device_id = &new.device_id;
        let mut tx = self.db().begin().await?;
        tx.fetch(&LOCK_USER, args![user_nr]).await?;
        let old: Option<String> = tx.fetch_one(&GET, args![user_nr]).await?.map(|row| row.get(0)).transpose()?;
        if let Some(old) = &old {
            delete_devices(&mut tx, self.random(), user_nr, std::slice::from_ref(old)).await?;
        }
        if tx.fetch_one(&GET_DEVICE, args![user_nr, device_id]).await?.is_some() {
            tx.rollback().await?;
            return Ok(false);
        }
        upsert_device(&mut tx, user_nr, device_id, display_name, self.clock().now_ms(), None).await?;
        let outcome = self.write_device_keys(&mut tx, user_nr, device_id, keys).await?;
        assert!(outcome == DeviceKeysOutcome::Stored, "a device that was just made has no keys of before: {outcome:?}");
        tx.execute(&INSERT, args![user_nr, device_id, &new.device_data]).await?;
        tx.commit().await?;
        for device_id in old.iter().chain([device_id]) {
            self.0.key_counts.forget(user_nr, device_id);
        }
        Ok(true)
    }
}
