-- Tokens by which a user shows a service who they are; of the secret only its SHA-256.
CREATE TABLE openid_tokens (
    hash BYTEA NOT NULL PRIMARY KEY,
    user_nr BIGINT NOT NULL,
    expires_at_ms BIGINT NOT NULL
) CLUSTERED;
CREATE INDEX openid_tokens_age ON openid_tokens (expires_at_ms);
CREATE INDEX openid_tokens_user ON openid_tokens (user_nr);
