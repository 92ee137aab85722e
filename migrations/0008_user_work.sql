-- What a change of a user's has still to cause: written in the transaction of the change, deleted when it is done. kind: 1 tell who
-- follows the devices, 2 tell who follows the profile, 3 delete what waits for devices, 4 leave the rooms. Each change gives another stamp.
CREATE TABLE user_work (
    user_nr BIGINT NOT NULL,
    kind BIGINT NOT NULL,
    stamp BIGINT NOT NULL,
    PRIMARY KEY (user_nr, kind)
) CLUSTERED;
