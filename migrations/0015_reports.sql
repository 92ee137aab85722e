-- What users have reported, for those who administer the server. A report is about a user, or about a room, or about an event in it: what
-- it is not about is empty.
CREATE TABLE reports (
    report_nr BIGINT PRIMARY KEY,
    at_ms BIGINT NOT NULL,
    reporter_nr BIGINT NOT NULL,
    room_id TEXT NOT NULL,
    event_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    reason TEXT NOT NULL
);
