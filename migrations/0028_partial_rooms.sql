-- Rooms that users of ours have joined and whose members are not all here yet, with the join by which they came here.
CREATE TABLE partial_rooms (
    room_nr BIGINT PRIMARY KEY,
    join_nr BIGINT NOT NULL,
    as_server TEXT NOT NULL,
    resident TEXT NOT NULL,
    begun_at_ms BIGINT NOT NULL,
    tries BIGINT NOT NULL,
    next_try_ms BIGINT NOT NULL
);
CREATE INDEX partial_rooms_due ON partial_rooms (next_try_ms);

-- Beside the current state, so that a commit sees whether it lacks members.
ALTER TABLE room_heads ADD COLUMN is_partial BOOLEAN NOT NULL DEFAULT FALSE;

-- Whether another server said that this one is in the room: it is sent what is said there, and sees no more of it than its members do.
ALTER TABLE room_servers ADD COLUMN told BOOLEAN NOT NULL DEFAULT FALSE;

-- Events (flag 32) whose state lacks members.
CREATE INDEX events_partial ON events (room_nr, event_nr) WHERE flags & 32 <> 0;

-- When the current state of rooms lacked members: from the position of the join until all were here.
CREATE TABLE partial_spans (
    room_nr BIGINT NOT NULL,
    began BIGINT NOT NULL,
    ended BIGINT NOT NULL,
    PRIMARY KEY (room_nr, ended)
) CLUSTERED;
