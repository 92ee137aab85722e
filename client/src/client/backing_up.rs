//! The backup of room keys: making it, filling it, reading it. Client-Server API, "Server-side key backups".

use ruma::{
    api::client::backup::{add_backup_keys, create_backup_version, get_backup_keys, get_latest_backup_info},
    serde::Raw,
};
use serde_json::{Value, json, value::to_raw_value};

use super::Client;
use crate::{
    Error,
    backup::{self, ALGORITHM, BackupKey},
    events::Event,
    machine::Backup,
    signatures::Object,
};

/// Room keys in one upload: some 100 kB.
const UPLOAD_MAX: usize = 100;
/// How a server refuses room keys for a version that is not the newest.
const WRONG_VERSION: (u16, &str) = (403, "M_WRONG_ROOM_KEYS_VERSION");
/// Room keys that are taken over at once.
const IMPORT_MAX: usize = 200;

impl Client {
    /// Makes a backup, which all room keys of this device go to from now on. Its key is here only, until [`Self::enable_recovery`] puts it into
    /// secret storage.
    ///
    /// # Errors
    ///
    /// [`Error::BackupExists`] when the server has one whose key is not here and `replace` is not set; [`Error::Unreachable`].
    pub async fn enable_backup(&self, replace: bool) -> Result<(), Error> {
        let present = self.backup_version().await?;
        let known = self.machine().await.backup().await?.filter(|backup| backup.private_key.is_some());
        match (&present, &known) {
            _ if replace => {}
            (Some((version, _)), Some(known)) if *version == known.version => return Ok(()),
            (Some(_), _) => return Err(Error::BackupExists),
            (None, _) => {}
        }
        let key = BackupKey::generate();
        let mut auth_data = key.auth_data();
        self.machine().await.sign(&mut auth_data).await?;
        let algorithm = to_raw_value(&json!({ "algorithm": ALGORITHM, "auth_data": auth_data })).expect("JSON is JSON");
        let request = create_backup_version::v3::Request::new(Raw::from_json(algorithm));
        // Twice would make two versions.
        let version = self.api().send_once(request).await?.version;
        let backup = Backup { version, public_key: key.public_key(), private_key: Some(key) };
        self.machine().await.set_backup(Some(&backup)).await
    }

