//! Sessions of user-interactive authentication: in the database, so that any process of a cluster can go on with them.

use model::UserNr;

use crate::{Error, Storage, db::args, statement::statements};

statements! {
    GET_SESSION = ["
        SELECT user_nr, operation, completed, registration_token, expires_at_ms FROM uia_sessions WHERE session_id = $1"];
    UPSERT_SESSION = ["
        INSERT INTO uia_sessions (session_id, user_nr, operation, completed, registration_token, expires_at_ms)
        VALUES ($1, $2, $3, $4, $5, $6)
        ON CONFLICT (session_id) DO UPDATE
           SET completed = excluded.completed, registration_token = excluded.registration_token"];
    DELETE_OLD_SESSIONS = ["
        DELETE FROM uia_sessions WHERE session_id IN
               (SELECT session_id FROM uia_sessions WHERE expires_at_ms < $1 ORDER BY expires_at_ms LIMIT 100)"];
    DELETE_SESSION = ["DELETE FROM uia_sessions WHERE session_id = $1"];
}

/// How far somebody has come with authenticating for one operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UiaSessionRow {
    /// Who is logged in; zero for nobody.
    pub user_nr: UserNr,
    /// What they want to do.
    pub operation: String,
    /// The stages that they have completed, a JSON list.
    pub completed: String,
    /// The registration token that they have shown.
    pub registration_token: Option<String>,
    /// When the session ends.
    pub expires_at_ms: i64,
}

impl Storage {
    /// A session that has not ended.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn get_uia_session(&self, session_id: &str) -> Result<Option<UiaSessionRow>, Error> {
        let Some(row) = self.db().read_one(&GET_SESSION, args![session_id]).await? else { return Ok(None) };
        let session = UiaSessionRow {
            user_nr: row.nr(0)?,
            operation: row.get(1)?,
            completed: row.get(2)?,
            registration_token: row.get(3)?,
            expires_at_ms: row.get(4)?,
        };
        Ok(Some(session).filter(|session| session.expires_at_ms > self.clock().now_ms()))
    }

    /// Writes a session, and forgets some of those that have ended.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn upsert_uia_session(&self, session_id: &str, session: UiaSessionRow) -> Result<(), Error> {
        let UiaSessionRow { user_nr, operation, completed, registration_token, expires_at_ms } = session;
        let mut tx = self.db().begin().await?;
        tx.execute(&DELETE_OLD_SESSIONS, args![self.clock().now_ms()]).await?;
        let row = args![session_id, user_nr, operation, completed, registration_token, expires_at_ms];
        tx.execute(&UPSERT_SESSION, row).await?;
        tx.commit().await
    }

    /// Ends a session; tells whether this call did it.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn delete_uia_session(&self, session_id: &str) -> Result<bool, Error> {
        Ok(self.db().write(&DELETE_SESSION, args![session_id]).await? == 1)
    }
}
