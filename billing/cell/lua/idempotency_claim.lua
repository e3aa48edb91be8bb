-- idempotency_claim.lua -- v1
-- Binds an Idempotency-Key to the first request that comes with it, and says of each later one how the first stands.
-- Idempotent by request id.
-- KEYS: {i:TENANT}:k:<hash of the key>, {i:TENANT}:a:<the same>, {i:TENANT}:used
-- ARGV: `IdempotencyAsk` of billing/cell/asks.py (JSON)
-- Returns: {status, now_ms}, and behind all but `claimed` and `too_many` the id of the first request:
--   claimed: this request is the first one. running: …, its cell, its gateway, since when in ms
--   ended: …, how it ended (JSON), the stored answer ('' = none). other: the first one asked for something else
--   too_many: ms until the tenant may use new keys again
local DAY_MS = 86400 * 1000

return function(keys, args)
  local ask = cjson.decode(args[1])
  local time = redis.call('TIME')
  local now_ms = math.floor(time[1] * 1000 + time[2] / 1000)
  local first = redis.call('HMGET', keys[1], 'id', 'fingerprint', 'cell', 'gateway', 'at', 'ended')
  if first[1] then
    if first[1] == ask.request_id then return {'claimed', now_ms} end
    if first[2] ~= ask.fingerprint then return {'other', now_ms, first[1]} end
    if first[6] then return {'ended', now_ms, first[1], first[6], redis.call('GET', keys[2]) or ''} end
    return {'running', now_ms, first[1], first[3], first[4], tonumber(first[5])}
  end

  local day = math.floor(now_ms / DAY_MS)
  local used = redis.call('HMGET', keys[3], 'day', 'keys')
  local is_of_today = tonumber(used[1] or nil) == day
  if is_of_today and tonumber(used[2] or 0) >= ask.keys_max then
    return {'too_many', now_ms, (day + 1) * DAY_MS - now_ms}
  end
  if not is_of_today then
    redis.call('DEL', keys[3])
    redis.call('HSET', keys[3], 'day', day)
    redis.call('PEXPIRE', keys[3], DAY_MS)
  end
  redis.call('HINCRBY', keys[3], 'keys', 1)
  redis.call('HSET', keys[1], 'id', ask.request_id, 'fingerprint', ask.fingerprint, 'cell', ask.cell,
    'gateway', ask.gateway, 'at', now_ms)
  redis.call('PEXPIRE', keys[1], DAY_MS)
  return {'claimed', now_ms}
end
