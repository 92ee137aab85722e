-- One word for the main timeline, in events as in receipts; subscriptions to threads by room; what redactions take off counts.

-- Those of the redacted events that might count, packed, each with whether it was in a thread. NULL: an older program wrote the row.
-- First, as writers lock the tables in this order.
ALTER TABLE commits ADD COLUMN uncounted BYTEA;

UPDATE countable_events SET thread = 'main' WHERE thread = '';
DROP INDEX countable_events_threads;
CREATE INDEX countable_events_threads ON countable_events (room_nr, position) WHERE thread <> 'main';

-- The new bits of classes (see rooms/src/push/class.rs): a text, and what default rules keep quiet. Which messages of before have a text
-- is not looked up: nearly all have.
UPDATE countable_events SET class = class | 1024 WHERE class & 1 <> 0;
UPDATE countable_events SET class = class | 2048
 WHERE thread <> 'main' AND position IN (SELECT e.position FROM events e JOIN type_numbers t ON t.type_nr = e.type_nr
                                          WHERE t.type = 'm.reaction' AND e.position IS NOT NULL);
UPDATE countable_events SET class = class | 8192
 WHERE thread <> 'main' AND position IN (SELECT e.position FROM events e JOIN type_numbers t ON t.type_nr = e.type_nr
                                          WHERE t.type = 'org.matrix.msc3381.poll.response' AND e.position IS NOT NULL);

CREATE INDEX thread_subscriptions_room ON thread_subscriptions (user_nr, room_nr);
