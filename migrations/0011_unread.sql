-- What counts as unread, without a row for each member.

-- Live events that may notify somebody, and all events of threads, by which of the default push rules fit them (class, see
-- rooms/src/push/class.rs). thread is the root's event id, or empty for the main timeline. user_nr is 0 for the event itself, or a user whom it mentions: that is a row more.
-- A redaction deletes them.
CREATE TABLE countable_events (
    room_nr BIGINT NOT NULL,
    position BIGINT NOT NULL,
    user_nr BIGINT NOT NULL,
    sender_nr BIGINT NOT NULL,
    class BIGINT NOT NULL,
    thread TEXT NOT NULL,
    PRIMARY KEY (room_nr, position, user_nr)
) CLUSTERED;
CREATE INDEX countable_events_threads ON countable_events (room_nr, position) WHERE thread <> '';

-- Up to where users of ours have read: by receipts of any kind, by what they sent, and by joining. thread is the root's event id, `main`,
-- or empty for all threads.
CREATE TABLE read_positions (
    user_nr BIGINT NOT NULL,
    room_nr BIGINT NOT NULL,
    thread TEXT NOT NULL,
    position BIGINT NOT NULL,
    PRIMARY KEY (user_nr, room_nr, thread)
) HOT;

-- Nothing of before was counted: it counts as read.
INSERT INTO read_positions (user_nr, room_nr, thread, position)
SELECT user_nr, room_nr, '', (SELECT coalesce(max(position), 0) FROM commits) FROM memberships
 WHERE is_local AND membership = 3;
