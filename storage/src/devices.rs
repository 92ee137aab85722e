//! Devices of users.

use model::{Random, UserNr};

use crate::{
    ChangedKeys, Error, Storage,
    db::{Row, Tx, args},
    dehydrated_devices::DELETE_DEHYDRATED,
    rows::Rows,
    statement::statements,
    sync_connections::DELETE_CONNECTIONS_OF_DEVICES,
    to_device::DELETE_LEFT_OVER_TO_DEVICE,
    user_work::{UserWork, note, note_changed},
};

/// Most devices too many that one log-in deletes: their keys may be many rows.
const SURPLUS_DELETED_MAX: i64 = 10;
/// When more devices go at once, it is told that anything may have changed.
const TOLD_ONE_BY_ONE_MAX: usize = 20;

statements! {
    /// A device that is known keeps its name.
    UPSERT_DEVICE = ["
        INSERT INTO devices (user_nr, device_id, display_name, created_at_ms, last_seen_at_ms, last_seen_ip)
        VALUES ($1, $2, $3, $4, $4, $5)
        ON CONFLICT (user_nr, device_id) DO UPDATE
           SET last_seen_at_ms = excluded.last_seen_at_ms, last_seen_ip = excluded.last_seen_ip"];
    LIST_DEVICES = ["
        SELECT device_id, display_name, created_at_ms, last_seen_at_ms, last_seen_ip
          FROM devices WHERE user_nr = $1 ORDER BY created_at_ms, device_id"];
    COUNT_DEVICES = ["SELECT count(*) FROM devices WHERE user_nr = $1"];
    LIST_LONGEST_UNSEEN = ["
        SELECT device_id FROM devices WHERE user_nr = $1 AND device_id <> $2
           AND NOT device_id IN (SELECT device_id FROM dehydrated_devices WHERE user_nr = $1)
         ORDER BY coalesce(last_seen_at_ms, created_at_ms), created_at_ms, device_id LIMIT $3"];
    LIST_IDS = ["SELECT user_nr, device_id FROM devices WHERE user_nr", (in_list 1), " ORDER BY user_nr, device_id"];
    GET_DEVICE = ["
        SELECT device_id, display_name, created_at_ms, last_seen_at_ms, last_seen_ip
          FROM devices WHERE user_nr = $1 AND device_id = $2"];
    UPDATE_NAME = ["UPDATE devices SET display_name = $3 WHERE user_nr = $1 AND device_id = $2"];
    UPDATE_SEEN = ["
        UPDATE devices SET last_seen_at_ms = r.at_ms, last_seen_ip = coalesce(r.ip, last_seen_ip)
          FROM", (rows [1 user_nr bigint, 2 device_id text, 3 at_ms bigint, 4 ip text]), "
         WHERE devices.user_nr = r.user_nr AND devices.device_id = r.device_id"];
    DELETE_DEVICES = ["DELETE FROM devices WHERE user_nr = $1 AND device_id", (in_list 2)];
    DELETE_ACCESS_TOKENS = ["DELETE FROM access_tokens WHERE user_nr = $1 AND device_id", (in_list 2)];
    DELETE_REFRESH_TOKENS = ["DELETE FROM refresh_tokens WHERE user_nr = $1 AND device_id", (in_list 2)];
    DELETE_DEVICE_KEYS = ["DELETE FROM device_keys WHERE user_nr = $1 AND device_id", (in_list 2)];
    DELETE_ONE_TIME_KEYS = ["DELETE FROM one_time_keys WHERE user_nr = $1 AND device_id", (in_list 2)];
    DELETE_CLAIMED_KEYS = ["DELETE FROM claimed_one_time_keys WHERE user_nr = $1 AND device_id", (in_list 2)];
    DELETE_FALLBACK_KEYS = ["DELETE FROM fallback_keys WHERE user_nr = $1 AND device_id", (in_list 2)];
    DELETE_SIGNATURES = ["DELETE FROM key_signatures WHERE user_nr = $1 AND target", (in_list 2)];
    DELETE_SIGNATURES_BY = ["DELETE FROM key_signatures WHERE user_nr = $1 AND signer_nr = $1 AND key_id", (in_list 2)];
}

/// A device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceRow {
    /// Its id.
    pub device_id: String,
    /// What the user calls it.
    pub display_name: Option<String>,
    /// When it first logged in.
    pub created_at_ms: i64,
    /// When it was last heard of, give or take some minutes.
    pub last_seen_at_ms: Option<i64>,
    /// From where.
    pub last_seen_ip: Option<String>,
}

/// A device was heard of.
#[derive(Clone, Debug)]
pub struct DeviceSeen {
    /// Whose.
    pub user_nr: UserNr,
    /// Which.
    pub device_id: String,
    /// When.
    pub at_ms: i64,
    /// From where.
    pub ip: Option<String>,
}

fn device(row: &Row) -> Result<DeviceRow, Error> {
    Ok(DeviceRow {
        device_id: row.get(0)?,
        display_name: row.get(1)?,
        created_at_ms: row.get(2)?,
        last_seen_at_ms: row.get(3)?,
        last_seen_ip: row.get(4)?,
    })
}

/// Makes a device if there is none. What still waits for one of before that had its id is not for it. Whoever uses a dehydrated one has
/// brought it back to life.
pub(crate) async fn upsert_device(
    tx: &mut Tx,
    user_nr: UserNr,
    device_id: &str,
    display_name: Option<String>,
    now_ms: i64,
    ip: Option<String>,
) -> Result<(), Error> {
    tx.execute(DELETE_LEFT_OVER_TO_DEVICE, args![user_nr, device_id]).await?;
    tx.execute(&UPSERT_DEVICE, args![user_nr, device_id, display_name, now_ms, ip]).await?;
    tx.execute(DELETE_DEHYDRATED, args![user_nr, vec![device_id.to_owned()]]).await.map(drop)
}

/// Deletes devices that were heard of the longest ago, beyond `count_max`, never `but` nor a dehydrated one, at most some at once; tells
/// whether there were any.
pub(crate) async fn delete_longest_unseen(
    tx: &mut Tx,
    random: &Random,
    user_nr: UserNr,
    but: &str,
    count_max: u32,
) -> Result<bool, Error> {
    let count: i64 = tx.fetch_one(&COUNT_DEVICES, args![user_nr]).await?.map_or(Ok(0), |row| row.get(0))?;
    let surplus = (count - i64::from(count_max)).min(SURPLUS_DELETED_MAX);
    if surplus <= 0 {
        return Ok(false);
    }
    let rows = tx.fetch(&LIST_LONGEST_UNSEEN, args![user_nr, but, surplus]).await?;
    let device_ids: Vec<String> = rows.iter().map(|row| row.get(0)).collect::<Result<_, _>>()?;
    delete_devices(tx, random, user_nr, &device_ids).await?;
    Ok(true)
}

/// Deletes devices with their tokens and keys, which is to be told if there were any. Their messages, which may be very many, are to be
/// deleted then.
pub(crate) async fn delete_devices(
    tx: &mut Tx,
    random: &Random,
    user_nr: UserNr,
    device_ids: &[String],
) -> Result<(), Error> {
    // First: whoever gives a device tokens locks its row, and is done before this or finds no device.
    let count = tx.execute(&DELETE_DEVICES, args![user_nr, device_ids.to_vec()]).await?;
    for statement in [
        &DELETE_ACCESS_TOKENS,
        &DELETE_REFRESH_TOKENS,
        &DELETE_DEVICE_KEYS,
        &DELETE_ONE_TIME_KEYS,
        &DELETE_CLAIMED_KEYS,
        &DELETE_FALLBACK_KEYS,
        &DELETE_SIGNATURES,
        DELETE_CONNECTIONS_OF_DEVICES,
        DELETE_DEHYDRATED,
    ] {
        tx.execute(statement, args![user_nr, device_ids.to_vec()]).await?;
    }
    // What they signed, such as the user's master key, would grow with each log-in.
    let keys: Vec<String> = device_ids.iter().map(|device_id| format!("ed25519:{device_id}")).collect();
    tx.execute(&DELETE_SIGNATURES_BY, args![user_nr, keys]).await?;
    if count > 0 {
        let each = || device_ids.iter().cloned().map(ChangedKeys::Device).collect();
        let what = if device_ids.len() > TOLD_ONE_BY_ONE_MAX { vec![ChangedKeys::Anything] } else { each() };
        note_changed(tx, random, user_nr, &what).await?;
        note(tx, random, user_nr, &[UserWork::DeleteToDevice]).await?;
    }
    Ok(())
}

impl Storage {
    /// A user's devices, oldest first.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_devices(&self, user_nr: UserNr) -> Result<Vec<DeviceRow>, Error> {
        self.db().read(&LIST_DEVICES, args![user_nr]).await?.iter().map(device).collect()
    }

    /// The ids of all devices of users.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_device_ids(&self, users: &[UserNr]) -> Result<Vec<(UserNr, String)>, Error> {
        let users: Vec<i64> = users.iter().map(|user| user.0).collect();
        let rows = self.db().read(&LIST_IDS, args![users]).await?;
        rows.iter().map(|row| Ok((row.nr(0)?, row.get(1)?))).collect()
    }

    /// A device.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn get_device(&self, user_nr: UserNr, device_id: &str) -> Result<Option<DeviceRow>, Error> {
        self.db().read_one(&GET_DEVICE, args![user_nr, device_id]).await?.map(|row| device(&row)).transpose()
    }

    /// Makes a device without a token, as application services do, and deletes those beyond `count_max` that were heard of the longest
    /// ago; tells whether there were such.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn insert_device(
        &self,
        user_nr: UserNr,
        device_id: &str,
        name: Option<String>,
        count_max: u32,
    ) -> Result<bool, Error> {
        let now_ms = self.clock().now_ms();
        let mut tx = self.db().begin().await?;
        upsert_device(&mut tx, user_nr, device_id, name, now_ms, None).await?;
        let deleted = delete_longest_unseen(&mut tx, self.random(), user_nr, device_id, count_max).await?;
        tx.commit().await?;
        Ok(deleted)
    }

    /// Gives a device a name, which is to be told.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn update_device_name(&self, user_nr: UserNr, id: &str, name: Option<String>) -> Result<(), Error> {
        let mut tx = self.db().begin().await?;
        if tx.execute(&UPDATE_NAME, args![user_nr, id, name]).await? > 0 {
            note_changed(&mut tx, self.random(), user_nr, &[ChangedKeys::Device(id.to_owned())]).await?;
        }
        tx.commit().await
    }

    /// Notes when and from where devices were last heard of.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn update_devices_seen(&self, seen: &[DeviceSeen]) -> Result<(), Error> {
        if seen.is_empty() {
            return Ok(());
        }
        let rows = Rows::new()
            .bigint(seen.iter().map(|one| one.user_nr.0))
            .text(seen.iter().map(|one| one.device_id.clone()))
            .bigint(seen.iter().map(|one| one.at_ms))
            .text(seen.iter().map(|one| one.ip.clone()));
        self.db().write(&UPDATE_SEEN, rows).await.map(drop)
    }

    /// Deletes devices with their tokens and keys, which is to be told if there were any, as their messages are to be deleted.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn delete_devices(&self, user_nr: UserNr, device_ids: &[String]) -> Result<(), Error> {
        if device_ids.is_empty() {
            return Ok(());
        }
        let mut tx = self.db().begin().await?;
        delete_devices(&mut tx, self.random(), user_nr, device_ids).await?;
        tx.commit().await?;
        for device_id in device_ids {
            self.0.key_counts.forget(user_nr, device_id);
        }
        Ok(())
    }
}
