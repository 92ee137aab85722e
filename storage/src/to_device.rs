//! Messages to devices. They are written by commits only, and wait until their device has seen them.

use model::{Position, UserNr};

use crate::{Error, Storage, db::args, statement::statements};

statements! {
    LIST_MESSAGES = ["
        SELECT position, message FROM to_device
         WHERE user_nr = $1 AND device_id = $2 AND position > $3 AND position <= $4 ORDER BY position LIMIT $5"];
    DELETE_MESSAGES = ["
        DELETE FROM to_device WHERE position IN
               (SELECT position FROM to_device WHERE user_nr = $1 AND device_id = $2 AND position <= $3
                 ORDER BY position LIMIT $4)"];
    DELETE_ALL = ["
        DELETE FROM to_device WHERE position IN (SELECT position FROM to_device WHERE user_nr = $1 LIMIT $2)"];
    LIST_FULL = ["
        SELECT user_nr, device_id FROM to_device WHERE user_nr", (in_list 1), "
         GROUP BY user_nr, device_id HAVING count(*) >= $2 OR sum(octet_length(message)) >= $3
         ORDER BY user_nr, device_id"];
    COUNT_WAITING = ["SELECT count(*) FROM to_device WHERE user_nr = $1 AND device_id = $2"];
}

impl Storage {
    /// Messages that wait for a device, after a position and up to another, oldest first, as JSON.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_to_device(
        &self,
        user_nr: UserNr,
        device_id: &str,
        after: Position,
        to: Position,
        limit: u32,
    ) -> Result<Vec<(Position, String)>, Error> {
        let rows = self.db().read(&LIST_MESSAGES, args![user_nr, device_id, after, to, i64::from(limit)]).await?;
        rows.iter().map(|row| Ok((row.nr(0)?, row.get(1)?))).collect()
    }

    /// Deletes at most `limit` messages that a device has seen, up to a position; tells how many there were.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn delete_to_device(
        &self,
        user: UserNr,
        device_id: &str,
        to: Position,
        limit: u32,
    ) -> Result<u64, Error> {
        self.db().write(&DELETE_MESSAGES, args![user, device_id, to, i64::from(limit)]).await
    }

    /// Deletes at most `limit` messages to any device of a user; tells how many there were.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn delete_all_to_device(&self, user: UserNr, limit: u32) -> Result<u64, Error> {
        self.db().write(&DELETE_ALL, args![user, i64::from(limit)]).await
    }

    /// The devices of users for which at least `count` messages wait, or `bytes` of them.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_full_devices(
        &self,
        users: &[UserNr],
        count: u32,
        bytes: u64,
    ) -> Result<Vec<(UserNr, String)>, Error> {
        let users: Vec<i64> = users.iter().map(|user| user.0).collect();
        let rows = self.db().read(&LIST_FULL, args![users, i64::from(count), bytes.cast_signed()]).await?;
        rows.iter().map(|row| Ok((row.nr(0)?, row.get(1)?))).collect()
    }

    /// How many messages wait for a device.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn count_to_device(&self, user_nr: UserNr, device_id: &str) -> Result<u64, Error> {
        let row = self.db().read_one(&COUNT_WAITING, args![user_nr, device_id]).await?;
        Ok(row.map_or(Ok(0), |row| row.get::<i64>(0))?.unsigned_abs())
    }
}
