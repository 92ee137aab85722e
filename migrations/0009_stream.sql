-- What each group put into the stream, packed, so that other processes read it in one go.

ALTER TABLE commits ADD COLUMN items BYTEA;
ALTER TABLE commits ADD COLUMN redacted BYTEA;
-- Nobody read these.
ALTER TABLE commits DROP COLUMN first;
ALTER TABLE commits DROP COLUMN epoch;
ALTER TABLE commits DROP COLUMN process;
ALTER TABLE commits DROP COLUMN kinds;
DROP INDEX events_redacted_by;
DROP TABLE state_changes;
