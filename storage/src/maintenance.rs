//! What keeps the database in shape: partitions ahead of time, checkpoints, and rows that have had their time.

use std::time::Duration;

use model::Position;
use sqlx::{AssertSqlSafe, Executor as _, Row as _};
use tokio_util::sync::CancellationToken;

use crate::{
    Error, Storage,
    db::{Db, args},
    events::body_month,
    key_claims::{CLAIMED_KEPT_MS, DELETE_OLD_CLAIMED_KEYS},
    media::DELETE_OLD_PENDING_MEDIA,
    received_transactions::{self, DELETE_OLD_RECEIVED},
    relations_fill,
    server_keys::STRANGERS_KEPT_MS,
    statement::statements,
    sync_connections::{self, DELETE_OLD_CONNECTIONS},
};

/// How long a transaction id is remembered: a client that repeats a request later sends it anew.
const TRANSACTION_IDS_KEPT_MS: i64 = 2 * 24 * 3_600_000;
/// Most rows that one clean-up statement deletes: the SQLite writer is held for milliseconds only.
const CLEANED_AT_ONCE: i64 = 500;
/// How often the write-ahead log goes into the SQLite file. A commit never waits for it.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(2);
/// Pages of the write-ahead log beyond which it is made to start over. While writes keep coming, it never does so by itself.
const LOG_PAGES_MAX: i64 = 4_096;
/// How often old rows are cleaned away.
const CLEAN_EVERY: Duration = Duration::from_secs(600);

statements! {
    CHECKPOINT = [(either "PRAGMA wal_checkpoint(PASSIVE)" "SELECT 1")];
    RESTART_LOG = [(either "PRAGMA wal_checkpoint(RESTART)" "SELECT 1")];
    DELETE_OLD_TRANSACTIONS = ["
        DELETE FROM transaction_ids WHERE (user_nr, device_id, scope, transaction_id) IN
               (SELECT user_nr, device_id, scope, transaction_id FROM transaction_ids WHERE at_ms < $1 LIMIT $2)"];
    /// A reader wants to know that a user's devices changed after its position, and the newest row says so.
    LIST_SUPERSEDED_CHANGES = ["
        SELECT d.position FROM device_list_changes d
         WHERE d.position > $1 AND d.position <= $2
           AND EXISTS (SELECT 1 FROM device_list_changes n
                        WHERE n.user_nr = d.user_nr AND n.position > d.position AND n.position <= $2)
         ORDER BY d.position LIMIT $3"];
    DELETE_CHANGES = ["DELETE FROM device_list_changes WHERE position", (in_list 1)];
    DELETE_OLD_COMMITS = ["
        DELETE FROM commits WHERE position IN
               (SELECT position FROM commits WHERE at_ms < $1 AND position < (SELECT max(position) FROM commits) LIMIT $2)"];
}

/// Makes the partitions of this month and the next two on PostgreSQL.
pub(crate) async fn make_partitions(db: &Db, now_ms: i64) -> Result<(), Error> {
    let Db::Postgres { pool } = db else { return Ok(()) };
    let month = body_month(now_ms);
    for month in month..month + 3 {
        let text = format!(
            "CREATE TABLE IF NOT EXISTS event_bodies_m{month} PARTITION OF event_bodies FOR VALUES FROM ({month}) TO ({})",
            month + 1
        );
        pool.execute(AssertSqlSafe(text)).await?;
    }
    Ok(())
}

impl Storage {
    /// Keeps the database in shape until `stop`; run it as one task of the process.
    pub async fn maintain(&self, stop: CancellationToken) {
        let mut checkpoint = tokio::time::interval(CHECKPOINT_EVERY);
        let mut clean = tokio::time::interval(CLEAN_EVERY);
        let mut fill = tokio::time::interval(relations_fill::AGAIN_EVERY);
        fill.reset();
        loop {
            let done = tokio::select! {
                () = stop.cancelled() => return,
                _ = checkpoint.tick() => self.checkpoint().await,
                _ = clean.tick() => self.clean().await,
                _ = fill.tick() => self.fill_relations_again().await.map(|_| ()),
            };
            if let Err(error) = done {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "maintenance of the database failed; it is tried again"
                );
            }
        }
    }

    /// Copies the log into the database file; a log that has grown large starts over, for which writers wait a moment.
    pub(crate) async fn checkpoint(&self) -> Result<(), Error> {
        // On a connection of its own: the writer goes on meanwhile.
        if let Db::Sqlite { checkpointer, .. } = self.db() {
            let row = sqlx::query(CHECKPOINT.sqlite).fetch_one(checkpointer).await?;
            if row.try_get::<i64, _>(1)? > LOG_PAGES_MAX {
                sqlx::query(RESTART_LOG.sqlite).execute(checkpointer).await?;
            }
        }
        Ok(())
    }

    pub(crate) async fn clean(&self) -> Result<(), Error> {
        let now_ms = self.clock().now_ms();
        make_partitions(self.db(), now_ms).await?;
        for (statement, kept_ms) in [
            (&DELETE_OLD_TRANSACTIONS, TRANSACTION_IDS_KEPT_MS),
            (&DELETE_OLD_COMMITS, TRANSACTION_IDS_KEPT_MS),
            (DELETE_OLD_CONNECTIONS, sync_connections::KEPT_MS),
            (DELETE_OLD_RECEIVED, received_transactions::KEPT_MS),
            (DELETE_OLD_PENDING_MEDIA, 0),
            (DELETE_OLD_CLAIMED_KEYS, CLAIMED_KEPT_MS),
        ] {
            let before = now_ms - kept_ms;
            while self.db().write(statement, args![before, CLEANED_AT_ONCE]).await? == CLEANED_AT_ONCE as u64 {
                tokio::task::yield_now().await;
            }
        }
        self.clean_server_keys(now_ms - STRANGERS_KEPT_MS, CLEANED_AT_ONCE).await?;
        self.clean_device_lists().await
    }

    /// Deletes changes of device lists to which a newer one of the same user is published: one row a user is left.
    pub(crate) async fn clean_device_lists(&self) -> Result<(), Error> {
        let upto = self.published();
        let mut after = Position(0);
        loop {
            // Found beside the writer, which may have to skip many users that are to stay.
            let rows = self.db().read(&LIST_SUPERSEDED_CHANGES, args![after, upto, CLEANED_AT_ONCE]).await?;
            let positions: Vec<i64> = rows.iter().map(|row| row.get(0)).collect::<Result<_, _>>()?;
            let Some(last) = positions.last() else { return Ok(()) };
            after = Position(*last);
            self.db().write(&DELETE_CHANGES, args![positions]).await?;
            tokio::task::yield_now().await;
        }
    }
}
