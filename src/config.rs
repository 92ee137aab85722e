//! The configuration: a TOML file, then the environment over it.
//!
//! Every option is a typed field whose doc comment tells its unit, default and effect; `config.toml` at the top of the repository
//! says the same for people who run a server. A key, type or value that is not allowed stops the start with one message.

mod accounts;
mod application_services;
mod client_api;
mod event_bus;
mod federation;
mod listener;
mod load;
mod media;
mod network;
mod presence;
mod rooms;
mod server;
mod storage;
mod unsafe_options;

use serde::Deserialize;

pub use self::{
    accounts::{AccountsConfig, Registration},
    application_services::ApplicationServicesConfig,
    client_api::ClientApiConfig,
    event_bus::{EventBusConfig, EventBusUrl},
    federation::FederationConfig,
    listener::{Api, ListenerConfig, TlsConfig},
    load::{ConfigError, load},
    media::MediaConfig,
    network::Network,
    presence::PresenceConfig,
    rooms::{Encryption, RoomsConfig},
    server::{LogFormat, ServerConfig},
    storage::{Database, StorageConfig},
    unsafe_options::UnsafeConfig,
};

/// Everything that can be configured; the default is a server that runs on this machine for itself.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Names, data folder and log.
    pub server: ServerConfig,
    /// Where the server listens. Default: `http://127.0.0.1:8008` with every API.
    pub listeners: Vec<ListenerConfig>,
    /// The database.
    pub storage: StorageConfig,
    /// What connects the processes of a cluster.
    pub event_bus: EventBusConfig,
    /// Who may have an account and how long tokens live.
    pub accounts: AccountsConfig,
    /// Rooms made here.
    pub rooms: RoomsConfig,
    /// Files.
    pub media: MediaConfig,
    /// Who is there.
    pub presence: PresenceConfig,
    /// The Matrix client-server API.
    pub client_api: ClientApiConfig,
    /// Rooms shared with other servers.
    pub federation: FederationConfig,
    /// Bridges and bots that may connect.
    pub application_services: ApplicationServicesConfig,
    /// What makes a server unsafe, for tests and test beds.
    #[serde(rename = "unsafe")]
    pub unsafe_options: UnsafeConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            server: ServerConfig::default(),
            listeners: vec![ListenerConfig::default()],
            storage: StorageConfig::default(),
            event_bus: EventBusConfig::default(),
            accounts: AccountsConfig::default(),
            rooms: RoomsConfig::default(),
            media: MediaConfig::default(),
            presence: PresenceConfig::default(),
            client_api: ClientApiConfig::default(),
            federation: FederationConfig::default(),
            application_services: ApplicationServicesConfig::default(),
            unsafe_options: UnsafeConfig::default(),
        }
    }
}

impl Config {
    /// Whether nobody but this machine can reach the server, and nobody said that it will be otherwise: no name is configured, and
    /// every listener is on loopback and trusts no proxy.
    ///
    /// Anyone may register then, so that the first chat takes a minute, and what a proxy forwards is refused.
    #[must_use]
    pub fn is_private(&self) -> bool {
        self.server.names.is_empty() && self.all_listeners_on_loopback()
    }

    /// Who may register: as configured, or by the rule of [`Config::is_private`].
    #[must_use]
    pub fn registration(&self) -> Registration {
        let unsaid = if self.is_private() { Registration::Open } else { Registration::Closed };
        self.accounts.registration.unwrap_or(unsaid)
    }

    /// Whether other servers are asked and answered: as configured, but not by the rule of [`Config::is_private`].
    #[must_use]
    pub fn federates(&self) -> bool {
        self.federation.enabled && !self.is_private()
    }

    fn all_listeners_on_loopback(&self) -> bool {
        self.listeners
            .iter()
            .all(|listener| listener.address.ip().to_canonical().is_loopback() && listener.trusted_proxies.is_empty())
    }

    /// Checks what concerns several options together.
    fn check(&self) -> Result<(), String> {
        if self.listeners.is_empty() {
            return Err("`listeners` is empty: a server has at least one `[[listeners]]`".to_owned());
        }
        for (index, listener) in self.listeners.iter().enumerate() {
            if listener.apis.is_empty() {
                return Err(format!("`listeners[{index}].apis` is empty: leave it out to serve every API"));
            }
            let taken = self.listeners[..index].iter().any(|other| other.address == listener.address);
            if taken && listener.address.port() != 0 {
                return Err(format!("`listeners[{index}].address`: {} is taken by another listener", listener.address));
            }
        }
        for (index, name) in self.server.names.iter().enumerate() {
            if self.server.names[..index].contains(name) {
                return Err(format!("`server.names`: {name} is there twice"));
            }
        }
        crate::log::filter(&self.server.log)?;
        let is_open = self.accounts.registration == Some(Registration::Open);
        if is_open && !self.all_listeners_on_loopback() && !self.unsafe_options.open_registration {
            return Err("`accounts.registration` is \"open\" and not all listeners are for this machine alone: strangers and \
                 their programs could make any number of accounts; use \"token\", or allow it with `unsafe.open_registration = \
                 true`"
                .to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
