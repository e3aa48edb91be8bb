-- find_place.lua -- v1, a part
-- Third part of reserve: a place on an instance, or in line.
-- KEYS, ARGV: those of reserve.lua. Returns nothing, it defines what the next parts use.
local instance, epoch
local function candidate(wanted)
  for i = CANDIDATES, #ARGV, 2 do
    if wanted(ARGV[i]) then
      instance, epoch = ARGV[i], ARGV[i + 1]
      return
    end
  end
end
-- What makes no tokens needs no room.
if class == 'r' or sequences == 0 then
  candidate(function() return true end)
elseif state == 'granted' then
  candidate(function(name) return name == held[3] end)
  if not instance then
    -- The place is where this gateway does not see an instance: back in line, at once.
    drop(request_id)
    state, tenant.v = nil, tonumber(redis.call('HGET', tenant.key, 'v') or 0)
  end
end
local waiting = prefix .. 'w:' .. (class == 'f' and 'f' or 'o')
local vl = tonumber(redis.call('HGET', flight_key, 'vl') or 0)
if class ~= 'r' and not state and not instance then
  local blocked = redis.call('ZCARD', prefix .. 'w:o') > 0 or (class == 'f' and redis.call('ZCARD', prefix .. 'w:f') > 0)
  if not blocked then candidate(function(name) return fits(name, class, sequences) end) end
  -- Idling earns no credit.
  local least = redis.call('ZRANGE', waiting, 0, 0, 'WITHSCORES')[2]
  if not redis.call('ZSCORE', waiting, tenant_id) then tenant.v = math.max(tenant.v, tonumber(least or vl)) end
end
if class ~= 'r' and not instance then
  local queue = queue_of(class, tenant_id)
  if not state then
    if redis.call('ZCARD', queue) >= wait_max then
      local between_us = tonumber(redis.call('HGET', flight_key, 'gi') or 0)
      return reply('refused', 'cell', 'room', math.max(CONCURRENCY_RETRY_MS, math.ceil(redis.call('ZCARD', waiting) * between_us / 1000)))
    end
    redis.call('ZADD', waiting, tenant.v, tenant_id)
    redis.call('ZADD', queue, redis.call('HINCRBY', flight_key, 'n', 1), request_id)
    redis.call('HSET', tenant.key, 'v', tenant.v, 'vw', weight)
    redis.call('HSET', reservation, 'state', 'waiting', 'cls', class, 'why', why == 'spilled' and why or 'waited', 'ten', tenant_id,
      'seq', sequences, 'gw', gateway, 'cost', cost_mu, 'tb', tenant.key, 'kb', key.key, 'qb', q and contract_key or '',
      'spl', why == 'spilled' and 1 or 0)
    for _, name in ipairs({waiting, queue, tenant.key, flight_key}) do redis.call('PEXPIRE', name, OPEN_TTL_MS) end
  end
  redis.call('HSET', reservation, 'lease', now_ms + WAIT_MS)
  redis.call('ZADD', open, now_ms + WAIT_MS, request_id)
  for _, name in ipairs({reservation, open}) do redis.call('PEXPIRE', name, OPEN_TTL_MS) end
  grant_all()
  return reply('waiting')
end
