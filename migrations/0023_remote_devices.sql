-- The devices of users of other servers who share a room with users of ours. Their cross-signing keys are beside those of our users.

-- A list that is kept: stream_id names the newest update that is in it. With ask_at_ms it lacks something, and its server is to be asked
-- then. asked_at_ms is when it was asked last, failures how often in a row without success. Each change of the row gives another stamp.
CREATE TABLE remote_device_lists (
    user_nr BIGINT PRIMARY KEY,
    stream_id BIGINT,
    ask_at_ms BIGINT,
    asked_at_ms BIGINT NOT NULL,
    failures BIGINT NOT NULL,
    stamp BIGINT NOT NULL
) HOT;
CREATE INDEX remote_device_lists_due ON remote_device_lists (ask_at_ms) WHERE ask_at_ms IS NOT NULL;

-- Devices with keys; those without get no messages that only they could read.
CREATE TABLE remote_devices (
    user_nr BIGINT NOT NULL,
    device_id TEXT NOT NULL,
    keys TEXT NOT NULL,
    display_name TEXT,
    PRIMARY KEY (user_nr, device_id)
) CLUSTERED;
