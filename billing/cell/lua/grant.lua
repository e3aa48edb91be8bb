-- grant.lua -- v1
-- After a new plan, and against wake-ups that were lost: counts what is in flight anew from what is open, tells lent work that is in the way
-- to give way (its gateway, by `!<request id>`), then grants the room there is.
-- KEYS: {c:CELL}:open, four times. ARGV: `room` to grant room and do nothing else, or `all`.
-- Returns: {now_ms, tenants that wait for on-demand, for flex, requests open, ms after which room should be granted again (0 = no need)}
local LONG_MS = 2000
local counted, names = {}, ARGV[1] == 'all' and redis.call('ZRANGE', open, 0, -1) or {}
for _, request_id in ipairs(names) do
  local v = redis.call('HMGET', prefix .. 'r:' .. request_id, 'state', 'cls', 'inst', 'seq', 'gw', 'at')
  -- A wake may have been lost, or its gateway since.
  if v[1] == 'granted' and redis.call('PUBLISH', 'taas:wake:' .. v[5], request_id) == 0 then
    drop(request_id)
  elseif v[3] and v[3] ~= '' and (v[1] == 'open' or v[1] == 'granted') then
    local field = v[2] .. ':' .. v[3]
    counted[field] = (counted[field] or 0) + tonumber(v[4])
    -- A place that has been had for so long does not come back soon.
    if v[2] == 'o' and now_ms - (v[6] or now_ms) > LONG_MS then
      field = 'l:' .. v[3]
      counted[field] = (counted[field] or 0) + tonumber(v[4])
    end
  end
end
for _, field in ipairs(ARGV[1] == 'all' and redis.call('HKEYS', flight_key) or {}) do
  if field:sub(2, 2) == ':' and not counted[field] then redis.call('HDEL', flight_key, field) end
end
for field, sequences in pairs(counted) do redis.call('HSET', flight_key, field, sequences) end
for _, instance in ipairs(ARGV[1] == 'all' and names_of('g:') or {}) do
  local excess = tonumber(redis.call('HGET', room_key, 'g:' .. instance))
  for _, request_id in ipairs(excess > 0 and redis.call('ZRANGE', lent_at(instance), 0, -1) or {}) do
    local v = redis.call('HMGET', prefix .. 'r:' .. request_id, 'gw', 'seq')
    local sequences = tonumber(v[2] or 1)
    -- What has none frees none; what Redis has lost is not there to be told.
    if sequences > 0 then
      redis.call('ZREM', lent_at(instance), request_id)
      redis.call('PUBLISH', 'taas:wake:' .. (v[1] or ''), '!' .. request_id)
      excess = excess - sequences
    end
    if excess <= 0 then break end
  end
  redis.call('HSET', room_key, 'g:' .. instance, 0)
end
grant_all()
return {now_ms, redis.call('ZCARD', prefix .. 'w:o'), redis.call('ZCARD', prefix .. 'w:f'), #names, pace_ms}
