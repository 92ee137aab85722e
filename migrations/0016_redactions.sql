-- Redactions that wait for what they redact, or cannot redact it: nobody is shown them. By what they redact.
CREATE TABLE held_redactions (
    event_nr BIGINT PRIMARY KEY,
    room_nr BIGINT NOT NULL,
    target_id TEXT NOT NULL
);
CREATE INDEX held_redactions_target ON held_redactions (room_nr, target_id);

-- Redactions whose sender asked that what relates to the target in one of these ways (a JSON list) is redacted, too. target_rel_type is
-- how the target related to another event itself. What other servers send later is to be looked at again: is_done says whether all was
-- looked at, and looks counts how often that was asked for.
CREATE TABLE related_redactions (
    redaction_nr BIGINT PRIMARY KEY,
    room_nr BIGINT NOT NULL,
    target_id TEXT NOT NULL,
    target_rel_type TEXT,
    rel_types TEXT NOT NULL,
    looks BIGINT NOT NULL,
    is_done BOOLEAN NOT NULL
);
CREATE INDEX related_redactions_target ON related_redactions (room_nr, target_id);
CREATE INDEX related_redactions_open ON related_redactions (redaction_nr) WHERE NOT is_done;
