//! What the commands beside the server work with: the accounts, straight on the database.

use accounts::Accounts;
use federation::{Examination, ExpectedKey};
use model::{Clock, Random};
use ruma::OwnedServerName;
use storage::Storage;

use crate::{
    Error,
    config::{Api, Config},
    data_folder, signing_keys, wiring,
};

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

/// Looks for a server as other servers do: for the first of the configured names if none is said. Of one that is configured it is also said
/// what keeps others from it here.
///
/// # Errors
///
/// [`Error::NotAName`], and as [`crate::Server::start`].
pub async fn check_federation(config: &Config, name: Option<&str>) -> Result<Examination, Error> {
    let names = config.server.names_in_force();
    let said = name.map(|name| OwnedServerName::try_from(name).map_err(|_| Error::NotAName(name.to_owned())));
    let name = match said.transpose()? {
        Some(name) => name,
        None => names.first().cloned().ok_or_else(|| Error::NotAName(String::new()))?,
    };
    let random = Random::system();
    let mut expected = None;
    if names.contains(&name) {
        let folder = data_folder::make(&config.server.data_folder)?;
        let servers = signing_keys::open(&folder, vec![name.clone()], &random)?;
        let key = servers.get(&name).map(|server| &server.key);
        expected = key.map(|key| ExpectedKey { id: key.id().to_string(), public_key: key.public_key() });
    }
    let outbound = wiring::open_outbound(config, &random)?;
    let mut found = federation::examine(&outbound, &name, expected.as_ref(), Clock::system().now_ms()).await;
    if expected.is_some() {
        let serves = config.listeners.iter().any(|listener| listener.apis.contains(&Api::Federation));
        for (is_right, text) in [
            (
                !config.is_private(),
                "this server has no name and listens on loopback only: give it a name (`server.names`)",
            ),
            (config.federation.enabled, "`federation.enabled` is off: other servers are neither asked nor answered"),
            (serves, "no listener serves \"federation\": add it to `listeners.apis`"),
        ] {
            if !is_right {
                found.bad(text.to_owned());
            }
        }
    }
    Ok(found)
}
