-- Numbers for identifiers, the one stream, rooms with their events and state, and what hangs on them.
--
-- Written for PostgreSQL. For SQLite the migrator replaces BYTEA by BLOB, BIGINT PRIMARY KEY by INTEGER PRIMARY KEY,
-- CLUSTERED by WITHOUT ROWID; for PostgreSQL it drops CLUSTERED and replaces HOT by WITH (fillfactor = 70).

-- The next free number of each kind; processes take blocks of them.
CREATE TABLE number_blocks (
    kind TEXT NOT NULL PRIMARY KEY,
    next BIGINT NOT NULL
) CLUSTERED;

CREATE TABLE user_numbers (
    user_nr BIGINT PRIMARY KEY,
    user_id TEXT NOT NULL UNIQUE
);

CREATE TABLE type_numbers (
    type_nr BIGINT PRIMARY KEY,
    type TEXT NOT NULL UNIQUE
);

CREATE TABLE state_key_numbers (
    state_key_nr BIGINT PRIMARY KEY,
    state_key TEXT NOT NULL UNIQUE
);

-- One row a group of commits: it took the positions from first to position.
CREATE TABLE commits (
    position BIGINT PRIMARY KEY,
    first BIGINT NOT NULL,
    epoch BIGINT NOT NULL,
    process TEXT NOT NULL,
    kinds BIGINT NOT NULL,
    at_ms BIGINT NOT NULL
);

CREATE TABLE rooms (
    room_nr BIGINT PRIMARY KEY,
    room_id TEXT NOT NULL UNIQUE,
    version TEXT NOT NULL
);

-- What the next event of a room builds upon. The committer compares state_node.
CREATE TABLE room_heads (
    room_nr BIGINT PRIMARY KEY,
    state_node BIGINT NOT NULL,
    next_node BIGINT NOT NULL,
    depth BIGINT NOT NULL,
    position BIGINT NOT NULL,
    extremities BYTEA NOT NULL
) HOT;

-- flags: 1 outlier, 2 rejected, 4 soft-failed. Only live events have a position. The place in the timeline is
-- (anchor, step): (position, 0) for live events. state_node is the room's state after the event; replaces the state
-- event that it replaced. prev and auth are packed event numbers.
CREATE TABLE events (
    event_nr BIGINT PRIMARY KEY,
    event_id TEXT NOT NULL UNIQUE,
    room_nr BIGINT NOT NULL,
    position BIGINT,
    anchor BIGINT,
    step BIGINT,
    sender_nr BIGINT NOT NULL,
    type_nr BIGINT NOT NULL,
    state_key_nr BIGINT,
    depth BIGINT NOT NULL,
    state_node BIGINT NOT NULL,
    replaces BIGINT,
    body_month BIGINT NOT NULL,
    flags BIGINT NOT NULL,
    redacted_by BIGINT,
    prev BYTEA NOT NULL,
    auth BYTEA NOT NULL
);
CREATE UNIQUE INDEX events_timeline ON events (room_nr, anchor, step) WHERE anchor IS NOT NULL;
CREATE UNIQUE INDEX events_position ON events (position) WHERE position IS NOT NULL;

-- Which nodes make up the state of a room.
CREATE TABLE state_nodes (
    room_nr BIGINT NOT NULL,
    node_nr BIGINT NOT NULL,
    node BYTEA NOT NULL,
    PRIMARY KEY (room_nr, node_nr)
) CLUSTERED;

-- Every change of a room's current state.
CREATE TABLE state_changes (
    position BIGINT PRIMARY KEY,
    room_nr BIGINT NOT NULL,
    type_nr BIGINT NOT NULL,
    state_key_nr BIGINT NOT NULL,
    event_nr BIGINT
);
CREATE INDEX state_changes_room ON state_changes (room_nr, position);

