//! The public keys of other servers. Server-Server API, "Retrieving server keys".

use std::collections::HashMap;

use ruma::{OwnedServerName, ServerName};

use crate::{
    Error, Storage,
    db::{Row, args},
    rows::Rows,
    statement::statements,
};

/// How long the keys are kept of a server that is in none of our rooms, after it was last asked, in milliseconds.
pub(crate) const STRANGERS_KEPT_MS: i64 = 14 * 24 * 3_600_000;

statements! {
    LIST_SERVER_KEYS = ["
        SELECT server, key_id, public_key, valid_until_ms, is_old, is_direct
          FROM server_keys WHERE server", (in_list 1), " ORDER BY server, key_id"];
    LIST_SERVER_KEY_ANSWERS = ["
        SELECT server, answer, fetched_at_ms, is_direct
          FROM server_key_answers WHERE server", (in_list 1), " ORDER BY server"];
    /// What the server says itself replaces what a notary said. Else a key does not change, and one that is old stays so.
    UPSERT_SERVER_KEYS = ["
        INSERT INTO server_keys (server, key_id, public_key, valid_until_ms, is_old, is_direct)
        SELECT server, key_id, public_key, valid_until_ms, is_old, is_direct
          FROM", (rows [1 server text, 2 key_id text, 3 public_key text, 4 valid_until_ms bigint, 5 is_old boolean,
                        6 is_direct boolean]), "
         WHERE TRUE
        ON CONFLICT (server, key_id) DO UPDATE
           SET public_key = excluded.public_key, valid_until_ms = excluded.valid_until_ms, is_old = excluded.is_old,
               is_direct = excluded.is_direct
         WHERE (excluded.is_direct AND NOT server_keys.is_direct)
            OR (excluded.is_direct = server_keys.is_direct AND server_keys.public_key = excluded.public_key
                AND (excluded.is_old
                     OR (NOT server_keys.is_old AND excluded.valid_until_ms > server_keys.valid_until_ms)))"];
    DELETE_SERVER_KEYS = ["DELETE FROM server_keys WHERE server = $1 AND key_id", (in_list 2)];
    UPSERT_SERVER_KEY_ANSWERS = ["
        INSERT INTO server_key_answers (server, answer, fetched_at_ms, is_direct)
        SELECT server, answer, fetched_at_ms, is_direct
          FROM", (rows [1 server text, 2 answer text, 3 fetched_at_ms bigint, 4 is_direct boolean]), "
         WHERE TRUE
        ON CONFLICT (server) DO UPDATE
           SET answer = excluded.answer, fetched_at_ms = excluded.fetched_at_ms, is_direct = excluded.is_direct
         WHERE excluded.is_direct OR NOT server_key_answers.is_direct"];
    LIST_OLD_STRANGERS = ["
        SELECT a.server FROM server_key_answers a
         WHERE a.fetched_at_ms < $1 AND NOT EXISTS (SELECT 1 FROM room_servers r WHERE r.server = a.server)
         ORDER BY a.fetched_at_ms LIMIT $2"];
    DELETE_KEYS_OF_SERVERS = ["DELETE FROM server_keys WHERE server", (in_list 1)];
    DELETE_ANSWERS_OF_SERVERS = ["DELETE FROM server_key_answers WHERE server", (in_list 1)];
}

/// What is known of the keys of a server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerKeysRow {
    /// The keys, by their ids.
    pub keys: Vec<ServerKeyRow>,
    /// Its newest answer.
    pub answer: Option<ServerKeyAnswer>,
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
    /// Whether the server said so itself, and not a notary.
    pub is_direct: bool,
}

/// What a server said of its keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerKeyAnswer {
    /// As it was signed.
    pub json: String,
    /// When it came, in milliseconds since 1970.
    pub at_ms: i64,
    /// Whether the server said it itself, and not a notary.
    pub is_direct: bool,
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
                is_direct: row.get(5)?,
            };
            found.entry(server_of(&row)?).or_default().keys.push(key);
        }
        for row in self.db().read(&LIST_SERVER_KEY_ANSWERS, args![names]).await? {
            let answer = ServerKeyAnswer { json: row.get(1)?, at_ms: row.get(2)?, is_direct: row.get(3)? };
            found.entry(server_of(&row)?).or_default().answer = Some(answer);
        }
        Ok(found)
    }

    /// Keeps what is known of the keys of a server, but for those `dropped`.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn upsert_server_keys(
        &self,
        server: &ServerName,
        row: &ServerKeysRow,
        dropped: Vec<String>,
    ) -> Result<(), Error> {
        if !dropped.is_empty() {
            self.db().write(&DELETE_SERVER_KEYS, args![server.to_string(), dropped]).await?;
        }
        let rows = Rows::new()
            .text(row.keys.iter().map(|_| server.to_string()))
            .text(row.keys.iter().map(|key| key.key_id.clone()))
            .text(row.keys.iter().map(|key| key.public_key.clone()))
            .bigint(row.keys.iter().map(|key| key.valid_until_ms))
            .boolean(row.keys.iter().map(|key| key.is_old))
            .boolean(row.keys.iter().map(|key| key.is_direct));
        self.db().write(&UPSERT_SERVER_KEYS, rows).await?;
        if let Some(answer) = &row.answer {
            let rows = Rows::new()
                .text([server.to_string()])
                .text([answer.json.clone()])
                .bigint([answer.at_ms])
                .boolean([answer.is_direct]);
            self.db().write(&UPSERT_SERVER_KEY_ANSWERS, rows).await?;
        }
        Ok(())
    }

    /// Deletes the keys of servers that are in none of our rooms and were last asked before a time; strangers have us ask many.
    pub(crate) async fn clean_server_keys(&self, before_ms: i64, at_once: i64) -> Result<(), Error> {
        loop {
            let rows = self.db().read(&LIST_OLD_STRANGERS, args![before_ms, at_once]).await?;
            let servers: Vec<String> = rows.iter().map(|row| row.get(0)).collect::<Result<_, _>>()?;
            if servers.is_empty() {
                return Ok(());
            }
            self.db().write(&DELETE_KEYS_OF_SERVERS, args![servers.clone()]).await?;
            self.db().write(&DELETE_ANSWERS_OF_SERVERS, args![servers]).await?;
            tokio::task::yield_now().await;
        }
    }
}

