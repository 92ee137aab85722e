//! Messages to devices. They are written by commits only, and wait until their device has seen them.

use model::{Position, UserNr};

use crate::{
    Error, Storage,
    db::args,
    gathered::{Gather, Gathered},
    rows::Rows,
    statement::{Statement, statements},
};

statements! {
    LIST_MESSAGES = ["
        SELECT position, message FROM to_device
         WHERE user_nr = $1 AND device_id = $2 AND position > $3 AND position <= $4 ORDER BY position LIMIT $5"];
    /// The first few of each device.
    LIST_FIRST = ["
        SELECT r.nr, t.position, t.message
          FROM", (rows [1 nr bigint, 2 user_nr bigint, 3 device_id text, 4 after bigint, 5 upto bigint]), "
          JOIN to_device t ON t.user_nr = r.user_nr AND t.device_id = r.device_id
               AND t.position > r.after AND t.position <= r.upto
               AND t.position <= coalesce((
                   SELECT l.position FROM to_device l
                    WHERE l.user_nr = r.user_nr AND l.device_id = r.device_id AND l.position > r.after
                    ORDER BY l.position LIMIT 1 OFFSET 3), r.upto)
         ORDER BY t.position"];
    DELETE_MESSAGES = ["
        DELETE FROM to_device WHERE position IN
               (SELECT t.position
                  FROM", (rows [1 user_nr bigint, 2 device_id text, 3 upto bigint]), "
                  JOIN to_device t ON t.user_nr = r.user_nr AND t.device_id = r.device_id AND t.position <= r.upto
                 ORDER BY t.position LIMIT 500)"];
    /// Of the devices for which messages wait those that are gone, looked up one by one: nothing is read but where each begins.
    LIST_GONE = ["
        WITH RECURSIVE waiting (device_id) AS (
            SELECT min(device_id) FROM to_device WHERE user_nr = $1
             UNION ALL
            SELECT (SELECT min(t.device_id) FROM to_device t WHERE t.user_nr = $1 AND t.device_id > waiting.device_id)
              FROM waiting WHERE waiting.device_id IS NOT NULL)
        SELECT w.device_id
          FROM waiting w
         WHERE w.device_id IS NOT NULL
           AND NOT EXISTS (SELECT 1 FROM devices d WHERE d.user_nr = $1 AND d.device_id = w.device_id)
         ORDER BY w.device_id"];
    DELETE_GONE = ["
        DELETE FROM to_device WHERE position IN
               (SELECT t.position FROM to_device t
                 WHERE t.user_nr = $1 AND t.device_id = $2
                   AND NOT EXISTS (SELECT 1 FROM devices d WHERE d.user_nr = $1 AND d.device_id = $2)
                 ORDER BY t.position LIMIT 500)"];
    DELETE_LEFT_OVER = ["
        DELETE FROM to_device
         WHERE user_nr = $1 AND device_id = $2
           AND NOT EXISTS (SELECT 1 FROM devices d WHERE d.user_nr = $1 AND d.device_id = $2)"];
    /// Told by the last and the first message of each, and mostly by the last alone: the numbers and bytes of a queue go on while any of it
    /// is left.
    LIST_FULL = ["
        SELECT d.user_nr, d.device_id
          FROM devices d
         WHERE d.user_nr", (in_list 1), "
           AND EXISTS (
               SELECT 1
                 FROM (SELECT t.number, t.bytes
                         FROM to_device t WHERE t.user_nr = d.user_nr AND t.device_id = d.device_id
                        ORDER BY t.position DESC LIMIT 1) l
                CROSS JOIN
                      (SELECT t.number, t.bytes - octet_length(t.message) AS bytes
                         FROM to_device t WHERE t.user_nr = d.user_nr AND t.device_id = d.device_id
                        ORDER BY t.position LIMIT 1) f
                WHERE (l.number >= $2 OR l.bytes >= $3)
                  AND (l.number - f.number + 1 >= $2 OR l.bytes - f.bytes >= $3))
         ORDER BY d.user_nr, d.device_id"];
    COUNT_WAITING = ["SELECT count(*) FROM to_device WHERE user_nr = $1 AND device_id = $2"];
}

/// How many messages of a device are read with those of others: the `OFFSET` in the statement and one. Who has more reads them alone.
const FIRST_MESSAGES: usize = 4;
/// Most devices whose messages are read together.
const READ_AT_ONCE: usize = 100;
/// Most devices whose messages are deleted together.
const SEEN_AT_ONCE: usize = 500;
/// Most messages that a transaction deletes: the `LIMIT` in the statement.
const DELETED_AT_ONCE: u64 = 500;

/// Deletes what waited for a device of that id before, in the transaction that makes it, and before it does: it was for other keys.
pub(crate) const DELETE_LEFT_OVER_TO_DEVICE: &Statement = &DELETE_LEFT_OVER;

/// What a device waits for.
pub(crate) struct ToDeviceRead {
    user_nr: UserNr,
    device_id: String,
    after: Position,
    to: Position,
}

impl Gather for ToDeviceRead {
    type Answer = Vec<(Position, String)>;
    type Group = usize;

    fn queue(storage: &Storage) -> &Gathered<Self> {
        &storage.0.to_device_reads
    }

    fn join(&self, group: &mut usize, is_first: bool) -> bool {
        *group += 1;
        is_first || *group <= READ_AT_ONCE
    }

    async fn perform(storage: &Storage, group: &[Self]) -> Result<Vec<Self::Answer>, Error> {
        let rows = Rows::new()
            .bigint((0_i64..).take(group.len()))
            .bigint(group.iter().map(|read| read.user_nr.0))
            .text(group.iter().map(|read| read.device_id.clone()))
            .bigint(group.iter().map(|read| read.after.0))
            .bigint(group.iter().map(|read| read.to.0));
        let mut answers = vec![Vec::new(); group.len()];
        for row in storage.db().read(&LIST_FIRST, rows).await? {
            let index: i64 = row.get(0)?;
            let answer = usize::try_from(index).ok().and_then(|index| answers.get_mut(index));
            answer.ok_or_else(|| Error::Damaged(format!("row {index}")))?.push((row.nr(1)?, row.get(2)?));
        }
        Ok(answers)
    }
}

/// A device has seen what was sent to it.
pub(crate) struct ToDeviceSeen {
    user_nr: UserNr,
    device_id: String,
    to: Position,
}

impl Gather for ToDeviceSeen {
    type Answer = ();
    type Group = usize;

    fn queue(storage: &Storage) -> &Gathered<Self> {
        &storage.0.to_device_seen
    }

    fn join(&self, group: &mut usize, is_first: bool) -> bool {
        *group += 1;
        is_first || *group <= SEEN_AT_ONCE
    }

    async fn perform(storage: &Storage, group: &[Self]) -> Result<Vec<()>, Error> {
        let rows = || {
            Rows::new()
                .bigint(group.iter().map(|seen| seen.user_nr.0))
                .text(group.iter().map(|seen| seen.device_id.clone()))
                .bigint(group.iter().map(|seen| seen.to.0))
        };
        while storage.db().write(&DELETE_MESSAGES, rows()).await? == DELETED_AT_ONCE {}
        Ok(vec![(); group.len()])
    }
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

    /// The same for somebody who waits beside many others, as when a key is sent to all devices of a room: read together with what others
    /// wait for.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_new_to_device(
        &self,
        user_nr: UserNr,
        device_id: &str,
        after: Position,
        to: Position,
        limit: u32,
    ) -> Result<Vec<(Position, String)>, Error> {
        let mut first = self.gather(ToDeviceRead { user_nr, device_id: device_id.to_owned(), after, to }).await?;
        if first.len() < FIRST_MESSAGES {
            first.truncate(limit as usize);
            return Ok(first);
        }
        self.list_to_device(user_nr, device_id, after, to, limit).await
    }

    /// Deletes the messages that a device has seen, up to a position.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn delete_to_device(&self, user_nr: UserNr, device_id: &str, to: Position) -> Result<(), Error> {
        self.gather(ToDeviceSeen { user_nr, device_id: device_id.to_owned(), to }).await
    }

    /// Deletes what waits for devices of a user that are gone, some at a time.
    ///
    /// # Errors
    ///
    /// When the database fails; some may be deleted then.
    pub async fn delete_to_gone_devices(&self, user_nr: UserNr) -> Result<(), Error> {
        for row in self.db().read(&LIST_GONE, args![user_nr]).await? {
            let device_id: String = row.get(0)?;
            while self.db().write(&DELETE_GONE, args![user_nr, &device_id]).await? == DELETED_AT_ONCE {}
        }
        Ok(())
    }

    /// The devices of users for which at least `count` messages wait, or `bytes` of them. Costs the same however many they are.
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
