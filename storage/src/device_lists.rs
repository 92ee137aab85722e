//! Whose devices somebody has to follow, as it changed over a time.

use std::collections::HashMap;

use model::{Position, UserNr};

use crate::{
    ChangedKeys, DeviceListChange, Error, Storage,
    db::{Db, Row, args},
    statement::statements,
};

statements! {
    /// What is new at all.
    LIST_CHANGES = ["
        SELECT position, user_nr FROM device_list_changes WHERE position > $1 ORDER BY position LIMIT $2"];
    /// By which position the list of a user is known: that of the newest change that servers are told by one. The newest change of a user
    /// is never cleaned away.
    LIST_POSITIONS = ["
        SELECT u.user_nr, (
               SELECT CASE WHEN d.device_id = '' THEN coalesce(d.follows, 0) ELSE d.position END FROM device_list_changes d
                WHERE d.user_nr = u.user_nr AND d.position <= $2 ORDER BY d.position DESC LIMIT 1)
          FROM user_numbers u WHERE u.user_nr", (in_list 1), " ORDER BY u.user_nr"];
    LIST_AT = ["
        SELECT position, user_nr, device_id, follows FROM device_list_changes WHERE position", (in_list 1), "
         ORDER BY position"];
    /// Users who came to share a room: they joined, or the user did (membership 3), who had not been joined before. Only rooms that the
    /// user joined are read member by member (`CROSS JOIN`: SQLite takes what is on the left first).
    LIST_NEWCOMERS = ["
        WITH joined AS (
            SELECT l.room_nr, l.user_nr
              FROM memberships mine
              JOIN membership_log l ON l.room_nr = mine.room_nr AND l.position > $2 AND l.position <= $3
             WHERE mine.user_nr = $1 AND mine.membership = 3 AND l.membership = 3
               AND 3 <> coalesce((
                   SELECT b.membership FROM membership_log b
                    WHERE b.user_nr = l.user_nr AND b.room_nr = l.room_nr AND b.position < l.position
                    ORDER BY b.position DESC LIMIT 1), 0))
        SELECT theirs.user_nr
          FROM joined CROSS JOIN memberships theirs
         WHERE theirs.room_nr = joined.room_nr AND theirs.user_nr = joined.user_nr AND theirs.membership = 3
           AND theirs.user_nr <> $1
         UNION
        SELECT theirs.user_nr
          FROM joined CROSS JOIN memberships theirs
         WHERE theirs.room_nr = joined.room_nr AND joined.user_nr = $1 AND theirs.membership = 3
           AND theirs.user_nr <> $1
         ORDER BY 1"];
    /// Users who shared an encrypted room at the first position and share none now: they left or the user did (3 is joined).
    LIST_LEFT = ["
        WITH mine AS (
            SELECT m.room_nr
              FROM memberships m JOIN room_summary s ON s.room_nr = m.room_nr AND s.encryption IS NOT NULL
             WHERE m.user_nr = $1
               AND 3 = (SELECT l.membership FROM membership_log l
                         WHERE l.user_nr = $1 AND l.room_nr = m.room_nr AND l.position <= $2
                         ORDER BY l.position DESC LIMIT 1)),
        gone AS (
            SELECT l.room_nr, l.user_nr
              FROM mine JOIN membership_log l ON l.room_nr = mine.room_nr
             WHERE l.position > $2 AND l.position <= $3 AND l.membership <> 3 AND l.user_nr <> $1
             UNION
            SELECT theirs.room_nr, theirs.user_nr
              FROM mine JOIN memberships theirs ON theirs.room_nr = mine.room_nr AND theirs.user_nr <> $1
             WHERE EXISTS (SELECT 1 FROM membership_log l
                            WHERE l.user_nr = $1 AND l.room_nr = mine.room_nr AND l.membership <> 3
                              AND l.position > $2 AND l.position <= $3))
        SELECT DISTINCT gone.user_nr
          FROM gone
         WHERE 3 = (SELECT l.membership FROM membership_log l
                     WHERE l.user_nr = gone.user_nr AND l.room_nr = gone.room_nr AND l.position <= $2
                     ORDER BY l.position DESC LIMIT 1)
           AND NOT EXISTS (
               SELECT 1
                 FROM memberships a JOIN memberships b ON b.room_nr = a.room_nr
                 JOIN room_summary s ON s.room_nr = a.room_nr AND s.encryption IS NOT NULL
                WHERE a.user_nr = $1 AND a.membership = 3 AND b.user_nr = gone.user_nr AND b.membership = 3)
         ORDER BY gone.user_nr"];
}

/// A change of a user's devices or keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceListChangeRow {
    /// What changed.
    pub change: DeviceListChange,
    /// By which position other servers know the list as it was before; zero when there was nothing.
    pub follows: Position,
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

    /// By which position each user's list of devices is known to other servers, as of a position; zero when there was no change.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_device_list_positions(
        &self,
        users: &[UserNr],
        upto: Position,
    ) -> Result<HashMap<UserNr, Position>, Error> {
        let users: Vec<i64> = users.iter().map(|user| user.0).collect();
        let rows = self.db().read(&LIST_POSITIONS, args![users, upto]).await?;
        rows.iter().map(|row| Ok((row.nr(0)?, Position(row.get::<Option<i64>>(1)?.unwrap_or(0))))).collect()
    }

    /// The changes at positions, of those that no newer one of the same user has made old since.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_device_list_changes_at(
        &self,
        positions: &[Position],
    ) -> Result<HashMap<Position, DeviceListChangeRow>, Error> {
        let positions: Vec<i64> = positions.iter().map(|position| position.0).collect();
        let rows = self.db().read(&LIST_AT, args![positions]).await?;
        let change = |row: &Row| {
            let change = DeviceListChange { user_nr: row.nr(1)?, what: ChangedKeys::of_column(row.get(2)?) };
            let follows = Position(row.get::<Option<i64>>(3)?.unwrap_or(0));
            Ok((row.nr(0)?, DeviceListChangeRow { change, follows }))
        };
        rows.iter().map(change).collect()
    }

    /// Users who came to share a room with a user after a position, up to another.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_newcomers(&self, user_nr: UserNr, after: Position, upto: Position) -> Result<Vec<UserNr>, Error> {
        self.db().read(&LIST_NEWCOMERS, args![user_nr, after, upto]).await?.iter().map(|row| row.nr(0)).collect()
    }

    /// Users who shared an encrypted room with a user at a position, and share none now, because one of them left up to another
    /// position. Client-Server API, "Extensions to /sync", `left`. Reads the memberships of the user's encrypted rooms: ask only when
    /// somebody left one.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_left(&self, user_nr: UserNr, after: Position, upto: Position) -> Result<Vec<UserNr>, Error> {
        self.db().read(&LIST_LEFT, args![user_nr, after, upto]).await?.iter().map(|row| row.nr(0)).collect()
    }
}
