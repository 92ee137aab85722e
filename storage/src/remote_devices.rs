//! The devices and keys of users of other servers, as their servers said them.
//!
//! A list is kept while its user shares a room with a user of ours: their server tells of each change then.

use std::collections::HashMap;

use model::{RoomNr, UserNr};
use ruma::{OwnedServerName, ServerName};

use crate::{
    DeviceKeysRow, Error, Storage, UserWork,
    db::{Row, Tx, args},
    rows::Rows,
    statement::{Statement, statements},
    user_work::note,
};

statements! {
    LIST_LISTS = ["
        SELECT user_nr, stream_id, ask_at_ms, asked_at_ms, failures, stamp FROM remote_device_lists
         WHERE user_nr", (in_list 1), " ORDER BY user_nr"];
    LIST_DUE = ["
        SELECT user_nr FROM remote_device_lists WHERE ask_at_ms <= $1 ORDER BY ask_at_ms, user_nr LIMIT $2"];
    LIST_ALL = ["SELECT user_nr FROM remote_device_lists WHERE user_nr > $1 ORDER BY user_nr LIMIT $2"];
    LIST_OF_ROOM = ["
        SELECT m.user_nr FROM memberships m JOIN remote_device_lists l ON l.user_nr = m.user_nr
         WHERE m.room_nr = $1 AND m.user_nr > $2 ORDER BY m.user_nr LIMIT $3"];
    /// A name of ours that is in a room with each user (3 is joined).
    LIST_SHARING = ["
        SELECT u.user_nr, (SELECT s.server FROM memberships m JOIN room_servers s ON s.room_nr = m.room_nr
                            WHERE m.user_nr = u.user_nr AND m.membership = 3 AND s.server", (in_list 2), " LIMIT 1)
          FROM user_numbers u WHERE u.user_nr", (in_list 1), " ORDER BY u.user_nr"];
    LIST_PRESENT_SERVERS = ["SELECT server FROM room_servers WHERE room_nr = $1 AND server", (in_list 2), " ORDER BY server"];
    /// What is complete stays so; what is not is this caller's to ask for until the given time.
    BEGIN = ["
        INSERT INTO remote_device_lists (user_nr, stream_id, ask_at_ms, asked_at_ms, failures, stamp)
        VALUES ($1, NULL, $3, $2, 0, $4)
        ON CONFLICT (user_nr) DO UPDATE
           SET ask_at_ms = CASE WHEN remote_device_lists.ask_at_ms IS NULL THEN NULL ELSE excluded.ask_at_ms END,
               asked_at_ms = excluded.asked_at_ms
        RETURNING user_nr, stream_id, ask_at_ms, asked_at_ms, failures, stamp"];
    /// Not if something was said of the list since its server was asked.
    SETTLE = ["
        UPDATE remote_device_lists SET stream_id = $3, ask_at_ms = NULL, failures = 0, stamp = $4
         WHERE user_nr = $1 AND stamp = $2 AND ask_at_ms IS NOT NULL"];
    ADVANCE = ["
        UPDATE remote_device_lists SET stream_id = $3, stamp = $4 WHERE user_nr = $1 AND stamp = $2 AND ask_at_ms IS NULL"];
    NOTE_FAILURE = ["
        UPDATE remote_device_lists SET ask_at_ms = $2, failures = failures + 1 WHERE user_nr = $1 AND ask_at_ms IS NOT NULL"];
    /// A server that speaks can be asked again, but not all the time.
    NOTE_GAPS = ["
        UPDATE remote_device_lists
           SET ask_at_ms = ", (either "max" "greatest"), "(r.now_ms, remote_device_lists.asked_at_ms + r.pause_ms), stamp = r.stamp
          FROM", (rows [1 user_nr bigint, 2 now_ms bigint, 3 pause_ms bigint, 4 stamp bigint]), "
         WHERE remote_device_lists.user_nr = r.user_nr"];
    UPSERT_DEVICES = ["
        INSERT INTO remote_devices (user_nr, device_id, keys, display_name)
        SELECT user_nr, device_id, keys, display_name
          FROM", (rows [1 user_nr bigint, 2 device_id text, 3 keys text, 4 display_name text]), "
         WHERE TRUE
            ON CONFLICT (user_nr, device_id) DO UPDATE SET keys = excluded.keys, display_name = excluded.display_name
         WHERE remote_devices.keys <> excluded.keys
            OR coalesce(remote_devices.display_name, '') <> coalesce(excluded.display_name, '')"];
    DELETE_DEVICES = ["DELETE FROM remote_devices WHERE user_nr = $1 AND device_id", (in_list 2)];
    DELETE_OTHER_DEVICES = ["DELETE FROM remote_devices WHERE user_nr = $1 AND NOT (device_id", (in_list 2), ")"];
    COUNT_DEVICES = ["SELECT count(*) FROM remote_devices WHERE user_nr = $1"];
    DELETE_SURPLUS = ["
        DELETE FROM remote_devices WHERE user_nr = $1 AND NOT device_id IN (
               SELECT device_id FROM remote_devices WHERE user_nr = $1 ORDER BY device_id LIMIT $2)"];
    LIST_DEVICES = ["
        SELECT user_nr, device_id, keys, display_name FROM remote_devices
         WHERE user_nr", (in_list 1), " ORDER BY user_nr, device_id"];
    UPSERT_CROSS_SIGNING = ["
        INSERT INTO cross_signing_keys (user_nr, usage, key)
        SELECT user_nr, usage, key FROM", (rows [1 user_nr bigint, 2 usage text, 3 key text]), "
         WHERE TRUE
            ON CONFLICT (user_nr, usage) DO UPDATE SET key = excluded.key WHERE cross_signing_keys.key <> excluded.key"];
    DELETE_OTHER_KEYS = ["DELETE FROM cross_signing_keys WHERE user_nr = $1 AND NOT (usage", (in_list 2), ")"];
    DELETE_LISTS = ["DELETE FROM remote_device_lists WHERE user_nr", (in_list 1)];
    DELETE_ALL_DEVICES = ["DELETE FROM remote_devices WHERE user_nr", (in_list 1)];
    DELETE_ALL_CROSS_SIGNING = ["DELETE FROM cross_signing_keys WHERE user_nr", (in_list 1)];
}

/// Deletes the cross-signing keys of a user but those of some usages.
pub(crate) const DELETE_OTHER_CROSS_SIGNING: &Statement = &DELETE_OTHER_KEYS;

/// What is known of the list of a user's devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteDeviceList {
    /// Whose.
    pub user_nr: UserNr,
    /// The newest update that is in it; nothing before its server has answered.
    pub stream_id: Option<i64>,
    /// When to ask for it, in milliseconds since 1970; nothing while it is complete.
    pub ask_at_ms: Option<i64>,
    /// When it was asked for last.
    pub asked_at_ms: i64,
    /// How often in a row that failed.
    pub failures: u32,
    /// Another one after each change.
    stamp: i64,
}

/// The devices and keys of a user, as far as they are given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RemoteDevices {
    /// Devices with their id, keys (JSON) and name.
    pub devices: Vec<RemoteDevice>,
    /// Devices that are gone or have no keys.
    pub gone: Vec<String>,
    /// Cross-signing keys: usage (`master`, `self_signing`) and key, JSON.
    pub cross_signing_keys: Vec<(&'static str, String)>,
}

/// A device of a user of another server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteDevice {
    /// Its id.
    pub device_id: String,
    /// Its keys, a JSON object.
    pub keys: String,
    /// Its name.
    pub display_name: Option<String>,
}

fn list_of(row: &Row) -> Result<RemoteDeviceList, Error> {
    Ok(RemoteDeviceList {
        user_nr: row.nr(0)?,
        stream_id: row.get(1)?,
        ask_at_ms: row.get(2)?,
        asked_at_ms: row.get(3)?,
        failures: u32::try_from(row.get::<i64>(4)?).unwrap_or(u32::MAX),
        stamp: row.get(5)?,
    })
}

fn numbers(users: &[UserNr]) -> Vec<i64> {
    users.iter().map(|user| user.0).collect()
}

impl Storage {
    /// What is known of the lists of users, of those whose lists are kept.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_remote_device_lists(&self, users: &[UserNr]) -> Result<HashMap<UserNr, RemoteDeviceList>, Error> {
        let rows = self.db().read(&LIST_LISTS, args![numbers(users)]).await?;
        rows.iter().map(|row| list_of(row).map(|list| (list.user_nr, list))).collect()
    }

    /// Of each of these users who shares a room with one of `local` names, one of those names. Reads rooms of each up to the first.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_sharing<'a>(
        &self,
        users: &[UserNr],
        local: impl Iterator<Item = &'a ServerName>,
    ) -> Result<HashMap<UserNr, OwnedServerName>, Error> {
        let local: Vec<String> = local.map(ToString::to_string).collect();
        let mut sharing = HashMap::new();
        for row in self.db().read(&LIST_SHARING, args![numbers(users), local]).await? {
            let Some(name) = row.get::<Option<String>>(1)? else { continue };
            let name = ServerName::parse(&name).map_err(|_| Error::Damaged(format!("server {name}")))?;
            sharing.insert(row.nr(0)?, name);
        }
        Ok(sharing)
    }

    /// Whether a user of one of these names is in a room.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn is_any_server_in<'a>(
        &self,
        room_nr: RoomNr,
        names: impl Iterator<Item = &'a ServerName>,
    ) -> Result<bool, Error> {
        let names: Vec<String> = names.map(ToString::to_string).collect();
        Ok(self.db().read_one(&LIST_PRESENT_SERVERS, args![room_nr, names]).await?.is_some())
    }

    /// The users whose lists are to be asked for by now, the longest due first, at most `limit`.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_due_remote_device_lists(&self, now_ms: i64, limit: u32) -> Result<Vec<UserNr>, Error> {
        let rows = self.db().read(&LIST_DUE, args![now_ms, i64::from(limit)]).await?;
        rows.iter().map(|row| row.nr(0)).collect()
    }

    /// The users whose lists are kept, in the order of their numbers, after a number; in a room, those who are or were in it.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_followed_users(
        &self,
        room: Option<RoomNr>,
        after: UserNr,
        limit: u32,
    ) -> Result<Vec<UserNr>, Error> {
        let limit = i64::from(limit);
        let rows = match room {
            Some(room_nr) => self.db().read(&LIST_OF_ROOM, args![room_nr, after, limit]).await?,
            None => self.db().read(&LIST_ALL, args![after, limit]).await?,
        };
        rows.iter().map(|row| row.nr(0)).collect()
    }

    /// Begins to follow a user's devices, or takes it on to ask for what is missing: until `again_at_ms` nobody else has to.
    /// Gives what is known now.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn begin_remote_device_list(&self, user_nr: UserNr, again_at_ms: i64) -> Result<RemoteDeviceList, Error> {
        let args = args![user_nr, self.clock().now_ms(), again_at_ms, self.stamp()];
        let row = self.db().write_one(&BEGIN, args).await?;
        list_of(&row.ok_or_else(|| Error::Damaged(format!("device list of user {user_nr}")))?)
    }

    /// Writes all that a user's server says of their devices; if that differs from what was kept, or `tells`, it is to be told. Does
    /// nothing, and says `false`, when something was said of the list since `asked`.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn settle_remote_devices(
        &self,
        asked: &RemoteDeviceList,
        stream_id: i64,
        all: &RemoteDevices,
        tells: bool,
    ) -> Result<bool, Error> {
        let user_nr = asked.user_nr;
        let mut tx = self.db().begin().await?;
        if tx.execute(&SETTLE, args![user_nr, asked.stamp, stream_id, self.stamp()]).await? == 0 {
            tx.rollback().await?;
            return Ok(false);
        }
        let ids: Vec<String> = all.devices.iter().map(|device| device.device_id.clone()).collect();
        let usages: Vec<String> = all.cross_signing_keys.iter().map(|(usage, _)| (*usage).to_owned()).collect();
        let mut changed = tx.execute(&DELETE_OTHER_DEVICES, args![user_nr, ids]).await?;
        changed += tx.execute(&DELETE_OTHER_KEYS, args![user_nr, usages]).await?;
        changed += upsert(&mut tx, user_nr, all).await?;
        if tells || (changed > 0 && asked.stream_id.is_some()) {
            note(&mut tx, self.random(), user_nr, &[UserWork::TellDevices]).await?;
        }
        tx.commit().await?;
        Ok(true)
    }

    /// Adds updates to a complete list, which names the last of them then; what differs is to be told. Does nothing, and says `false`,
    /// when the list is not as it was `before`. Of more than `devices_max` devices some are kept.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn update_remote_devices(
        &self,
        before: &RemoteDeviceList,
        stream_id: i64,
        updates: &RemoteDevices,
        devices_max: usize,
    ) -> Result<bool, Error> {
        let user_nr = before.user_nr;
        let mut tx = self.db().begin().await?;
        if tx.execute(&ADVANCE, args![user_nr, before.stamp, stream_id, self.stamp()]).await? == 0 {
            tx.rollback().await?;
            return Ok(false);
        }
        let mut changed = tx.execute(&DELETE_DEVICES, args![user_nr, updates.gone.clone()]).await?;
        changed += upsert(&mut tx, user_nr, updates).await?;
        let count: i64 = tx.fetch_one(&COUNT_DEVICES, args![user_nr]).await?.map_or(Ok(0), |row| row.get(0))?;
        if count.unsigned_abs() as usize > devices_max {
            tx.execute(&DELETE_SURPLUS, args![user_nr, devices_max as i64]).await?;
        }
        if changed > 0 {
            note(&mut tx, self.random(), user_nr, &[UserWork::TellDevices]).await?;
        }
        tx.commit().await?;
        Ok(true)
    }

    /// A user's server gave no list: it is asked again at a time.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn note_no_remote_devices(&self, user_nr: UserNr, ask_at_ms: i64) -> Result<(), Error> {
        self.db().write(&NOTE_FAILURE, args![user_nr, ask_at_ms]).await.map(drop)
    }

    /// Lists lack something: their servers are to be asked now, or `pause_ms` after they were asked last.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn note_gaps_in_remote_devices(&self, users: &[UserNr], pause_ms: i64) -> Result<(), Error> {
        if users.is_empty() {
            return Ok(());
        }
        let now_ms = self.clock().now_ms();
        let rows = Rows::new()
            .bigint(users.iter().map(|user| user.0))
            .bigint(users.iter().map(|_| now_ms))
            .bigint(users.iter().map(|_| pause_ms))
            .bigint(users.iter().map(|_| self.stamp()));
        self.db().write(&NOTE_GAPS, rows).await.map(drop)
    }

    /// The devices with keys of users whose lists are kept.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_remote_devices(&self, users: &[UserNr]) -> Result<Vec<DeviceKeysRow>, Error> {
        let rows = self.db().read(&LIST_DEVICES, args![numbers(users)]).await?;
        let keys = |row: &Row| {
            Ok(DeviceKeysRow {
                user_nr: row.nr(0)?,
                device_id: row.get(1)?,
                keys: row.get(2)?,
                display_name: row.get(3)?,
            })
        };
        rows.iter().map(keys).collect()
    }

    /// Forgets the devices and keys of users of other servers.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn delete_remote_device_lists(&self, users: &[UserNr]) -> Result<(), Error> {
        let mut tx = self.db().begin().await?;
        for statement in [&DELETE_LISTS, &DELETE_ALL_DEVICES, &DELETE_ALL_CROSS_SIGNING] {
            tx.execute(statement, args![numbers(users)]).await?;
        }
        tx.commit().await
    }

    fn stamp(&self) -> i64 {
        self.random().number().cast_signed()
    }
}

/// Writes devices and keys; gives how many differ from what was there.
async fn upsert(tx: &mut Tx, user_nr: UserNr, new: &RemoteDevices) -> Result<u64, Error> {
    let mut changed = 0;
    if !new.devices.is_empty() {
        let rows = Rows::new()
            .bigint(new.devices.iter().map(|_| user_nr.0))
            .text(new.devices.iter().map(|device| device.device_id.clone()))
            .text(new.devices.iter().map(|device| device.keys.clone()))
            .text(new.devices.iter().map(|device| device.display_name.clone()));
        changed += tx.execute(&UPSERT_DEVICES, rows).await?;
    }
    if !new.cross_signing_keys.is_empty() {
        let rows = Rows::new()
            .bigint(new.cross_signing_keys.iter().map(|_| user_nr.0))
            .text(new.cross_signing_keys.iter().map(|(usage, _)| (*usage).to_owned()))
            .text(new.cross_signing_keys.iter().map(|(_, key)| key.clone()));
        changed += tx.execute(&UPSERT_CROSS_SIGNING, rows).await?;
    }
    Ok(changed)
}
