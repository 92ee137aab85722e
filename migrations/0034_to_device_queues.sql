-- How many messages of its device there were with this one, and their bytes, since nothing waited: what waits is told by the first and the
-- last. Messages of before this migration count as nothing.
ALTER TABLE to_device ADD COLUMN number BIGINT NOT NULL DEFAULT 0;
ALTER TABLE to_device ADD COLUMN bytes BIGINT NOT NULL DEFAULT 0;
CREATE INDEX to_device_queue ON to_device (user_nr, device_id, position, number, bytes);
DROP INDEX to_device_device;

-- Of the signatures on a user's keys those of one signer: few, however many others verified the user.
CREATE INDEX key_signatures_signer ON key_signatures (user_nr, signer_nr);
