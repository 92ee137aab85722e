-- Who is typing where: a row is a room, and says its users, with spaces between. What ends is "room user".
-- ARGV: 9 set: the room     10 set: the user     11 set: for how many milliseconds, -1 to stop

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

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

local function nobody_types(room)
    return redis.call('HEXISTS', KEYS[4], room) == 0
end

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
        if count < tonumber(ARGV[6]) and make_place(room, nobody_types) then
            redis.call('HSET', KEYS[4], room, users == '' and user or users .. ' ' .. user)
            redis.call('ZADD', KEYS[2], now_ms + for_ms, member)
            note_change(room)
        end
    end
elseif ARGV[1] == 'tick' then
    for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now_ms, 'LIMIT', 0, rows_max)) do
        stop(string.match(member, '^(%S+) (%S+)$'))
    end
end
