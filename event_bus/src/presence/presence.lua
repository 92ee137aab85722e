-- Who is there: a row is a user, and says: the position of the last change that others are shown, whether the user is away (1 or 0),
-- and the record. What ends is "user", when time alone changes what is shown, and "user device", when the device counts as gone.
-- ARGV: 9... put: for each record six: the user, the position that the caller changes (0 for none), whether others are told (1 or 0),
--            whether the user is away, when time alone changes it (-1 for never), the record
--       9... touch: for each device its end and "user device"
--       9 due: now      9... done: what has ended and the end that `due` gave it

local function is_away(user)
    return string.match(redis.call('HGET', KEYS[4], user) or '', '^%d+ (%d)') ~= '0'
end

if ARGV[1] == 'put' then
    for i = 9, #ARGV, 6 do
        local user, until_ms = ARGV[i], ARGV[i + 4]
        local changed = redis.call('ZSCORE', KEYS[3], user)
        local before = redis.call('HGET', KEYS[4], user) or ''
        if as_text(tonumber(changed or '0')) ~= ARGV[i + 1] then
            answer[#answer + 1] = { user, as_text(tonumber(changed or '0')), before }
        elseif make_place(user, is_away) then
            note_change(user)
            local shown = ARGV[i + 2] == '1' and as_text(position) or string.match(before, '^%d+') or '0'
            redis.call('HSET', KEYS[4], user, shown .. ' ' .. ARGV[i + 3] .. ' ' .. ARGV[i + 5])
            if until_ms == '-1' then
                redis.call('ZREM', KEYS[2], user)
            else
                redis.call('ZADD', KEYS[2], until_ms, user)
            end
        end
    end
elseif ARGV[1] == 'touch' then
    for i = 9, #ARGV, 2 do redis.call('ZADD', KEYS[2], ARGV[i], ARGV[i + 1]) end
elseif ARGV[1] == 'due' then
    -- Others take it up should this process die.
    local again = as_text(tonumber(ARGV[9]) + 5000)
    for _, ended in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', ARGV[9], 'LIMIT', 0, rows_max)) do
        redis.call('ZADD', KEYS[2], again, ended)
        answer[#answer + 1] = ended
        answer[#answer + 1] = again
    end
elseif ARGV[1] == 'done' then
    for i = 9, #ARGV, 2 do
        local ends = redis.call('ZSCORE', KEYS[2], ARGV[i])
        if ends and as_text(tonumber(ends)) == ARGV[i + 1] then redis.call('ZREM', KEYS[2], ARGV[i]) end
    end
end
