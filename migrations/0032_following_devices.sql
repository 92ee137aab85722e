-- What of a user's devices and keys changed: the device, '' for the keys by which the user signs, nothing where it may be anything.
-- follows: the newest change before it by whose position other servers may know the list.
ALTER TABLE device_list_changes ADD COLUMN device_id TEXT;
ALTER TABLE device_list_changes ADD COLUMN follows BIGINT;

-- Which changes are still to be told, of work of kind 1 (see user_work); when there is none, anything may have changed.
CREATE TABLE changed_devices (
    user_nr BIGINT NOT NULL,
    device_id TEXT NOT NULL,
    stamp BIGINT NOT NULL,
    PRIMARY KEY (user_nr, device_id)
) CLUSTERED;

-- Whose keys a user signed, when last: nobody but the user is told.
CREATE TABLE signed_users (
    user_nr BIGINT NOT NULL,
    signed_nr BIGINT NOT NULL,
    position BIGINT NOT NULL,
    PRIMARY KEY (user_nr, signed_nr)
) CLUSTERED;
CREATE INDEX signed_users_position ON signed_users (user_nr, position);
