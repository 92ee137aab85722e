//! Account data. It is written by commits only.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use model::{Position, RoomNr, UserNr};

use crate::{
    Error, Storage,
    db::{Row, args},
    statement::statements,
};

statements! {
    GET_DATA = ["SELECT content FROM account_data WHERE user_nr = $1 AND room_nr = $2 AND type = $3"];
    COUNT_DATA = ["
        SELECT count(*), CAST(coalesce(sum(octet_length(content)), 0) AS BIGINT) FROM account_data WHERE user_nr = $1"];
    LIST_DATA = ["
        SELECT room_nr, type, content, position FROM account_data
         WHERE user_nr = $1 AND position > $2 AND position <= $3 ORDER BY position"];
    LIST_OF_ROOMS = ["
        SELECT room_nr, type, content, position FROM account_data
         WHERE user_nr = $1 AND room_nr", (in_list 2), " ORDER BY room_nr, type"];
    LIST_OF_TYPES = ["
        SELECT room_nr, type, content, position FROM account_data
         WHERE user_nr = $1 AND type", (in_list 2), " ORDER BY room_nr, type"];
    LIST_OF_USERS = ["
        SELECT user_nr, content FROM account_data
         WHERE user_nr", (in_list 1), " AND room_nr = $2 AND type = $3 ORDER BY user_nr"];
    LIST_ROOM_DATA = ["
        SELECT room_nr, type, content, position FROM account_data
         WHERE user_nr = $1 AND room_nr = $2 ORDER BY type"];
}

/// A piece of account data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountDataRow {
    /// In which room; zero for none.
    pub room_nr: RoomNr,
    /// Its type.
    pub event_type: String,
    /// Its content, a JSON object.
    pub content: String,
    /// When it last changed.
    pub position: Position,
}

/// How many counters tell whose account data changed; users share one with others.
const VERSIONS: usize = 4_096;

/// Counts the changes of users' account data that this process knows of, so that what was made of it can be kept in memory.
#[derive(Clone)]
pub(crate) struct AccountDataVersions(Arc<[AtomicU64]>);

impl AccountDataVersions {
    pub(crate) fn new() -> Self {
        Self((0..VERSIONS).map(|_| AtomicU64::default()).collect())
    }

    fn of(&self, user: UserNr) -> &AtomicU64 {
        &self.0[user.0.unsigned_abs() as usize % VERSIONS]
    }

    /// A user's account data changed.
    pub(crate) fn note(&self, user: UserNr) {
        self.of(user).fetch_add(1, Ordering::SeqCst);
    }

    /// Anybody's may have changed.
    pub(crate) fn note_all(&self) {
        for version in &*self.0 {
            version.fetch_add(1, Ordering::SeqCst);
        }
    }
}

fn data(row: &Row) -> Result<AccountDataRow, Error> {
    Ok(AccountDataRow { room_nr: row.nr(0)?, event_type: row.get(1)?, content: row.get(2)?, position: row.nr(3)? })
}

impl Storage {
    /// Another number after each change of a user's account data that this process knows of: all that it has published. Whoever keeps
    /// something that was made of account data takes the number first.
    #[must_use]
    pub fn account_data_version(&self, user: UserNr) -> u64 {
        self.0.account_data_versions.of(user).load(Ordering::SeqCst)
    }

    /// A user's account data of one type, in a room or (zero) in none.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn get_account_data(
        &self,
        user: UserNr,
        room: RoomNr,
        event_type: &str,
    ) -> Result<Option<String>, Error> {
        self.db().read_one(&GET_DATA, args![user, room, event_type]).await?.map(|row| row.get(0)).transpose()
    }

    /// How many pieces of account data a user has, and the bytes of their contents.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn count_account_data(&self, user: UserNr) -> Result<(u64, u64), Error> {
        let Some(row) = self.db().read_one(&COUNT_DATA, args![user]).await? else { return Ok((0, 0)) };
        Ok((row.get::<i64>(0)?.unsigned_abs(), row.get::<i64>(1)?.unsigned_abs()))
    }

    /// What changed of a user's account data, everywhere, after a position and up to another.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_account_data(
        &self,
        user: UserNr,
        after: Position,
        to: Position,
    ) -> Result<Vec<AccountDataRow>, Error> {
        self.db().read(&LIST_DATA, args![user, after, to]).await?.iter().map(data).collect()
    }

    /// A user's account data in some rooms.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_account_data_of_rooms(
        &self,
        user: UserNr,
        rooms: &[RoomNr],
    ) -> Result<Vec<AccountDataRow>, Error> {
        let rooms: Vec<i64> = rooms.iter().map(|room| room.0).collect();
        self.db().read(&LIST_OF_ROOMS, args![user, rooms]).await?.iter().map(data).collect()
    }

    /// A user's account data of some types, everywhere.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_account_data_of_types(&self, user: UserNr, types: &[&str]) -> Result<Vec<AccountDataRow>, Error> {
        let types: Vec<String> = types.iter().map(|word| (*word).to_owned()).collect();
        self.db().read(&LIST_OF_TYPES, args![user, types]).await?.iter().map(data).collect()
    }

    /// Account data of one type, in no room, of those of the users who have any.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_account_data_of_users(
        &self,
        users: &[UserNr],
        event_type: &str,
    ) -> Result<Vec<(UserNr, String)>, Error> {
        let users: Vec<i64> = users.iter().map(|user| user.0).collect();
        let rows = self.db().read(&LIST_OF_USERS, args![users, RoomNr(0), event_type]).await?;
        rows.iter().map(|row| Ok((row.nr(0)?, row.get(1)?))).collect()
    }

    /// A user's account data in one room, or (zero) in none.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_account_data_of_room(&self, user: UserNr, room: RoomNr) -> Result<Vec<AccountDataRow>, Error> {
        self.db().read(&LIST_ROOM_DATA, args![user, room]).await?.iter().map(data).collect()
    }
}
