//! End-to-end encryption keys of devices and users, as the JSON that was uploaded.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use model::UserNr;
use moka::sync::Cache;
use serde_json::{Map, Value};

use crate::{
    ChangedKeys, Error, Storage,
    db::{Db, Row, Tx, args},
    remote_devices::DELETE_OTHER_CROSS_SIGNING,
    rows::Rows,
    statement::statements,
    user_work::note_changed,
};

statements! {
    UPSERT_DEVICE_KEYS = ["
        INSERT INTO device_keys (user_nr, device_id, keys) VALUES ($1, $2, $3)
        ON CONFLICT (user_nr, device_id) DO UPDATE SET keys = excluded.keys WHERE device_keys.keys <> excluded.keys"];
    DELETE_SIGNATURES = ["DELETE FROM key_signatures WHERE user_nr = $1 AND target = $2"];
    LIST_DEVICE_KEYS = [(packed "k.user_nr, k.device_id, k.keys, d.display_name"), "
          FROM device_keys k LEFT JOIN devices d ON d.user_nr = k.user_nr AND d.device_id = k.device_id
         WHERE k.user_nr", (in_list 1)];
    GET_DEVICE_KEYS = ["SELECT keys FROM device_keys WHERE user_nr = $1 AND device_id = $2"];
    LIST_CROSS_SIGNING = ["
        SELECT user_nr, usage, key FROM cross_signing_keys WHERE user_nr", (in_list 1), " ORDER BY user_nr, usage"];
    UPSERT_CROSS_SIGNING = ["
        INSERT INTO cross_signing_keys (user_nr, usage, key) VALUES ($1, $2, $3)
        ON CONFLICT (user_nr, usage) DO UPDATE SET key = excluded.key"];
    /// Their own, and those of the one who asks. SQLite is told where to look: by the primary key it would read those of all signers.
    LIST_SIGNATURES = ["
        SELECT s.user_nr, s.target, s.signer_nr, n.user_id, s.key_id, s.signature
          FROM user_numbers n CROSS JOIN key_signatures s", (either " INDEXED BY key_signatures_signer" ""), "
         WHERE s.user_nr = n.user_nr AND s.signer_nr = n.user_nr AND n.user_nr", (in_list 1), "
         UNION ALL
        SELECT s.user_nr, s.target, s.signer_nr, n.user_id, s.key_id, s.signature
          FROM user_numbers n CROSS JOIN key_signatures s", (either " INDEXED BY key_signatures_signer" ""), "
         WHERE s.signer_nr = n.user_nr AND n.user_nr = $2 AND s.user_nr", (in_list 1), " AND s.user_nr <> $2
         ORDER BY 1, 2, 3, 5"];

    LOCK_USER = ["SELECT user_nr FROM users WHERE user_nr = $1", (for_update)];
    LOCK_DEVICE = ["SELECT device_id FROM devices WHERE user_nr = $1 AND device_id = $2", (for_update)];
    DELETE_ONE_TIME_KEYS = ["DELETE FROM one_time_keys WHERE user_nr = $1 AND device_id = $2"];
    DELETE_FALLBACK_KEYS = ["DELETE FROM fallback_keys WHERE user_nr = $1 AND device_id = $2"];
    DELETE_CLAIMED_KEYS = ["DELETE FROM claimed_one_time_keys WHERE user_nr = $1 AND device_id = $2"];
    /// Those that were claimed too.
    LIST_ONE_TIME_KEYS = ["
        SELECT algorithm, key_id, key FROM one_time_keys WHERE user_nr = $1 AND device_id = $2 AND key_id", (in_list 3), "
         UNION ALL
        SELECT algorithm, key_id, key FROM claimed_one_time_keys
         WHERE user_nr = $1 AND device_id = $2 AND key_id", (in_list 3), "
         ORDER BY algorithm, key_id"];
    INSERT_ONE_TIME_KEYS = ["
        INSERT INTO one_time_keys (user_nr, device_id, algorithm, key_id, key, uploaded_at_ms)
        SELECT user_nr, device_id, algorithm, key_id, key, uploaded_at_ms
          FROM", (rows [1 user_nr bigint, 2 device_id text, 3 algorithm text, 4 key_id text, 5 key text,
                        6 uploaded_at_ms bigint]), "
         WHERE TRUE ON CONFLICT DO NOTHING"];
    COUNT_ONE_TIME_KEYS = ["
        SELECT algorithm, count(*) FROM one_time_keys WHERE user_nr = $1 AND device_id = $2
         GROUP BY algorithm ORDER BY algorithm"];
    UPSERT_FALLBACK_KEY = ["
        INSERT INTO fallback_keys (user_nr, device_id, algorithm, key_id, key, used) VALUES ($1, $2, $3, $4, $5, FALSE)
        ON CONFLICT (user_nr, device_id, algorithm) DO UPDATE
           SET used = (fallback_keys.used AND fallback_keys.key_id = excluded.key_id AND fallback_keys.key = excluded.key),
               key_id = excluded.key_id, key = excluded.key"];
    /// One-time keys, and with `TRUE` the fallback keys that are unused.
    GET_COUNTS = ["
        SELECT FALSE, algorithm, count(*) FROM one_time_keys WHERE user_nr = $1 AND device_id = $2 GROUP BY algorithm
         UNION ALL
        SELECT TRUE, algorithm, 1 FROM fallback_keys WHERE user_nr = $1 AND device_id = $2 AND NOT used
         ORDER BY 1, 2"];
}

/// A key with the words it is known by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRow {
    /// Such as `signed_curve25519`.
    pub algorithm: String,
    /// Such as `AAAAHQ`.
    pub key_id: String,
    /// The key, JSON.
    pub key: String,
}

/// What a device uploads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceKeyUpload {
    /// The identity that the device had when this was checked.
    pub known: Option<String>,
    /// Its identity, a JSON object.
    pub device_keys: Option<String>,
    /// Whether the identity is another than before: what the old one signed is of no use any more.
    pub replaces_identity: bool,
    /// Keys to be used once.
    pub one_time_keys: Vec<KeyRow>,
    /// Keys to be used when there is none of the others, one of an algorithm.
    pub fallback_keys: Vec<KeyRow>,
}

/// How an upload ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceKeysOutcome {
    /// All of it is written.
    Stored,
    /// The device is gone; nothing is written.
    NoDevice,
    /// The device has another identity than when the upload was checked; nothing is written.
    Changed,
    /// The device would have more than [`ONE_TIME_KEYS_MAX`] one-time keys; nothing is written.
    TooMany,
    /// A one-time key has the name of another one, which was uploaded before and may have been claimed since; nothing is written.
    Taken {
        /// The key of before.
        old: KeyRow,
        /// The one under the same name.
        new: KeyRow,
    },
}

/// The keys of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceKeysRow {
    /// Whose.
    pub user_nr: UserNr,
    /// Which device.
    pub device_id: String,
    /// The keys, a JSON object.
    pub keys: String,
    /// The device's name.
    pub display_name: Option<String>,
}

/// A signature that was added to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySignatureRow {
    /// Whose key.
    pub user_nr: UserNr,
    /// The device, or the public part of a master key.
    pub target: String,
    /// Who signed.
    pub signer_nr: UserNr,
    /// Who signed; ignored when written.
    pub signer: String,
    /// With which key, `ed25519:<id>`.
    pub key_id: String,
    /// The signature.
    pub signature: String,
}

/// Whether two objects are the same but for their signatures and what servers add: then a signature of one is one of the other.
/// Appendices, "Checking for a Signature".
fn signs_same(one: &str, other: &str) -> bool {
    let signed = |text: &str| {
        let mut object: Map<String, Value> = serde_json::from_str(text).ok()?;
        object.remove("signatures");
        object.remove("unsigned");
        Some(object)
    };
    one == other || signed(one).is_some_and(|one| signed(other) == Some(one))
}

fn numbers(users: &[UserNr]) -> Vec<i64> {
    users.iter().map(|user| user.0).collect()
}

fn cross_signing_keys(rows: &[Row]) -> Result<Vec<(UserNr, String, String)>, Error> {
    rows.iter().map(|row| Ok((row.nr(0)?, row.get(1)?, row.get(2)?))).collect()
}

fn key_counts(rows: &[Row]) -> Result<Vec<(String, u64)>, Error> {
    rows.iter().map(|row| Ok((row.get(0)?, row.get::<i64>(1)?.unsigned_abs()))).collect()
}

/// Most one-time keys that a device may have.
pub const ONE_TIME_KEYS_MAX: u64 = 2_000;
/// Most devices whose counts are in memory.
const COUNTS_CACHED: u64 = 50_000;
/// With fewer one-time keys clients upload more: half of what libolm keeps, and what matrix-rust-sdk, matrix-js-sdk and matrix-nio keep on
/// the server.
const ONE_TIME_KEYS_WANTED: u64 = 50;
/// How long counts stay in memory.
const COUNTS_KEPT: Duration = Duration::from_secs(60);
/// The same where other processes hand out keys too.
const COUNTS_KEPT_SHARED: Duration = Duration::from_secs(2);

/// What a device has left of the keys that others take when they begin to write to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyCounts {
    /// One-time keys, by algorithm.
    pub one_time: Vec<(String, u64)>,
    /// The algorithms of fallback keys that nobody has used yet.
    pub unused_fallback: Vec<String>,
}

impl KeyCounts {
    /// Whether a device that is told so uploads more keys.
    fn are_acted_on(&self) -> bool {
        let is_low = |(_, count): &(String, u64)| *count < ONE_TIME_KEYS_WANTED;
        self.unused_fallback.is_empty() || self.one_time.is_empty() || self.one_time.iter().any(is_low)
    }
}

/// Counts of keys in memory: each answer of `/sync` has them.
pub(crate) struct KeyCountsCache {
    counts: Cache<(UserNr, String), Arc<KeyCounts>>,
    /// Whether other processes change them too.
    is_shared: bool,
    /// Counts what was forgotten: what was read meanwhile is not kept.
    forgotten: AtomicU64,
}

impl KeyCountsCache {
    pub(crate) fn new(db: &Db) -> Self {
        let is_shared = matches!(db, Db::Postgres { .. });
        let kept = if is_shared { COUNTS_KEPT_SHARED } else { COUNTS_KEPT };
        let counts = Cache::builder().max_capacity(COUNTS_CACHED).time_to_live(kept).build();
        Self { counts, is_shared, forgotten: AtomicU64::new(0) }
    }

    /// Forgets the counts of a device, whose keys have changed.
    pub(crate) fn forget(&self, user_nr: UserNr, device_id: &str) {
        self.forgotten.fetch_add(1, Ordering::SeqCst);
        self.counts.invalidate(&(user_nr, device_id.to_owned()));
    }
}

impl Storage {
    /// Writes what a device uploads, all or nothing. If its identity changed, signatures of the old one are gone, and it is to be told.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn upload_device_keys(
        &self,
        user_nr: UserNr,
        device_id: &str,
        upload: &DeviceKeyUpload,
    ) -> Result<DeviceKeysOutcome, Error> {
        let mut tx = self.db().begin().await?;
        // Whoever deletes the device waits, or was first; and of two uploads the second sees what the first one wrote.
        if tx.fetch_one(&LOCK_DEVICE, args![user_nr, device_id]).await?.is_none() {
            tx.rollback().await?;
            return Ok(DeviceKeysOutcome::NoDevice);
        }
        let known: Option<String> =
            tx.fetch_one(&GET_DEVICE_KEYS, args![user_nr, device_id]).await?.map(|row| row.get(0)).transpose()?;
        let outcome = match known == upload.known {
            true => self.write_device_keys(&mut tx, user_nr, device_id, upload).await?,
            false => DeviceKeysOutcome::Changed,
        };
        if outcome != DeviceKeysOutcome::Stored {
            tx.rollback().await?;
            return Ok(outcome);
        }
        tx.commit().await?;
        self.0.key_counts.forget(user_nr, device_id);
        Ok(outcome)
    }

    /// Writes the keys of a device whose row is held. If not all of them can be written, it is to be rolled back.
    pub(crate) async fn write_device_keys(
        &self,
        tx: &mut Tx,
        user_nr: UserNr,
        device_id: &str,
        upload: &DeviceKeyUpload,
    ) -> Result<DeviceKeysOutcome, Error> {
        if upload.replaces_identity {
            tx.execute(&DELETE_ONE_TIME_KEYS, args![user_nr, device_id]).await?;
            tx.execute(&DELETE_CLAIMED_KEYS, args![user_nr, device_id]).await?;
            tx.execute(&DELETE_FALLBACK_KEYS, args![user_nr, device_id]).await?;
        }
        let outcome = self.insert_one_time_keys(tx, user_nr, device_id, &upload.one_time_keys).await?;
        if outcome != DeviceKeysOutcome::Stored {
            return Ok(outcome);
        }
        for KeyRow { algorithm, key_id, key } in &upload.fallback_keys {
            tx.execute(&UPSERT_FALLBACK_KEY, args![user_nr, device_id, algorithm, key_id, key]).await?;
        }
        if let Some(keys) = &upload.device_keys
            && tx.execute(&UPSERT_DEVICE_KEYS, args![user_nr, device_id, keys]).await? == 1
        {
            if !upload.known.as_ref().is_some_and(|known| signs_same(known, keys)) {
                tx.execute(&DELETE_SIGNATURES, args![user_nr, device_id]).await?;
            }
            let what = ChangedKeys::Device(device_id.to_owned());
            note_changed(tx, self.random(), user_nr, &[what]).await?;
        }
        Ok(outcome)
    }

    /// Adds one-time keys; those that are there already, or were claimed since, stay as they are, whatever other signatures they have.
    async fn insert_one_time_keys(
        &self,
        tx: &mut Tx,
        user_nr: UserNr,
        device_id: &str,
        keys: &[KeyRow],
    ) -> Result<DeviceKeysOutcome, Error> {
        if keys.is_empty() {
            return Ok(DeviceKeysOutcome::Stored);
        }
        let now_ms = self.clock().now_ms();
        let ids: Vec<String> = keys.iter().map(|key| key.key_id.clone()).collect();
        let stored: HashMap<(String, String), String> = tx
            .fetch(&LIST_ONE_TIME_KEYS, args![user_nr, device_id, ids])
            .await?
            .iter()
            .map(|row| Ok(((row.get(0)?, row.get(1)?), row.get(2)?)))
            .collect::<Result<_, Error>>()?;
        for new in keys {
            let old = stored.get(&(new.algorithm.clone(), new.key_id.clone()));
            if let Some(key) = old.filter(|old| !signs_same(old, &new.key)).cloned() {
                return Ok(DeviceKeysOutcome::Taken { old: KeyRow { key, ..new.clone() }, new: new.clone() });
            }
        }
        let is_new = |key: &&KeyRow| !stored.contains_key(&(key.algorithm.clone(), key.key_id.clone()));
        let keys: Vec<&KeyRow> = keys.iter().filter(is_new).collect();
        let rows = Rows::new()
            .bigint(keys.iter().map(|_| user_nr.0))
            .text(keys.iter().map(|_| device_id.to_owned()))
            .text(keys.iter().map(|key| key.algorithm.clone()))
            .text(keys.iter().map(|key| key.key_id.clone()))
            .text(keys.iter().map(|key| key.key.clone()))
            .bigint(keys.iter().map(|_| now_ms));
        tx.execute(&INSERT_ONE_TIME_KEYS, rows).await?;
        let counts = key_counts(&tx.fetch(&COUNT_ONE_TIME_KEYS, args![user_nr, device_id]).await?)?;
        let is_within = counts.iter().map(|(_, count)| count).sum::<u64>() <= ONE_TIME_KEYS_MAX;
        Ok(if is_within { DeviceKeysOutcome::Stored } else { DeviceKeysOutcome::TooMany })
    }

    /// A device's keys.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn get_device_keys(&self, user_nr: UserNr, device_id: &str) -> Result<Option<String>, Error> {
        self.db().read_one(&GET_DEVICE_KEYS, args![user_nr, device_id]).await?.map(|row| row.get(0)).transpose()
    }

    /// The keys of all devices of users, in no order.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_device_keys(&self, users: &[UserNr]) -> Result<Vec<DeviceKeysRow>, Error> {
        let rows: Vec<(i64, String, String, Option<String>)> =
            self.db().read_packed(&LIST_DEVICE_KEYS, args![numbers(users)]).await?;
        let row = |(user_nr, device_id, keys, display_name)| DeviceKeysRow {
            user_nr: UserNr(user_nr),
            device_id,
            keys,
            display_name,
        };
        Ok(rows.into_iter().map(row).collect())
    }

    /// The cross-signing keys of users: whose, the usage, the key.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_cross_signing_keys(&self, users: &[UserNr]) -> Result<Vec<(UserNr, String, String)>, Error> {
        cross_signing_keys(&self.db().read(&LIST_CROSS_SIGNING, args![numbers(users)]).await?)
    }

    /// Writes cross-signing keys of a user, pairs of usage and key, which is to be told; `only_these` stay, or others too. Does nothing,
    /// and says `false`, when the user's keys are not as they were listed `before`.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn upsert_cross_signing_keys(
        &self,
        user_nr: UserNr,
        before: &[(UserNr, String, String)],
        keys: &[(&str, String)],
        only_these: bool,
    ) -> Result<bool, Error> {
        let mut tx = self.db().begin().await?;
        // Two uploads of a user wait for each other here.
        tx.fetch(&LOCK_USER, args![user_nr]).await?;
        if cross_signing_keys(&tx.fetch(&LIST_CROSS_SIGNING, args![numbers(&[user_nr])]).await?)? != before {
            tx.rollback().await?;
            return Ok(false);
        }
        if only_these {
            let usages: Vec<String> = keys.iter().map(|(usage, _)| (*usage).to_owned()).collect();
            tx.execute(DELETE_OTHER_CROSS_SIGNING, args![user_nr, usages]).await?;
        }
        for (usage, key) in keys {
            tx.execute(&UPSERT_CROSS_SIGNING, args![user_nr, *usage, key]).await?;
        }
        note_changed(&mut tx, self.random(), user_nr, &[ChangedKeys::CrossSigning]).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// The signatures that were added to keys of users by themselves, and by `viewer`: those of others are nobody else's business.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_key_signatures(&self, users: &[UserNr], viewer: UserNr) -> Result<Vec<KeySignatureRow>, Error> {
        let rows = self.db().read(&LIST_SIGNATURES, args![numbers(users), viewer]).await?;
        rows.iter()
            .map(|row| {
                Ok(KeySignatureRow {
                    user_nr: row.nr(0)?,
                    target: row.get(1)?,
                    signer_nr: row.nr(2)?,
                    signer: row.get(3)?,
                    key_id: row.get(4)?,
                    signature: row.get(5)?,
                })
            })
            .collect()
    }

    /// How many one-time keys a device has left, by algorithm.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn count_one_time_keys(&self, user_nr: UserNr, device_id: &str) -> Result<Vec<(String, u64)>, Error> {
        key_counts(&self.db().read(&COUNT_ONE_TIME_KEYS, args![user_nr, device_id]).await?)
    }

    /// How many keys a device has left, from memory if they are there.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn get_key_counts(&self, user_nr: UserNr, device_id: &str) -> Result<Arc<KeyCounts>, Error> {
        let cache = &self.0.key_counts;
        let key = (user_nr, device_id.to_owned());
        if let Some(counts) = cache.counts.get(&key) {
            return Ok(counts);
        }
        let forgotten = cache.forgotten.load(Ordering::SeqCst);
        let mut counts = KeyCounts::default();
        for row in self.db().read(&GET_COUNTS, args![user_nr, device_id]).await? {
            match row.get(0)? {
                true => counts.unused_fallback.push(row.get(1)?),
                false => counts.one_time.push((row.get(1)?, row.get::<i64>(2)?.unsigned_abs())),
            }
        }
        let counts = Arc::new(counts);
        if cache.is_shared && counts.are_acted_on() {
            // The device may upload more with another process, and is told then what it has, or it uploads them again and again.
            return Ok(counts);
        }
        cache.counts.insert(key.clone(), counts.clone());
        if cache.forgotten.load(Ordering::SeqCst) != forgotten {
            // They may have changed since they were read. Looked at last: who forgets counts first.
            cache.counts.invalidate(&key);
        }
        Ok(counts)
    }
}
