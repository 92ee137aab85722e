//! Access, refresh, login and registration tokens. Of secrets the database knows SHA-256 only.

use model::UserNr;
use ruma::{OwnedUserId, UserId};

use crate::{
    Error, Storage,
    db::{Row, Tx, args},
    devices::{delete_longest_unseen, upsert_device},
    statement::statements,
};

statements! {
    FIND_ACCESS_TOKEN = ["
        SELECT t.user_nr, n.user_id, t.device_id, t.expires_at_ms, t.replaces, u.is_guest, u.is_admin, u.is_locked
          FROM access_tokens t
          JOIN users u ON u.user_nr = t.user_nr
          JOIN user_numbers n ON n.user_nr = t.user_nr
          JOIN devices d ON d.user_nr = t.user_nr AND d.device_id = t.device_id
         WHERE t.hash = $1 AND u.deactivated_at_ms IS NULL"];
    INSERT_ACCESS_TOKEN = ["
        INSERT INTO access_tokens (hash, user_nr, device_id, expires_at_ms, refresh_hash, replaces)
        VALUES ($1, $2, $3, $4, $5, $6)"];
    INSERT_REFRESH_TOKEN = ["
        INSERT INTO refresh_tokens (hash, user_nr, device_id, replaces) VALUES ($1, $2, $3, $4)"];
    DELETE_DEVICE_ACCESS_TOKENS = ["
        DELETE FROM access_tokens WHERE user_nr = $1 AND device_id = $2 RETURNING hash"];
    DELETE_DEVICE_REFRESH_TOKENS = ["DELETE FROM refresh_tokens WHERE user_nr = $1 AND device_id = $2"];

    FIND_DEVICE_OF_REFRESH_TOKEN = ["SELECT user_nr, device_id FROM refresh_tokens WHERE hash = $1"];
    LOCK_DEVICE = ["SELECT device_id FROM devices WHERE user_nr = $1 AND device_id = $2", (for_update)];
    GET_REFRESH_TOKEN = ["SELECT replaces FROM refresh_tokens WHERE hash = $1", (for_update)];
    DELETE_UNUSED_ACCESS_TOKENS = ["DELETE FROM access_tokens WHERE replaces = $1"];
    DELETE_UNUSED_REFRESH_TOKENS = ["DELETE FROM refresh_tokens WHERE replaces = $1"];
    DELETE_REFRESH_TOKEN = ["DELETE FROM refresh_tokens WHERE hash = $1"];
    DELETE_ACCESS_TOKENS_BESIDE = ["DELETE FROM access_tokens WHERE refresh_hash = $1 RETURNING hash"];
    CONFIRM_ACCESS_TOKENS = ["UPDATE access_tokens SET replaces = NULL WHERE replaces = $1"];
    CONFIRM_REFRESH_TOKENS = ["UPDATE refresh_tokens SET replaces = NULL WHERE replaces = $1"];

    INSERT_LOGIN_TOKEN = ["INSERT INTO login_tokens (hash, user_nr, expires_at_ms) VALUES ($1, $2, $3)"];
    DELETE_OLD_LOGIN_TOKENS = ["DELETE FROM login_tokens WHERE expires_at_ms < $1"];
    DELETE_LOGIN_TOKENS = ["DELETE FROM login_tokens WHERE user_nr = $1"];
    TAKE_LOGIN_TOKEN = ["DELETE FROM login_tokens WHERE hash = $1 RETURNING user_nr, expires_at_ms"];

    INSERT_REGISTRATION_TOKEN = ["
        INSERT INTO registration_tokens (token, uses_allowed, uses, expires_at_ms, created_at_ms)
        VALUES ($1, $2, 0, $3, $4) ON CONFLICT (token) DO NOTHING"];
    LIST_REGISTRATION_TOKENS = ["
        SELECT token, uses_allowed, uses, expires_at_ms FROM registration_tokens
         WHERE token > $1 ORDER BY token LIMIT $2"];
    GET_REGISTRATION_TOKEN = ["
        SELECT token, uses_allowed, uses, expires_at_ms FROM registration_tokens WHERE token = $1"];
    DELETE_REGISTRATION_TOKEN = ["DELETE FROM registration_tokens WHERE token = $1"];
    FIND_REGISTRATION_TOKEN = ["
        SELECT token FROM registration_tokens
         WHERE token = $1 AND (uses_allowed IS NULL OR uses < uses_allowed) AND (expires_at_ms IS NULL OR expires_at_ms > $2)"];
    USE_REGISTRATION_TOKEN = ["
        UPDATE registration_tokens SET uses = uses + 1
         WHERE token = $1 AND (uses_allowed IS NULL OR uses < uses_allowed) AND (expires_at_ms IS NULL OR expires_at_ms > $2)"];
    RETURN_REGISTRATION_TOKEN = ["UPDATE registration_tokens SET uses = uses - 1 WHERE token = $1 AND uses > 0"];
}

/// SHA-256 of a secret.
pub type SecretHash = [u8; 32];

/// An access token and whose it is.
#[derive(Clone, Debug)]
pub struct AccessTokenRow {
    /// The user.
    pub user_nr: UserNr,
    /// The user's id.
    pub user_id: OwnedUserId,
    /// The device.
    pub device_id: String,
    /// When it ends.
    pub expires_at_ms: Option<i64>,
    /// The refresh token that its first use revokes.
    pub replaces: Option<Vec<u8>>,
    /// Whether the user is a guest.
    pub is_guest: bool,
    /// Whether the user is an administrator.
    pub is_admin: bool,
    /// Whether the account is locked.
    pub is_locked: bool,
}

/// A device logs in.
#[derive(Clone, Debug)]
pub struct NewSession {
    /// The user.
    pub user_nr: UserNr,
    /// The device, new or known.
    pub device_id: String,
    /// Its name, if it is new.
    pub display_name: Option<String>,
    /// From where.
    pub ip: Option<String>,
    /// The access token.
    pub access: SecretHash,
    /// When it ends.
    pub expires_at_ms: Option<i64>,
    /// The refresh token.
    pub refresh: Option<SecretHash>,
}

/// A device has logged in.
#[derive(Clone, Debug)]
pub struct SessionInserted {
    /// Hashes of the access tokens of the device that are void now.
    pub revoked: Vec<Vec<u8>>,
    /// Whether other devices of the user had to make room.
    pub others_deleted: bool,
}

/// A registration token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistrationTokenRow {
    /// The token.
    pub token: String,
    /// How many times it can be used; without, any number of times.
    pub uses_allowed: Option<i64>,
    /// How many times it was used.
    pub uses: i64,
    /// When it ends.
    pub expires_at_ms: Option<i64>,
}

fn registration_token(row: &Row) -> Result<RegistrationTokenRow, Error> {
    Ok(RegistrationTokenRow {
        token: row.get(0)?,
        uses_allowed: row.get(1)?,
        uses: row.get(2)?,
        expires_at_ms: row.get(3)?,
    })
}

/// What a refresh token was exchanged for.
#[derive(Clone, Debug)]
pub struct Refreshed {
    /// The user.
    pub user_nr: UserNr,
    /// The device.
    pub device_id: String,
    /// Hashes of access tokens that are void now.
    pub revoked: Vec<Vec<u8>>,
}

async fn insert_tokens(
    tx: &mut Tx,
    user_nr: UserNr,
    device_id: &str,
    access: SecretHash,
    expires_at_ms: Option<i64>,
    refresh: Option<SecretHash>,
    replaces: Option<Vec<u8>>,
) -> Result<(), Error> {
    let refresh = refresh.map(|hash| hash.to_vec());
    let row = args![access.to_vec(), user_nr, device_id, expires_at_ms, refresh.clone(), replaces.clone()];
    tx.execute(&INSERT_ACCESS_TOKEN, row).await?;
    if let Some(refresh) = refresh {
        tx.execute(&INSERT_REFRESH_TOKEN, args![refresh, user_nr, device_id, replaces]).await?;
    }
    Ok(())
}

/// Revokes a refresh token whose successor was used, with the access token beside it.
async fn revoke(tx: &mut Tx, refresh: Vec<u8>) -> Result<Vec<Vec<u8>>, Error> {
    tx.execute(&DELETE_REFRESH_TOKEN, args![refresh.clone()]).await?;
    let revoked = tx.fetch(&DELETE_ACCESS_TOKENS_BESIDE, args![refresh.clone()]).await?;
    tx.execute(&CONFIRM_ACCESS_TOKENS, args![refresh.clone()]).await?;
    tx.execute(&CONFIRM_REFRESH_TOKENS, args![refresh]).await?;
    revoked.iter().map(|row| row.get(0)).collect()
}

impl Storage {
    /// An access token by its hash, if its user is active and its device there; expired ones and those of locked users too.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn find_access_token(&self, hash: SecretHash) -> Result<Option<AccessTokenRow>, Error> {
        let Some(row) = self.db().read_one(&FIND_ACCESS_TOKEN, args![hash.to_vec()]).await? else { return Ok(None) };
        let user_id: String = row.get(1)?;
        Ok(Some(AccessTokenRow {
            user_nr: row.nr(0)?,
            user_id: UserId::parse(&*user_id).map_err(|_| Error::Damaged(format!("user {user_id}")))?,
            device_id: row.get(2)?,
            expires_at_ms: row.get(3)?,
            replaces: row.get(4)?,
            is_guest: row.get(5)?,
            is_admin: row.get(6)?,
            is_locked: row.get(7)?,
        }))
    }

    /// Gives a device its tokens, instead of those it had, and deletes the user's devices beyond `devices_max` that were heard of the
    /// longest ago.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn insert_session(&self, new: NewSession, devices_max: u32) -> Result<SessionInserted, Error> {
        let now_ms = self.clock().now_ms();
        let mut tx = self.db().begin().await?;
        // Locks the device's row too.
        upsert_device(&mut tx, new.user_nr, &new.device_id, new.display_name, now_ms, new.ip).await?;
        let revoked = tx.fetch(&DELETE_DEVICE_ACCESS_TOKENS, args![new.user_nr, &new.device_id]).await?;
        tx.execute(&DELETE_DEVICE_REFRESH_TOKENS, args![new.user_nr, &new.device_id]).await?;
        insert_tokens(&mut tx, new.user_nr, &new.device_id, new.access, new.expires_at_ms, new.refresh, None).await?;
        let (user_nr, device_id) = (new.user_nr, &new.device_id);
        let deleted = delete_longest_unseen(&mut tx, self.random(), user_nr, device_id, devices_max).await?;
        tx.commit().await?;
        let revoked = revoked.iter().map(|row| row.get(0)).collect::<Result<_, _>>()?;
        Ok(SessionInserted { revoked, others_deleted: deleted })
    }

    /// Exchanges a refresh token for new tokens; the old ones stay valid until a new one is used.
    ///
    /// Asked again before that, it gives others and voids the unused ones. `None` when the token is unknown.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn refresh_tokens(
        &self,
        old: SecretHash,
        access: SecretHash,
        expires_at_ms: Option<i64>,
        refresh: SecretHash,
    ) -> Result<Option<Refreshed>, Error> {
        let mut tx = self.db().begin().await?;
        let row = tx.fetch_one(&FIND_DEVICE_OF_REFRESH_TOKEN, args![old.to_vec()]).await?;
        let Some(row) = row else { return Ok(None) };
        let (user_nr, device_id): (UserNr, String) = (row.nr(0)?, row.get(1)?);
        // Whoever changes the tokens of a device holds its row first: one that is being deleted gets no new ones.
        if tx.fetch_one(&LOCK_DEVICE, args![user_nr, &device_id]).await?.is_none() {
            return Ok(None);
        }
        let Some(row) = tx.fetch_one(&GET_REFRESH_TOKEN, args![old.to_vec()]).await? else { return Ok(None) };
        let revoked = match row.get::<Option<Vec<u8>>>(0)? {
            Some(replaces) => revoke(&mut tx, replaces).await?,
            None => Vec::new(),
        };
        tx.execute(&DELETE_UNUSED_ACCESS_TOKENS, args![old.to_vec()]).await?;
        tx.execute(&DELETE_UNUSED_REFRESH_TOKENS, args![old.to_vec()]).await?;
        let replaces = Some(old.to_vec());
        insert_tokens(&mut tx, user_nr, &device_id, access, expires_at_ms, Some(refresh), replaces).await?;
        tx.commit().await?;
        Ok(Some(Refreshed { user_nr, device_id, revoked }))
    }

    /// A token that came of a refresh was used: revokes the refresh token that it was exchanged for; gives the hashes of the
    /// access tokens that are void now.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn confirm_refresh(&self, replaces: Vec<u8>) -> Result<Vec<Vec<u8>>, Error> {
        let mut tx = self.db().begin().await?;
        let revoked = revoke(&mut tx, replaces).await?;
        tx.commit().await?;
        Ok(revoked)
    }

    /// Keeps a token with which a user can log in once; forgets those that have ended.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn insert_login_token(&self, hash: SecretHash, user_nr: UserNr, expires_at_ms: i64) -> Result<(), Error> {
        let mut tx = self.db().begin().await?;
        tx.execute(&DELETE_OLD_LOGIN_TOKENS, args![self.clock().now_ms()]).await?;
        tx.execute(&INSERT_LOGIN_TOKEN, args![hash.to_vec(), user_nr, expires_at_ms]).await?;
        tx.commit().await
    }

    /// Deletes the login tokens of a user.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn delete_login_tokens(&self, user_nr: UserNr) -> Result<(), Error> {
        self.db().write(&DELETE_LOGIN_TOKENS, args![user_nr]).await.map(drop)
    }

    /// Takes a login token away; gives its user if it had not ended.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn take_login_token(&self, hash: SecretHash) -> Result<Option<UserNr>, Error> {
        let mut tx = self.db().begin().await?;
        let row = tx.fetch_one(&TAKE_LOGIN_TOKEN, args![hash.to_vec()]).await?;
        tx.commit().await?;
        let Some(row) = row else { return Ok(None) };
        Ok((row.get::<i64>(1)? > self.clock().now_ms()).then_some(row.nr(0)?))
    }

    /// Makes a registration token; tells whether there was none of that name.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn insert_registration_token(
        &self,
        token: &str,
        uses_allowed: Option<i64>,
        expires_at_ms: Option<i64>,
    ) -> Result<bool, Error> {
        let args = args![token, uses_allowed, expires_at_ms, self.clock().now_ms()];
        Ok(self.db().write(&INSERT_REGISTRATION_TOKEN, args).await? == 1)
    }

    /// Registration tokens by name, after a name.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_registration_tokens(&self, after: &str, limit: u32) -> Result<Vec<RegistrationTokenRow>, Error> {
        let rows = self.db().read(&LIST_REGISTRATION_TOKENS, args![after, i64::from(limit)]).await?;
        rows.iter().map(registration_token).collect()
    }

    /// A registration token, valid or not.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn get_registration_token(&self, token: &str) -> Result<Option<RegistrationTokenRow>, Error> {
        let row = self.db().read_one(&GET_REGISTRATION_TOKEN, args![token]).await?;
        row.map(|row| registration_token(&row)).transpose()
    }

    /// Deletes a registration token; tells whether there was one.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn delete_registration_token(&self, token: &str) -> Result<bool, Error> {
        Ok(self.db().write(&DELETE_REGISTRATION_TOKEN, args![token]).await? == 1)
    }

    /// Whether a registration token can be used.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn is_registration_token_valid(&self, token: &str) -> Result<bool, Error> {
        Ok(self.db().read_one(&FIND_REGISTRATION_TOKEN, args![token, self.clock().now_ms()]).await?.is_some())
    }

    /// Uses a registration token once; tells whether it could be.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn use_registration_token(&self, token: &str) -> Result<bool, Error> {
        Ok(self.db().write(&USE_REGISTRATION_TOKEN, args![token, self.clock().now_ms()]).await? == 1)
    }

    /// Gives a use of a registration token back: nothing came of it.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn return_registration_token(&self, token: &str) -> Result<(), Error> {
        self.db().write(&RETURN_REGISTRATION_TOKEN, args![token]).await.map(drop)
    }
}
