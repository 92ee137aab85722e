-- When each room last saw what counts as activity: its newest event of the types of `model::is_bump`.

ALTER TABLE room_heads ADD COLUMN bump BIGINT NOT NULL DEFAULT 0;
UPDATE room_heads SET bump = coalesce((
    SELECT max(e.position)
      FROM events e JOIN type_numbers t ON t.type_nr = e.type_nr
     WHERE e.room_nr = room_heads.room_nr
       AND t.type IN ('m.room.create', 'm.room.message', 'm.room.encrypted', 'm.sticker', 'm.call.invite', 'm.poll.start',
                      'org.matrix.msc3381.poll.start', 'm.beacon_info')), 0);
