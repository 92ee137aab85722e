-- Users of this server, what they log in with, and what belongs to a user or a device alone.

CREATE TABLE users (
    user_nr BIGINT PRIMARY KEY,
    password_hash TEXT,
    is_guest BOOLEAN NOT NULL,
    is_admin BOOLEAN NOT NULL,
    is_locked BOOLEAN NOT NULL,
    is_erased BOOLEAN NOT NULL,
    app_service TEXT,
    created_at_ms BIGINT NOT NULL,
    deactivated_at_ms BIGINT
);

CREATE TABLE devices (
    user_nr BIGINT NOT NULL,
    device_id TEXT NOT NULL,
    display_name TEXT,
    created_at_ms BIGINT NOT NULL,
    last_seen_at_ms BIGINT,
    last_seen_ip TEXT,
    PRIMARY KEY (user_nr, device_id)
) CLUSTERED;

-- Of secrets only SHA-256 is kept. refresh_hash names the refresh token that was given out beside the access token;
-- replaces the refresh token that was exchanged for this one, until the first use of what it was exchanged for revokes it.
CREATE TABLE access_tokens (
    hash BYTEA NOT NULL PRIMARY KEY,
    user_nr BIGINT NOT NULL,
    device_id TEXT NOT NULL,
    expires_at_ms BIGINT,
    refresh_hash BYTEA,
    replaces BYTEA
) CLUSTERED;
CREATE INDEX access_tokens_device ON access_tokens (user_nr, device_id);
CREATE INDEX access_tokens_refresh ON access_tokens (refresh_hash) WHERE refresh_hash IS NOT NULL;
CREATE INDEX access_tokens_replaces ON access_tokens (replaces) WHERE replaces IS NOT NULL;

CREATE TABLE refresh_tokens (
    hash BYTEA NOT NULL PRIMARY KEY,
    user_nr BIGINT NOT NULL,
    device_id TEXT NOT NULL,
    replaces BYTEA
) CLUSTERED;
CREATE INDEX refresh_tokens_device ON refresh_tokens (user_nr, device_id);
CREATE INDEX refresh_tokens_replaces ON refresh_tokens (replaces) WHERE replaces IS NOT NULL;

CREATE TABLE login_tokens (
    hash BYTEA NOT NULL PRIMARY KEY,
    user_nr BIGINT NOT NULL,
    expires_at_ms BIGINT NOT NULL
) CLUSTERED;
CREATE INDEX login_tokens_age ON login_tokens (expires_at_ms);

CREATE TABLE registration_tokens (
    token TEXT NOT NULL PRIMARY KEY,
    uses_allowed BIGINT,
    uses BIGINT NOT NULL,
    expires_at_ms BIGINT,
    created_at_ms BIGINT NOT NULL
) CLUSTERED;

-- user_nr is 0 where nobody is logged in. completed is a JSON list of stages.
CREATE TABLE uia_sessions (
    session_id TEXT NOT NULL PRIMARY KEY,
    user_nr BIGINT NOT NULL,
    operation TEXT NOT NULL,
    completed TEXT NOT NULL,
    registration_token TEXT,
    expires_at_ms BIGINT NOT NULL
) CLUSTERED;
CREATE INDEX uia_sessions_age ON uia_sessions (expires_at_ms);

CREATE TABLE profiles (
    user_nr BIGINT NOT NULL,
    field TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (user_nr, field)
) CLUSTERED;

-- Numbered from 0 for each user.
CREATE TABLE filters (
    user_nr BIGINT NOT NULL,
    filter_nr BIGINT NOT NULL,
    hash BYTEA NOT NULL,
    content TEXT NOT NULL,
    PRIMARY KEY (user_nr, filter_nr)
) CLUSTERED;
CREATE UNIQUE INDEX filters_hash ON filters (user_nr, hash);

CREATE TABLE device_keys (
    user_nr BIGINT NOT NULL,
    device_id TEXT NOT NULL,
    keys TEXT NOT NULL,
    PRIMARY KEY (user_nr, device_id)
) CLUSTERED;

CREATE TABLE one_time_keys (
    user_nr BIGINT NOT NULL,
    device_id TEXT NOT NULL,
    algorithm TEXT NOT NULL,
    key_id TEXT NOT NULL,
    key TEXT NOT NULL,
    uploaded_at_ms BIGINT NOT NULL,
    PRIMARY KEY (user_nr, device_id, algorithm, key_id)
);

CREATE TABLE fallback_keys (
    user_nr BIGINT NOT NULL,
    device_id TEXT NOT NULL,
    algorithm TEXT NOT NULL,
    key_id TEXT NOT NULL,
    key TEXT NOT NULL,
    used BOOLEAN NOT NULL,
    PRIMARY KEY (user_nr, device_id, algorithm)
) CLUSTERED;

-- usage is master, self_signing or user_signing.
CREATE TABLE cross_signing_keys (
    user_nr BIGINT NOT NULL,
    usage TEXT NOT NULL,
    key TEXT NOT NULL,
    PRIMARY KEY (user_nr, usage)
) CLUSTERED;

-- Signatures that were added to keys after their upload. target is a device id, or the public part of a master key.
CREATE TABLE key_signatures (
    user_nr BIGINT NOT NULL,
    target TEXT NOT NULL,
    signer_nr BIGINT NOT NULL,
    key_id TEXT NOT NULL,
    signature TEXT NOT NULL,
    PRIMARY KEY (user_nr, target, signer_nr, key_id)
) CLUSTERED;