fn server_of(row: &Row) -> Result<OwnedServerName, Error> {
    let name: String = row.get(0)?;
    ServerName::parse(&name).map_err(|_| Error::Damaged(format!("server {name}")))
}

#[cfg(test)]
mod tests {
    use ruma::server_name;

    use super::*;
    use crate::{statement::Statement, testing::TestDatabase};

    const DAY_MS: i64 = 24 * 3_600_000;

    const INSERT: &str = "INSERT INTO room_servers (room_nr, server, joined) VALUES (1, 'friend.test', 1)";
    const FRIEND: Statement = Statement { name: "friend", sqlite: INSERT, postgres: INSERT };

    fn row(keys: &[(&str, &str, i64, bool, bool)], answer: (&str, i64, bool)) -> ServerKeysRow {
        let key = |(id, public, until_ms, is_old, is_direct): &(&str, &str, i64, bool, bool)| ServerKeyRow {
            key_id: (*id).to_owned(),
            public_key: (*public).to_owned(),
            valid_until_ms: *until_ms,
            is_old: *is_old,
            is_direct: *is_direct,
        };
        let (json, at_ms, is_direct) = answer;
        let answer = Some(ServerKeyAnswer { json: json.to_owned(), at_ms, is_direct });
        ServerKeysRow { keys: keys.iter().map(key).collect(), answer }
    }

    /// Two processes may write what they learnt in any order.
    #[tokio::test]
    async fn what_a_notary_said_does_not_replace_what_the_server_said() {
        for database in TestDatabase::each().await {
            let storage = database.open().await;
            let server = server_name!("a.test");
            let read = async || storage.list_server_keys(&[server]).await.unwrap().remove(server).unwrap();
            let of_notary =
                row(&[("ed25519:a", "A", 5, false, false), ("ed25519:b", "B", 5, false, false)], ("n", 1, false));
            storage.upsert_server_keys(server, &of_notary, Vec::new()).await.unwrap();
            assert_eq!(read().await, of_notary);
            let direct = row(&[("ed25519:a", "C", 3, false, true)], ("d", 2, true));
            storage.upsert_server_keys(server, &direct, vec!["ed25519:b".to_owned()]).await.unwrap();
            assert_eq!(read().await, direct);
            storage.upsert_server_keys(server, &row(&of_notary_again(), ("n", 3, false)), Vec::new()).await.unwrap();
            assert_eq!(read().await, direct);
            // Of what it says itself a key does not change, and one that is old stays so.
            let changed = row(&[("ed25519:a", "D", 9, false, true)], ("e", 4, true));
            storage.upsert_server_keys(server, &changed, Vec::new()).await.unwrap();
            assert_eq!(read().await.keys, direct.keys);
            let ended = row(&[("ed25519:a", "C", 4, true, true)], ("f", 5, true));
            storage.upsert_server_keys(server, &ended, Vec::new()).await.unwrap();
            storage.upsert_server_keys(server, &direct, Vec::new()).await.unwrap();
            assert_eq!(read().await.keys, ended.keys);
        }
    }

    fn of_notary_again() -> [(&'static str, &'static str, i64, bool, bool); 1] {
        [("ed25519:a", "A", 9, true, false)]
    }

    /// A stranger with a certificate for all names under one may have us ask for the keys of each.
    #[tokio::test]
    async fn keys_of_strangers_are_dropped_with_time_and_those_of_servers_in_rooms_stay() {
        for database in TestDatabase::each().await {
            let storage = database.open().await;
            let now_ms = storage.clock().now_ms();
            for (server, age_ms) in [("old.test", 15 * DAY_MS), ("new.test", DAY_MS), ("friend.test", 15 * DAY_MS)] {
                let server = <&ServerName>::try_from(server).unwrap();
                let row = row(&[("ed25519:a", "A", 5, false, true)], ("{}", now_ms - age_ms, true));
                storage.upsert_server_keys(server, &row, Vec::new()).await.unwrap();
            }
            storage.db().write(&FRIEND, args![]).await.unwrap();
            storage.clean_server_keys(now_ms - STRANGERS_KEPT_MS, 1).await.unwrap();
            let names = ["old.test", "new.test", "friend.test"].map(|name| <&ServerName>::try_from(name).unwrap());
            let mut left: Vec<_> = storage.list_server_keys(&names).await.unwrap().into_keys().collect();
            left.sort();
            assert_eq!(left, ["friend.test", "new.test"]);
        }
    }
}
