//! What the commands beside the server work with: the accounts, straight on the database.

use accounts::Accounts;
use model::{Clock, Random};
use storage::Storage;

use crate::{Error, config::Config, data_folder, signing_keys, wiring};

/// The accounts of the configured server, opened without serving anything. The server may run meanwhile.
#[derive(Debug)]
pub struct Tools {
    storage: Storage,
    accounts: Accounts,
}

impl Tools {
    /// Opens the database; makes data folder, signing keys and schema if the server has not yet.
    ///
    /// # Errors
    ///
    /// As [`crate::Server::start`].
    pub async fn open(config: &Config) -> Result<Self, Error> {
        let options = wiring::accounts_options(config)?;
        let folder = data_folder::make(&config.server.data_folder)?;
        let random = Random::system();
        let servers = signing_keys::open(&folder, config.server.names_in_force(), &random)?;
        let storage = wiring::open_storage(config, &folder, Clock::system(), random).await?;
        let accounts = Accounts::new(storage.clone(), servers, options);
        Ok(Self { storage, accounts })
    }

    /// The accounts.
    #[must_use]
    pub fn accounts(&self) -> &Accounts {
        &self.accounts
    }

    /// Writes what is queued and closes the database.
    pub async fn close(self) {
        self.storage.close().await;
    }
}

/// Makes a new signing key for one of the configured names, the first if none is said; gives the name and the key's id.
///
/// # Errors
///
/// [`Error::NotAName`], and as [`crate::Server::start`].
pub fn rotate_signing_key(config: &Config, name: Option<&str>) -> Result<(String, String), Error> {
    let names = config.server.names_in_force();
    let found = names.iter().find(|known| name.is_none_or(|name| *known == name));
    let found = found.ok_or_else(|| Error::NotAName(name.unwrap_or_default().to_owned()))?;
    let folder = data_folder::make(&config.server.data_folder)?;
    let key = signing_keys::rotate(&folder, found, &Random::system())?;
    Ok((found.to_string(), key.id().to_string()))
}
