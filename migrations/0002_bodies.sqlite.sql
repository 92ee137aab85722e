-- The events' JSON after a format byte ('p' plain). Month 0 has the state events, which never leave.
CREATE TABLE event_bodies (
    event_nr INTEGER PRIMARY KEY,
    month BIGINT NOT NULL,
    body BLOB NOT NULL
);
