-- Which threads users have subscribed to. state: 0 not any more, 1 by a client, 2 by the user.

CREATE TABLE thread_subscriptions (
    user_nr BIGINT NOT NULL,
    root_nr BIGINT NOT NULL,
    room_nr BIGINT NOT NULL,
    state BIGINT NOT NULL,
    position BIGINT NOT NULL,
    PRIMARY KEY (user_nr, root_nr)
) CLUSTERED;
CREATE INDEX thread_subscriptions_position ON thread_subscriptions (user_nr, position);
