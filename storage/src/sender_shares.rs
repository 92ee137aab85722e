//! Which process sends to which other servers.
//!
//! Destinations are dealt out in shares. A process has a share as long as it says that it is alive; who takes it after that raises its
//! fence, and nothing that the one before still writes with the old fence counts.

use model::Position;

use crate::{
    Error, Storage,
    db::{Db, args},
    rows::Rows,
    statement::statements,
};

/// How many shares there are.
pub const SENDER_SHARES: u32 = 16;

statements! {
    UPSERT_PROCESS = ["
        INSERT INTO sender_processes (process, alive_until_ms) VALUES ($1, $2)
        ON CONFLICT (process) DO UPDATE SET alive_until_ms = excluded.alive_until_ms"];
    DELETE_PROCESSES = ["DELETE FROM sender_processes WHERE process = $1 OR alive_until_ms <= $2"];
    COUNT_PROCESSES = ["SELECT count(*) FROM sender_processes WHERE alive_until_ms > $1"];
    /// Those of shares that nobody has, or only who is no longer alive.
    TAKE_SHARES = ["
        UPDATE sender_shares SET process = $2, fence = fence + 1
         WHERE share", (in_list 1), "
           AND (process = $2 OR NOT EXISTS (
                SELECT 1 FROM sender_processes p WHERE p.process = sender_shares.process AND p.alive_until_ms > $3))
        RETURNING share, position, fence"];
    LIST_OWN_SHARES = ["SELECT share, fence FROM sender_shares WHERE process = $1 ORDER BY share"];
    ADVANCE_SHARES = ["
        UPDATE sender_shares SET position = r.position
          FROM", (rows [1 share bigint, 2 fence bigint, 3 position bigint]), "
         WHERE sender_shares.share = r.share AND sender_shares.fence = r.fence AND sender_shares.position < r.position"];
    GIVE_BACK_SHARES = ["
        UPDATE sender_shares SET process = ''
          FROM", (rows [1 share bigint, 2 fence bigint]), "
         WHERE sender_shares.share = r.share AND sender_shares.fence = r.fence"];
}

/// A share that this process has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SenderShare {
    /// Which one.
    pub share: u32,
    /// All up to here is sent, or in arrears.
    pub position: Position,
    /// How often it was taken.
    pub fence: i64,
}

impl Storage {
    /// Says that this process sends, for so many milliseconds from now; gives how many processes do.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn upsert_sender(&self, for_ms: i64) -> Result<u64, Error> {
        // An SQLite file has one process.
        if matches!(self.db(), Db::Sqlite { .. }) {
            return Ok(1);
        }
        let now_ms = self.clock().now_ms();
        self.db().write(&UPSERT_PROCESS, args![self.process(), now_ms + for_ms]).await?;
        let row = self.db().read_one(&COUNT_PROCESSES, args![now_ms]).await?;
        Ok(row.map_or(Ok(1), |row| row.get::<i64>(0))?.unsigned_abs())
    }

    /// Takes those of some shares that nobody alive has.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn take_sender_shares(&self, shares: &[u32]) -> Result<Vec<SenderShare>, Error> {
        // What another process of an SQLite file left behind died with it.
        let now_ms = if matches!(self.db(), Db::Sqlite { .. }) { i64::MAX } else { self.clock().now_ms() };
        let shares: Vec<i64> = shares.iter().map(|share| i64::from(*share)).collect();
        let mut tx = self.db().begin().await?;
        let rows = tx.fetch(&TAKE_SHARES, args![shares, self.process(), now_ms]).await?;
        tx.commit().await?;
        rows.iter()
            .map(|row| Ok(SenderShare { share: share_of(row.get(0)?)?, position: row.nr(1)?, fence: row.get(2)? }))
            .collect()
    }

    /// The shares that are this process's still, with their fences.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_own_sender_shares(&self) -> Result<Vec<(u32, i64)>, Error> {
        let rows = self.db().read(&LIST_OWN_SHARES, args![self.process()]).await?;
        rows.iter().map(|row| Ok((share_of(row.get(0)?)?, row.get(1)?))).collect()
    }

    /// Notes how far shares are, of those that are this process's still.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn advance_sender_shares(&self, shares: &[SenderShare]) -> Result<(), Error> {
        if shares.is_empty() {
            return Ok(());
        }
        let rows = keys(shares).bigint(shares.iter().map(|share| share.position.0));
        self.db().write(&ADVANCE_SHARES, rows).await.map(|_| ())
    }

    /// Gives shares back: another process need not wait to take them.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn give_back_sender_shares(&self, shares: &[SenderShare]) -> Result<(), Error> {
        self.db().write(&GIVE_BACK_SHARES, keys(shares)).await.map(|_| ())
    }

    /// This process sends no more; those that died are forgotten too.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn delete_sender(&self) -> Result<(), Error> {
        self.db().write(&DELETE_PROCESSES, args![self.process(), self.clock().now_ms()]).await.map(|_| ())
    }
}

fn keys(shares: &[SenderShare]) -> Rows {
    Rows::new().bigint(shares.iter().map(|share| i64::from(share.share))).bigint(shares.iter().map(|share| share.fence))
}

fn share_of(number: i64) -> Result<u32, Error> {
    u32::try_from(number).map_err(|_| Error::Damaged(format!("share {number}")))
}
