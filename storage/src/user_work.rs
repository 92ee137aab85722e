//! Work that changes of users cause: noted in the transaction of the change, so that nothing is lost when the process ends before it is
//! done, and taken up again by whoever comes next.

use model::{Random, UserNr};

use crate::{
    ChangedKeys, Error, Storage,
    db::{Row, Tx, args},
    rows::Rows,
    statement::statements,
};

statements! {
    NOTE = ["
        INSERT INTO user_work (user_nr, kind, stamp) VALUES ($1, $2, $3)
        ON CONFLICT (user_nr, kind) DO UPDATE SET stamp = excluded.stamp"];
    LIST_OF_USER = ["SELECT kind, stamp FROM user_work WHERE user_nr = $1 ORDER BY kind"];
    LIST_USERS = ["
        SELECT DISTINCT user_nr FROM user_work WHERE user_nr > $1 AND kind", (in_list 2), " ORDER BY user_nr LIMIT $3"];
    DELETE = ["DELETE FROM user_work WHERE user_nr = $1 AND kind = $2 AND stamp = $3"];
    NOTE_CHANGED = ["
        INSERT INTO changed_devices (user_nr, device_id, stamp)
        SELECT user_nr, device_id, stamp FROM", (rows [1 user_nr bigint, 2 device_id text, 3 stamp bigint]), "
         WHERE TRUE ON CONFLICT (user_nr, device_id) DO UPDATE SET stamp = excluded.stamp"];
    LIST_CHANGED = ["SELECT device_id, stamp FROM changed_devices WHERE user_nr = $1 ORDER BY device_id"];
    DELETE_CHANGED = ["
        DELETE FROM changed_devices WHERE (user_nr, device_id, stamp) IN (
               SELECT user_nr, device_id, stamp
                 FROM", (rows [1 user_nr bigint, 2 device_id text, 3 stamp bigint]), ")"];
}

/// How it is noted that anything may have changed. A device may have this id too: then more is told than changed.
const ANYTHING: &str = "*";

/// What is to be done for a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserWork {
    /// Commit that the user's devices or keys changed.
    TellDevices,
    /// Commit that a field of the user's profile changed that rooms do not show.
    TellProfile,
    /// Commit that the user's name or picture changed, which rooms show.
    TellNameOrPicture,
    /// Delete what waits for devices of the user that are gone.
    DeleteToDevice,
    /// Leave the rooms of a user who has gone.
    LeaveRooms,
}

/// Work as it was noted last. Noted again, it is another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserWorkRow {
    /// What.
    pub work: UserWork,
    stamp: i64,
}

impl UserWork {
    const ALL: [Self; 5] =
        [Self::TellDevices, Self::TellNameOrPicture, Self::DeleteToDevice, Self::LeaveRooms, Self::TellProfile];

    const fn code(self) -> i64 {
        match self {
            Self::TellDevices => 1,
            Self::TellNameOrPicture => 2,
            Self::DeleteToDevice => 3,
            Self::LeaveRooms => 4,
            Self::TellProfile => 5,
        }
    }
}

/// Notes work with the change that causes it.
pub(crate) async fn note(tx: &mut Tx, random: &Random, user_nr: UserNr, work: &[UserWork]) -> Result<(), Error> {
    for work in work {
        tx.execute(&NOTE, args![user_nr, work.code(), random.number().cast_signed()]).await?;
    }
    Ok(())
}

/// Notes that it is to be told what changed of a user's devices and keys.
pub(crate) async fn note_changed(
    tx: &mut Tx,
    random: &Random,
    user_nr: UserNr,
    what: &[ChangedKeys],
) -> Result<(), Error> {
    let rows = Rows::new()
        .bigint(what.iter().map(|_| user_nr.0))
        .text(what.iter().map(noted))
        .bigint(what.iter().map(|_| random.number().cast_signed()));
    tx.execute(&NOTE_CHANGED, rows).await?;
    note(tx, random, user_nr, &[UserWork::TellDevices]).await
}

/// How it is noted what changed.
fn noted(what: &ChangedKeys) -> String {
    what.column().unwrap_or_else(|| ANYTHING.to_owned())
}

/// What changed of a user's devices and keys, as it was noted last.
#[derive(Clone, Debug)]
pub struct ChangedKeysRow {
    /// What.
    pub what: ChangedKeys,
    stamp: i64,
}

impl Storage {
    /// What changed of a user's devices and keys and is to be told, where [`UserWork::TellDevices`] is to be done; anything may have where
    /// there is nothing.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_changed_keys(&self, user_nr: UserNr) -> Result<Vec<ChangedKeysRow>, Error> {
        let rows = self.db().read(&LIST_CHANGED, args![user_nr]).await?;
        let changed = |row: &Row| {
            let column = row.get(0)?;
            let what = if column == ANYTHING { ChangedKeys::Anything } else { ChangedKeys::of_column(Some(column)) };
            Ok(ChangedKeysRow { what, stamp: row.get(1)? })
        };
        rows.iter().map(changed).collect()
    }

    /// Such changes were told; those that were noted again since they were listed stay.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn delete_changed_keys(&self, user_nr: UserNr, told: &[ChangedKeysRow]) -> Result<(), Error> {
        if told.is_empty() {
            return Ok(());
        }
        let rows = Rows::new()
            .bigint(told.iter().map(|_| user_nr.0))
            .text(told.iter().map(|row| noted(&row.what)))
            .bigint(told.iter().map(|row| row.stamp));
        self.db().write(&DELETE_CHANGED, rows).await.map(drop)
    }

    /// What is to be done for a user.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_user_work(&self, user_nr: UserNr) -> Result<Vec<UserWorkRow>, Error> {
        let mut list = Vec::new();
        for row in self.db().read(&LIST_OF_USER, args![user_nr]).await? {
            let code: i64 = row.get(0)?;
            let work = UserWork::ALL.into_iter().find(|work| work.code() == code);
            let work = work.ok_or_else(|| Error::Damaged(format!("work {code} of user {user_nr}")))?;
            list.push(UserWorkRow { work, stamp: row.get(1)? });
        }
        Ok(list)
    }

    /// The users for whom any of this is to be done, in the order of their numbers, after a number.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_users_with_work(
        &self,
        work: &[UserWork],
        after: UserNr,
        limit: u32,
    ) -> Result<Vec<UserNr>, Error> {
        let codes: Vec<i64> = work.iter().map(|work| work.code()).collect();
        self.db().read(&LIST_USERS, args![after, codes, i64::from(limit)]).await?.iter().map(|row| row.nr(0)).collect()
    }

    /// Work is done; if it was noted again since it was listed, it stays.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn delete_user_work(&self, user_nr: UserNr, done: UserWorkRow) -> Result<(), Error> {
        self.db().write(&DELETE, args![user_nr, done.work.code(), done.stamp]).await.map(drop)
    }
}
