//! Registration tokens, as administrators make them. Client-Server API, "Token-authenticated registration".

use storage::RegistrationTokenRow;

use crate::{Accounts, Error};

/// Longest token, in characters. Client-Server API, "Token-authenticated registration".
pub(crate) const TOKEN_CHARACTERS_MAX: usize = 64;
/// Length of the tokens that we choose.
const TOKEN_CHARACTERS: usize = 16;

impl Accounts {
    /// Makes a registration token, of a name that is chosen or given.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParam`] when the name is not one, or taken, when it could never be used, or when it has ended already.
    pub async fn create_registration_token(
        &self,
        token: Option<String>,
        uses_allowed: Option<i64>,
        expires_at_ms: Option<i64>,
    ) -> Result<RegistrationTokenRow, Error> {
        let invalid = |what: &str| Err(Error::InvalidParam(what.to_owned()));
        let token = token.unwrap_or_else(|| self.0.storage.random().alphanumeric(TOKEN_CHARACTERS));
        let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._~-".contains(&byte);
        if token.is_empty() || token.len() > TOKEN_CHARACTERS_MAX || !token.bytes().all(is_legal) {
            return invalid("a token has 1 to 64 of A-Z a-z 0-9 . _ ~ -");
        }
        if uses_allowed.is_some_and(|uses| uses < 0) {
            return invalid("`uses_allowed` is a count");
        }
        if expires_at_ms.is_some_and(|end| end <= self.now_ms()) {
            return invalid("`expiry_time` is in the past");
        }
        if !self.0.storage.insert_registration_token(&token, uses_allowed, expires_at_ms).await? {
            return invalid("there is such a token already");
        }
        Ok(RegistrationTokenRow { token, uses_allowed, uses: 0, expires_at_ms })
    }

    /// Whether a registration token can be used.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn is_registration_token_valid(&self, token: &str) -> Result<bool, Error> {
        Ok(token.len() <= TOKEN_CHARACTERS_MAX && self.0.storage.is_registration_token_valid(token).await?)
    }
}
