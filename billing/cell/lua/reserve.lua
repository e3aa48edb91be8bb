-- reserve.lua -- v5
-- Admits a request, queues it, or refuses it. Checks its limits, its tenant's contract and the free slots in
-- one step. Idempotent by request id. A request that is refused or waits uses up no limit, contract or slot.
-- KEYS: {c:CELL}:open, {c:CELL}:b:<tenant>:<model>, {c:CELL}:k:<key id>:<model>
-- ARGV: `ReserveAsk`, `ReserveTerms` and the candidates of billing/cell/asks.py (JSON); the head of the event
--   (JSON), to which this script adds class, contract, instance and epoch, or the whole head if the request
--   is restored; the crash event (JSON)
-- Returns: {status, now_ms, levels of the tenant, levels of the key, …}. Levels are: how many values follow, the
--   number of open requests, then the level of each limit times 1000, in the order of the limits. Then, by status:
--   reserved | replayed: class, contract ('' = none), instance, epoch, why, contract's level before, after, its rate
--   refused: scope, kind of the limit, its window in s, retry_after_ms (-1 = never)
--   later: ms until the contract has capacity for it, how many requests are before it in the contract's queue
--   waiting: ms after which to call `grant`, as only the limit on prefills a second holds slots back (0 = no need)
--   already_settled | no_contract: it asked for `reserved` | no_right: to on-demand or flex | rebuilding: after a loss
local cell, terms, fields, buckets, reservations, contracts, shares, flight, pace, slots, queue, grants, classes,
  places = ...
-- The least `retry_after_ms` of a request that is refused because its queue is full.
local RETRY_MS_MIN = 1000

local read_held = reservations.reader({'state', 'class', 'instance', 'why', 'contract_key', 'contract', 'epoch',
  'cost_mu', 'weight'})

local function read_buckets(ask, keys)
  return {
    tenant = buckets.read(keys[2], 'tenant', ask.tenant_plan),
    key = ask.key_plan and buckets.read(keys[3], 'key', ask.key_plan),
  }
end

local function answer(both, status, a, b, c, d, e, f, g, h)
  -- With room for an ordinary reply: a table that grows is copied several times.
  local reply = {status, cell.now_ms, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil}
  local n = buckets.append_levels(both.tenant, reply, 2)
  n = buckets.append_levels(both.key, reply, n)
  reply[n + 1], reply[n + 2], reply[n + 3], reply[n + 4] = a, b, c, d
  reply[n + 5], reply[n + 6], reply[n + 7], reply[n + 8] = e, f, g, h
  return reply
end

-- The reply if a request with this id was admitted before, or has ended. Else nil.
local function known(held, both)
  if held.state == 'settled' then return answer(both, 'already_settled') end
  if held.state == 'open' then
    return answer(both, 'replayed', classes.NAMES[held.class], held.contract or '', held.instance, held.epoch or '',
      held.why, 0, 0, 0)
  end
end

local function refusal(both, class, costs)
  local found = buckets.refusal(both.tenant, class, costs)
  return both.key and buckets.refusal(both.key, class, costs, found) or found
end

-- The reply if the request is refused or waits for its contract. Nil if it may be admitted: reserved at once,
-- on-demand and flex when there is a slot.
local function not_admitted(ask, choice, held, contract, both, costs)
  local id = ask.request_id
  local limit = not ask.resumed and not ask.restored and refusal(both, choice.class, costs)
  if limit then
    -- The contract had capacity for the request, so its evidence records which limit refused it.
    if choice.class == 'r' and (choice.why == 'within_contract' or choice.why == 'waited') then
      contracts.count(contract, 'limited:' .. limit.kind)
    end
    if held.state and queue.drop(id) then grants.grant_all() end
    return answer(both, 'refused', limit.scope, limit.kind, limit.window_s, limit.after_ms)
  elseif choice.why == 'later' then
    queue.enqueue(id, {
      state = 'waiting', class = 'r', why = 'waited', tenant = ask.tenant, sequences = ask.sequences,
      gateway = ask.gateway, cost_mu = ask.cost_mu, tenant_bucket = both.tenant.key,
      key_bucket = both.key and both.key.key or '', contract_key = cell.contract(ask.tenant), spilled = 0,
      weight = ask.weight,
    }, held.state)
    return answer(both, 'later', choice.until_ms, choice.before)
  elseif choice.why == 'over' then
    if held.state then queue.drop(id) end
    contracts.count(contract, 'refused')
    return answer(both, 'refused', 'tenant', 'contract', 0, choice.until_ms)
  elseif choice.why == 'no_contract' or choice.why == 'no_right' then
    return answer(both, choice.why)
  end
end

