-- stand_in_line.lua -- v1, a part
-- Fifth part of reserve: where there is no place, it waits; unless room that came free meanwhile is its own at once.
-- KEYS, ARGV: those of reserve.lua. Returns nothing, it defines what the next parts use.
if class ~= 'r' and not instance then
  local queue = queue_of(class, tenant_id)
  if not state then
    if redis.call('ZCARD', queue) >= wait_max then
      if why == 'spilled' then redis.call('HINCRBY', q.key, 'refused', 1) end
      local between_us = tonumber(redis.call('HGET', flight_key, 'gi') or 0)
      return reply('refused', 'cell', 'room', math.max(CONCURRENCY_RETRY_MS, math.ceil(redis.call('ZCARD', waiting) * between_us / 1000)))
    end
    redis.call('ZADD', waiting, tenant.v, tenant_id)
    redis.call('ZADD', queue, redis.call('HINCRBY', flight_key, 'n', 1), request_id)
    set_counter(tenant.key, tenant_id, tenant.v, weight)
    redis.call('HSET', reservation, 'state', 'waiting', 'cls', class, 'why', why == 'spilled' and why or 'waited', 'ten', tenant_id,
      'seq', sequences, 'gw', gateway, 'cost', cost_mu, 'tb', tenant.key, 'kb', key.key, 'qb', q and contract_key or '',
      'spl', why == 'spilled' and 1 or 0, 'wt', weight, 'pmu', prompt_mu)
    -- The time between grants runs while somebody waits.
    if not blocked then redis.call('HSET', flight_key, 'gt', now_us) end
  end
  redis.call('HSET', reservation, 'lease', now_ms + WAIT_MS)
  redis.call('ZADD', open, now_ms + WAIT_MS, request_id)
  for _, name in ipairs({reservation, open, waiting, queue, tenant.key, flight_key}) do redis.call('PEXPIRE', name, OPEN_TTL_MS) end
  grant_all(request_id, seen())
  held = redis.call('HMGET', reservation, 'state', 'cls', 'inst', 'why', 'qb', 'cid', 'epoch', 'cost', 'wt')
  if held[1] ~= 'granted' then return reply('waiting', pace_ms) end
  state = held[1]
  candidate(function(name) return name == held[3] end)
end