    /// The backup's key in the form for people, if it is here.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub async fn backup_key(&self) -> Result<Option<BackupKey>, Error> {
        Ok(self.machine().await.backup().await?.and_then(|backup| backup.private_key))
    }

    /// Uses the backup whose key the user typed.
    ///
    /// # Errors
    ///
    /// [`Error::MistypedKey`]; [`Error::WrongBackupKey`] when it is the key of another version; [`Error::Unreachable`].
    pub async fn use_backup(&self, typed: &str) -> Result<(), Error> {
        let is_its = self.use_backup_key(BackupKey::from_recovery_key(typed)?).await?;
        if is_its { Ok(()) } else { Err(Error::WrongBackupKey) }
    }

    /// Gets all room keys from the backup. Returns how many were new; messages that can be read by them are told as [`Event::Late`].
    ///
    /// # Errors
    ///
    /// [`Error::Absent`] when there is no backup or its key is not here; [`Error::WrongBackupKey`] when somebody replaced it, before any key
    /// is asked for; [`Error::Unreachable`].
    pub async fn restore_backup(&self) -> Result<usize, Error> {
        let absent = || Error::Absent("backup of room keys that this device has the key of");
        let key = self.backup_key().await?.ok_or_else(absent)?;
        let (version, auth_data) = self.backup_version().await?.ok_or_else(absent)?;
        if backup::public_key(&auth_data)? != key.public_key() {
            return Err(Error::WrongBackupKey);
        }
        let answer = self.api().send(get_backup_keys::v3::Request::new(version)).await?;
        let sessions = answer.rooms.into_iter().flat_map(|(room_id, room)| {
            room.sessions.into_iter().map(move |(session_id, data)| (room_id.clone(), session_id, data))
        });
        let mut keys = Vec::new();
        let mut count = 0;
        for (room_id, session_id, data) in sessions {
            let decrypted = data
                .deserialize()
                .map_err(|_| Error::Malformed("room key in the backup"))
                .and_then(|data| key.decrypt(&room_id, &session_id, &data));
            match decrypted {
                Ok(key) => keys.push(key),
                Err(error) => tracing::warn!(room.id = %room_id, %error, "a room key of the backup cannot be read"),
            }
            if keys.len() == IMPORT_MAX {
                count += self.import(std::mem::take(&mut keys)).await?;
            }
        }
        Ok(count + self.import(keys).await?)
    }

    async fn import(&self, keys: Vec<crate::ExportedRoomKey>) -> Result<usize, Error> {
        let (events, count) = self.machine().await.import_backed_up(keys).await?;
        self.tell(events);
        Ok(count)
    }

    /// How many room keys the backup lacks; nothing when there is none.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub async fn keys_to_back_up(&self) -> Result<Option<usize>, Error> {
        self.machine().await.keys_to_back_up().await
    }

    /// Uploads what the backup lacks.
    pub(super) async fn back_up(&self) -> Result<(), Error> {
        let _turn = self.0.backing_up.lock().await;
        let mut has_followed = false;
        loop {
            let Some(upload) = self.machine().await.next_upload(UPLOAD_MAX).await? else { return Ok(()) };
            let request = add_backup_keys::v3::Request::new(upload.version.clone(), upload.rooms.clone());
            match self.api().send(request).await {
                Ok(_) => self.machine().await.uploaded(upload).await?,
                // Somebody made another version, or deleted ours. Client-Server API, `PUT /room_keys/keys`.
                // Once: a server that refuses what it says is the newest would be asked for ever.
                Err(Error::Refused { status, code, .. })
                    if !has_followed && (status == 404 || (status, code.as_str()) == WRONG_VERSION) =>
                {
                    has_followed = true;
                    self.follow_backup().await?;
                }
                Err(error @ Error::Refused { .. }) if !error.is_temporary() => {
                    tracing::warn!(%error, "the server takes no room keys into the backup");
                    self.machine().await.pause_backup();
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The backup that room keys went to is gone: goes on with the one that took its place if one of our own keys signed it, else with none.
    async fn follow_backup(&self) -> Result<(), Error> {
        let former = self.machine().await.backup().await?;
        let present = self.backup_version().await.and_then(|present| {
            present.map(|(version, auth_data)| Ok((version, backup::public_key(&auth_data)?, auth_data))).transpose()
        });
        let present = match present {
            Ok(present) => present,
            Err(error @ (Error::UnknownAlgorithm(_) | Error::Malformed(_) | Error::Forged(_))) => {
                tracing::warn!(%error, "the new backup is of no use to us");
                None
            }
            Err(error) => return Err(error),
        };
        if let Some((version, public_key, auth_data)) = present {
            let same = former.filter(|former| former.public_key == public_key);
            if same.is_some() || self.machine().await.is_signed_by_us(&auth_data).await? {
                let private_key = same.and_then(|same| same.private_key);
                return self.machine().await.set_backup(Some(&Backup { version, public_key, private_key })).await;
            }
        }
        self.machine().await.set_backup(None).await?;
        self.tell(vec![Event::BackupReplaced]);
        Ok(())
    }

    /// The newest version of the backup and what it says of itself, if there is one of the algorithm that we know.
    pub(super) async fn backup_version(&self) -> Result<Option<(String, Object)>, Error> {
        let answer = match self.api().send(get_latest_backup_info::v3::Request::new()).await {
            Ok(answer) => answer,
            Err(Error::Refused { status: 404, .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let malformed = || Error::Malformed("version of the backup");
        let mut said: Object = serde_json::from_str(answer.algorithm.json().get()).map_err(|_| malformed())?;
        let auth_data = said.remove("auth_data");
        match (said.get("algorithm").and_then(Value::as_str), auth_data) {
            (Some(ALGORITHM), Some(Value::Object(auth_data))) => Ok(Some((answer.version, auth_data))),
            (Some(ALGORITHM) | None, _) => Err(malformed()),
            (Some(other), _) => Err(Error::UnknownAlgorithm(other.chars().take(100).collect())),
        }
    }
}
