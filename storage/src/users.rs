//! Users of this server.

use model::UserNr;
use ruma::{OwnedUserId, UserId};

use crate::{
    ChangedKeys, Error, Storage, UserWork,
    db::{Row, args},
    key_backups::DELETE_BACKUPS_OF_USER,
    statement::statements,
    sync_connections::DELETE_CONNECTIONS_OF_USER,
    user_work::{note, note_changed},
};

statements! {
    GET_USER = ["
        SELECT u.user_nr, n.user_id, u.password_hash, u.is_guest, u.is_admin, u.is_locked, u.is_erased, u.app_service,
               u.created_at_ms, u.deactivated_at_ms
          FROM user_numbers n JOIN users u ON u.user_nr = n.user_nr
         WHERE n.user_id = $1"];
    INSERT_USER = ["
        INSERT INTO users (user_nr, password_hash, is_guest, is_admin, is_locked, is_erased, app_service, created_at_ms)
        VALUES ($1, $2, $3, $4, FALSE, FALSE, $5, $6) ON CONFLICT (user_nr) DO NOTHING"];
    UPDATE_PASSWORD = ["UPDATE users SET password_hash = $2 WHERE user_nr = $1 AND deactivated_at_ms IS NULL"];
    UPGRADE_GUEST = ["
        UPDATE users SET is_guest = FALSE, password_hash = $2
         WHERE user_nr = $1 AND is_guest AND deactivated_at_ms IS NULL"];
    UPDATE_ADMIN = ["UPDATE users SET is_admin = $2 WHERE user_nr = $1"];
    UPDATE_LOCKED = ["UPDATE users SET is_locked = $2 WHERE user_nr = $1"];
    DEACTIVATE = ["
        UPDATE users SET password_hash = NULL, is_admin = FALSE, deactivated_at_ms = coalesce(deactivated_at_ms, $2),
               is_erased = (is_erased OR $3),
               erased_position = CASE WHEN $3 THEN coalesce(erased_position, (SELECT coalesce(max(position), 0) FROM commits))
                                      ELSE erased_position END
         WHERE user_nr = $1"];
    DELETE_DEVICES = ["DELETE FROM devices WHERE user_nr = $1"];
    DELETE_ACCESS_TOKENS = ["DELETE FROM access_tokens WHERE user_nr = $1"];
    DELETE_REFRESH_TOKENS = ["DELETE FROM refresh_tokens WHERE user_nr = $1"];
    DELETE_LOGIN_TOKENS = ["DELETE FROM login_tokens WHERE user_nr = $1"];
    DELETE_PROFILE = ["DELETE FROM profiles WHERE user_nr = $1"];
    DELETE_FILTERS = ["DELETE FROM filters WHERE user_nr = $1"];
    DELETE_DEVICE_KEYS = ["DELETE FROM device_keys WHERE user_nr = $1"];
    DELETE_ONE_TIME_KEYS = ["DELETE FROM one_time_keys WHERE user_nr = $1"];
    DELETE_CLAIMED_KEYS = ["DELETE FROM claimed_one_time_keys WHERE user_nr = $1"];
    DELETE_FALLBACK_KEYS = ["DELETE FROM fallback_keys WHERE user_nr = $1"];
    DELETE_CROSS_SIGNING_KEYS = ["DELETE FROM cross_signing_keys WHERE user_nr = $1"];
    DELETE_SIGNATURES = ["DELETE FROM key_signatures WHERE user_nr = $1"];
    DELETE_DEHYDRATED_DEVICE = ["DELETE FROM dehydrated_devices WHERE user_nr = $1"];
}

/// A user of this server.
#[derive(Clone, Debug)]
pub struct UserRow {
    /// The user's number.
    pub user_nr: UserNr,
    /// The user.
    pub user_id: OwnedUserId,
    /// The password, hashed; none when the user cannot log in by one.
    pub password_hash: Option<String>,
    /// Whether the user is a guest.
    pub is_guest: bool,
    /// Whether the user administers the server.
    pub is_admin: bool,
    /// Whether the account is locked for now.
    pub is_locked: bool,
    /// Whether the user asked to be forgotten.
    pub is_erased: bool,
    /// The application service that made the user.
    pub app_service: Option<String>,
    /// When the user was made.
    pub created_at_ms: i64,
    /// When the account was closed for good.
    pub deactivated_at_ms: Option<i64>,
}

/// A user to be made.
#[derive(Clone, Debug, Default)]
pub struct NewUser {
    /// The password, hashed.
    pub password_hash: Option<String>,
    /// Whether the user is a guest.
    pub is_guest: bool,
    /// Whether the user administers the server.
    pub is_admin: bool,
    /// The application service that makes the user.
    pub app_service: Option<String>,
}

fn user(row: &Row) -> Result<UserRow, Error> {
    let user_id: String = row.get(1)?;
    Ok(UserRow {
        user_nr: row.nr(0)?,
        user_id: UserId::parse(&*user_id).map_err(|_| Error::Damaged(format!("user {user_id}")))?,
        password_hash: row.get(2)?,
        is_guest: row.get(3)?,
        is_admin: row.get(4)?,
        is_locked: row.get(5)?,
        is_erased: row.get(6)?,
        app_service: row.get(7)?,
        created_at_ms: row.get(8)?,
        deactivated_at_ms: row.get(9)?,
    })
}

impl Storage {
    /// A user of this server.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn get_user(&self, user_id: &UserId) -> Result<Option<UserRow>, Error> {
        self.db().read_one(&GET_USER, args![user_id.as_str()]).await?.map(|row| user(&row)).transpose()
    }

    /// Makes a user; tells whether there was none yet.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn insert_user(&self, user_id: &UserId, new: NewUser) -> Result<bool, Error> {
        let user_nr = self.user_nr(user_id).await?;
        let now_ms = self.clock().now_ms();
        let args = args![user_nr, new.password_hash, new.is_guest, new.is_admin, new.app_service, now_ms];
        Ok(self.db().write(&INSERT_USER, args).await? == 1)
    }

    /// Gives a user another password hash, or none; tells whether there is such an active user.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn update_password(&self, user_nr: UserNr, hash: Option<String>) -> Result<bool, Error> {
        Ok(self.db().write(&UPDATE_PASSWORD, args![user_nr, hash]).await? == 1)
    }

    /// Makes a guest an ordinary user; tells whether there was such a guest.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn upgrade_guest(&self, user_nr: UserNr, password_hash: Option<String>) -> Result<bool, Error> {
        Ok(self.db().write(&UPGRADE_GUEST, args![user_nr, password_hash]).await? == 1)
    }

    /// Makes a user an administrator, or not any more.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn update_admin(&self, user_nr: UserNr, is_admin: bool) -> Result<(), Error> {
        self.db().write(&UPDATE_ADMIN, args![user_nr, is_admin]).await.map(drop)
    }

    /// Locks an account, or unlocks it.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn update_locked(&self, user_nr: UserNr, is_locked: bool) -> Result<(), Error> {
        self.db().write(&UPDATE_LOCKED, args![user_nr, is_locked]).await.map(drop)
    }

    /// Closes an account for good: nothing is left to log in with, or of what the user published. The name stays taken.
    /// Call [`Storage::empty_deleted_key_backups`] afterwards: the keys of backups may be too many for one transaction.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn deactivate_user(&self, user_nr: UserNr, erase: bool) -> Result<(), Error> {
        let mut tx = self.db().begin().await?;
        tx.execute(&DEACTIVATE, args![user_nr, self.clock().now_ms(), erase]).await?;
        for statement in [
            &DELETE_DEVICES,
            &DELETE_ACCESS_TOKENS,
            &DELETE_REFRESH_TOKENS,
            &DELETE_LOGIN_TOKENS,
            &DELETE_PROFILE,
            &DELETE_FILTERS,
            &DELETE_DEVICE_KEYS,
            &DELETE_ONE_TIME_KEYS,
            &DELETE_CLAIMED_KEYS,
            &DELETE_FALLBACK_KEYS,
            &DELETE_CROSS_SIGNING_KEYS,
            &DELETE_SIGNATURES,
            &DELETE_DEHYDRATED_DEVICE,
            DELETE_BACKUPS_OF_USER,
            DELETE_CONNECTIONS_OF_USER,
        ] {
            tx.execute(statement, args![user_nr]).await?;
        }
        note_changed(&mut tx, self.random(), user_nr, &[ChangedKeys::Anything]).await?;
        let work = [UserWork::TellProfile, UserWork::DeleteToDevice, UserWork::LeaveRooms];
        note(&mut tx, self.random(), user_nr, &work).await?;
        tx.commit().await?;
        if erase {
            self.refresh_erased_users(Some(&[user_nr])).await?;
        }
        Ok(())
    }
}
