-- charge_contract.lua -- v1, a part
-- What a request has used, to its tenant's contract and virtual counter. Classes are r (reserved), o (on-demand), f (flex).
-- KEYS, ARGV: none of its own. Returns nothing, it defines what the next parts use.
-- A contract's level now, with what it drains by.
local function contract_level(q) return math.max(0, (q.u or 0) - (q.rate or 0) * math.max(0, now_us - (q.t or now_us)) / 1000000) end
local function read_contract(key)
  local v = redis.call('HMGET', key, 'id', 'rate', 'burst', 'of', 'spill', 'end', 'u', 't', 'sp', 'st')
  if not v[1] then return nil end
  return {key = key, id = v[1], rate = tonumber(v[2]), burst = tonumber(v[3]), of = v[4], spill = tonumber(v[5]), ends = tonumber(v[6]),
          u = tonumber(v[7] or 0), t = tonumber(v[8] or now_us), sp = tonumber(v[9] or 0), st = tonumber(v[10] or now_us)}
end
local function spill_level(q) return q.spill < 0 and 0 or math.max(0, q.sp - q.spill * math.max(0, now_us - q.st) / 1000000) end
-- Where a tenant waits, in either class, its counter is the one it has: on-demand and flex are one account.
local function keep_turn(tenant, v)
  for _, class in ipairs({'o', 'f'}) do redis.call('ZADD', prefix .. 'w:' .. class, 'XX', v, tenant) end
end
-- The counter that a tenant goes on from, and its weight now.
local function set_counter(tenant_bucket, tenant, v, weight)
  redis.call('HSET', tenant_bucket, 'v', v, 'vw', weight)
  keep_turn(tenant, v)
end
-- Charge what a request of this class has used more (or less) to its contract, and to its tenant's virtual counter: by the weight
-- that it was admitted with, or giving back after a change of it would make credit.
local function charge(class, contract_key, spilled, tenant_bucket, tenant, difference_mu, weight)
  if difference_mu == 0 then return end
  redis.call('HINCRBY', flight_key, 'used', math.floor(difference_mu))
  local q = contract_key ~= '' and read_contract(contract_key) or nil
  if q and class == 'r' then
    redis.call('HSET', q.key, 'u', math.max(0, contract_level(q) + difference_mu), 't', now_us)
    redis.call('HINCRBY', q.key, 'used', math.floor(difference_mu))
  elseif q and spilled then
    redis.call('HSET', q.key, 'sp', math.max(0, spill_level(q) + difference_mu), 'st', now_us)
    redis.call('HINCRBY', q.key, 'borrowed', math.floor(difference_mu))
  end
  if class == 'r' then return end
  -- A bucket that was lost has lost its counter too, and is not made again without an end.
  local weight_now = redis.call('HGET', tenant_bucket, 'vw')
  if weight_now then keep_turn(tenant, redis.call('HINCRBYFLOAT', tenant_bucket, 'v', difference_mu / (weight or weight_now))) end
end
