//! Which room keys the server's backup lacks. Client-Server API, "Server-side key backups".
//!
//! A row stands for each key that is to be backed up, written together with the key. It holds the first message that the key decrypts, so that
//! a key which gets better during its upload is uploaded again.

use std::collections::BTreeMap;

use ruma::{
    OwnedRoomId,
    api::client::backup::{KeyBackupData, RoomKeyBackup},
    serde::Raw,
};
use serde::{Deserialize, Serialize};
use vodozemac::Curve25519PublicKey;

use super::{Machine, Work};
use crate::{
    Error, Kind,
    backup::{self, BackupKey, Standing},
    events::{Event, Trust},
    megolm::{ExportedRoomKey, INBOUND, Inbound, session_key},
};

/// The first message that a key decrypts, by [`session_key`].
const TO_BACK_UP: Kind = Kind("room keys to back up");
/// [`Backup`].
const BACKUP: Kind = Kind("backup");
const OWN: &str = "own";

/// The backup that room keys go to.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Backup {
    /// Which version of it.
    pub version: String,
    /// For whom they are encrypted.
    pub public_key: Curve25519PublicKey,
    /// By what they are decrypted, if this device has it.
    pub private_key: Option<BackupKey>,
}

/// Room keys that are to be uploaded.
pub(crate) struct ToUpload {
    pub version: String,
    pub rooms: BTreeMap<OwnedRoomId, RoomKeyBackup>,
    rows: BTreeMap<String, u32>,
}

impl Machine {
    /// A room key is new or better than it was: the backup lacks it.
    pub(super) fn mark_to_back_up(&mut self, work: &mut Work, inbound: &Inbound) {
        let key = session_key(&inbound.room_id, &inbound.session_id());
        work.batch.put(TO_BACK_UP, key, &inbound.first_known_index());
        self.has_keys_to_back_up = true;
    }

    /// Forgets a room key of no use.
    pub(super) fn forget_room_key(&self, work: &mut Work, key: &str) {
        work.batch.delete(INBOUND, key);
        work.batch.delete(TO_BACK_UP, key);
    }

    /// The backup that room keys go to, if any.
    pub(crate) async fn backup(&self) -> Result<Option<Backup>, Error> {
        self.store.get(BACKUP, OWN).await
    }

    /// Room keys go to this backup from now on, or to none. Another version lacks all of them.
    pub(crate) async fn set_backup(&mut self, backup: Option<&Backup>) -> Result<(), Error> {
        let mut work = Work::default();
        match backup {
            None => work.batch.delete(BACKUP, OWN),
            Some(backup) => {
                if self.backup().await?.is_none_or(|former| former.version != backup.version) {
                    for inbound in self.store.list::<Inbound>(INBOUND).await?.into_values() {
                        self.mark_to_back_up(&mut work, &inbound);
                    }
                }
                work.batch.put(BACKUP, OWN, backup);
            }
        }
        self.commit(work).await.map(drop)
    }

    /// How many room keys the backup lacks, if there is one.
    pub(crate) async fn keys_to_back_up(&self) -> Result<Option<usize>, Error> {
        match self.backup().await? {
            None => Ok(None),
            Some(_) => Ok(Some(self.store.list::<u32>(TO_BACK_UP).await?.len())),
        }
    }

    /// At most so many of the room keys that the backup lacks.
    pub(crate) async fn next_upload(&mut self, keys_max: usize) -> Result<Option<ToUpload>, Error> {
        if !self.has_keys_to_back_up {
            return Ok(None);
        }
        let Some(Backup { version, public_key, .. }) = self.backup().await? else { return Ok(None) };
        let rows = self.store.list::<u32>(TO_BACK_UP).await?.into_iter().take(keys_max).collect::<BTreeMap<_, _>>();
        if rows.is_empty() {
            self.has_keys_to_back_up = false;
            return Ok(None);
        }
        let keys: Vec<&str> = rows.keys().map(String::as_str).collect();
        let mut rooms: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
        for inbound in self.store.get_many::<Inbound>(INBOUND, &keys).await?.into_values() {
            let data = self.backed_up(public_key, &inbound).await?;
            let data = Raw::new(&data).expect("a backed up key can be written");
            rooms.entry(inbound.room_id.clone()).or_default().insert(inbound.session_id(), data);
        }
        let rooms = rooms.into_iter().map(|(room_id, sessions)| (room_id, RoomKeyBackup::new(sessions))).collect();
        Ok(Some(ToUpload { version, rooms, rows }))
    }

    async fn backed_up(&self, public_key: Curve25519PublicKey, inbound: &Inbound) -> Result<KeyBackupData, Error> {
        let sender = inbound.claims.first().and_then(|claim| claim.sender.as_ref());
        let is_verified = match sender {
            None => false,
            Some(sender) => {
                let devices = self.devices(&Work::default(), sender).await?;
                matches!(self.trust(inbound, sender, &devices), Trust::Verified { .. })
            }
        };
        let forwarded_count = u32::from(sender.is_none());
        let standing = Standing { first_message_index: inbound.first_known_index(), forwarded_count, is_verified };
        backup::encrypt(public_key, &inbound.export(), standing)
    }

    /// Backs up nothing until there is another room key.
    pub(crate) fn pause_backup(&mut self) {
        self.has_keys_to_back_up = false;
    }

    /// The backup has these keys.
    pub(crate) async fn uploaded(&mut self, uploaded: ToUpload) -> Result<(), Error> {
        let mut work = Work::default();
        let keys: Vec<&str> = uploaded.rows.keys().map(String::as_str).collect();
        let now = self.store.get_many::<u32>(TO_BACK_UP, &keys).await?;
        // Those that got better meanwhile have another index.
        for (key, _) in uploaded.rows.iter().filter(|(key, index)| now.get(*key) == Some(*index)) {
            work.batch.delete(TO_BACK_UP, key);
        }
        self.commit(work).await.map(drop)
    }

    /// Takes over room keys that came from the backup. Returns what can be read now, and how many were new.
    pub(crate) async fn import_backed_up(&mut self, keys: Vec<ExportedRoomKey>) -> Result<(Vec<Event>, usize), Error> {
        let mut work = Work::default();
        for key in &keys {
            let imported = match Inbound::import(key) {
                Ok(inbound) => self.import(&mut work, inbound).await,
                Err(error) => Err(error),
            };
            match imported {
                Err(error @ (Error::Malformed(_) | Error::Forged(_))) => {
                    tracing::warn!(room.id = %key.room_id, %error, "a room key of the backup is not believed");
                }
                Err(error) => return Err(error),
                Ok(()) => {}
            }
        }
        let count = work.imported.len();
        // The backup has them, as good as they are here.
        for key in &work.imported {
            work.batch.delete(TO_BACK_UP, key);
        }
        self.read_late_events(&mut work).await?;
        Ok((self.commit(work).await?, count))
    }
}