-- Queues a request that gets no slot now. Returns the refusal if its tenant's queue is full, else nil. `blocked`:
-- requests of this class wait already, of any tenant.
local function join_queue(ask, choice, contract, both, blocked)
  local class, tenant, spilled = choice.class, both.tenant, choice.why == 'spilled'
  if redis.call('ZCARD', cell.queue(class, ask.tenant)) >= ask.wait_max then
    if spilled then contracts.count(contract, 'refused') end
    local between_us = tonumber(redis.call('HGET', cell.flight, 'gi') or 0)  -- on average from grant to grant
    local after_ms = math.ceil(redis.call('ZCARD', cell.waiting_tenants(class)) * between_us / 1000)
    return answer(both, 'refused', 'cell', 'room', 0, math.max(RETRY_MS_MIN, after_ms))
  end
  cell.begins_to_wait(class, ask.tenant, tenant.virtual)
  shares.set(tenant.key, ask.tenant, tenant.virtual, ask.weight)
  queue.enqueue(ask.request_id, {
    state = 'waiting', class = class, why = spilled and 'spilled' or 'waited', tenant = ask.tenant,
    sequences = ask.sequences, gateway = ask.gateway, cost_mu = ask.cost_mu, tenant_bucket = tenant.key,
    key_bucket = both.key and both.key.key or '', contract_key = contract and contract.key or '',
    spilled = spilled and 1 or 0, weight = ask.weight, prompt_mu = ask.prompt_mu,
    prefers = ask.prefers, cached_mu = ask.cached_mu,
  })
  -- No request of the class waited before, so the time to the next grant is measured from now.
  if not blocked then redis.call('HSET', cell.flight, 'gt', cell.now_us) end
end

-- Grants the free slots, perhaps one of them to this request. Returns its reservation, waiting or granted.
-- `is_in`: it was in the queue before this call.
local function wait(ask, class, tenant, is_in)
  if is_in then queue.enqueue(ask.request_id, {class = class, tenant = ask.tenant}, true) end
  cell.keep(cell.waiting_tenants(class), tenant.key)
  grants.grant_all(ask.request_id, places.names(ask))
  return read_held(ask.request_id)
end

-- The grant charged the cost with which the request was queued. This charges the difference, to the contract and with
-- the weight that it was queued with: the contract may have ended, or the weight changed, since.
local function charge_granted(ask, choice, held, both)
  local granted = {
    class = choice.class, contract_key = held.contract_key, spilled = choice.why == 'spilled' and '1' or nil,
    tenant_bucket = both.tenant.key, tenant = ask.tenant, weight = held.weight or ask.weight,
  }
  shares.charge(granted, ask.cost_mu - tonumber(held.cost_mu))
  return granted
end

-- Charges a request that was not granted a slot before, and takes its slot. `before`: from `flight.read`.
local function charge_new(ask, choice, contract, both, instance, before)
  local class, tenant = choice.class, both.tenant
  local is_spilled = choice.why == 'spilled'
  local of_contract = (contract or ask.restored) and (class == 'r' or is_spilled)
  local contract_key = of_contract and cell.contract(ask.tenant) or nil
  -- A restored request already runs. Its use so far is charged to limits of more than a minute alone (`buckets.admit`):
  -- of all other levels most of it would have drained by now.
  local change_mu = ask.restored and 0 or ask.cost_mu
  local virtual, unread_mu
  if of_contract and change_mu ~= 0 then contracts.charge(contract_key, class, is_spilled, change_mu, contract) end
  if class ~= 'r' then
    virtual = tenant.virtual
    tenant.new_virtual = virtual + change_mu / ask.weight
    shares.keep_turn(ask.tenant, tenant.new_virtual)
  end
  if not ask.restored then unread_mu = pace.with_prompt(instance, pace.to_read(ask, instance)) end
  flight.admit(before, class, instance, ask.sequences, change_mu, virtual, unread_mu)
  return {contract_key = contract_key, spilled = is_spilled and '1' or nil, weight = ask.weight}
end

local function open(ask, choice, place, charged, both, head, crash_event, contract_id)
  local id, lease = ask.request_id, cell.now_ms + ask.lease_ms
  if not ask.restored then
    head = head:sub(1, -2) .. ',"class":"' .. classes.NAMES[choice.class] .. '","contract":'
      .. (contract_id == '' and 'null' or '"' .. contract_id .. '"') .. terms.members(place)
  end
  local kind = choice.class .. ' ' .. choice.why .. ' ' .. (ask.sequences == 1 and '' or ask.sequences) .. ' '
    .. (charged.weight == 1 and '' or charged.weight) .. terms.members(place) .. crash_event
  if not reservations.begin_alike(id, kind) then
    reservations.begin(id, kind, fields.state, 'open', fields.crash_event, crash_event, fields.prompt, 0,
      fields.output, 0, fields.delivered, 0, fields.class, choice.class, fields.instance, place[1], fields.epoch,
      place[2], fields.sequences, ask.sequences, fields.why, choice.why, fields.weight, charged.weight)
  end
  reservations.open(id, {
    fields.head, head, fields.charged_mu, ask.cost_mu, fields.charged_tokens, ask.tokens, fields.lease, lease,
    fields.tenant_bucket, both.tenant.key, fields.tenant, ask.tenant, fields.gateway, ask.gateway, fields.admitted_ms,
    cell.now_ms,
  }, both.key and both.key.key, charged.contract_key, charged.spilled, contract_id)
  reservations.lease(id, lease, both.tenant.open > 1)
  if choice.class == 'f' then slots.may_be_preempted(id, place[1], ask.can_resume) end
