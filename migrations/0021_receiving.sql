-- Transactions of other servers that were worked off, with what was answered: one that comes again is answered the same.
CREATE TABLE received_transactions (
    destination TEXT NOT NULL,
    origin TEXT NOT NULL,
    transaction_id TEXT NOT NULL,
    answer TEXT NOT NULL,
    at_ms BIGINT NOT NULL,
    PRIMARY KEY (destination, origin, transaction_id)
) CLUSTERED;
CREATE INDEX received_transactions_age ON received_transactions (at_ms);

-- Events of which events before them are not here: behind such a one in the timeline, other servers have more.
CREATE TABLE backward_gaps (
    room_nr BIGINT NOT NULL,
    missing_id TEXT NOT NULL,
    event_nr BIGINT NOT NULL,
    PRIMARY KEY (room_nr, missing_id, event_nr)
) CLUSTERED;
CREATE INDEX backward_gaps_event ON backward_gaps (event_nr);
