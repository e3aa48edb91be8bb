-- Queues of requests that wait: one for each tenant and class, served tenant by tenant; in class r those over the
-- rate of a contract that queues, first come, first served.
local cell, reservations, shares, slots = ...
-- A gateway reserves a waiting request again before this has passed; it is woken earlier if there is a slot.
local WAIT_MS = 45000
local read_gateway = reservations.reader({'gateway'})
local read = reservations.reader({'state', 'class', 'tenant', 'instance', 'sequences', 'cost_mu', 'tenant_bucket',
  'contract_key', 'spilled', 'weight'})

local function remove(class, tenant, request_id)
  local key = cell.queue(class, tenant)
  redis.call('ZREM', key, request_id)
  if redis.call('ZCARD', key) == 0 then redis.call('ZREM', cell.waiting_tenants(class), tenant) end
end

-- Wakes the first request in the queue of a tenant's contract; those before it whose gateway is gone are dropped.
local function wake_first_of_contract(tenant)
  while true do
    local first = redis.call('ZRANGE', cell.queue('r', tenant), 0, 0)[1]
    if not first then return end
    local gateway = read_gateway(first).gateway
    if gateway and cell.wake(gateway, first) then return end
    remove('r', tenant, first)
    reservations.forget(first)
  end
end

-- How many requests are before this one in its contract's queue. If the first of them could be admitted (`could_be`),
-- it is woken.
local function before_in_contract(tenant, request_id, is_in, could_be)
  local key = cell.queue('r', tenant)
  local function before() return is_in and redis.call('ZRANK', key, request_id) or redis.call('ZCARD', key) end
  if could_be and before() > 0 then wake_first_of_contract(tenant) end
  return before()
end

-- The request waits, at the end of its queue if it is new there. Its gateway reserves it again in time.
local function enqueue(request_id, record, is_in)
  local key = cell.queue(record.class, record.tenant)
  if not is_in then
    redis.call('ZADD', key, redis.call('HINCRBY', cell.flight, 'n', 1), request_id)
    reservations.write(request_id, record)
  end
  reservations.write(request_id, {lease = cell.now_ms + WAIT_MS})
  reservations.lease(request_id, cell.now_ms + WAIT_MS)
  reservations.keep(request_id)
  cell.keep(key, cell.flight, cell.open)
end

-- Forgets a request that waits, or that was granted a slot and will not use it. Returns whether there was one.
local function drop(request_id)
  local held = read(request_id)
  if held.state == 'waiting' then
    remove(held.class, held.tenant, request_id)
  elseif held.state == 'granted' then
    slots.take(held.class, held.instance, -held.sequences)
    shares.charge(held, -held.cost_mu)
  else
    return false
  end
  reservations.forget(request_id)
  if held.class == 'r' then wake_first_of_contract(held.tenant) end
  return true
end

return {
  remove = remove, wake_first_of_contract = wake_first_of_contract, before_in_contract = before_in_contract,
  enqueue = enqueue, drop = drop,
}
