-- Fair shares of what contracts leave: each tenant has a virtual counter, the work it has used divided by its
-- weight, and the least counter is served first. On-demand and flex are one account.
local cell, contracts = ...

local function keep_turn(tenant, virtual)
  if not cell.anybody_waits() then return end
  for _, class in ipairs({'o', 'f'}) do redis.call('ZADD', cell.waiting_tenants(class), 'XX', virtual, tenant) end
end

-- The counter from which a tenant goes on, and its weight now.
local function set(bucket_key, tenant, virtual, weight)
  redis.call('HSET', bucket_key, 'v', virtual, 'vw', weight)
  keep_turn(tenant, virtual)
end

-- The counter of a tenant that comes to a class: who was idle has earned no credit.
-- `blocked`: others wait in it; `least_of_all`: no tenant starts below this counter.
local function joined(class, tenant, virtual, blocked, least_of_all)
  if not blocked then return math.max(virtual, least_of_all) end
  local waiting = cell.waiting_tenants(class)
  local least = redis.call('ZSCORE', waiting, tenant) or redis.call('ZRANGE', waiting, 0, 0, 'WITHSCORES')[2]
  return math.max(virtual, tonumber(least))
end

-- The part of a charge that is not its tenant's.
local function charge_contract(request, change_mu)
  if change_mu == 0 then return end
  redis.call('HINCRBY', cell.flight, 'used', math.floor(change_mu))
  if (request.contract_key or '') ~= '' then
    contracts.charge(request.contract_key, request.class, request.spilled == '1', change_mu)
  end
end

-- Charge what a request has used more (or less) to its contract, and to its tenant's counter: by the weight with
-- which it was admitted, as else a changed weight would make credit when a charge is given back. `request`: class,
-- contract_key, spilled ('1' or '0'), tenant_bucket, tenant, weight.
local function charge(request, change_mu)
  charge_contract(request, change_mu)
  if change_mu == 0 or request.class == 'r' then return end
  -- A bucket that was lost has lost its counter too, and is not made again: nothing would end it.
  local v = redis.call('HMGET', request.tenant_bucket, 'v', 'vw')
  if v[2] then
    local virtual = (v[1] or 0) + change_mu / (request.weight or v[2])
    redis.call('HSET', request.tenant_bucket, 'v', virtual)
    keep_turn(request.tenant, virtual)
  end
end

return {
  set = set, keep_turn = keep_turn, joined = joined, charge = charge, charge_contract = charge_contract,
}
