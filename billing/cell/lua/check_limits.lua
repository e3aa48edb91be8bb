-- check_limits.lua -- v2, a part
-- First part of reserve: reads the limits of tenant and key; choose_class has them checked before anything is written.
-- KEYS, ARGV: those of reserve.lua. Returns nothing, it defines what the next parts use.
local reservation = KEYS[1]
local request_id, lease_ms, cost_mu, head, will = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[10], ARGV[11]
local tenant_id, asked, may_on_demand, weight = ARGV[12], ARGV[13], ARGV[14] == '1', tonumber(ARGV[15])
local sequences, gateway, wait_max, cancels_max = tonumber(ARGV[16]), ARGV[17], tonumber(ARGV[18]), tonumber(ARGV[19])
local resumed, restored, goes_on = ARGV[20] ~= '0', ARGV[20] == '2', ARGV[21] == '1'
local prompt_mu = tonumber(ARGV[22])
local CANDIDATES = 23
local CONCURRENCY_RETRY_MS = 1000
local NAMES = {r = 'reserved', o = 'on_demand', f = 'flex'}
-- Redis's clock went back, as another host's after a failover may be: a level drains from now on, not only from when it was last seen.
local function drain_again(key, field, at_us)
  if at_us and tonumber(at_us) > now_us then redis.call('HSET', key, field, now_us) end
end
local function read_bucket(key, scope, first)
  local max_r, max_u, max_c = tonumber(ARGV[first]), tonumber(ARGV[first + 1]), tonumber(ARGV[first + 2])
  local v = redis.call('HMGET', key, 'r', 'u', 't', 'c', 'x', 'v')
  drain_again(key, 't', v[3])
  local minutes = minutes_since(v[3])
  return {key = key, scope = scope, max_r = max_r, max_u = max_u, max_c = max_c, r = drained(v[1], max_r, minutes),
          u = drained(v[2], max_u, minutes), c = tonumber(v[4] or 0), x = drained(v[5], cancels_max, minutes), v = tonumber(v[6] or 0)}
end
local tenant, key = read_bucket(KEYS[2], 'tenant', 4), read_bucket(KEYS[3], 'key', 7)
local held = redis.call('HMGET', reservation, 'state', 'cls', 'inst', 'why', 'qb', 'cid', 'epoch', 'cost', 'wt')
local state = held[1]
local function reply(status, ...)
  return {status, now_ms, math.ceil(tenant.r * 1000), math.ceil(tenant.u), tenant.c,
          math.ceil(key.r * 1000), math.ceil(key.u), key.c, ...}
end
if state == 'settled' then return reply('already_settled') end
if state == 'open' then return reply('replayed', NAMES[held[2]], held[6] or '', held[3], held[7] or '', held[4], 0, 0, 0) end
-- Levels were lost, and nobody has counted them anew: whoever came now would have all of its limits once more.
if not restored and redis.call('EXISTS', prefix .. 'intact') == 0 then return reply('rebuilding') end
-- Which limit refuses it, if any: of several, the one that takes longest to clear.
-- Units limits do not count what a contract takes: the contract is its own limit. Requests and concurrency count everything.
local function limit_reached(class)
  local scope, limit, retry_after_ms
  local function check(of, name, level, cost, max)
    if max < 0 or level + cost <= max * (1 + 1e-9) then return end
    local wait_ms = name == 'concurrency' and CONCURRENCY_RETRY_MS or math.ceil((level + cost - max) * 60000 / max)
    if cost > max or max == 0 then wait_ms = -1 end
    if not retry_after_ms or (retry_after_ms >= 0 and (wait_ms < 0 or wait_ms > retry_after_ms)) then
      scope, limit, retry_after_ms = of, name, wait_ms
    end
  end
  if resumed then return nil end
  for _, b in ipairs({tenant, key}) do
    check(b.scope, 'requests', b.r, 1, b.max_r)
    if class ~= 'r' then check(b.scope, 'units', b.u, cost_mu, b.max_u) end
    check(b.scope, 'concurrency', b.c, 1, b.max_c)
  end
  check('tenant', 'cancels', tenant.x, 1, cancels_max)
  return limit, scope, retry_after_ms
end
