//! Server-side key backups. Client-Server API, "Server-side key backups".
//!
//! A user's clients keep the keys of encrypted rooms here, encrypted for themselves: the server understands nothing of them but which
//! of two keys of a session is the better one. A user may have several backups; only the newest one takes keys.

use model::content_object;
use ruma::{OwnedRoomId, RoomId, UInt, api::client::backup::KeyBackupData, serde::Raw};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use storage::{BackedUpKeyRow, BackedUpKeys, BackupOutcome, KeyBackupContents, KeyBackupRow};

use crate::{Accounts, Error, Requester};

/// Most backups of a user that are not deleted.
const BACKUPS_MAX: i64 = 100;
/// Most keys of a backup.
const KEYS_MAX: u64 = 500_000;
/// Most keys of one request: clients send 100 or 200.
const KEYS_PER_REQUEST_MAX: usize = 2_000;
/// Largest `session_data`, in bytes of JSON. That of a client in use has about 1,000.
const SESSION_DATA_BYTES_MAX: usize = 16_384;
/// Largest `auth_data`, in bytes of JSON: room for the signatures of many devices.
const AUTH_DATA_BYTES_MAX: usize = 65_536;
/// Longest name of an algorithm and of a session, in bytes.
const NAME_BYTES_MAX: usize = 255;
/// Most keys that are read at once.
const KEYS_READ: u32 = 500;

/// A backup, without its keys.
#[derive(Clone, Debug)]
pub struct KeyBackup {
    /// Its version.
    pub version: String,
    /// `algorithm` and `auth_data`, a JSON object.
    pub algorithm: Box<RawValue>,
    /// What it holds.
    pub state: KeyBackupState,
}

/// What a backup holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyBackupState {
    /// Another text after each change of the keys.
    pub etag: String,
    /// How many keys there are.
    pub count: UInt,
}

/// What a client says of a backup.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct NewKeyBackup {
    /// How the keys are encrypted.
    pub algorithm: String,
    /// What belongs to that: an object.
    pub auth_data: Box<RawValue>,
    /// The version that is meant; only where there is one already.
    #[serde(default, skip_serializing)]
    pub version: Option<String>,
}

/// The key of a session, as a client puts it into a backup and gets it back.
#[derive(Clone, Debug)]
pub struct BackedUpKey {
    /// The room.
    pub room_id: OwnedRoomId,
    /// The session.
    pub session_id: String,
    /// The key and what is said of it.
    pub data: Raw<KeyBackupData>,
}

#[derive(Deserialize, Serialize)]
struct KeyData {
    first_message_index: UInt,
    forwarded_count: UInt,
    is_verified: bool,
    session_data: Box<RawValue>,
}

impl From<KeyBackupContents> for KeyBackupState {
    fn from(contents: KeyBackupContents) -> Self {
        Self { etag: contents.etag.to_string(), count: UInt::new_saturating(contents.keys) }
    }
}

impl Accounts {
    /// Makes a new backup, which from now on is the one that takes keys; gives its version.
    ///
    /// # Errors
    ///
    /// [`Error::BadJson`], [`Error::TooLarge`], [`Error::InvalidParam`] when the user has too many backups.
    pub async fn create_key_backup(&self, requester: &Requester, new: &NewKeyBackup) -> Result<String, Error> {
        check_backup(new)?;
        let version = self
            .0
            .storage
            .insert_key_backup(requester.user_nr, &new.algorithm, new.auth_data.get(), BACKUPS_MAX)
            .await?;
        let version = version.ok_or_else(|| Error::InvalidParam(format!("at most {BACKUPS_MAX} backups")))?;
        Ok(version.to_string())
    }

    /// A backup of the requester: that of a version, or the newest.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`].
    pub async fn key_backup(&self, requester: &Requester, version: Option<&str>) -> Result<KeyBackup, Error> {
        let number = version.map(version_number).transpose()?;
        let row = self.0.storage.get_key_backup(requester.user_nr, number).await?.ok_or(NO_BACKUP)?;
        let KeyBackupRow { version, algorithm, auth_data, contents } = row;
        let damaged = |error: serde_json::Error| storage::Error::Damaged(format!("key backup: {error}"));
        let auth_data = RawValue::from_string(auth_data).map_err(damaged)?;
        let algorithm = NewKeyBackup { algorithm, auth_data, version: None };
        let algorithm = serde_json::value::to_raw_value(&algorithm).map_err(damaged)?;
        Ok(KeyBackup { version: version.to_string(), algorithm, state: contents.into() })
    }

