//! What can go wrong with the database.

/// The database failed; nothing was written, unless a message says that the outcome is unknown.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection or a transaction failed.
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
    /// A statement failed.
    #[error("statement {statement} failed")]
    Statement {
        /// Which one.
        statement: &'static str,
        /// Why.
        source: sqlx::Error,
    },
    /// What is stored makes no sense: the database was damaged or changed by hand.
    #[error("damaged data: {0}")]
    Damaged(String),
    /// The schema is newer than this program.
    #[error(
        "the database has schema version {found}, which this version of swiftchat (schema {known}) does not know; start the newer version that upgraded it"
    )]
    SchemaTooNew {
        /// The version that the database has.
        found: i64,
        /// The newest that this program knows.
        known: i64,
    },
    /// The server is ending; nothing was written.
    #[error("the server is shutting down")]
    Closed,
}

impl Error {
    /// Whether a row was to be inserted whose key exists already.
    pub(crate) fn is_unique_violation(&self) -> bool {
        let (Self::Database(source) | Self::Statement { source, .. }) = self else { return false };
        source.as_database_error().is_some_and(sqlx::error::DatabaseError::is_unique_violation)
    }

    /// Whether the database answered, and said no.
    pub(crate) fn is_refusal(&self) -> bool {
        let (Self::Database(source) | Self::Statement { source, .. }) = self else { return false };
        source.as_database_error().is_some()
    }
}
