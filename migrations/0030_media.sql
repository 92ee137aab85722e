-- Content, by the SHA-256 of its bytes, which are in the media store before a row is here.
CREATE TABLE media_contents (
    hash BYTEA NOT NULL PRIMARY KEY,
    length BIGINT NOT NULL,
    created_at_ms BIGINT NOT NULL
) CLUSTERED;

-- What an mxc:// URI stands for. Media of other servers have no uploader; what was created and not uploaded yet has no content, and an end.
CREATE TABLE media (
    server_name TEXT NOT NULL,
    media_id TEXT NOT NULL,
    hash BYTEA,
    content_type TEXT,
    file_name TEXT,
    uploader_nr BIGINT,
    created_at_ms BIGINT NOT NULL,
    expires_at_ms BIGINT,
    PRIMARY KEY (server_name, media_id)
) CLUSTERED;
CREATE INDEX media_by_content ON media (hash);
CREATE INDEX media_pending ON media (uploader_nr, expires_at_ms) WHERE expires_at_ms IS NOT NULL;
CREATE INDEX media_by_end ON media (expires_at_ms) WHERE expires_at_ms IS NOT NULL;
