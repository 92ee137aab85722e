-- A state in Redis of which all processes of a deployment have a copy. Runs whole or not at all.
--
-- KEYS: 1 hash: incarnation, position (counts the changes), floor (rows last changed at or before it may be forgotten)
--       2 sorted set: what ends by itself, by its end, in milliseconds since 1970
--       3 sorted set: row by the position of its last change
--       4 hash: row -> what it says
-- ARGV: 1 what to do; all know tick and read     2 an incarnation, should a new life begin
--       3, 4 the newest incarnation and position that the caller has seen     5 the channel of the others
--       6 most parts of a row     7 most rows     8 most rows that are read or ended at once
--       9, 10 read: incarnation and position of the caller's copy

local incarnation = redis.call('HGET', KEYS[1], 'incarnation')
local position = tonumber(redis.call('HGET', KEYS[1], 'position') or '0')
local floor = tonumber(redis.call('HGET', KEYS[1], 'floor') or '0')
-- Nothing is there, or an older copy of what was (Redis came back from its disk, or a replica took over).
if not incarnation or (incarnation == ARGV[3] and position < tonumber(ARGV[4])) then
    redis.call('DEL', KEYS[1], KEYS[2], KEYS[3], KEYS[4])
    incarnation, position, floor = ARGV[2], 0, 0
    redis.call('HSET', KEYS[1], 'incarnation', incarnation, 'position', 0, 'floor', 0)
end
local before = position
local rows_max = tonumber(ARGV[8])
local answer = {}

local function as_text(number)
    return string.format('%.0f', number)
end

local function note_change(row)
    position = position + 1
    redis.call('ZADD', KEYS[3], position, row)
end

-- Whether another row may be added. When there are too many, the oldest that say nothing of worth are forgotten; others become the
-- newest, so that all rows that are left were changed after the floor.
local function make_place(row, is_worthless)
    if redis.call('ZSCORE', KEYS[3], row) or redis.call('ZCARD', KEYS[3]) < tonumber(ARGV[7]) then return true end
    local oldest = redis.call('ZRANGE', KEYS[3], 0, rows_max - 1, 'WITHSCORES')
    local has_place = false
    for i = 1, #oldest, 2 do
        if is_worthless(oldest[i]) then
            redis.call('ZREM', KEYS[3], oldest[i])
            redis.call('HDEL', KEYS[4], oldest[i])
            has_place = true
        else
            note_change(oldest[i])
        end
        floor = tonumber(oldest[i + 1])
    end
    redis.call('HSET', KEYS[1], 'floor', floor)
    return has_place
end

