//! What the client keeps on disk: a SQLite database in which everything is encrypted.
//!
//! A value has a kind and a key, both text. On disk a row is found by a hash of both under a secret key, and holds key and value sealed with
//! AES-256-GCM, bound to its row: who has the file learns how many values of each kind there are and how long they are. The secret is sealed
//! by a key made of the passphrase (`store/seal.rs`).
//!
//! Changes are collected in a [`Batch`] and become durable together. One program has the store open: two that use the same ratchets would
//! break each other's encryption.

mod seal;

use std::{collections::BTreeMap, path::Path, time::Duration};

use serde::{Serialize, de::DeserializeOwned};
use sqlx::{
    QueryBuilder, Row as _, Sqlite, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteLockingMode, SqlitePoolOptions, SqliteSynchronous},
};
use zeroize::Zeroizing;

use self::seal::Seal;
pub use self::seal::StoreKey;
use crate::Error;

/// How the rows are laid out; a greater number is a newer program's.
const VERSION: i64 = 1;
/// Rows of one statement: SQLite binds 32,766 parameters at most.
const STATEMENT_ROWS: usize = 1_000;
/// How long another program may take to close the store.
const BUSY_WAIT: Duration = Duration::from_secs(2);

/// What sort of values; each module names its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind(pub &'static str);

/// Everything that a client keeps.
#[derive(Clone, Debug)]
pub struct Store {
    pool: SqlitePool,
    seal: std::sync::Arc<Seal>,
}

/// Changes that become durable together.
///
/// What it holds is seen by the reads that are given it, so that a change can build upon another that is not durable yet.
#[derive(Default)]
pub struct Batch {
    changes: BTreeMap<(Kind, String), Option<Zeroizing<Vec<u8>>>>,
}

impl Batch {
    /// No changes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps `value`, in place of what was there.
    ///
    /// # Panics
    ///
    /// When the value cannot be JSON: what we keep can.
    pub fn put<T: Serialize + ?Sized>(&mut self, kind: Kind, key: impl Into<String>, value: &T) {
        let json = serde_json::to_vec(value).expect("what the client keeps can be JSON");
        self.changes.insert((kind, key.into()), Some(Zeroizing::new(json)));
    }

    /// Forgets what is there.
    pub fn delete(&mut self, kind: Kind, key: impl Into<String>) {
        self.changes.insert((kind, key.into()), None);
    }

    /// Whether it changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Adds the changes of `later`, which win.
    pub fn extend(&mut self, later: Self) {
        self.changes.extend(later.changes);
    }
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batch").field("changes", &self.changes.len()).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store in this file, or makes one.
    ///
    /// # Errors
    ///
    /// [`Error::WrongPassphrase`]; [`Error::StoreInUse`] when another program has it open; [`Error::StoreTooNew`]; [`Error::Store`];
    /// [`Error::File`].
    pub async fn open(file: &Path, key: &StoreKey) -> Result<Self, Error> {
        make_private(file).await?;
        let options = SqliteConnectOptions::new()
            .filename(file)
            .create_if_missing(true)
            .locking_mode(SqliteLockingMode::Exclusive)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            // What is deleted was a secret.
            .pragma("secure_delete", "ON")
            .busy_timeout(BUSY_WAIT);
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            .min_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .acquire_timeout(Duration::from_secs(30))
            .connect_with(options)
            .await
            .map_err(in_use)?;
        let seal = Self::unlock(&pool, key).await;
        match seal {
            Ok(seal) => Ok(Self { pool, seal: std::sync::Arc::new(seal) }),
            Err(error) => {
                pool.close().await;
                Err(error)
            }
        }
    }

