//! Servers that gave no answer, and when they are tried again.

use ruma::OwnedServerName;

use crate::{
    Error, Storage,
    db::{Row, args},
    rows::Rows,
    statement::statements,
};

statements! {
    UPSERT_OUTAGES = ["
        INSERT INTO server_outages (server, since_ms, tries, next_try_ms, is_unreachable, last_error, changed_ms)
        SELECT server, since_ms, tries, next_try_ms, is_unreachable, last_error, changed_ms
          FROM", (rows [1 server text, 2 since_ms bigint, 3 tries bigint, 4 next_try_ms bigint, 5 is_unreachable boolean,
                        6 last_error text, 7 changed_ms bigint]), "
         WHERE TRUE
            ON CONFLICT (server) DO UPDATE
           SET since_ms = excluded.since_ms, tries = excluded.tries, next_try_ms = excluded.next_try_ms,
               is_unreachable = excluded.is_unreachable, last_error = excluded.last_error,
               changed_ms = excluded.changed_ms"];
    LIST_OUTAGES = ["
        SELECT server, since_ms, tries, next_try_ms, is_unreachable, last_error, changed_ms FROM server_outages
         WHERE server > $1 AND tries > 0 ORDER BY server LIMIT $2"];
    LIST_CHANGED_OUTAGES = ["
        SELECT server, since_ms, tries, next_try_ms, is_unreachable, last_error, changed_ms FROM server_outages
         WHERE changed_ms >= $1 ORDER BY changed_ms, server LIMIT $2"];
    RESET_OUTAGE = ["UPDATE server_outages SET tries = 0, changed_ms = $2 WHERE server = $1 AND tries > 0"];
    DELETE_ENDED_OUTAGES = ["DELETE FROM server_outages WHERE tries = 0 AND changed_ms < $1"];
}

/// A server that gave no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutageRow {
    /// Its name.
    pub server: OwnedServerName,
    /// Since when, in milliseconds since 1970.
    pub since_ms: i64,
    /// How often it was tried since; none when it answers again.
    pub tries: i64,
    /// When it is tried next.
    pub next_try_ms: i64,
    /// Whether it cannot be reached at all; otherwise it refuses what we send.
    pub is_unreachable: bool,
    /// What came of the last try.
    pub last_error: String,
    /// When this was written.
    pub changed_ms: i64,
}

impl Storage {
    /// Writes outages, and the ends of some.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn upsert_outages(&self, outages: &[OutageRow]) -> Result<(), Error> {
        let rows = Rows::new()
            .text(outages.iter().map(|row| row.server.to_string()))
            .bigint(outages.iter().map(|row| row.since_ms))
            .bigint(outages.iter().map(|row| row.tries))
            .bigint(outages.iter().map(|row| row.next_try_ms))
            .boolean(outages.iter().map(|row| row.is_unreachable))
            .text(outages.iter().map(|row| row.last_error.clone()))
            .bigint(outages.iter().map(|row| row.changed_ms));
        self.db().write(&UPSERT_OUTAGES, rows).await.map(|_| ())
    }

    /// Servers that give no answer, after one, by name, at most `limit`.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_outages(&self, after: &str, limit: u32) -> Result<Vec<OutageRow>, Error> {
        self.db().read(&LIST_OUTAGES, args![after, i64::from(limit)]).await?.iter().map(outage_of).collect()
    }

    /// Outages that began, went on or ended at a time or later, oldest first, at most `limit`.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_changed_outages(&self, since_ms: i64, limit: u32) -> Result<Vec<OutageRow>, Error> {
        self.db().read(&LIST_CHANGED_OUTAGES, args![since_ms, i64::from(limit)]).await?.iter().map(outage_of).collect()
    }

    /// Ends an outage: the processes try the server again; `false` when there is none.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn reset_outage(&self, server: &str) -> Result<bool, Error> {
        Ok(self.db().write(&RESET_OUTAGE, args![server, self.clock().now_ms()]).await? > 0)
    }

    /// Forgets outages that ended before a time.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn delete_ended_outages(&self, before_ms: i64) -> Result<(), Error> {
        self.db().write(&DELETE_ENDED_OUTAGES, args![before_ms]).await.map(|_| ())
    }
}

pub(crate) fn outage_of(row: &Row) -> Result<OutageRow, Error> {
    let server: String = row.get(0)?;
    Ok(OutageRow {
        server: server.try_into().map_err(|_| Error::Damaged("the name of a server".to_owned()))?,
        since_ms: row.get(1)?,
        tries: row.get(2)?,
        next_try_ms: row.get(3)?,
        is_unreachable: row.get(4)?,
        last_error: row.get(5)?,
        changed_ms: row.get(6)?,
    })
}
