-- A one-time key that was claimed stays for a while: it is not given out again when its device, which got no answer, uploads it again.
ALTER TABLE one_time_keys ADD COLUMN claimed_at_ms BIGINT;
CREATE INDEX one_time_keys_unclaimed ON one_time_keys (user_nr, device_id, algorithm, uploaded_at_ms, key_id)
 WHERE claimed_at_ms IS NULL;
CREATE INDEX one_time_keys_claimed ON one_time_keys (user_nr, device_id, claimed_at_ms) WHERE claimed_at_ms IS NOT NULL;

-- The device of a user that takes messages while nobody is logged in with it; it is one of their devices too. device_data is a JSON object
-- that only the user's clients understand.
CREATE TABLE dehydrated_devices (
    user_nr BIGINT NOT NULL PRIMARY KEY,
    device_id TEXT NOT NULL,
    device_data TEXT NOT NULL
) CLUSTERED;
