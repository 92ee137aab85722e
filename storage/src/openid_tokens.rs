//! Tokens by which users show services who they are. Of the secrets the database knows SHA-256 only.

use model::UserNr;
use ruma::{OwnedUserId, UserId};

use crate::{Error, SecretHash, Storage, db::args, statement::statements};

statements! {
    INSERT_OPENID_TOKEN = ["INSERT INTO openid_tokens (hash, user_nr, expires_at_ms) VALUES ($1, $2, $3)"];
    DELETE_OLD_OPENID_TOKENS = ["DELETE FROM openid_tokens WHERE expires_at_ms <= $1"];
    DELETE_OPENID_TOKENS = ["DELETE FROM openid_tokens WHERE user_nr = $1"];
    FIND_USER_OF_OPENID_TOKEN = ["
        SELECT n.user_id FROM openid_tokens t
          JOIN users u ON u.user_nr = t.user_nr
          JOIN user_numbers n ON n.user_nr = t.user_nr
         WHERE t.hash = $1 AND t.expires_at_ms > $2 AND u.deactivated_at_ms IS NULL AND NOT u.is_locked"];
}

impl Storage {
    /// Keeps a token of a user; forgets those that have ended.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn insert_openid_token(
        &self,
        hash: SecretHash,
        user_nr: UserNr,
        expires_at_ms: i64,
    ) -> Result<(), Error> {
        let mut tx = self.db().begin().await?;
        tx.execute(&DELETE_OLD_OPENID_TOKENS, args![self.clock().now_ms()]).await?;
        tx.execute(&INSERT_OPENID_TOKEN, args![hash.to_vec(), user_nr, expires_at_ms]).await?;
        tx.commit().await
    }

    /// Deletes the tokens of a user.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn delete_openid_tokens(&self, user_nr: UserNr) -> Result<(), Error> {
        self.db().write(&DELETE_OPENID_TOKENS, args![user_nr]).await.map(drop)
    }

    /// Whose token this is, if it has not ended and its user is active and not locked.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn find_user_of_openid_token(&self, hash: SecretHash) -> Result<Option<OwnedUserId>, Error> {
        let args = args![hash.to_vec(), self.clock().now_ms()];
        let Some(row) = self.db().read_one(&FIND_USER_OF_OPENID_TOKEN, args).await? else { return Ok(None) };
        let user_id: String = row.get(0)?;
        Ok(Some(UserId::parse(&*user_id).map_err(|_| Error::Damaged(format!("user {user_id}")))?))
    }
}
