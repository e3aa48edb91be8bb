-- leave_line.lua -- v1, a part
-- Out of the line of those who wait.
-- KEYS, ARGV: none of its own. Returns nothing, it defines what the next parts use.
local function queue_of(class, tenant) return prefix .. 'wl:' .. class .. ':' .. tenant end
local function unqueue(class, tenant, request_id)
  local queue = queue_of(class, tenant)
  redis.call('ZREM', queue, request_id)
  if redis.call('ZCARD', queue) == 0 then redis.call('ZREM', prefix .. 'w:' .. class, tenant) end
end
-- Nothing of it is left; that it stands in no line is its caller's to see to.
local function forget(request_id)
  redis.call('DEL', prefix .. 'r:' .. request_id)
  redis.call('ZREM', open, request_id)
end
-- The first in the line of a tenant's contract, woken to come for its turn; those before it whose gateway is gone are dropped.
local function first_of_contract(tenant)
  while true do
    local first = redis.call('ZRANGE', queue_of('r', tenant), 0, 0)[1]
    if not first then return end
    local gateway = redis.call('HGET', prefix .. 'r:' .. first, 'gw')
    if gateway and redis.call('PUBLISH', 'taas:wake:' .. gateway, first) > 0 then return end
    unqueue('r', tenant, first)
    forget(first)
  end
end
-- Forget a request that waits or was granted a place and will not use it. Returns whether there was one.
local function drop(request_id)
  local v = redis.call('HMGET', prefix .. 'r:' .. request_id, 'state', 'cls', 'ten', 'inst', 'seq', 'cost', 'tb', 'qb', 'spl', 'wt')
  if v[1] ~= 'waiting' and v[1] ~= 'granted' then return false end
  if v[1] == 'waiting' then
    unqueue(v[2], v[3], request_id)
  else
    fly(v[2], v[4], -v[5])
    charge(v[2], v[8], v[9] == '1', v[7], v[3], -v[6], v[10])
  end
  forget(request_id)
  if v[2] == 'r' then first_of_contract(v[3]) end
  return true
end
