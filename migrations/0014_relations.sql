-- How events relate to others, the threads that come of it, and when events were made.

-- By the clock of the sender's server.
ALTER TABLE events ADD COLUMN origin_server_ts BIGINT NOT NULL DEFAULT 0;
CREATE INDEX events_made ON events (room_nr, origin_server_ts, event_nr) WHERE anchor IS NOT NULL;

-- One row for each event in a timeline that relates to another, its parent, which may come later or never: parents go by id.
-- rel_type_nr is a number of type_numbers. (anchor, step) is the event's place. is_whole says that the event has all that a relation
-- of its type asks of it. annotation_key is the hash of an annotation's key, by which our users annotate an event once only.
CREATE TABLE relations (
    event_nr BIGINT PRIMARY KEY,
    room_nr BIGINT NOT NULL,
    parent_id TEXT NOT NULL,
    rel_type_nr BIGINT NOT NULL,
    type_nr BIGINT NOT NULL,
    sender_nr BIGINT NOT NULL,
    origin_server_ts BIGINT NOT NULL,
    anchor BIGINT NOT NULL,
    step BIGINT NOT NULL,
    is_whole BOOLEAN NOT NULL,
    annotation_key BIGINT
);
CREATE INDEX relations_places ON relations (room_nr, parent_id, rel_type_nr, anchor, step);
CREATE INDEX relations_children ON relations (room_nr, parent_id, anchor, step);
CREATE INDEX relations_senders ON relations (room_nr, parent_id, rel_type_nr, sender_nr, origin_server_ts);
CREATE UNIQUE INDEX relations_annotations ON relations (room_nr, parent_id, sender_nr, type_nr, annotation_key)
    WHERE annotation_key IS NOT NULL;

-- Each thread with the number of its events and the place of the newest one. A thread whose events were all redacted has none.
CREATE TABLE threads (
    room_nr BIGINT NOT NULL,
    root_id TEXT NOT NULL,
    events BIGINT NOT NULL,
    anchor BIGINT NOT NULL,
    step BIGINT NOT NULL,
    PRIMARY KEY (room_nr, root_id)
) CLUSTERED;
CREATE INDEX threads_places ON threads (room_nr, anchor, step);

-- What is stored already is read again at the next start, which goes on from here until it is done and the row is gone.
INSERT INTO consumers (name, position, process, lease_until_ms)
SELECT 'relations', 0, '', 0 WHERE EXISTS (SELECT 1 FROM events);
