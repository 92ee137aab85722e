//! The public keys of other servers. Server-Server API, "Retrieving server keys".

use std::collections::HashMap;

use ruma::{OwnedServerName, ServerName};

use crate::{
    Error, Storage,
    db::{Row, args},
    rows::Rows,
    statement::statements,
};

statements! {
    LIST_SERVER_KEYS = ["
        SELECT server, key_id, public_key, valid_until_ms, is_old
          FROM server_keys WHERE server", (in_list 1), " ORDER BY server, key_id"];
    LIST_SERVER_KEY_ANSWERS = ["
        SELECT server, answer, fetched_at_ms FROM server_key_answers WHERE server", (in_list 1), " ORDER BY server"];
    /// A key that is old stays so.
    UPSERT_SERVER_KEYS = ["
        INSERT INTO server_keys (server, key_id, public_key, valid_until_ms, is_old)
        SELECT server, key_id, public_key, valid_until_ms, is_old
          FROM", (rows [1 server text, 2 key_id text, 3 public_key text, 4 valid_until_ms bigint, 5 is_old boolean]), "
         WHERE TRUE
        ON CONFLICT (server, key_id) DO UPDATE
           SET valid_until_ms = excluded.valid_until_ms, is_old = excluded.is_old
         WHERE server_keys.public_key = excluded.public_key
           AND (excluded.is_old OR (NOT server_keys.is_old AND excluded.valid_until_ms > server_keys.valid_until_ms))"];
    UPSERT_SERVER_KEY_ANSWERS = ["
        INSERT INTO server_key_answers (server, answer, fetched_at_ms)
        SELECT server, answer, fetched_at_ms
          FROM", (rows [1 server text, 2 answer text, 3 fetched_at_ms bigint]), "
         WHERE TRUE
        ON CONFLICT (server) DO UPDATE SET answer = excluded.answer, fetched_at_ms = excluded.fetched_at_ms"];
}

/// What is known of the keys of a server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerKeysRow {
    /// The keys, by their ids.
    pub keys: Vec<ServerKeyRow>,
    /// Its newest answer, as it was signed, and when it came, in milliseconds since 1970.
    pub answer: Option<(String, i64)>,
}

/// A public key of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerKeyRow {
    /// `ed25519:<version>`.
    pub key_id: String,
    /// The key, in base64.
    pub public_key: String,
    /// Until when it signs, or when it ended, in milliseconds since 1970.
    pub valid_until_ms: i64,
    /// Whether the server uses it no more.
    pub is_old: bool,
}

impl Storage {
    /// The keys of servers, of those that are known.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_server_keys(
        &self,
        servers: &[&ServerName],
    ) -> Result<HashMap<OwnedServerName, ServerKeysRow>, Error> {
        let names: Vec<String> = servers.iter().map(|server| server.to_string()).collect();
        let mut found: HashMap<OwnedServerName, ServerKeysRow> = HashMap::new();
        for row in self.db().read(&LIST_SERVER_KEYS, args![names.clone()]).await? {
            let key = ServerKeyRow {
                key_id: row.get(1)?,
                public_key: row.get(2)?,
                valid_until_ms: row.get(3)?,
                is_old: row.get(4)?,
            };
            found.entry(server_of(&row)?).or_default().keys.push(key);
        }
        for row in self.db().read(&LIST_SERVER_KEY_ANSWERS, args![names]).await? {
            found.entry(server_of(&row)?).or_default().answer = Some((row.get(1)?, row.get(2)?));
        }
        Ok(found)
    }

    /// Keeps what a server says of its keys. One whose text would change under its id is left as it was.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn upsert_server_keys(&self, server: &ServerName, row: &ServerKeysRow) -> Result<(), Error> {
        let rows = Rows::new()
            .text(row.keys.iter().map(|_| server.to_string()))
            .text(row.keys.iter().map(|key| key.key_id.clone()))
            .text(row.keys.iter().map(|key| key.public_key.clone()))
            .bigint(row.keys.iter().map(|key| key.valid_until_ms))
            .boolean(row.keys.iter().map(|key| key.is_old));
        self.db().write(&UPSERT_SERVER_KEYS, rows).await?;
        if let Some((answer, fetched_at_ms)) = &row.answer {
            let rows = Rows::new().text([server.to_string()]).text([answer.clone()]).bigint([*fetched_at_ms]);
            self.db().write(&UPSERT_SERVER_KEY_ANSWERS, rows).await?;
        }
        Ok(())
    }
}

fn server_of(row: &Row) -> Result<OwnedServerName, Error> {
    let name: String = row.get(0)?;
    ServerName::parse(&name).map_err(|_| Error::Damaged(format!("server {name}")))
}