-- Projections of the current state, kept in the same commit.
CREATE TABLE memberships (
    room_nr BIGINT NOT NULL,
    user_nr BIGINT NOT NULL,
    membership BIGINT NOT NULL,
    event_nr BIGINT NOT NULL,
    position BIGINT NOT NULL,
    is_local BOOLEAN NOT NULL,
    forgotten BOOLEAN NOT NULL,
    PRIMARY KEY (room_nr, user_nr)
) CLUSTERED;
CREATE INDEX memberships_user ON memberships (user_nr, room_nr, membership);

CREATE TABLE membership_log (
    user_nr BIGINT NOT NULL,
    room_nr BIGINT NOT NULL,
    position BIGINT NOT NULL,
    membership BIGINT NOT NULL,
    PRIMARY KEY (user_nr, room_nr, position)
) CLUSTERED;
CREATE INDEX membership_log_room ON membership_log (room_nr, position);

CREATE TABLE room_servers (
    room_nr BIGINT NOT NULL,
    server TEXT NOT NULL,
    joined BIGINT NOT NULL,
    PRIMARY KEY (room_nr, server)
) CLUSTERED;

CREATE TABLE room_summary (
    room_nr BIGINT PRIMARY KEY,
    name TEXT,
    topic TEXT,
    avatar_url TEXT,
    canonical_alias TEXT,
    room_type TEXT,
    encryption TEXT,
    join_rule TEXT NOT NULL,
    history_visibility TEXT NOT NULL,
    guest_access TEXT NOT NULL,
    joined BIGINT NOT NULL,
    invited BIGINT NOT NULL
) HOT;

CREATE TABLE aliases (
    alias TEXT NOT NULL PRIMARY KEY,
    room_nr BIGINT NOT NULL,
    creator_nr BIGINT NOT NULL,
    created_at_ms BIGINT NOT NULL
);
CREATE INDEX aliases_room ON aliases (room_nr);

-- Rooms that the directory of a local server shows.
CREATE TABLE directory (
    room_nr BIGINT NOT NULL,
    server TEXT NOT NULL,
    PRIMARY KEY (server, room_nr)
) CLUSTERED;

-- What a device has asked already, with the event that came of it.
CREATE TABLE transaction_ids (
    user_nr BIGINT NOT NULL,
    device_id TEXT NOT NULL,
    scope TEXT NOT NULL,
    transaction_id TEXT NOT NULL,
    event_nr BIGINT,
    at_ms BIGINT NOT NULL,
    PRIMARY KEY (user_nr, device_id, scope, transaction_id)
) CLUSTERED;
CREATE INDEX transaction_ids_event ON transaction_ids (event_nr) WHERE event_nr IS NOT NULL;
CREATE INDEX transaction_ids_age ON transaction_ids (at_ms);

CREATE TABLE receipts (
    room_nr BIGINT NOT NULL,
    user_nr BIGINT NOT NULL,
    receipt_type TEXT NOT NULL,
    thread TEXT NOT NULL,
    event_id TEXT NOT NULL,
    at_ms BIGINT NOT NULL,
    position BIGINT NOT NULL,
    PRIMARY KEY (room_nr, user_nr, receipt_type, thread)
) CLUSTERED;
CREATE INDEX receipts_position ON receipts (room_nr, position);

-- room_nr is 0 for what belongs to no room.
CREATE TABLE account_data (
    user_nr BIGINT NOT NULL,
    room_nr BIGINT NOT NULL,
    type TEXT NOT NULL,
    content TEXT NOT NULL,
    position BIGINT NOT NULL,
    PRIMARY KEY (user_nr, room_nr, type)
) CLUSTERED;
CREATE INDEX account_data_position ON account_data (user_nr, position);

CREATE TABLE to_device (
    position BIGINT PRIMARY KEY,
    user_nr BIGINT NOT NULL,
    device_id TEXT NOT NULL,
    message TEXT NOT NULL
);
CREATE INDEX to_device_device ON to_device (user_nr, device_id, position);

CREATE TABLE device_list_changes (
    position BIGINT PRIMARY KEY,
    user_nr BIGINT NOT NULL
);
CREATE INDEX device_list_changes_user ON device_list_changes (user_nr, position);