    async fn unlock(pool: &SqlitePool, key: &StoreKey) -> Result<Seal, Error> {
        let mut transaction = pool.begin_with("BEGIN EXCLUSIVE").await.map_err(in_use)?;
        sqlx::query("CREATE TABLE IF NOT EXISTS header (version BIGINT NOT NULL, seal BLOB NOT NULL)")
            .execute(&mut *transaction)
            .await?;
        sqlx::query(
            "CREATE TABLE IF NOT EXISTS sealed (
                 kind TEXT NOT NULL, row BLOB NOT NULL, value BLOB NOT NULL, PRIMARY KEY (kind, row)
             ) WITHOUT ROWID",
        )
        .execute(&mut *transaction)
        .await?;
        let header = sqlx::query("SELECT version, seal FROM header").fetch_optional(&mut *transaction).await?;
        let seal = match header {
            Some(header) => {
                let version: i64 = header.try_get(0)?;
                if version > VERSION {
                    return Err(Error::StoreTooNew(version));
                }
                Seal::open(&header.try_get::<Vec<u8>, _>(1)?, key).await?
            }
            None => {
                let (seal, header) = Seal::make(key).await?;
                sqlx::query("INSERT INTO header (version, seal) VALUES ($1, $2)")
                    .bind(VERSION)
                    .bind(header)
                    .execute(&mut *transaction)
                    .await?;
                seal
            }
        };
        transaction.commit().await?;
        Ok(seal)
    }

    /// The value of a key.
    ///
    /// # Errors
    ///
    /// [`Error::StoreDamaged`] when it is not what was written; [`Error::Store`].
    pub async fn get<T: DeserializeOwned>(&self, kind: Kind, key: &str) -> Result<Option<T>, Error> {
        let row = self.seal.row(kind, key);
        let value: Option<Vec<u8>> = sqlx::query_scalar("SELECT value FROM sealed WHERE kind = $1 AND row = $2")
            .bind(kind.0)
            .bind(row.as_slice())
            .fetch_optional(&self.pool)
            .await?;
        value.map(|value| self.unseal(kind, &row, &value).map(|(_, value)| value)).transpose()
    }

    /// The value of a key, as it is after the changes of `batch`.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub async fn get_with<T: DeserializeOwned>(
        &self,
        batch: &Batch,
        kind: Kind,
        key: &str,
    ) -> Result<Option<T>, Error> {
        match batch.changes.get(&(kind, key.to_owned())) {
            Some(Some(json)) => read(json).map(Some),
            Some(None) => Ok(None),
            None => self.get(kind, key).await,
        }
    }

    /// The values of those keys that have one, by key.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub async fn get_many<T: DeserializeOwned>(&self, kind: Kind, keys: &[&str]) -> Result<BTreeMap<String, T>, Error> {
        let mut found = BTreeMap::new();
        for keys in keys.chunks(STATEMENT_ROWS) {
            let mut query = QueryBuilder::<Sqlite>::new("SELECT row, value FROM sealed WHERE kind = ");
            query.push_bind(kind.0).push(" AND row IN (");
            let mut list = query.separated(", ");
            for key in keys {
                list.push_bind(self.seal.row(kind, key).to_vec());
            }
            query.push(")");
            for row in query.build().fetch_all(&self.pool).await? {
                let (key, value) = self.unseal(kind, &row.try_get::<Vec<u8>, _>(0)?, &row.try_get::<Vec<u8>, _>(1)?)?;
                found.insert(key, value);
            }
        }
        Ok(found)
    }

    /// How many values of a kind there are.
    ///
    /// # Errors
    ///
    /// [`Error::Store`].
    pub async fn count(&self, kind: Kind) -> Result<u64, Error> {
        let count: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM sealed WHERE kind = $1")
            .bind(kind.0)
            .fetch_one(&self.pool)
            .await?;
        Ok(count.unsigned_abs())
    }

    /// All values of a kind, by key.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub async fn list<T: DeserializeOwned>(&self, kind: Kind) -> Result<BTreeMap<String, T>, Error> {
        let rows =
            sqlx::query("SELECT row, value FROM sealed WHERE kind = $1").bind(kind.0).fetch_all(&self.pool).await?;
        rows.iter()
            .map(|row| self.unseal(kind, &row.try_get::<Vec<u8>, _>(0)?, &row.try_get::<Vec<u8>, _>(1)?))
            .collect()
    }

    /// Makes the changes durable: all of them, or none when it fails.
    ///
    /// # Errors
    ///
    /// [`Error::Store`].
    pub async fn commit(&self, batch: Batch) -> Result<(), Error> {
        if batch.is_empty() {
            return Ok(());
        }
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let changes: Vec<_> = batch.changes.iter().collect();
        let (puts, deletes): (Vec<_>, Vec<_>) = changes.into_iter().partition(|(_, value)| value.is_some());
        for puts in puts.chunks(STATEMENT_ROWS) {
            let mut query = QueryBuilder::<Sqlite>::new("INSERT INTO sealed (kind, row, value) ");
            query.push_values(puts, |mut row, ((kind, key), value)| {
                let hash = self.seal.row(*kind, key);
                let value = self.seal.seal(*kind, &hash, key, value.as_ref().expect("only what has a value is put"));
                row.push_bind(kind.0).push_bind(hash.to_vec()).push_bind(value);
            });
            query.push(" ON CONFLICT (kind, row) DO UPDATE SET value = excluded.value");
            query.build().execute(&mut *transaction).await?;
        }
        for deletes in deletes.chunks(STATEMENT_ROWS) {
            let mut query = QueryBuilder::<Sqlite>::new("DELETE FROM sealed WHERE (kind, row) IN (VALUES ");
            let mut list = query.separated(", ");
            for ((kind, key), _) in deletes {
                list.push("(").push_bind_unseparated(kind.0).push_unseparated(", ");
                list.push_bind_unseparated(self.seal.row(*kind, key).to_vec()).push_unseparated(")");
            }
            query.push(")");
            query.build().execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    /// Forgets everything but the passphrase: for a session that has ended.
    ///
    /// # Errors
    ///
    /// [`Error::Store`].
    pub async fn clear(&self) -> Result<(), Error> {
        sqlx::query("DELETE FROM sealed").execute(&self.pool).await?;
        Ok(())
    }

    /// Closes the file: another program may open it. Without this it is closed a moment after the last use.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    fn unseal<T: DeserializeOwned>(&self, kind: Kind, row: &[u8], value: &[u8]) -> Result<(String, T), Error> {
        let (key, json) = self.seal.unseal(kind, row, value)?;
        Ok((key, read(&json)?))
    }
}

