//! Connections of sliding sync: what each was sent, as `sync` packs it.

use model::UserNr;

use crate::{
    Error, Storage,
    db::{Row, args},
    statement::{Statement, statements},
};

/// How long a connection is kept of which nothing is heard, in milliseconds.
pub(crate) const KEPT_MS: i64 = 7 * 24 * 3_600_000;

statements! {
    GET_CONNECTION = ["
        SELECT version, state, previous_version, previous_state, used_at_ms FROM sync_connections
         WHERE user_nr = $1 AND device_id = $2 AND conn_id = $3"];
    UPSERT_CONNECTION = ["
        INSERT INTO sync_connections (user_nr, device_id, conn_id, version, state, used_at_ms)
        VALUES ($1, $2, $3, $4, $5, $6)
            ON CONFLICT (user_nr, device_id, conn_id) DO UPDATE
           SET version = excluded.version, state = excluded.state, previous_version = NULL, previous_state = NULL,
               used_at_ms = excluded.used_at_ms"];
    /// The version that the client asked from stays; what it was sent and did not take goes.
    UPDATE_CONNECTION = ["
        UPDATE sync_connections
           SET previous_state = CASE WHEN version = $4 THEN state ELSE previous_state END,
               previous_version = $4, version = $5, state = $6, used_at_ms = $7
         WHERE user_nr = $1 AND device_id = $2 AND conn_id = $3 AND (version = $4 OR previous_version = $4)"];
    UPDATE_USED = ["
        UPDATE sync_connections SET used_at_ms = $4 WHERE user_nr = $1 AND device_id = $2 AND conn_id = $3"];
    DELETE_SURPLUS = ["
        DELETE FROM sync_connections
         WHERE user_nr = $1 AND device_id = $2 AND conn_id IN
               (SELECT conn_id FROM sync_connections WHERE user_nr = $1 AND device_id = $2 AND conn_id <> $3
                 ORDER BY used_at_ms DESC, conn_id LIMIT 1000 OFFSET $4)"];
    DELETE_OF_DEVICES = ["DELETE FROM sync_connections WHERE user_nr = $1 AND device_id", (in_list 2)];
    DELETE_OF_USER = ["DELETE FROM sync_connections WHERE user_nr = $1"];
    DELETE_OLD = ["
        DELETE FROM sync_connections WHERE (user_nr, device_id, conn_id) IN
               (SELECT user_nr, device_id, conn_id FROM sync_connections WHERE used_at_ms < $1 LIMIT $2)"];
}

/// Deletes those of some of a user's devices, for the transaction that deletes these.
pub(crate) const DELETE_CONNECTIONS_OF_DEVICES: &Statement = &DELETE_OF_DEVICES;
/// Deletes a user's, for the transaction that closes the account.
pub(crate) const DELETE_CONNECTIONS_OF_USER: &Statement = &DELETE_OF_USER;
/// Deletes some that expired.
pub(crate) const DELETE_OLD_CONNECTIONS: &Statement = &DELETE_OLD;

/// What names a connection: it belongs to one device of one user.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionKey {
    /// Whose.
    pub user_nr: UserNr,
    /// The device; empty for an application service without one.
    pub device_id: String,
    /// How the client calls it.
    pub conn_id: String,
}

/// A connection with the versions of its state that the client may ask from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionRow {
    /// The newest state and, but for the first one, the one before it, each with its version.
    pub states: Vec<(i64, Vec<u8>)>,
    /// When it was last known to be used, in milliseconds since 1970.
    pub used_at_ms: i64,
}

fn connection(row: &Row) -> Result<ConnectionRow, Error> {
    let mut states = vec![(row.get(0)?, row.get(1)?)];
    states.extend(row.get::<Option<i64>>(2)?.zip(row.get::<Option<Vec<u8>>>(3)?));
    Ok(ConnectionRow { states, used_at_ms: row.get(4)? })
}

impl Storage {
    /// A connection, unless there is none or it has expired.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn get_sync_connection(&self, key: &ConnectionKey) -> Result<Option<ConnectionRow>, Error> {
        let row = self.db().read_one(&GET_CONNECTION, args![key.user_nr, &key.device_id, &key.conn_id]).await?;
        row.map(|row| connection(&row)).transpose()
    }

    /// Starts a connection, in the place of the one that had its name. Of the device's others, the `others_max` that were used last stay.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn upsert_sync_connection(
        &self,
        key: &ConnectionKey,
        version: i64,
        state: Vec<u8>,
        others_max: u32,
    ) -> Result<(), Error> {
        let now_ms = self.clock().now_ms();
        let mut tx = self.db().begin().await?;
        let args = args![key.user_nr, &key.device_id, &key.conn_id, version, state, now_ms];
        tx.execute(&UPSERT_CONNECTION, args).await?;
        let args = args![key.user_nr, &key.device_id, &key.conn_id, i64::from(others_max)];
        tx.execute(&DELETE_SURPLUS, args).await?;
        tx.commit().await
    }

    /// Gives a connection its next state, which follows on the one of version `from`; `false` when the connection has no such version
    /// any more.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn update_sync_connection(
        &self,
        key: &ConnectionKey,
        from: i64,
        version: i64,
        state: Vec<u8>,
    ) -> Result<bool, Error> {
        let now_ms = self.clock().now_ms();
        let args = args![key.user_nr, &key.device_id, &key.conn_id, from, version, state, now_ms];
        Ok(self.db().write(&UPDATE_CONNECTION, args).await? == 1)
    }

    /// Notes that a connection is in use, so that it does not expire.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn touch_sync_connection(&self, key: &ConnectionKey) -> Result<(), Error> {
        let now_ms = self.clock().now_ms();
        let args = args![key.user_nr, &key.device_id, &key.conn_id, now_ms];
        self.db().write(&UPDATE_USED, args).await.map(drop)
    }
}
