//! Puts the crates together: opens the services from the bottom up and hands each what it needs.

use std::path::Path;

use axum::Router;
use model::{Clock, LocalServers, Random};
use storage::Storage;

use crate::{
    Error, Overrides,
    config::{Api, Config, Database},
};

/// The services of a running server.
pub(crate) struct Services {
    storage: Storage,
}

impl Services {
    /// Opens them.
    pub(crate) async fn start(
        config: &Config,
        data_folder: &Path,
        _local_servers: LocalServers,
        overrides: Overrides,
    ) -> Result<Self, Error> {
        let storage = open_storage(config, data_folder, overrides.clock, overrides.random).await?;
        Ok(Self { storage })
    }

    /// What one listener serves: those of `apis` that exist.
    pub(crate) fn router(&self, _apis: &[Api]) -> Router {
        web::finish(Router::new())
    }

    /// Answers every waiting request at once.
    pub(crate) fn end_waits(&self) {}

    /// Writes what is queued and closes the database.
    pub(crate) async fn close(&self) {
        self.storage.close().await;
    }
}

/// Opens the configured database; an SQLite file lies in `data_folder`.
///
/// # Errors
///
/// [`Error::Storage`] when it cannot be reached, or a newer version of swiftchat wrote it.
pub async fn open_storage(config: &Config, data_folder: &Path, clock: Clock, random: Random) -> Result<Storage, Error> {
    let options = match &config.storage.database {
        Database::Sqlite(file) => storage::Options::Sqlite {
            path: data_folder.join(file),
            read_connections: config.storage.sqlite_read_connections.get(),
        },
        Database::Postgres(url) => {
            storage::Options::Postgres { url: url.clone(), connections: config.storage.postgres_connections.get() }
        }
    };
    Ok(Storage::open(options, clock, random).await?)
}
