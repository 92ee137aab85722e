-- Server-side key backups: the keys of encrypted rooms, themselves encrypted by the clients of their user.

-- Versions count from 1 for each user. The newest one keeps its row when it is deleted, so that its number is not given again.
-- keys says how many keys there are; a deleted backup loses them piece by piece.
CREATE TABLE key_backups (
    user_nr BIGINT NOT NULL,
    version BIGINT NOT NULL,
    algorithm TEXT NOT NULL,
    auth_data TEXT NOT NULL,
    etag BIGINT NOT NULL,
    keys BIGINT NOT NULL,
    is_deleted BOOLEAN NOT NULL,
    PRIMARY KEY (user_nr, version)
) CLUSTERED;
CREATE INDEX key_backups_deleted ON key_backups (user_nr, version) WHERE is_deleted AND keys > 0;

CREATE TABLE backed_up_keys (
    user_nr BIGINT NOT NULL,
    version BIGINT NOT NULL,
    room_id TEXT NOT NULL,
    session_id TEXT NOT NULL,
    is_verified BOOLEAN NOT NULL,
    first_message_index BIGINT NOT NULL,
    forwarded_count BIGINT NOT NULL,
    session_data TEXT NOT NULL,
    PRIMARY KEY (user_nr, version, room_id, session_id)
);
