-- The use of an open request: charged while it runs, corrected and recorded when it ends.
local cell, buckets, reservations, shares, slots, grants = ...

-- A function that reads the reservation with these additional fields; `paused`: it was preempted and holds no slot.
local function reader(more)
  local names = {'state', 'charged_mu', 'charged_tokens', 'class', 'instance', 'sequences', 'tenant', 'contract_key',
    'spilled', 'weight', 'tenant_bucket', 'key_bucket'}
  for i = 1, #more do names[#names + 1] = more[i] end
  local read = reservations.value_reader(names)
  return function(request_id)
    local v = read(request_id)
    local held = {
      state = v[1] or nil, charged_mu = tonumber(v[2] or 0), charged_tokens = tonumber(v[3] or 0), class = v[4] or nil,
      instance = v[5] or nil, paused = v[5] == '', sequences = tonumber(v[6] or 0), tenant = v[7] or nil,
      contract_key = v[8] or nil, spilled = v[9] or nil, weight = v[10] or nil, tenant_bucket = v[11] or nil,
      key_bucket = v[12] or nil,
    }
    for i = 1, #more do held[more[i]] = v[12 + i] or nil end
    return held
  end
end

-- Sets its charge to `final_mu` and `final_tokens`. `closed`: it is no longer open. `requests`, `cancels`: how many it
-- counts in addition.
local function charge(held, final_mu, final_tokens, closed, requests, cancels)
  local class, change_mu = held.class, final_mu - held.charged_mu
  local changes = {
    units = change_mu, tokens = final_tokens - held.charged_tokens, requests = requests or 0, cancels = cancels or 0,
  }
  if closed or buckets.concern(class, changes) then
    local share_mu = held.state and class ~= 'r' and change_mu or 0
    local virtual = buckets.correct(held.tenant_bucket, class, changes, closed, share_mu, held.weight or 1)
    if virtual then shares.keep_turn(held.tenant, virtual) end
    if held.key_bucket then buckets.correct(held.key_bucket, class, changes, closed, 0) end
  end
  if held.state then shares.charge_contract(held, change_mu) end
end

-- Adds its event to the usage stream and grants its slot to a waiting request. Returns the entry's id and `pace_ms`.
local function record(request_id, held, event, by)
  redis.call('ZREM', cell.open, request_id)
  local entry_id = redis.call('XADD', cell.usage(), '*', 'e', event)
  reservations.close(request_id, by, entry_id)
  if held.state and not held.paused then
    slots.give_back(request_id, held.class, held.instance, held.sequences)
    grants.grant_all()
  end
  return entry_id, cell.pace_ms
end

-- Forgets an open request that nobody serves: it gives back all that it was charged, and its slot. There is no event.
local function withdraw(request_id, held)
  charge(held, 0, 0, not held.paused, held.paused and 0 or -1)
  reservations.forget(request_id)
  if not held.paused then
    slots.give_back(request_id, held.class, held.instance, held.sequences)
    grants.grant_all()
  end
end

return {reader = reader, charge = charge, record = record, withdraw = withdraw}
