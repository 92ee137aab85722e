//! Server-side key backups.

use model::UserNr;

use crate::{
    Error, Storage,
    db::{Arg, Row, Tx, args},
    rows::Rows,
    statement::{Statement, statements},
};

/// Most keys that one transaction writes or deletes: it holds the one writer of SQLite.
const KEYS_PER_TRANSACTION: usize = 500;
/// Most deleted backups that are emptied in one go.
const DELETED_LISTED: i64 = 1_000;

statements! {
    GET_BACKUP = ["
        SELECT version, algorithm, auth_data, etag, keys
          FROM key_backups WHERE user_nr = $1 AND version = $2 AND NOT is_deleted"];
    GET_NEWEST_BACKUP = ["
        SELECT version, algorithm, auth_data, etag, keys
          FROM key_backups WHERE user_nr = $1 AND NOT is_deleted ORDER BY version DESC LIMIT 1"];
    LOCK_USER = ["SELECT user_nr FROM users WHERE user_nr = $1", (for_update)];
    COUNT_BACKUPS = ["
        SELECT coalesce(max(version), 0), count(CASE WHEN NOT is_deleted THEN 1 END)
          FROM key_backups WHERE user_nr = $1"];
    INSERT_BACKUP = ["
        INSERT INTO key_backups (user_nr, version, algorithm, auth_data, etag, keys, is_deleted)
        VALUES ($1, $2, $3, $4, 0, 0, FALSE)"];
    UPDATE_BACKUP = ["
        UPDATE key_backups SET auth_data = $4
         WHERE user_nr = $1 AND version = $2 AND algorithm = $3 AND NOT is_deleted"];

    /// The backup to be changed, and the number of the newest one.
    LOCK_BACKUP = ["
        SELECT b.etag, b.keys,
               (SELECT max(n.version) FROM key_backups n WHERE n.user_nr = $1 AND NOT n.is_deleted)
          FROM key_backups b WHERE b.user_nr = $1 AND b.version = $2 AND NOT b.is_deleted", (for_update)];
    COUNT_STORED = ["
        SELECT count(*)
          FROM", (rows [1 user_nr bigint, 2 version bigint, 3 room_id text, 4 session_id text]), "
          JOIN backed_up_keys k
            ON k.user_nr = r.user_nr AND k.version = r.version AND k.room_id = r.room_id AND k.session_id = r.session_id"];
    /// The better key stays: a verified one, then one that opens earlier messages, then one that was forwarded less often.
    UPSERT_KEYS = ["
        INSERT INTO backed_up_keys
               (user_nr, version, room_id, session_id, is_verified, first_message_index, forwarded_count, session_data)
        SELECT user_nr, version, room_id, session_id, is_verified, first_message_index, forwarded_count, session_data
          FROM", (rows [1 user_nr bigint, 2 version bigint, 3 room_id text, 4 session_id text, 5 is_verified boolean,
                        6 first_message_index bigint, 7 forwarded_count bigint, 8 session_data text]), "
         WHERE TRUE
            ON CONFLICT (user_nr, version, room_id, session_id) DO UPDATE
           SET is_verified = excluded.is_verified, first_message_index = excluded.first_message_index,
               forwarded_count = excluded.forwarded_count, session_data = excluded.session_data
         WHERE (NOT excluded.is_verified, excluded.first_message_index, excluded.forwarded_count)
             < (NOT backed_up_keys.is_verified, backed_up_keys.first_message_index, backed_up_keys.forwarded_count)"];
    CHANGE_BACKUP = ["
        UPDATE key_backups SET etag = etag + 1, keys = keys + $3 WHERE user_nr = $1 AND version = $2"];

    LIST_KEYS = ["
        SELECT room_id, session_id, is_verified, first_message_index, forwarded_count, session_data
          FROM backed_up_keys
         WHERE user_nr = $1 AND version = $2 AND (room_id, session_id) > ($3, $4)
         ORDER BY room_id, session_id LIMIT $5"];
    LIST_KEYS_OF_ROOM = ["
        SELECT room_id, session_id, is_verified, first_message_index, forwarded_count, session_data
          FROM backed_up_keys
         WHERE user_nr = $1 AND version = $2 AND room_id = $3 AND session_id > $4
         ORDER BY session_id LIMIT $5"];
    GET_KEY = ["
        SELECT room_id, session_id, is_verified, first_message_index, forwarded_count, session_data
          FROM backed_up_keys WHERE user_nr = $1 AND version = $2 AND room_id = $3 AND session_id = $4"];

    DELETE_KEYS = ["
        DELETE FROM backed_up_keys
         WHERE user_nr = $1 AND version = $2 AND (room_id, session_id) IN
               (SELECT room_id, session_id FROM backed_up_keys WHERE user_nr = $1 AND version = $2
                 ORDER BY room_id, session_id LIMIT $3)"];
    DELETE_KEYS_OF_ROOM = ["
        DELETE FROM backed_up_keys
         WHERE user_nr = $1 AND version = $2 AND room_id = $4 AND session_id IN
               (SELECT session_id FROM backed_up_keys WHERE user_nr = $1 AND version = $2 AND room_id = $4
                 ORDER BY session_id LIMIT $3)"];
    DELETE_KEY = ["
        DELETE FROM backed_up_keys WHERE user_nr = $1 AND version = $2 AND room_id = $3 AND session_id = $4"];

    GET_NEWEST_NUMBER = ["SELECT max(version) FROM key_backups WHERE user_nr = $1"];
    MARK_DELETED = ["
        UPDATE key_backups SET is_deleted = TRUE, algorithm = '', auth_data = '' WHERE user_nr = $1 AND version = $2"];
    MARK_ALL_DELETED = ["
        UPDATE key_backups SET is_deleted = TRUE, algorithm = '', auth_data = '' WHERE user_nr = $1"];
    LIST_DELETED = ["
        SELECT user_nr, version FROM key_backups WHERE is_deleted AND keys > 0 ORDER BY user_nr, version LIMIT $1"];
    MARK_EMPTY = ["
        UPDATE key_backups SET keys = 0 WHERE user_nr = $1 AND version = $2 AND is_deleted"];
    FORGET_DELETED = ["
        DELETE FROM key_backups
         WHERE user_nr = $1 AND is_deleted AND keys = 0
           AND version < (SELECT max(n.version) FROM key_backups n WHERE n.user_nr = $1)"];
}

/// Marks all backups of a user as deleted, in the transaction that closes the account.
pub(crate) const DELETE_BACKUPS_OF_USER: &Statement = &MARK_ALL_DELETED;

/// A backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyBackupRow {
    /// Its number, from 1.
    pub version: i64,
    /// How its keys are encrypted.
    pub algorithm: String,
    /// What belongs to that, a JSON object.
    pub auth_data: String,
    /// What it holds, and how often that was changed.
    pub contents: KeyBackupContents,
}

/// What a backup holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyBackupContents {
    /// Another number after each change.
    pub etag: i64,
    /// How many keys there are.
    pub keys: u64,
}

/// The key of a Megolm session in a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackedUpKeyRow {
    /// The room, not empty.
    pub room_id: String,
    /// The session, not empty.
    pub session_id: String,
    /// Whether it came from a device that was verified.
    pub is_verified: bool,
    /// The first message that it opens.
    pub first_message_index: i64,
    /// How many devices handed it on.
    pub forwarded_count: i64,
    /// The key, encrypted; a JSON object.
    pub session_data: String,
}

/// Which keys of a backup are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackedUpKeys<'a> {
    /// All of them.
    All,
    /// Those of a room.
    OfRoom(&'a str),
    /// That of a session of a room.
    OfSession(&'a str, &'a str),
}

/// How the keys were put into a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackupOutcome {
    /// The better ones are there now.
    Stored(KeyBackupContents),
    /// There is no such backup.
    Unknown,
    /// A newer backup is in use, that of this version.
    Superseded(i64),
    /// It has as many keys as it may.
    Full,
}

/// A backup that was locked for a change.
struct Locked {
    contents: KeyBackupContents,
    newest: i64,
}

fn backup(row: &Row) -> Result<KeyBackupRow, Error> {
    Ok(KeyBackupRow {
        version: row.get(0)?,
        algorithm: row.get(1)?,
        auth_data: row.get(2)?,
        contents: KeyBackupContents { etag: row.get(3)?, keys: row.get::<i64>(4)?.unsigned_abs() },
    })
}

fn key(row: &Row) -> Result<BackedUpKeyRow, Error> {
    Ok(BackedUpKeyRow {
        room_id: row.get(0)?,
        session_id: row.get(1)?,
        is_verified: row.get(2)?,
        first_message_index: row.get(3)?,
        forwarded_count: row.get(4)?,
        session_data: row.get(5)?,
    })
}

impl Storage {
    /// A backup of a user: that of a version, or the newest.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn get_key_backup(&self, user_nr: UserNr, version: Option<i64>) -> Result<Option<KeyBackupRow>, Error> {
        let row = match version {
            Some(version) => self.db().read_one(&GET_BACKUP, args![user_nr, version]).await?,
            None => self.db().read_one(&GET_NEWEST_BACKUP, args![user_nr]).await?,
        };
        row.as_ref().map(backup).transpose()
    }

    /// Makes a new, empty backup and gives its version; `None` when the user has `count_max` already.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn insert_key_backup(
        &self,
        user_nr: UserNr,
        algorithm: &str,
        auth_data: &str,
        count_max: i64,
    ) -> Result<Option<i64>, Error> {
        let mut tx = self.db().begin().await?;
        tx.fetch(&LOCK_USER, args![user_nr]).await?;
        let row = tx.fetch_one(&COUNT_BACKUPS, args![user_nr]).await?;
        let (newest, count) = row.map_or(Ok((0, 0)), |row| Ok::<_, Error>((row.get(0)?, row.get::<i64>(1)?)))?;
        if count >= count_max {
            return Ok(None);
        }
        let version = newest + 1;
        tx.execute(&INSERT_BACKUP, args![user_nr, version, algorithm, auth_data]).await?;
        tx.execute(&FORGET_DELETED, args![user_nr]).await?;
        tx.commit().await?;
        Ok(Some(version))
    }

    /// Gives a backup other data for its algorithm; tells whether there is such a backup with that algorithm.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn update_key_backup(
        &self,
        user_nr: UserNr,
        version: i64,
        algorithm: &str,
        auth_data: &str,
    ) -> Result<bool, Error> {
        Ok(self.db().write(&UPDATE_BACKUP, args![user_nr, version, algorithm, auth_data]).await? == 1)
    }

    /// Deletes a backup with its keys; tells whether it ever existed. From the first moment on it cannot be read any more; what is
    /// left of its keys after a failure, [`Storage::empty_deleted_key_backups`] takes away.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn delete_key_backup(&self, user_nr: UserNr, version: i64) -> Result<bool, Error> {
        let newest = self.db().read_one(&GET_NEWEST_NUMBER, args![user_nr]).await?;
        let newest: Option<i64> = newest.map_or(Ok(None), |row| row.get(0))?;
        if version < 1 || newest.is_none_or(|newest| newest < version) {
            return Ok(false);
        }
        self.db().write(&MARK_DELETED, args![user_nr, version]).await?;
        self.empty_key_backup(user_nr, version).await?;
        Ok(true)
    }

    /// Takes away the keys of backups that were deleted, some at a time.
    ///
    /// # Errors
    ///
    /// When the database fails; what is left is found the next time.
    pub async fn empty_deleted_key_backups(&self) -> Result<(), Error> {
        loop {
            let deleted = self.db().read(&LIST_DELETED, args![DELETED_LISTED]).await?;
            if deleted.is_empty() {
                return Ok(());
            }
            for row in deleted {
                self.empty_key_backup(row.nr(0)?, row.get(1)?).await?;
            }
        }
    }

    /// Takes away the keys of a deleted backup, and its row if it is not the newest.
    async fn empty_key_backup(&self, user_nr: UserNr, version: i64) -> Result<(), Error> {
        loop {
            let mut tx = self.db().begin().await?;
            let deleted = tx.execute(&DELETE_KEYS, args![user_nr, version, KEYS_PER_TRANSACTION as i64]).await?;
            let is_empty = deleted < KEYS_PER_TRANSACTION as u64;
            if is_empty {
                tx.execute(&MARK_EMPTY, args![user_nr, version]).await?;
                tx.execute(&FORGET_DELETED, args![user_nr]).await?;
            }
            tx.commit().await?;
            if is_empty {
                return Ok(());
            }
        }
    }

    /// Puts keys into a user's newest backup, [`KEYS_PER_TRANSACTION`] at a time. Where there is one of the session already, the
    /// better one stays. Client-Server API, "Server-side key backups". Each key may be given once.
    ///
    /// # Errors
    ///
    /// When the database fails; trying again is safe.
    pub async fn upsert_backed_up_keys(
        &self,
        user_nr: UserNr,
        version: i64,
        keys: &[BackedUpKeyRow],
        keys_max: u64,
    ) -> Result<BackupOutcome, Error> {
        let mut chunks = keys.chunks(KEYS_PER_TRANSACTION);
        // Without keys too: the answer has the state of the backup.
        let mut outcome = self.upsert_chunk(user_nr, version, chunks.next().unwrap_or_default(), keys_max).await?;
        for chunk in chunks {
            if !matches!(outcome, BackupOutcome::Stored(_)) {
                break;
            }
            outcome = self.upsert_chunk(user_nr, version, chunk, keys_max).await?;
        }
        Ok(outcome)
    }

    async fn upsert_chunk(
        &self,
        user_nr: UserNr,
        version: i64,
        keys: &[BackedUpKeyRow],
        keys_max: u64,
    ) -> Result<BackupOutcome, Error> {
        let mut tx = self.db().begin().await?;
        let Some(Locked { contents, newest }) = lock(&mut tx, user_nr, version).await? else {
            return Ok(BackupOutcome::Unknown);
        };
        if newest != version {
            return Ok(BackupOutcome::Superseded(newest));
        }
        if keys.is_empty() {
            return Ok(BackupOutcome::Stored(contents));
        }
        let named = || {
            Rows::new()
                .bigint(keys.iter().map(|_| user_nr.0))
                .bigint(keys.iter().map(|_| version))
                .text(keys.iter().map(|key| key.room_id.clone()))
                .text(keys.iter().map(|key| key.session_id.clone()))
        };
        let stored: i64 = tx.fetch_one(&COUNT_STORED, named()).await?.map_or(Ok(0), |row| row.get(0))?;
        let new = keys.len() as i64 - stored;
        if contents.keys.saturating_add_signed(new) > keys_max {
            return Ok(BackupOutcome::Full);
        }
        let rows = named()
            .boolean(keys.iter().map(|key| key.is_verified))
            .bigint(keys.iter().map(|key| key.first_message_index))
            .bigint(keys.iter().map(|key| key.forwarded_count))
            .text(keys.iter().map(|key| key.session_data.clone()));
        let changed = tx.execute(&UPSERT_KEYS, rows).await?;
        change(tx, user_nr, version, contents, changed, new).await.map(BackupOutcome::Stored)
    }

    /// Keys of a backup by room and session, after a room and session (empty ones for the first); at most `limit`. Whether the backup
    /// exists is not asked here.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_backed_up_keys(
        &self,
        user_nr: UserNr,
        version: i64,
        which: BackedUpKeys<'_>,
        after: (&str, &str),
        limit: u32,
    ) -> Result<Vec<BackedUpKeyRow>, Error> {
        let limit = i64::from(limit);
        let rows = match which {
            BackedUpKeys::All => self.db().read(&LIST_KEYS, args![user_nr, version, after.0, after.1, limit]).await?,
            BackedUpKeys::OfRoom(room_id) => {
                self.db().read(&LIST_KEYS_OF_ROOM, args![user_nr, version, room_id, after.1, limit]).await?
            }
            BackedUpKeys::OfSession(room_id, session_id) => {
                self.db().read(&GET_KEY, args![user_nr, version, room_id, session_id]).await?
            }
        };
        rows.iter().map(key).collect()
    }

    /// Deletes keys of a backup, [`KEYS_PER_TRANSACTION`] at a time; `None` when there is no such backup.
    ///
    /// # Errors
    ///
    /// When the database fails; trying again is safe.
    pub async fn delete_backed_up_keys(
        &self,
        user_nr: UserNr,
        version: i64,
        which: BackedUpKeys<'_>,
    ) -> Result<Option<KeyBackupContents>, Error> {
        let limit = KEYS_PER_TRANSACTION as i64;
        let (statement, args): (_, Vec<Arg>) = match which {
            BackedUpKeys::All => (&DELETE_KEYS, args![user_nr, version, limit]),
            BackedUpKeys::OfRoom(room_id) => (&DELETE_KEYS_OF_ROOM, args![user_nr, version, limit, room_id]),
            BackedUpKeys::OfSession(room_id, session_id) => (&DELETE_KEY, args![user_nr, version, room_id, session_id]),
        };
        loop {
            let mut tx = self.db().begin().await?;
            let Some(Locked { contents, .. }) = lock(&mut tx, user_nr, version).await? else { return Ok(None) };
            let deleted = tx.execute(statement, args.clone()).await?;
            let contents = change(tx, user_nr, version, contents, deleted, -deleted.cast_signed()).await?;
            if deleted < KEYS_PER_TRANSACTION as u64 {
                return Ok(Some(contents));
            }
        }
    }
}

async fn lock(tx: &mut Tx, user_nr: UserNr, version: i64) -> Result<Option<Locked>, Error> {
    let row = tx.fetch_one(&LOCK_BACKUP, args![user_nr, version]).await?;
    row.map(|row| {
        let contents = KeyBackupContents { etag: row.get(0)?, keys: row.get::<i64>(1)?.unsigned_abs() };
        Ok(Locked { contents, newest: row.get(2)? })
    })
    .transpose()
}

/// Ends a transaction that changed `changed` keys and made the backup larger by `new`.
async fn change(
    mut tx: Tx,
    user_nr: UserNr,
    version: i64,
    contents: KeyBackupContents,
    changed: u64,
    new: i64,
) -> Result<KeyBackupContents, Error> {
    if changed == 0 {
        return Ok(contents);
    }
    tx.execute(&CHANGE_BACKUP, args![user_nr, version, new]).await?;
    tx.commit().await?;
    Ok(KeyBackupContents { etag: contents.etag + 1, keys: contents.keys.saturating_add_signed(new) })
}