end

-- Chooses the place (instance and epoch) of an on-demand or flex request that is neither queued nor granted: the given
-- one, else the first candidate with a free slot; while others of the class wait, only if none limits its slots.
-- Returns it or nil, what `flight.read` returned, and whether others wait. Sets `tenant.virtual`, its virtual counter.
-- For all other requests it returns the given place and reads nothing.
local function find_slot(ask, class, held, tenant, place)
  if class == 'r' or held.state then return place, nil, false end
  local blocked = cell.anybody_waits() and redis.call('ZCARD', cell.waiting_tenants(class)) > 0
  if not place and (not blocked or places.unbounded(ask, class)) then place = places.free(ask, class) end
  local before = flight.read(class, place and place[1] or '')
  tenant.virtual = shares.joined(class, ask.tenant, tenant.virtual, blocked, before.floor)
  return place, before, blocked
end

-- Takes a request out of its contract's queue if that no longer queues. Returns the reservation, or {} for a new one.
local function leave_lost_queue(id, held, contract)
  if held.state ~= 'waiting' or held.class ~= 'r' or contract and contract.overflow == 'queue' then return held end
  queue.drop(id)
  return {}
end

-- The contract now admits a request that waited in its queue. Removes it and wakes the next one, which may be
-- admitted too.
local function leave_contract_queue(ask)
  queue.remove('r', ask.tenant, ask.request_id)
  queue.wake_first_of_contract(ask.tenant)
  return {}
end

-- Drops a grant on an instance that is not a candidate, or the wait for a slot when no candidate limits its
-- slots any more. The request goes on as a new one.
local function give_slot_back(ask, tenant)
  queue.drop(ask.request_id)
  grants.grant_all()
  tenant.virtual = tonumber(redis.call('HGET', tenant.key, 'v') or 0)
  return {}
end

return function(keys, args)
  local ask = terms.ask_of(args[1], args[2], args[3])
  local id = ask.request_id
  local is_intact, is_rare = cell.read_markers(id, ask.tenant)
  local held = is_rare and reservations.is_there(id) and read_held(id) or {}
  local both = read_buckets(ask, keys)
  local reply = known(held, both)
  if reply then return reply end
  -- Redis has lost the levels and billing has not recounted them. An admission now could exceed any limit.
  if not ask.restored and not is_intact then return answer(both, 'rebuilding') end

  local contract = is_rare and contracts.in_force(ask.tenant) or nil
  local level = contract and contracts.level(contract) or 0
  held = leave_lost_queue(id, held, contract)
  local choice = classes.choose(ask, held, contract)
  local class = choice.class
  local costs = {requests = 1, units = ask.cost_mu, tokens = ask.tokens, concurrency = 1, cancels = 1}
  reply = not_admitted(ask, choice, held, contract, both, costs)
  if reply then return reply end
  if class == 'r' and held.state == 'waiting' then held = leave_contract_queue(ask) end

  local place = places.own(ask, class, held)
  if held.state and not place and (held.state == 'granted' or places.unbounded(ask, class)) then
    held = give_slot_back(ask, both.tenant)
    contract = contract and contracts.in_force(ask.tenant)
  end
  local before, blocked
  place, before, blocked = find_slot(ask, class, held, both.tenant, place)
  if class ~= 'r' and not place then
    reply = not held.state and join_queue(ask, choice, contract, both, blocked)
    if reply then return reply end
    held = wait(ask, class, both.tenant, held.state)
    if held.state ~= 'granted' then return answer(both, 'waiting', cell.pace_ms) end
    place = places.named(ask, held.instance)
  end

  local charged = held.state == 'granted' and charge_granted(ask, choice, held, both)
    or charge_new(ask, choice, contract, both, place[1], before or flight.read(class, place[1]))
  buckets.admit(both.tenant, class, costs, ask.restored)
  if both.key then buckets.admit(both.key, class, costs, ask.restored) end
  local contract_id = contract and class == 'r' and contract.id or ''
  open(ask, choice, place, charged, both, args[4], args[5], contract_id)
  return answer(both, 'reserved', classes.NAMES[class], contract_id, place[1], place[2], choice.why, math.ceil(level),
    math.ceil(class == 'r' and level + ask.cost_mu or level), contract and contract.rate or 0)
end
