-- What the connections of sliding sync were sent: the newest version, and the one before it, which the client may still ask from.

CREATE TABLE sync_connections (
    user_nr BIGINT NOT NULL,
    device_id TEXT NOT NULL,
    conn_id TEXT NOT NULL,
    version BIGINT NOT NULL,
    state BYTEA NOT NULL,
    previous_version BIGINT,
    previous_state BYTEA,
    used_at_ms BIGINT NOT NULL,
    PRIMARY KEY (user_nr, device_id, conn_id)
);
CREATE INDEX sync_connections_age ON sync_connections (used_at_ms);
