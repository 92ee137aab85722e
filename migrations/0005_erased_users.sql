-- Users who asked to be forgotten, and where the stream was then: who joined a room later is shown their events redacted.
ALTER TABLE users ADD COLUMN erased_position BIGINT;
UPDATE users SET erased_position = (SELECT coalesce(max(position), 0) FROM commits) WHERE is_erased;
CREATE INDEX users_erased ON users (user_nr) WHERE erased_position IS NOT NULL;
