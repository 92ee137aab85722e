-- The public keys of other servers: what they published, for what a server says whose answer does not come any more.
CREATE TABLE server_keys (
    server TEXT NOT NULL,
    key_id TEXT NOT NULL,
    public_key TEXT NOT NULL,
    valid_until_ms BIGINT NOT NULL,
    is_old BOOLEAN NOT NULL,
    PRIMARY KEY (server, key_id)
) CLUSTERED;
-- The newest answer of each, as it was signed: what we say as a notary.
CREATE TABLE server_key_answers (
    server TEXT PRIMARY KEY,
    answer TEXT NOT NULL,
    fetched_at_ms BIGINT NOT NULL
) CLUSTERED;
