//! `[storage]`: the database.

use std::{num::NonZeroU32, path::PathBuf};

use serde::{Deserialize, Deserializer, de::Error as _};

/// The database.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StorageConfig {
    /// `sqlite:FILE`, relative to the data folder, or `postgres://user:password@host/database`. Default: `sqlite:swiftchat.db`.
    pub database: Database,
    /// Most connections that read an SQLite database at once. Default: 4.
    pub sqlite_read_connections: NonZeroU32,
    /// Most connections of this process to PostgreSQL. Default: 20.
    pub postgres_connections: NonZeroU32,
}

/// Which database, and where.
#[derive(Clone, PartialEq, Eq)]
pub enum Database {
    /// One file.
    Sqlite(PathBuf),
    /// A server, by its URL.
    Postgres(String),
}

impl Default for StorageConfig {
    fn default() -> Self {
        Self {
            database: Database::Sqlite("swiftchat.db".into()),
            sqlite_read_connections: const { NonZeroU32::new(4).unwrap() },
            postgres_connections: const { NonZeroU32::new(20).unwrap() },
        }
    }
}

impl<'de> Deserialize<'de> for Database {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.strip_prefix("sqlite:") {
            Some("") => Err(D::Error::custom("`sqlite:` lacks the name of its file")),
            Some(file) => Ok(Self::Sqlite(file.into())),
            None if text.starts_with("postgres://") || text.starts_with("postgresql://") => Ok(Self::Postgres(text)),
            // The value is not shown: it may hold a password.
            None => Err(D::Error::custom("expected `sqlite:FILE` or `postgres://user:password@host/database`")),
        }
    }
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sqlite(path) => f.debug_tuple("Sqlite").field(path).finish(),
            Self::Postgres(_) => f.debug_tuple("Postgres").finish_non_exhaustive(),
        }
    }
}
