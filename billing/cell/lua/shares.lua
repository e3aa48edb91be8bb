-- Fair shares of what contracts leave: each tenant has a virtual counter, the work it has used divided by its
-- weight, and the least counter is served first. On-demand and flex are one account.
local cell, contracts = ...

local function keep_turn(tenant, virtual)
  if not cell.anybody_waits() then return end
  for _, class in ipairs({'o', 'f'}) do redis.call('ZADD', cell.waiting_tenants(class), 'XX', virtual, tenant) end
end

-- The counter from which a tenant continues, and its current weight.
local function set(bucket_key, tenant, virtual, weight)
  redis.call('HSET', bucket_key, 'v', virtual, 'vw', weight)
  keep_turn(tenant, virtual)
end

-- The counter of a tenant that joins a class: idle time has earned no credit. `blocked`: others wait in the class;
-- `least_of_all`: no tenant starts below this counter.
local function joined(class, tenant, virtual, blocked, least_of_all)
  if not blocked then return math.max(virtual, least_of_all) end
  local waiting = cell.waiting_tenants(class)
  local least = redis.call('ZSCORE', waiting, tenant) or redis.call('ZRANGE', waiting, 0, 0, 'WITHSCORES')[2]
  return math.max(virtual, tonumber(least))
end

-- The part of a charge that does not count for the tenant.
local function charge_contract(request, change_mu)
  if change_mu == 0 then return end
  redis.call('HINCRBY', cell.flight, 'used', math.floor(change_mu))
  if (request.contract_key or '') ~= '' then
    contracts.charge(request.contract_key, request.class, request.spilled == '1', change_mu)
  end
end

-- Charges the additional (or negative) use of a request to its contract and to its tenant's counter. It uses the weight
-- with which the request was admitted, because otherwise a changed weight would create credit when a charge is given
-- back. `request`: class, contract_key, spilled ('1' or '0'), tenant_bucket, tenant, weight.
local function charge(request, change_mu)
  charge_contract(request, change_mu)
  if change_mu == 0 or request.class == 'r' then return end
  -- A lost bucket has lost its counter, too. It is not made again, because nothing would end it.
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
