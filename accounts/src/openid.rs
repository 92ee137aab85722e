//! Tokens by which users show services who they are. Client-Server API, "OpenID".

use std::time::Duration;

use ruma::OwnedUserId;

use crate::{Accounts, Error, Requester, secrets};

/// How long a token counts, in milliseconds.
const LIFETIME_MS: i64 = 3_600_000;

impl Accounts {
    /// Makes a token that tells who the requester is, and nothing else; with how long it counts. Durable when it returns.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn make_openid_token(&self, requester: &Requester) -> Result<(String, Duration), Error> {
        let token = self.0.storage.random().secret();
        let end_ms = self.now_ms() + LIFETIME_MS;
        self.0.storage.insert_openid_token(secrets::hash(&token), requester.user_nr, end_ms).await?;
        Ok((token, Duration::from_millis(LIFETIME_MS.unsigned_abs())))
    }

    /// Whose token this is, while it counts. Server-Server API, "GET /openid/userinfo".
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn user_of_openid_token(&self, token: &str) -> Result<Option<OwnedUserId>, Error> {
        Ok(self.0.storage.find_user_of_openid_token(secrets::hash(token)).await?)
    }
}
