-- Rooms that none of our servers is in, and what rooms lack here.

-- What somebody who was invited, or who knocked, was shown of a room that none of our servers was in: by the member event, a
-- list of stripped state events in JSON.
CREATE TABLE stripped_states (
    event_nr BIGINT PRIMARY KEY,
    events TEXT NOT NULL
);

-- Events of a timeline before which something is missing: not all of their previous events are here.
CREATE TABLE backward_gaps (
    room_nr BIGINT NOT NULL,
    event_nr BIGINT NOT NULL,
    PRIMARY KEY (room_nr, event_nr)
) CLUSTERED;
