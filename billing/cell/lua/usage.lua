-- The use of an open request: charged while it runs, corrected and recorded when it ends.
local cell, buckets, reservations, shares, slots, grants = ...
-- A settle that is sent again within this time is recognised.
local TOMBSTONE_TTL_MS = 900 * 1000

-- A function that reads the reservation with these additional fields; `paused`: it was preempted and holds no slot.
local function reader(more)
  local names = {'state', 'charged_mu', 'charged_tokens', 'class', 'instance', 'sequences', 'tenant', 'contract_key',
    'spilled', 'weight', 'tenant_bucket', 'key_bucket'}
  for i = 1, #more do names[#names + 1] = more[i] end
  local read = reservations.reader(names)
  return function(request_id)
    local held = read(request_id)
    held.charged_mu, held.charged_tokens = tonumber(held.charged_mu or 0), tonumber(held.charged_tokens or 0)
    held.sequences = tonumber(held.sequences or 0)
    held.paused = held.instance == ''
    return held
  end
end

-- Sets its charge to `final_mu` and `final_tokens`. `changes`: what else it has used in addition, by kind; `closed`: it
-- is no longer open.
local function charge(held, final_mu, final_tokens, changes, closed)
  local class, change_mu = held.class, final_mu - held.charged_mu
  changes.units, changes.tokens = change_mu, final_tokens - held.charged_tokens
  if closed or buckets.concern(class, changes) then
    local share = held.state and class ~= 'r' and {mu = change_mu, weight = held.weight or 1} or nil
    local virtual = buckets.correct(held.tenant_bucket, class, changes, closed, share)
    if virtual then shares.keep_turn(held.tenant, virtual) end
    if held.key_bucket then buckets.correct(held.key_bucket, class, changes, closed) end
  end
  if held.state then shares.charge_contract(held, change_mu) end
end

-- Adds its event to the usage stream and grants its slot to a waiting request. Returns the entry's id and the ms after
-- which slots should be granted again.
local function record(request_id, held, event, by)
  local name = cell.reservation(request_id)
  redis.call('ZREM', cell.open, request_id)
  local entry_id = redis.call('XADD', cell.usage(), '*', 'e', event)
  redis.call('DEL', name)
  reservations.write(request_id, {state = 'settled', event = entry_id, ended_by = by})
  redis.call('PEXPIRE', name, TOMBSTONE_TTL_MS)
  if held.state and not held.paused then
    slots.give_back(request_id, held.class, held.instance, held.sequences)
    grants.grant_all()
  end
  return entry_id, cell.held_up_ms
end

-- Forgets an open request that nobody serves: it gives back all that it was charged, and its slot. There is no event.
local function withdraw(request_id, held)
  charge(held, 0, 0, {requests = held.paused and 0 or -1}, not held.paused)
  reservations.forget(request_id)
  if not held.paused then
    slots.give_back(request_id, held.class, held.instance, held.sequences)
    grants.grant_all()
  end
end

return {reader = reader, charge = charge, record = record, withdraw = withdraw}
