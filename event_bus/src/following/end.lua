
if ARGV[1] == 'tick' then
    -- It goes with the last process.
    for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, 86400) end
elseif ARGV[1] == 'read' then
    local after = tonumber(ARGV[10])
    local is_whole = incarnation ~= ARGV[9] or after < floor
    if is_whole then after = 0 end
    local found = redis.call('ZRANGEBYSCORE', KEYS[3], '(' .. after, '+inf', 'WITHSCORES', 'LIMIT', 0, rows_max)
    local rows = {}
    for i = 1, #found, 2 do
        rows[#rows + 1] = { found[i], found[i + 1], redis.call('HGET', KEYS[4], found[i]) or '' }
    end
    answer = { as_text(floor), is_whole and 1 or 0, rows }
end
if position ~= before then
    redis.call('HSET', KEYS[1], 'position', as_text(position))
    redis.call('PUBLISH', ARGV[5], incarnation .. ' ' .. as_text(position))
end
return { incarnation, as_text(position), answer }
