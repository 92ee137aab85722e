//! What can be chosen about accounts.

use crate::AppService;

/// Who may register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Registration {
    /// Anyone.
    Open,
    /// Who has a registration token.
    Token,
    /// Nobody; administrators make accounts.
    #[default]
    Closed,
}

/// What can be chosen about accounts.
#[derive(Clone)]
pub struct Options {
    /// Who may register.
    pub registration: Registration,
    /// Whether guests may come. Client-Server API, "Guest Access".
    pub guests: bool,
    /// The secret with which programs make accounts on `/_synapse/admin/v1/register`; without, that way is closed.
    pub registration_shared_secret: Option<String>,
    /// How long an access token lives that comes with a refresh token, in milliseconds.
    pub access_token_lifetime_ms: i64,
    /// Whether a logged-in person gets one-time tokens that log in another device.
    pub login_tokens: bool,
    /// Whether wrong passwords of an account are limited. Only test beds switch it off.
    pub limit_guesses: bool,
    /// Whether passwords are hashed cheaply: for tests only.
    pub cheap_password_hashing: bool,
    /// Whether threads notify only those who subscribed to them. MSC4306.
    pub thread_subscriptions: bool,
    /// The application services that may connect.
    pub app_services: Vec<AppService>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            registration: Registration::Closed,
            guests: false,
            registration_shared_secret: None,
            access_token_lifetime_ms: 300_000,
            login_tokens: true,
            limit_guesses: true,
            cheap_password_hashing: false,
            thread_subscriptions: false,
            app_services: Vec::new(),
        }
    }
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("registration", &self.registration)
            .field("guests", &self.guests)
            .finish_non_exhaustive()
    }
}
