-- The events' JSON after a format byte ('p' plain). Month 0 has the state events, which never leave; the others are in
-- partitions of one month each (months since 1970-01), made ahead of time, with a last resort for what fits none.
CREATE TABLE event_bodies (
    month BIGINT NOT NULL,
    event_nr BIGINT NOT NULL,
    body BYTEA NOT NULL,
    PRIMARY KEY (month, event_nr)
) PARTITION BY RANGE (month);
CREATE TABLE event_bodies_state PARTITION OF event_bodies FOR VALUES FROM (0) TO (1);
CREATE TABLE event_bodies_rest PARTITION OF event_bodies DEFAULT;
