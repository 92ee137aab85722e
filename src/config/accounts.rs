//! `[accounts]`: who may have an account, and how long tokens live.

use std::num::NonZeroU32;

use serde::Deserialize;

/// Who may have an account, and how long tokens live.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AccountsConfig {
    /// Who may register. Default: not set, which is `closed`, but `open` while no server name is configured and every listener is on
    /// loopback.
    pub registration: Option<Registration>,
    /// Whether people without an account may look into rooms that allow it. Client-Server API, "Guest Access". Default: `false`.
    pub guests: bool,
    /// A secret with which programs make accounts, administrators too, on `/_synapse/admin/v1/register`. Default: not set, which
    /// closes that way.
    pub registration_shared_secret: Option<String>,
    /// How long an access token lives that comes with a refresh token, in seconds. Others live until the device is logged out.
    /// Default: 300.
    pub access_token_lifetime_seconds: NonZeroU32,
    /// Whether a logged-in person gets one-time tokens that log in another device. Client-Server API, "POST /login/get_token".
    /// Default: `true`.
    pub login_tokens: bool,
}

/// Who may register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Registration {
    /// Anyone.
    Open,
    /// Who has a registration token.
    Token,
    /// Nobody; administrators make accounts.
    Closed,
}

impl Default for AccountsConfig {
    fn default() -> Self {
        Self {
            registration: None,
            guests: false,
            registration_shared_secret: None,
            access_token_lifetime_seconds: const { NonZeroU32::new(300).unwrap() },
            login_tokens: true,
        }
    }
}

impl std::fmt::Debug for AccountsConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AccountsConfig").field("registration", &self.registration).finish_non_exhaustive()
    }
}
