-- The current state of each room as of each position at which it changed: by a state event, or by state resolution.
CREATE TABLE room_states (
    room_nr BIGINT NOT NULL,
    position BIGINT NOT NULL,
    state_node BIGINT NOT NULL,
    PRIMARY KEY (room_nr, position)
) CLUSTERED;
INSERT INTO room_states (room_nr, position, state_node)
SELECT room_nr, position, state_node FROM events WHERE position IS NOT NULL AND state_key_nr IS NOT NULL;

-- Numbers of state nodes come from blocks, like all numbers: two processes that build upon one head never use the same.
INSERT INTO number_blocks (kind, next) SELECT 'state_node', coalesce(max(node_nr), 0) + 1 FROM state_nodes;
ALTER TABLE room_heads DROP COLUMN next_node;

-- Finds what a redaction redacted.
CREATE INDEX events_redacted_by ON events (redacted_by) WHERE redacted_by IS NOT NULL;
