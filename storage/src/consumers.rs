//! How far each consumer of the stream has come, and which process works for it.

use model::Position;

use crate::{
    Error, Storage,
    db::{Db, args},
    statement::statements,
};

statements! {
    GET_CONSUMER = ["SELECT position FROM consumers WHERE name = $1"];
    TAKE_LEASE = ["
        INSERT INTO consumers (name, position, process, lease_until_ms) VALUES ($1, 0, $2, $3)
        ON CONFLICT (name) DO UPDATE SET process = excluded.process, lease_until_ms = excluded.lease_until_ms
         WHERE consumers.process = excluded.process OR consumers.lease_until_ms <= $4
        RETURNING position"];
    ADVANCE = ["
        UPDATE consumers SET position = $3, lease_until_ms = $4
         WHERE name = $1 AND process = $2 AND position <= $3"];
    DELETE_CONSUMER = ["DELETE FROM consumers WHERE name = $1 AND process = $2"];
}

impl Storage {
    /// The position up to which a consumer has done everything.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn get_consumer(&self, name: &str) -> Result<Position, Error> {
        self.db().read_one(&GET_CONSUMER, args![name]).await?.map_or(Ok(Position(0)), |row| row.nr(0))
    }

    /// Makes this process the one that works for a consumer until so many milliseconds from now, if no other is; gives the position
    /// from which to go on. Taken again, it lasts longer.
    ///
    /// Clocks differ, and a process may sleep: two may believe that they have it. So the work must be harmless when it is done twice.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn lease_consumer(&self, name: &str, for_ms: i64) -> Result<Option<Position>, Error> {
        let now_ms = self.clock().now_ms();
        // An SQLite file has one process: what another left behind died with it.
        let ended_before_ms = if matches!(self.db(), Db::Sqlite { .. }) { i64::MAX } else { now_ms };
        let args = args![name, self.process(), now_ms + for_ms, ended_before_ms];
        self.db().write_one(&TAKE_LEASE, args).await?.map(|row| row.nr(0)).transpose()
    }

    /// Notes that a consumer has done everything up to `position`, and keeps its lease for so many milliseconds from now, or, with
    /// zero, gives it back; `false` when the lease is another's by now.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn advance_consumer(&self, name: &str, position: Position, for_ms: i64) -> Result<bool, Error> {
        let until_ms = if for_ms == 0 { 0 } else { self.clock().now_ms() + for_ms };
        Ok(self.db().write(&ADVANCE, args![name, self.process(), position, until_ms]).await? == 1)
    }

    /// Gives back the lease of what is done once, of which nothing is left then; nothing happens when the lease is another's by now.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn end_consumer(&self, name: &str) -> Result<(), Error> {
        self.db().write(&DELETE_CONSUMER, args![name, self.process()]).await.map(|_| ())
    }
}
