-- What is kept of a user's presence: the rest is in memory. is_there says who was there when a server ended without warning.
CREATE TABLE presence (
    user_nr BIGINT PRIMARY KEY,
    status_msg TEXT,
    is_there BOOLEAN NOT NULL,
    last_active_ms BIGINT NOT NULL
) HOT;
CREATE INDEX presence_there ON presence (user_nr) WHERE is_there;
