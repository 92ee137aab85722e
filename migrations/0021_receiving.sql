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
