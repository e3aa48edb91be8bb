-- contract_line.lua -- v1, a part
-- Part of reserve before the class is chosen: the line of a contract that queues what is over its rate, first come, first served.
-- KEYS, ARGV: those of reserve.lua. Returns nothing, it defines what the next parts use.
local line = queue_of('r', tenant_id)
local function before_it() return state and redis.call('ZRANK', line, request_id) or redis.call('ZCARD', line) end
-- How many of its tenant's requests are before it. Who comes while the first of them could be admitted wakes that one.
local function those_before_it(could_be)
  if could_be and before_it() > 0 then first_of_contract(tenant_id) end
  return before_it()
end
local function stand_in_contract_line()
  if not state then
    redis.call('ZADD', line, redis.call('HINCRBY', flight_key, 'n', 1), request_id)
    redis.call('HSET', reservation, 'state', 'waiting', 'cls', 'r', 'why', 'waited', 'ten', tenant_id, 'seq', sequences, 'gw', gateway,
      'cost', cost_mu, 'tb', tenant.key, 'kb', key.key, 'qb', prefix .. 'q:' .. tenant_id, 'spl', 0, 'wt', weight)
  end
  redis.call('HSET', reservation, 'lease', now_ms + WAIT_MS)
  redis.call('ZADD', open, now_ms + WAIT_MS, request_id)
  for _, name in ipairs({reservation, open, line, flight_key}) do redis.call('PEXPIRE', name, OPEN_TTL_MS) end
end
-- Its turn has come, and may be the next one's as well.
local function leave_contract_line()
  unqueue('r', tenant_id, request_id)
  first_of_contract(tenant_id)
end