    /// Gives a backup other `auth_data`; nothing else of it can be changed.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::InvalidParam`] when the algorithm or the version is another than the backup's.
    pub async fn update_key_backup(
        &self,
        requester: &Requester,
        version: &str,
        new: &NewKeyBackup,
    ) -> Result<(), Error> {
        check_backup(new)?;
        let number = version_number(version)?;
        let stored = self.0.storage.get_key_backup(requester.user_nr, Some(number)).await?.ok_or(NO_BACKUP)?;
        if new.version.as_deref().is_some_and(|named| named != version) {
            return Err(Error::InvalidParam("`version` is another in the body than in the path".to_owned()));
        }
        if stored.algorithm != new.algorithm {
            return Err(Error::InvalidParam("`algorithm` cannot be changed".to_owned()));
        }
        let (algorithm, auth_data) = (&new.algorithm, new.auth_data.get());
        // Between the two somebody may have deleted it.
        let is_done = self.0.storage.update_key_backup(requester.user_nr, number, algorithm, auth_data).await?;
        is_done.then_some(()).ok_or(NO_BACKUP)
    }

    /// Deletes a backup with all its keys; one that was deleted before is no mistake.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] when there never was such a backup.
    pub async fn delete_key_backup(&self, requester: &Requester, version: &str) -> Result<(), Error> {
        let existed = self.0.storage.delete_key_backup(requester.user_nr, version_number(version)?).await?;
        existed.then_some(()).ok_or(NO_BACKUP)
    }

    /// Puts keys into the requester's newest backup. Of two keys of a session the better one stays: a verified one, then one that opens
    /// earlier messages, then one that was forwarded less often.
    ///
    /// # Errors
    ///
    /// [`Error::BadJson`] and [`Error::TooLarge`] before anything is written; [`Error::NotFound`],
    /// [`Error::WrongBackupVersion`] when there is a newer backup, [`Error::InvalidParam`] when there are too many keys.
    pub async fn back_up_keys(
        &self,
        requester: &Requester,
        version: &str,
        keys: Vec<BackedUpKey>,
    ) -> Result<KeyBackupState, Error> {
        if keys.len() > KEYS_PER_REQUEST_MAX {
            return Err(Error::InvalidParam(format!("at most {KEYS_PER_REQUEST_MAX} keys in one request")));
        }
        let rows = keys.into_iter().map(key_row).collect::<Result<Vec<_>, _>>()?;
        let number = version_number(version)?;
        match self.0.storage.upsert_backed_up_keys(requester.user_nr, number, &rows, KEYS_MAX).await? {
            BackupOutcome::Stored(contents) => Ok(contents.into()),
            BackupOutcome::Unknown => Err(NO_BACKUP),
            BackupOutcome::Superseded(newest) => Err(Error::WrongBackupVersion { current: newest.to_string() }),
            BackupOutcome::Full => Err(Error::InvalidParam(format!("at most {KEYS_MAX} keys in a backup"))),
        }
    }

    /// The key of a session.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] when there is no such backup or no such key in it.
    pub async fn backed_up_key(
        &self,
        requester: &Requester,
        version: &str,
        room_id: &RoomId,
        session_id: &str,
    ) -> Result<Raw<KeyBackupData>, Error> {
        let number = self.backup_number(requester, version).await?;
        let which = BackedUpKeys::OfSession(room_id.as_str(), session_id);
        let mut rows = self.0.storage.list_backed_up_keys(requester.user_nr, number, which, ("", ""), 1).await?;
        Ok(key(rows.pop().ok_or(Error::NotFound("key"))?)?.data)
    }

