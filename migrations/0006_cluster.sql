-- What the processes of a deployment share beside the data itself.

-- One row: what names this deployment where it shares a Redis with others.
CREATE TABLE deployment (
    one BIGINT NOT NULL PRIMARY KEY,
    id TEXT NOT NULL
) CLUSTERED;

-- How far each consumer of the stream has come: all up to position is done. While it works, one process has the lease.
CREATE TABLE consumers (
    name TEXT NOT NULL PRIMARY KEY,
    position BIGINT NOT NULL,
    process TEXT NOT NULL,
    lease_until_ms BIGINT NOT NULL
) CLUSTERED;

-- Whose profile changed, until the rooms have followed.
CREATE TABLE profile_changes (
    position BIGINT PRIMARY KEY,
    user_nr BIGINT NOT NULL
);

-- A process that lost races for a room has it for itself for a moment: the commits of others wait until then.
ALTER TABLE room_heads ADD COLUMN lease_process TEXT;
ALTER TABLE room_heads ADD COLUMN lease_until_ms BIGINT NOT NULL DEFAULT 0;
