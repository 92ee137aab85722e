-- One-time keys that were claimed stay known for a while: they are not given out again when their device, which got no answer, uploads them
-- again. In a table of their own: programs of before, which may still be running, give out whatever they find in the other.
CREATE TABLE claimed_one_time_keys (
    user_nr BIGINT NOT NULL,
    device_id TEXT NOT NULL,
    algorithm TEXT NOT NULL,
    key_id TEXT NOT NULL,
    key TEXT NOT NULL,
    claimed_at_ms BIGINT NOT NULL,
    PRIMARY KEY (user_nr, device_id, algorithm, key_id)
) CLUSTERED;
CREATE INDEX claimed_one_time_keys_age ON claimed_one_time_keys (claimed_at_ms);
CREATE INDEX one_time_keys_age ON one_time_keys (user_nr, device_id, algorithm, uploaded_at_ms, key_id);

-- The device of a user that takes messages while nobody is logged in with it; it is one of their devices too. device_data is a JSON object
-- that only the user's clients understand.
CREATE TABLE dehydrated_devices (
    user_nr BIGINT NOT NULL PRIMARY KEY,
    device_id TEXT NOT NULL,
    device_data TEXT NOT NULL
) CLUSTERED;