fn read<T: DeserializeOwned>(json: &[u8]) -> Result<T, Error> {
    // The cause would show what is in the value.
    serde_json::from_slice(json).map_err(|_| Error::StoreDamaged("a value is of another form"))
}

/// Makes the file of a new store readable to this user only; SQLite gives the files beside it the same rights.
async fn make_private(file: &Path) -> Result<(), Error> {
    let mut options = tokio::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    options.mode(0o600);
    match options.open(file).await {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error.into()),
        _ => Ok(()),
    }
}

fn in_use(error: sqlx::Error) -> Error {
    let is_busy =
        error.as_database_error().and_then(|error| error.code()).is_some_and(|code| code == "5" || code == "261");
    if is_busy { Error::StoreInUse } else { Error::Store(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTES: Kind = Kind("notes");
    const OTHERS: Kind = Kind("others");

    fn key() -> StoreKey {
        StoreKey::raw([7; 32])
    }

    async fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store"), &key()).await.unwrap();
        (folder, store)
    }

    /// Whoever can copy it can try passphrases at leisure.
    #[cfg(unix)]
    #[tokio::test]
    async fn nobody_else_on_the_machine_may_read_it() {
        use std::os::unix::fs::PermissionsExt as _;
        let (folder, store) = store().await;
        store.commit(put(NOTES, "key", "value")).await.unwrap();
        let files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(Result::unwrap).collect();
        assert!(files.len() > 1, "the store and its log");
        for file in files {
            assert_eq!(file.metadata().unwrap().permissions().mode() & 0o077, 0, "{:?}", file.file_name());
        }
    }

    fn put(kind: Kind, key: &str, value: &str) -> Batch {
        let mut batch = Batch::new();
        batch.put(kind, key, value);
        batch
    }

    #[tokio::test]
    async fn values_are_there_after_the_store_was_closed() {
        let (folder, store) = store().await;
        let mut batch = put(NOTES, "a", "one");
        batch.put(NOTES, "b", "two");
        batch.put(OTHERS, "a", "three");
        store.commit(batch).await.unwrap();
        store.close().await;

        let store = Store::open(&folder.path().join("store"), &key()).await.unwrap();
        assert_eq!(store.get::<String>(NOTES, "a").await.unwrap().as_deref(), Some("one"));
        assert_eq!(store.get::<String>(NOTES, "c").await.unwrap(), None);
        let all = BTreeMap::from([("a".to_owned(), "one".to_owned()), ("b".to_owned(), "two".to_owned())]);
        assert_eq!(store.list::<String>(NOTES).await.unwrap(), all);
        assert_eq!((store.count(NOTES).await.unwrap(), store.count(OTHERS).await.unwrap()), (2, 1));
        assert_eq!(store.get_many::<String>(NOTES, &["a", "b", "c"]).await.unwrap(), all);
        let mut batch = Batch::new();
        batch.delete(NOTES, "a");
        batch.delete(OTHERS, "a");
        store.commit(batch).await.unwrap();
        assert_eq!(store.get::<String>(NOTES, "a").await.unwrap(), None);
        assert_eq!(store.get::<String>(OTHERS, "a").await.unwrap(), None);
        assert_eq!(store.get::<String>(NOTES, "b").await.unwrap().as_deref(), Some("two"));
    }

    #[tokio::test]
    async fn a_read_sees_the_changes_that_it_is_given() {
        let (_folder, store) = store().await;
        store.commit(put(NOTES, "a", "old")).await.unwrap();
        let mut batch = put(NOTES, "a", "new");
        assert_eq!(store.get_with::<String>(&batch, NOTES, "a").await.unwrap().as_deref(), Some("new"));
        assert_eq!(store.get::<String>(NOTES, "a").await.unwrap().as_deref(), Some("old"));
        batch.delete(NOTES, "a");
        assert_eq!(store.get_with::<String>(&batch, NOTES, "a").await.unwrap(), None);
    }

    #[tokio::test]
    async fn the_file_shows_neither_keys_nor_values() {
        let (folder, store) = store().await;
        store.commit(put(NOTES, "a very telling key", "a very secret value")).await.unwrap();
        store.close().await;
        for entry in std::fs::read_dir(folder.path()).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            for secret in ["telling", "secret value"] {
                assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()), "{secret}");
            }
        }
    }

    #[tokio::test]
    async fn another_passphrase_does_not_open_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("store");
        let store = Store::open(&file, &StoreKey::passphrase("correct horse")).await.unwrap();
        store.commit(put(NOTES, "a", "one")).await.unwrap();
        store.close().await;
        let error = Store::open(&file, &StoreKey::passphrase("battery staple")).await.unwrap_err();
        assert!(matches!(error, Error::WrongPassphrase), "{error:?}");
        let store = Store::open(&file, &StoreKey::passphrase("correct horse")).await.unwrap();
        assert_eq!(store.get::<String>(NOTES, "a").await.unwrap().as_deref(), Some("one"));
    }

    /// Two programs that use the same ratchets would break each other's encryption.
    #[tokio::test]
    async fn a_store_is_open_in_one_program_only() {
        let (folder, _store) = store().await;
        let error = Store::open(&folder.path().join("store"), &key()).await.unwrap_err();
        assert!(matches!(error, Error::StoreInUse), "{error:?}");
    }

    /// Who can write the file cannot put one value in the place of another.
    #[tokio::test]
    async fn a_value_that_was_moved_or_changed_is_refused() {
        let (_folder, store) = store().await;
        let mut batch = put(NOTES, "a", "one");
        batch.put(OTHERS, "a", "two");
        store.commit(batch).await.unwrap();
        sqlx::query("UPDATE sealed SET value = (SELECT value FROM sealed WHERE kind = 'others') WHERE kind = 'notes'")
            .execute(&store.pool)
            .await
            .unwrap();
        let error = store.get::<String>(NOTES, "a").await.unwrap_err();
        assert!(matches!(error, Error::StoreDamaged(_)), "{error:?}");
        sqlx::query("UPDATE sealed SET value = X'00'").execute(&store.pool).await.unwrap();
        let error = store.get::<String>(OTHERS, "a").await.unwrap_err();
        assert!(matches!(error, Error::StoreDamaged(_)), "{error:?}");
    }
}
