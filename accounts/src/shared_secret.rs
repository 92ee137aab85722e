//! Registration by programs that know a secret, on `/_synapse/admin/v1/register`, as existing tooling does it.

use std::time::Duration;

use hmac::{Hmac, KeyInit as _, Mac as _};
use moka::sync::Cache;
use ruma::ServerName;
use sha1::Sha1;
use storage::UserRow;

use crate::{Accounts, Error, NewAccount};

/// How long a nonce can be used.
const NONCE_LIFETIME: Duration = Duration::from_secs(60);
/// Most nonces at once.
const NONCES_MAX: u64 = 10_000;

/// Nonces that were given out and not used. They belong to this process: a program that meets another one asks again.
pub(crate) struct Nonces(Cache<String, ()>);

impl Nonces {
    pub(crate) fn new() -> Self {
        Self(Cache::builder().max_capacity(NONCES_MAX).time_to_live(NONCE_LIFETIME).build())
    }
}

/// What a program sends.
#[derive(Clone)]
pub struct SharedSecretRegistration {
    /// What it was given before.
    pub nonce: String,
    /// The user's name.
    pub username: String,
    /// The password.
    pub password: String,
    /// Whether the user administers the server.
    pub admin: bool,
    /// Part of the code where a program sends it; it changes nothing else.
    pub user_type: Option<String>,
    /// The name that the user shows.
    pub displayname: Option<String>,
    /// HMAC-SHA1 of the rest with the secret, in hexadecimal.
    pub mac: String,
}

impl Accounts {
    /// A nonce for one registration.
    ///
    /// # Errors
    ///
    /// [`Error::Unknown`] when this way is closed.
    pub fn registration_nonce(&self) -> Result<String, Error> {
        self.registration_secret()?;
        let nonce = self.0.storage.random().secret();
        self.0.nonces.0.insert(nonce.clone(), ());
        Ok(nonce)
    }

    fn registration_secret(&self) -> Result<&str, Error> {
        let secret = self.0.options.registration_shared_secret.as_deref().filter(|secret| !secret.is_empty());
        secret.ok_or(Error::Unknown("shared-secret registration is not enabled"))
    }

    /// Makes a user for whoever knows the secret.
    ///
    /// # Errors
    ///
    /// [`Error::Forbidden`] when the code is wrong, [`Error::Unknown`] when the nonce is or this way is closed, and those of
    /// registration.
    pub async fn register_by_secret(
        &self,
        server: &ServerName,
        shown: SharedSecretRegistration,
    ) -> Result<UserRow, Error> {
        let secret = self.registration_secret()?;
        if self.0.nonces.0.remove(&shown.nonce).is_none() {
            return Err(Error::Unknown("the nonce is unknown or has ended"));
        }
        if !is_authentic(secret, &shown) {
            return Err(Error::Forbidden("the code is wrong"));
        }
        let user_id = self.check_available(&shown.username, server, None).await?;
        let account = NewAccount {
            password: Some(shown.password),
            is_admin: shown.admin,
            display_name: shown.displayname,
            ..NewAccount::default()
        };
        self.register(&user_id, account).await
    }
}

fn is_authentic(secret: &str, shown: &SharedSecretRegistration) -> bool {
    let Ok(mut code) = Hmac::<Sha1>::new_from_slice(secret.as_bytes()) else { return false };
    let role = if shown.admin { "admin" } else { "notadmin" };
    code.update(shown.nonce.as_bytes());
    let parts = [Some(&*shown.username), Some(&shown.password), Some(role), shown.user_type.as_deref()];
    for part in parts.into_iter().flatten() {
        code.update(b"\0");
        code.update(part.as_bytes());
    }
    let bytes: Option<Vec<u8>> = (0..shown.mac.len())
        .step_by(2)
        .map(|at| shown.mac.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok()))
        .collect();
    bytes.is_some_and(|bytes| code.verify_slice(&bytes).is_ok())
}
