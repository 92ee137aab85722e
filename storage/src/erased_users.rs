//! Users who asked to be forgotten.

use std::{
    collections::HashMap,
    sync::{PoisonError, RwLock},
};

use model::{Position, UserNr};

use crate::{
    Error, Storage,
    db::{Db, args},
    statement::statements,
};

/// Most rows that one transaction deletes: it holds the one writer of SQLite.
const ROWS_PER_TRANSACTION: i64 = 500;

statements! {
    LIST_ERASED = ["SELECT user_nr, erased_position FROM users WHERE erased_position IS NOT NULL"];
    FIND_ERASED = ["
        SELECT user_nr, erased_position FROM users WHERE erased_position IS NOT NULL AND user_nr", (in_list 1)];
    DELETE_ACCOUNT_DATA = ["
        DELETE FROM account_data
         WHERE user_nr = $1 AND (room_nr, type) IN
               (SELECT room_nr, type FROM account_data WHERE user_nr = $1 ORDER BY room_nr, type LIMIT $2)"];
}

/// The users of this deployment who asked to be forgotten, all of them in memory: every event that is shown asks here.
pub(crate) struct ErasedUsers {
    /// Guards the map, for as long as a look into it takes. No lock inside.
    users: RwLock<HashMap<UserNr, Position>>,
}

impl ErasedUsers {
    pub(crate) async fn load(db: &Db) -> Result<Self, Error> {
        Ok(Self { users: RwLock::new(list(db).await?) })
    }
}

async fn list(db: &Db) -> Result<HashMap<UserNr, Position>, Error> {
    let rows = db.read(&LIST_ERASED, args![]).await?;
    rows.iter().map(|row| Ok((row.nr(0)?, row.nr(1)?))).collect()
}

impl Storage {
    /// Those of `users` who asked to be forgotten, with where the stream was then. Touches no table.
    pub fn erased_users(&self, users: impl IntoIterator<Item = UserNr>) -> HashMap<UserNr, Position> {
        let erased = self.0.erased_users.users.read().unwrap_or_else(PoisonError::into_inner);
        if erased.is_empty() {
            return HashMap::new();
        }
        users.into_iter().filter_map(|user| erased.get(&user).map(|position| (user, *position))).collect()
    }

    /// Asks the database which of `users`, or of all, asked to be forgotten meanwhile: another process may have heard them.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn refresh_erased_users(&self, users: Option<&[UserNr]>) -> Result<(), Error> {
        let found = match users {
            Some(users) => {
                let numbers: Vec<i64> = users.iter().map(|user| user.0).collect();
                let rows = self.db().read(&FIND_ERASED, args![numbers]).await?;
                rows.iter().map(|row| Ok((row.nr(0)?, row.nr(1)?))).collect::<Result<_, Error>>()?
            }
            None => list(self.db()).await?,
        };
        // Nobody is taken out: who was forgotten stays so.
        self.0.erased_users.users.write().unwrap_or_else(PoisonError::into_inner).extend(found);
        Ok(())
    }

    /// Deletes all account data of a user who will not come back, some at a time.
    ///
    /// # Errors
    ///
    /// When the database fails; trying again is safe.
    pub async fn delete_account_data(&self, user_nr: UserNr) -> Result<(), Error> {
        while self.db().write(&DELETE_ACCOUNT_DATA, args![user_nr, ROWS_PER_TRANSACTION]).await?
            == ROWS_PER_TRANSACTION as u64
        {}
        Ok(())
    }
}
