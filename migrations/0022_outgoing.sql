-- What other servers are to be sent, and who sends it.

-- The processes that send. A row that is not renewed is a process that died.
CREATE TABLE sender_processes (
    process TEXT NOT NULL PRIMARY KEY,
    alive_until_ms BIGINT NOT NULL
) CLUSTERED;

-- Destinations are dealt out in shares; one process sends to those of a share. All up to `position` is sent to them, or in `arrears`.
-- The fence counts the processes that had the share.
CREATE TABLE sender_shares (
    share BIGINT PRIMARY KEY,
    position BIGINT NOT NULL,
    process TEXT NOT NULL,
    fence BIGINT NOT NULL
) HOT;
WITH RECURSIVE numbers (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n < 15)
INSERT INTO sender_shares (share, position, process, fence)
SELECT n, (SELECT coalesce(max(position), 0) FROM commits), '', 0 FROM numbers;

-- Destinations that are behind: all up to `sent_upto` is sent to them, what follows is to be looked up.
CREATE TABLE arrears (
    origin TEXT NOT NULL,
    destination TEXT NOT NULL,
    share BIGINT NOT NULL,
    sent_upto BIGINT NOT NULL,
    PRIMARY KEY (origin, destination)
) CLUSTERED;
CREATE INDEX arrears_share ON arrears (share);

-- EDUs that must arrive.
CREATE TABLE outgoing_edus (
    position BIGINT PRIMARY KEY,
    origin TEXT NOT NULL,
    destination TEXT NOT NULL,
    edu TEXT NOT NULL
);
CREATE INDEX outgoing_edus_destination ON outgoing_edus (destination, origin, position);

-- Events for destinations that are behind and that their rooms no longer show.
CREATE TABLE outgoing_events (
    destination TEXT NOT NULL,
    origin TEXT NOT NULL,
    event_nr BIGINT NOT NULL,
    PRIMARY KEY (destination, origin, event_nr)
) CLUSTERED;

-- Servers that gave no answer. One that does again has no tries, for as long as others may have to hear of it.
CREATE TABLE server_outages (
    server TEXT NOT NULL PRIMARY KEY,
    since_ms BIGINT NOT NULL,
    tries BIGINT NOT NULL,
    next_try_ms BIGINT NOT NULL,
    is_unreachable BOOLEAN NOT NULL,
    last_error TEXT NOT NULL,
    changed_ms BIGINT NOT NULL
) CLUSTERED;
CREATE INDEX server_outages_changed ON server_outages (changed_ms);

CREATE INDEX room_servers_server ON room_servers (server, room_nr);
