//! Why a server cannot start.

use std::{io, net::SocketAddr, path::PathBuf};

/// Why a server cannot start. The texts are for the one who starts it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What the configuration names cannot be used.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// A file or folder is not usable.
    #[error("cannot {action} {path}")]
    File {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Another server has the data folder.
    #[error("another swiftchat is running with the data folder {0}; end it first, or set `server.data_folder`")]
    DataFolderInUse(PathBuf),
    /// A signing key cannot be read.
    #[error("{path} does not hold a signing key")]
    SigningKey {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: model::KeyPairError,
    },
    /// A name is not one of the server's.
    #[error("{0} is not one of `server.names`")]
    NotAName(String),
    /// A certificate cannot be used.
    #[error("the certificate {certificate} with the key {key} cannot be used: {reason}")]
    Certificate {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why.
        reason: String,
    },
    /// The certificates of authorities cannot be used.
    #[error("{path} does not hold certificates of authorities: {reason}")]
    Authorities {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// An address is not free.
    #[error(
        "cannot listen on {address}; is another server running there? `listeners` in the configuration sets the address"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Nothing can be asked of other servers.
    #[error("cannot reach other servers; `federation.enabled = false` does without them")]
    Outbound(#[from] outbound::Error),
    /// The event bus cannot be used.
    #[error("cannot use the event bus in `event_bus.url`")]
    EventBus(#[from] event_bus::BusError),
    /// The database cannot be used.
    #[error("cannot open the database")]
    Storage(#[from] storage::Error),
}
