-- Grants free slots to waiting requests.
local cell, reservations, shares, pace, slots, queue = ...
-- A gateway reserves a granted slot within this time.
local GRANT_MS = 3000
-- Requests that one run checks: a crowd whose gateway died must not hold up the cell. The next run continues.
local LOOKS_MAX = 200
local read = reservations.reader({'state', 'class', 'tenant', 'sequences', 'gateway', 'cost_mu', 'tenant_bucket',
  'contract_key', 'spilled', 'weight', 'prompt_mu', 'prefers', 'cached_mu'})

-- The first waiting request of this tenant, and its reservation. Whether its gateway lives shows when it is woken, and
-- not by its lease, which means nothing after a jump of Redis's clock.
local function first_waiting(class, tenant)
  local request_id = redis.call('ZRANGE', cell.queue(class, tenant), 0, 0)[1]
  if not request_id then
    redis.call('ZREM', cell.waiting_tenants(class), tenant)
    return nil
  end
  local held = read(request_id)
  if held.state == 'waiting' then return request_id, held end
  if not queue.drop(request_id) then queue.remove(class, tenant, request_id) end
end

-- The mean time between grants. The retry time of refused requests is computed from it.
local function time_grant(virtual)
  local last = redis.call('HMGET', cell.flight, 'gt', 'gi', 'vl')
  local since = math.max(0, cell.now_us - (last[1] or cell.now_us))
  redis.call('HSET', cell.flight, 'vl', math.max(virtual, last[3] or 0), 'gt', cell.now_us,
    'gi', math.floor((last[2] or since) * 0.9 + since * 0.1))
end

local function grant(request_id, held, virtual, instance)
  queue.remove(held.class, held.tenant, request_id)
  slots.take(held.class, instance, tonumber(held.sequences))
  pace.start_reading(instance, pace.to_read(held, instance))
  shares.charge(held, tonumber(held.cost_mu))
  local lease = cell.now_ms + GRANT_MS
  reservations.write(request_id, {state = 'granted', instance = instance, lease = lease})
  reservations.lease(request_id, lease)
  time_grant(virtual)
end

-- Grants the free slots, always to the tenant with the lowest counter, on-demand before flex. `asking`: the request of
-- this call; it gets its reply directly and needs no wake-up, and only instances that its gateway sees (`seen`) may
-- serve it.
local function grant_all(asking, seen)
  if not cell.anybody_waits() then return end
  local instances, looks = nil, 0
  for _, class in ipairs({'o', 'f'}) do
    while true do
      local tenant, virtual = unpack(redis.call('ZRANGE', cell.waiting_tenants(class), 0, 0, 'WITHSCORES'))
      if not tenant then break end
      looks = looks + 1
      if looks > LOOKS_MAX then return end
      local request_id, held = first_waiting(class, tenant)
      if request_id then
        instances = instances or slots.instances_with('m:')
        local among = request_id == asking and seen or instances
        local instance = slots.roomiest(among, class, tonumber(held.sequences), held.prefers)
        if not instance then break end
        if request_id == asking or cell.wake(held.gateway, request_id) then
          grant(request_id, held, virtual, instance)
        else
          queue.drop(request_id)
        end
      end
    end
  end
end

return {grant_all = grant_all}
