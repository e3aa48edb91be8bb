-- reserve.lua -- v1
-- Admits a request or refuses it, by all of its limits at once. Idempotent by request id; a refusal consumes nothing.
-- KEYS: {c:CELL}:r:<request id>, {c:CELL}:b:<tenant>:<model>, {c:CELL}:k:<key id>:<model>, {c:CELL}:open
-- ARGV: request id, lease_ms, cost_mu, the tenant's limits (requests a minute, mu a minute, concurrency; -1 = none),
--   the key's limits (the same three), head (JSON), will (JSON)
-- Returns: {status, now_ms, tenant's levels, key's levels}, a level being requests * 1000, mu, open requests;
--   status is reserved | replayed | already_settled | refused, which adds scope, limit, retry_after_ms (-1 = never)
local reservation, open = KEYS[1], KEYS[4]
local request_id, lease_ms, cost_mu, head, will = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[10], ARGV[11]
local CONCURRENCY_RETRY_MS = 1000
-- Longer than a lease that nobody reaps may wait for the control plane: a count must not vanish under what it counts.
local OPEN_TTL_MS = 7 * 86400 * 1000
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now_ms = math.floor(now_us / 1000)
local function drained(level, limit, minutes)
  if limit < 0 or not level then return 0 end
  return math.max(0, level - limit * minutes)
end
local function read_bucket(key, scope, first)
  local max_r, max_u, max_c = tonumber(ARGV[first]), tonumber(ARGV[first + 1]), tonumber(ARGV[first + 2])
  local v = redis.call('HMGET', key, 'r', 'u', 't', 'c')
  local minutes = math.max(0, now_us - (v[3] or now_us)) / 60000000
  return {key = key, scope = scope, max_r = max_r, max_u = max_u, max_c = max_c,
          r = drained(v[1], max_r, minutes), u = drained(v[2], max_u, minutes), c = tonumber(v[4] or 0)}
end
local tenant, key = read_bucket(KEYS[2], 'tenant', 4), read_bucket(KEYS[3], 'key', 7)
local state = redis.call('HGET', reservation, 'state')
local refused_scope, refused_limit, retry_after_ms
local function check(scope, limit, level, cost, max)
  if max < 0 or level + cost <= max * (1 + 1e-9) then return end
  local wait_ms = limit == 'concurrency' and CONCURRENCY_RETRY_MS or math.ceil((level + cost - max) * 60000 / max)
  if cost > max or max == 0 then wait_ms = -1 end
  if not retry_after_ms or (retry_after_ms >= 0 and (wait_ms < 0 or wait_ms > retry_after_ms)) then
    refused_scope, refused_limit, retry_after_ms = scope, limit, wait_ms
  end
end
local function reply(status)
  return {status, now_ms, math.ceil(tenant.r * 1000), math.ceil(tenant.u), tenant.c,
          math.ceil(key.r * 1000), math.ceil(key.u), key.c, refused_scope, refused_limit, retry_after_ms}
end
if state then return reply(state == 'open' and 'replayed' or 'already_settled') end
for _, b in ipairs({tenant, key}) do
  check(b.scope, 'requests', b.r, 1, b.max_r)
  check(b.scope, 'units', b.u, cost_mu, b.max_u)
  check(b.scope, 'concurrency', b.c, 1, b.max_c)
end
if retry_after_ms then return reply('refused') end
for _, b in ipairs({tenant, key}) do
  b.r, b.u, b.c = b.max_r < 0 and 0 or b.r + 1, b.max_u < 0 and 0 or b.u + cost_mu, b.c + 1
  redis.call('HSET', b.key, 'r', b.r, 'u', b.u, 't', now_us, 'c', b.c, 'lr', b.max_r, 'lu', b.max_u)
  redis.call('PEXPIRE', b.key, OPEN_TTL_MS)
end
local lease = now_ms + lease_ms
redis.call('HSET', reservation, 'state', 'open', 'head', head, 'will', will, 'charged', cost_mu, 'used', 0,
  'p', 0, 'c', 0, 'o', 0, 'd', 0, 'lease', lease, 'tb', tenant.key, 'kb', key.key)
redis.call('ZADD', open, lease, request_id)
for _, name in ipairs({reservation, open}) do redis.call('PEXPIRE', name, OPEN_TTL_MS) end
return reply('reserved')
