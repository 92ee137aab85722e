//! Whose devices somebody has to follow, as it changed over a time.

use model::{Position, UserNr};

use crate::{
    Error, Storage,
    db::{Db, args},
    statement::statements,
};

statements! {
    /// What is new at all.
    LIST_CHANGES = ["
        SELECT position, user_nr FROM device_list_changes WHERE position > $1 ORDER BY position LIMIT $2"];
    /// Users who came to share a room: they joined, or the user did (membership 3).
    LIST_NEWCOMERS = ["
        SELECT DISTINCT theirs.user_nr
          FROM memberships mine JOIN memberships theirs ON theirs.room_nr = mine.room_nr
         WHERE mine.user_nr = $1 AND mine.membership = 3 AND theirs.membership = 3 AND theirs.user_nr <> $1
           AND ((mine.position > $2 AND mine.position <= $3) OR (theirs.position > $2 AND theirs.position <= $3))
         ORDER BY theirs.user_nr"];
    /// Users who share no room any more: they left, or the user did (0 left, 4 banned).
    LIST_LEFT = ["
        SELECT DISTINCT theirs.user_nr
          FROM memberships mine JOIN memberships theirs ON theirs.room_nr = mine.room_nr
         WHERE mine.user_nr = $1 AND theirs.user_nr <> $1
           AND ((mine.membership = 3 AND theirs.membership IN (0, 4) AND theirs.position > $2 AND theirs.position <= $3)
             OR (mine.membership IN (0, 4) AND mine.position > $2 AND mine.position <= $3))
           AND NOT EXISTS (
               SELECT 1 FROM memberships a JOIN memberships b ON b.room_nr = a.room_nr
                WHERE a.user_nr = $1 AND a.membership = 3 AND b.user_nr = theirs.user_nr AND b.membership = 3)
         ORDER BY theirs.user_nr"];
}

impl Storage {
    /// Whether other processes may write into the database too.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        matches!(self.db(), Db::Postgres { .. })
    }

    /// Changes of device lists after a position, oldest first, of any process.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_all_device_list_changes(
        &self,
        after: Position,
        limit: u32,
    ) -> Result<Vec<(Position, UserNr)>, Error> {
        let rows = self.db().read(&LIST_CHANGES, args![after, i64::from(limit)]).await?;
        rows.iter().map(|row| Ok((row.nr(0)?, row.nr(1)?))).collect()
    }

    /// Users who came to share a room with a user after a position, up to another.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_newcomers(&self, user_nr: UserNr, after: Position, upto: Position) -> Result<Vec<UserNr>, Error> {
        self.db().read(&LIST_NEWCOMERS, args![user_nr, after, upto]).await?.iter().map(|row| row.nr(0)).collect()
    }

    /// Users who share no room with a user any more, of those where somebody left after a position, up to another.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_left(&self, user_nr: UserNr, after: Position, upto: Position) -> Result<Vec<UserNr>, Error> {
        self.db().read(&LIST_LEFT, args![user_nr, after, upto]).await?.iter().map(|row| row.nr(0)).collect()
    }
}
