-- grant.lua -- v1
-- After a new plan, and against wake-ups that were lost: counts what is in flight anew from what is open, tells lent work that is in the way
-- to give way (its gateway, by `!<request id>`), then grants the room there is.
-- KEYS: {c:CELL}:open, four times. ARGV: `room` to grant room and do nothing else, or `all`.
-- Returns: {now_ms, tenants that wait for on-demand, for flex, requests open, ms after which room should be granted again (0 = no need),
--   requests asked to give way again}
local LONG_MS = 2000
-- Rounds, of a second each, in which a request that was asked to give way may stop; then it is asked again, as the message may be lost.
local ROUNDS_TO_GO, repeats = 3, 0
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
    local name = prefix .. 'r:' .. request_id
    local v = redis.call('HMGET', name, 'gw', 'seq')
    local sequences = tonumber(v[2] or 0)
    if not v[2] then
      -- Redis has lost it, and there is nobody to ask.
      redis.call('ZREM', lent_at(instance), request_id)
    elseif sequences > 0 then
      -- It stays in the list until its place is free: who was asked in an earlier round is on its way, or has not heard.
      local rounds = redis.call('HINCRBY', name, 'asked', 1)
      local asks = rounds % ROUNDS_TO_GO == 1
      if not asks or redis.call('PUBLISH', 'taas:wake:' .. (v[1] or ''), '!' .. request_id) > 0 then
        excess = excess - sequences
        if asks and rounds > 1 then repeats = repeats + 1 end
      else
        -- Nobody listens there now: the next round asks, and meanwhile another may go.
        redis.call('HSET', name, 'asked', 0)
      end
    end
    if excess <= 0 then break end
  end
  redis.call('HSET', room_key, 'g:' .. instance, 0)
end
grant_all()
return {now_ms, redis.call('ZCARD', prefix .. 'w:o'), redis.call('ZCARD', prefix .. 'w:f'), #names, pace_ms, repeats}
