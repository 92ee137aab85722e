//! Profiles: fields of a user, each a JSON value.

use model::{Position, UserNr};

use crate::{Error, Storage, UserWork, db::args, statement::statements, user_work::note};

statements! {
    LIST_FIELDS = ["SELECT field, value FROM profiles WHERE user_nr = $1 ORDER BY field"];
    LIST_NAMES_AND_PICTURES = ["
        SELECT user_nr, field, value FROM profiles
         WHERE user_nr", (in_list 1), " AND field IN ('avatar_url', 'displayname') ORDER BY user_nr, field"];
    GET_FIELD = ["SELECT value FROM profiles WHERE user_nr = $1 AND field = $2"];
    UPSERT_FIELD = ["
        INSERT INTO profiles (user_nr, field, value) VALUES ($1, $2, $3)
        ON CONFLICT (user_nr, field) DO UPDATE SET value = excluded.value"];
    DELETE_FIELD = ["DELETE FROM profiles WHERE user_nr = $1 AND field = $2"];
    LIST_CHANGES = ["
        SELECT position, user_nr FROM profile_changes WHERE position > $1 AND position <= $2 ORDER BY position LIMIT $3"];
    DELETE_CHANGES = ["DELETE FROM profile_changes WHERE position <= $1"];
    LOCK_USER = ["SELECT user_nr FROM users WHERE user_nr = $1 AND deactivated_at_ms IS NULL", (for_update)];
    /// Each field has two quotes, a colon and a comma beside its name and value.
    SIZE_WITHOUT = ["
        SELECT CAST(coalesce(sum(octet_length(field) + octet_length(value) + 4), 0) AS BIGINT)
          FROM profiles WHERE user_nr = $1 AND field <> $2"];
}

/// What a change of a field causes.
fn work_of(field: &str) -> UserWork {
    match field {
        "displayname" | "avatar_url" => UserWork::TellNameOrPicture,
        _ => UserWork::TellProfile,
    }
}

impl Storage {
    /// All fields of a user with their JSON values.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_profile(&self, user_nr: UserNr) -> Result<Vec<(String, String)>, Error> {
        let rows = self.db().read(&LIST_FIELDS, args![user_nr]).await?;
        rows.iter().map(|row| Ok((row.get(0)?, row.get(1)?))).collect()
    }

    /// `displayname` and `avatar_url` of several users: what rooms and presence show of them.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_profiles(&self, users: &[UserNr]) -> Result<Vec<(UserNr, String, String)>, Error> {
        let users: Vec<i64> = users.iter().map(|user| user.0).collect();
        let rows = self.db().read(&LIST_NAMES_AND_PICTURES, args![users]).await?;
        rows.iter().map(|row| Ok((row.nr(0)?, row.get(1)?, row.get(2)?))).collect()
    }

    /// One field of a user, a JSON value.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn get_profile_field(&self, user_nr: UserNr, field: &str) -> Result<Option<String>, Error> {
        self.db().read_one(&GET_FIELD, args![user_nr, field]).await?.map(|row| row.get(0)).transpose()
    }

    /// Writes a field, which is to be told; gives whether the profile, with it, has at most `bytes_max` as an object in canonical JSON: if
    /// not, nothing is written. Changes of one user's wait for each other. Of who has gone for good nothing is written either.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn upsert_profile_field(
        &self,
        user_nr: UserNr,
        field: &str,
        value: &str,
        bytes_max: usize,
    ) -> Result<bool, Error> {
        let mut tx = self.db().begin().await?;
        if tx.fetch(&LOCK_USER, args![user_nr]).await?.is_empty() {
            return Ok(true);
        }
        let others: i64 = tx.fetch_one(&SIZE_WITHOUT, args![user_nr, field]).await?.map_or(Ok(0), |row| row.get(0))?;
        // In all there are two braces more, and a comma less.
        let own = field.len() + value.len() + 4 + 1;
        if usize::try_from(others).unwrap_or(usize::MAX).saturating_add(own) > bytes_max {
            return Ok(false);
        }
        tx.execute(&UPSERT_FIELD, args![user_nr, field, value]).await?;
        note(&mut tx, self.random(), user_nr, &[work_of(field)]).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Deletes a field, which is to be told if it was there.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn delete_profile_field(&self, user_nr: UserNr, field: &str) -> Result<(), Error> {
        let mut tx = self.db().begin().await?;
        if tx.execute(&DELETE_FIELD, args![user_nr, field]).await? > 0 {
            note(&mut tx, self.random(), user_nr, &[work_of(field)]).await?;
        }
        tx.commit().await
    }

    /// Whose name or picture changed after `after` up to `upto`, oldest first, at most `limit`.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_profile_changes(
        &self,
        after: Position,
        upto: Position,
        limit: u32,
    ) -> Result<Vec<(Position, UserNr)>, Error> {
        let rows = self.db().read(&LIST_CHANGES, args![after, upto, i64::from(limit)]).await?;
        rows.iter().map(|row| Ok((row.nr(0)?, row.nr(1)?))).collect()
    }

    /// Deletes the changes up to a position, when rooms have followed.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn delete_profile_changes(&self, upto: Position) -> Result<u64, Error> {
        self.db().write(&DELETE_CHANGES, args![upto]).await
    }
}
