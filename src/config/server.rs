//! `[server]`: names, data folder and log.

use std::{num::NonZeroU32, path::PathBuf};

use ruma::{OwnedServerName, owned_server_name};
use serde::Deserialize;

/// Names, data folder and log.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    /// The server names that this deployment answers for; the first is used where a request does not say which one it means.
    /// Default: none, which makes a server called `localhost`. A name cannot be changed: it is part of every user and room.
    pub names: Vec<OwnedServerName>,
    /// Where signing keys and, with SQLite, the database are kept; made with access for its owner only. Default: `data`.
    pub data_folder: PathBuf,
    /// What is logged: a level, or levels by crate as in `info,rooms=debug`. Default: `info`.
    pub log: String,
    /// The shape of the log. Default: `text`.
    pub log_format: LogFormat,
    /// Most connections at once, over all listeners; more wait to be accepted. Fewer when the machine's limit of open files leaves no
    /// room for them, which start-up warns of. Default: 20000.
    pub connections_max: NonZeroU32,
    /// Most connections at once of one network address (of IPv6: of a network of 64 bits); more are closed. Loopback and trusted proxies
    /// have no such limit, because many clients are behind them. Default: 2000.
    pub address_connections_max: NonZeroU32,
    /// Longest wait for requests in flight when the server ends, and then for the database to close, in seconds each. Default: 5.
    pub shutdown_timeout_seconds: u32,
}

/// The shape of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            names: Vec::new(),
            data_folder: "data".into(),
            log: "info".to_owned(),
            log_format: LogFormat::Text,
            connections_max: const { NonZeroU32::new(20_000).unwrap() },
            address_connections_max: const { NonZeroU32::new(2_000).unwrap() },
            shutdown_timeout_seconds: 5,
        }
    }
}

impl ServerConfig {
    /// The names in force: those configured, or `localhost`.
    #[must_use]
    pub fn names_in_force(&self) -> Vec<OwnedServerName> {
        if self.names.is_empty() { vec![owned_server_name!("localhost")] } else { self.names.clone() }
    }
}
