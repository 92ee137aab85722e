//! Databases for tests: a fresh one each.

use model::{Clock, Random};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

use crate::Options;

/// The variable with the URL of a PostgreSQL superuser; without it tests run on SQLite only, and say so.
pub const POSTGRES_VARIABLE: &str = "SWIFTCHAT_TEST_POSTGRES";

/// A database of its own for one test; its files are gone when it is dropped.
#[derive(Debug)]
pub struct TestDatabase {
    /// How to open it.
    pub options: Options,
    _folder: Option<tempfile::TempDir>,
}

impl TestDatabase {
    /// An empty SQLite database in a temporary folder.
    ///
    /// # Panics
    ///
    /// When there is no temporary folder to be had.
    #[must_use]
    pub fn sqlite() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let options = Options::Sqlite { path: folder.path().join("test.db"), read_connections: 4 };
        Self { options, _folder: Some(folder) }
    }

    /// An empty PostgreSQL database, if there is a server for tests.
    ///
    /// # Panics
    ///
    /// When the server cannot be reached.
    pub async fn postgres() -> Option<Self> {
        let Ok(server) = std::env::var(POSTGRES_VARIABLE) else {
            eprintln!("SKIPPED on PostgreSQL: {POSTGRES_VARIABLE} is not set");
            return None;
        };
        let name = format!("test_{}", Random::system().alphanumeric(12).to_lowercase());
        let mut connection = PgConnection::connect(&server).await.expect("the PostgreSQL server for tests");
        connection.execute(AssertSqlSafe(format!("CREATE DATABASE {name}"))).await.expect("a new database");
        let (address, query) = server.split_once('?').unwrap_or((&server, ""));
        let host = address.rsplit_once('/').map_or(address, |(host, _)| host);
        let url = format!("{host}/{name}{}{query}", if query.is_empty() { "" } else { "?" });
        Some(Self { options: Options::Postgres { url, connections: 8 }, _folder: None })
    }

    /// One database of each kind that is there.
    pub async fn each() -> Vec<Self> {
        let mut databases = vec![Self::sqlite()];
        databases.extend(Self::postgres().await);
        databases
    }

    /// Opens it.
    ///
    /// # Panics
    ///
    /// When that fails.
    pub async fn open(&self) -> crate::Storage {
        crate::Storage::open(self.options.clone(), Clock::system(), Random::system())
            .await
            .expect("the test database opens")
    }
}
