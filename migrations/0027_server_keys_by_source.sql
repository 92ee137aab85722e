-- What the server said itself counts more than what a notary said of it.
ALTER TABLE server_keys ADD COLUMN is_direct BOOLEAN NOT NULL DEFAULT TRUE;
ALTER TABLE server_key_answers ADD COLUMN is_direct BOOLEAN NOT NULL DEFAULT TRUE;
-- To drop what strangers left here.
CREATE INDEX server_key_answers_by_age ON server_key_answers (fetched_at_ms);
CREATE INDEX IF NOT EXISTS room_servers_by_server ON room_servers (server);