    /// The next keys of a backup, of one room or all, in the order of rooms and sessions: those after `last`. No key is the end.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] when there is no such backup.
    pub async fn backed_up_keys(
        &self,
        requester: &Requester,
        version: &str,
        room_id: Option<&RoomId>,
        last: Option<&BackedUpKey>,
    ) -> Result<Vec<BackedUpKey>, Error> {
        let number = self.backup_number(requester, version).await?;
        let which = room_id.map_or(BackedUpKeys::All, |room_id| BackedUpKeys::OfRoom(room_id.as_str()));
        let after = last.map_or(("", ""), |key| (key.room_id.as_str(), key.session_id.as_str()));
        let rows = self.0.storage.list_backed_up_keys(requester.user_nr, number, which, after, KEYS_READ).await?;
        rows.into_iter().map(key).collect()
    }

    /// Deletes keys of a backup: all of them, those of a room or that of a session. None of them need exist.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] when there is no such backup.
    pub async fn delete_backed_up_keys(
        &self,
        requester: &Requester,
        version: &str,
        which: BackedUpKeys<'_>,
    ) -> Result<KeyBackupState, Error> {
        let number = version_number(version)?;
        let contents = self.0.storage.delete_backed_up_keys(requester.user_nr, number, which).await?;
        contents.map(Into::into).ok_or(NO_BACKUP)
    }

    async fn backup_number(&self, requester: &Requester, version: &str) -> Result<i64, Error> {
        let number = version_number(version)?;
        self.0.storage.get_key_backup(requester.user_nr, Some(number)).await?.ok_or(NO_BACKUP)?;
        Ok(number)
    }
}

const NO_BACKUP: Error = Error::NotFound("backup version");

/// A version is opaque to clients: only what we gave out is one.
fn version_number(version: &str) -> Result<i64, Error> {
    let number: Option<i64> = version.parse().ok();
    number.filter(|number| number.to_string() == version).ok_or(NO_BACKUP)
}

fn check_backup(new: &NewKeyBackup) -> Result<(), Error> {
    if new.algorithm.len() > NAME_BYTES_MAX || new.algorithm.is_empty() || new.algorithm.contains('\0') {
        return Err(Error::InvalidParam("`algorithm` is no name of an algorithm".to_owned()));
    }
    check_object(&new.auth_data, "auth_data", AUTH_DATA_BYTES_MAX)
}

fn check_object(value: &RawValue, name: &str, bytes_max: usize) -> Result<(), Error> {
    if !value.get().starts_with('{') {
        return Err(Error::BadJson(format!("`{name}` is not an object")));
    }
    if value.get().len() > bytes_max {
        return Err(Error::TooLarge(bytes_max));
    }
    // What is shown is the text that came; that its owner's clients can read it is checked as for what others are sent.
    content_object(value.get())?;
    Ok(())
}

fn key_row(key: BackedUpKey) -> Result<BackedUpKeyRow, Error> {
    let BackedUpKey { room_id, session_id, data } = key;
    let data: KeyData =
        data.deserialize_as_unchecked().map_err(|error| Error::BadJson(format!("key {session_id}: {error}")))?;
    if session_id.len() > NAME_BYTES_MAX || session_id.is_empty() || session_id.contains('\0') {
        return Err(Error::InvalidParam("a session id has 1 to 255 bytes, none of them zero".to_owned()));
    }
    check_object(&data.session_data, "session_data", SESSION_DATA_BYTES_MAX)?;
    Ok(BackedUpKeyRow {
        room_id: room_id.to_string(),
        session_id,
        is_verified: data.is_verified,
        first_message_index: u64::from(data.first_message_index).cast_signed(),
        forwarded_count: u64::from(data.forwarded_count).cast_signed(),
        session_data: Box::<str>::from(data.session_data).into(),
    })
}

fn key(row: BackedUpKeyRow) -> Result<BackedUpKey, Error> {
    let damaged = |error: String| storage::Error::Damaged(format!("backed up key: {error}"));
    let count = |number: i64| UInt::new_saturating(number.cast_unsigned());
    let data = KeyData {
        first_message_index: count(row.first_message_index),
        forwarded_count: count(row.forwarded_count),
        is_verified: row.is_verified,
        session_data: RawValue::from_string(row.session_data).map_err(|error| damaged(error.to_string()))?,
    };
    let data = serde_json::value::to_raw_value(&data).map_err(|error| damaged(error.to_string()))?;
    let room_id = row.room_id.try_into().map_err(|error: ruma::IdParseError| damaged(error.to_string()))?;
    Ok(BackedUpKey { room_id, session_id: row.session_id, data: Raw::from_json(data) })
}
