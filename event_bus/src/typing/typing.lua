-- Who is typing where, kept in Redis for all processes of a deployment. Runs whole or not at all.
--
-- KEYS: 1 hash: incarnation, position (counts the changes), floor (rooms last changed at or before it may be forgotten)
--       2 sorted set: "room user" by the end of their typing, in milliseconds since 1970
--       3 sorted set: room by the position of its last change
--       4 hash: room -> its users, with spaces between
-- ARGV: 1 what to do: set, tick, read     2 an incarnation, should a new life begin
--       3, 4 the newest incarnation and position that the caller has seen     5 the channel of the others
--       6 most users of a room     7 most rooms     8 most rows that are read or ended at once
--       9 set: the room; read: incarnation of the caller's copy     10 set: the user; read: position of the copy
--       11 set: for how many milliseconds, -1 to stop

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
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local rows_max = tonumber(ARGV[8])

local function note_change(room)
    position = position + 1
    redis.call('ZADD', KEYS[3], position, room)
end

local function stop(room, user)
    local users = {}
    for other in string.gmatch(redis.call('HGET', KEYS[4], room) or '', '%S+') do
        if other ~= user then users[#users + 1] = other end
    end
    if #users > 0 then
        redis.call('HSET', KEYS[4], room, table.concat(users, ' '))
    else
        redis.call('HDEL', KEYS[4], room)
    end
    redis.call('ZREM', KEYS[2], room .. ' ' .. user)
    note_change(room)
end

-- Whether another room may be added. When there are too many, the oldest where nobody types are forgotten; where somebody does
-- becomes the newest, so that all rooms that are left were changed after the floor.
local function make_place(room)
    if redis.call('ZSCORE', KEYS[3], room) or redis.call('ZCARD', KEYS[3]) < tonumber(ARGV[7]) then return true end
    local oldest = redis.call('ZRANGE', KEYS[3], 0, rows_max - 1, 'WITHSCORES')
    local has_place = false
    for i = 1, #oldest, 2 do
        if redis.call('HEXISTS', KEYS[4], oldest[i]) == 0 then
            redis.call('ZREM', KEYS[3], oldest[i])
            has_place = true
        else
            note_change(oldest[i])
        end
        floor = tonumber(oldest[i + 1])
    end
    redis.call('HSET', KEYS[1], 'floor', floor)
    return has_place
end

local answer = {}
if ARGV[1] == 'set' then
    local room, user, for_ms = ARGV[9], ARGV[10], tonumber(ARGV[11])
    local member = room .. ' ' .. user
    local is_typing = redis.call('ZSCORE', KEYS[2], member)
    if for_ms < 0 then
        if is_typing then stop(room, user) end
    elseif is_typing then
        redis.call('ZADD', KEYS[2], now_ms + for_ms, member)
    else
        local users = redis.call('HGET', KEYS[4], room) or ''
        local _, count = string.gsub(users, '%S+', '')
        if count < tonumber(ARGV[6]) and make_place(room) then
            redis.call('HSET', KEYS[4], room, users == '' and user or users .. ' ' .. user)
            redis.call('ZADD', KEYS[2], now_ms + for_ms, member)
            note_change(room)
        end
    end
elseif ARGV[1] == 'tick' then
    for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now_ms, 'LIMIT', 0, rows_max)) do
        stop(string.match(member, '^(%S+) (%S+)$'))
    end
    -- It goes with the last process.
    for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, 86400) end
else
    local after = tonumber(ARGV[10])
    local is_whole = incarnation ~= ARGV[9] or after < floor
    if is_whole then after = 0 end
    local found = redis.call('ZRANGEBYSCORE', KEYS[3], '(' .. after, '+inf', 'WITHSCORES', 'LIMIT', 0, rows_max)
    local rows = {}
    for i = 1, #found, 2 do
        rows[#rows + 1] = { found[i], found[i + 1], redis.call('HGET', KEYS[4], found[i]) or '' }
    end
    answer = { string.format('%.0f', floor), is_whole and 1 or 0, rows }
end
if position ~= before then
    redis.call('HSET', KEYS[1], 'position', string.format('%.0f', position))
    redis.call('PUBLISH', ARGV[5], incarnation .. ' ' .. string.format('%.0f', position))
end
return { incarnation, string.format('%.0f', position), answer }
