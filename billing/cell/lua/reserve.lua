-- reserve.lua -- v4
-- Admits a request, lets it wait, or refuses it: by all of its limits at once, by its tenant's contract, by the
-- slots there are. Idempotent by request id; a refusal consumes nothing, and neither does waiting.
-- KEYS: {c:CELL}:open, {c:CELL}:b:<tenant>:<model>, {c:CELL}:k:<key id>:<model>
-- ARGV: `ReserveAsk` of billing/cell/asks.py (JSON), the head of the event (JSON; where it is restored the whole one,
--   else without class, contract, instance and epoch, which are decided here), the crash event (JSON)
-- Returns: {status, now_ms, levels of the tenant, levels of the key, …}, levels being {open requests, then each limit's
--   in its order, in thousandths}; then
--   reserved | replayed: class, contract ('' = none), instance, epoch, why, contract's level before, after, its rate
--   refused: scope, kind of the limit, its window in s, retry_after_ms (-1 = never)
--   later: ms until its contract takes it, requests in the queue before it
--   waiting: ms after which slots should be granted again (0 = no need)
--   already_settled | no_contract | no_right | rebuilding
local keys, args, cell, buckets, reservations, contracts, shares, pace, slots, queue, grants, classes, places = ...
local ask, head, crash_event = cjson.decode(args[1]), args[2], args[3]
local id = ask.request_id
-- One request of a tenant that waits may come for its slot in a second.
local RETRY_MS_MIN = 1000

if ask.cancels_per_minute >= 0 then table.insert(ask.tenant_limits, {'cancels', 60, ask.cancels_per_minute}) end
local tenant, key = buckets.read(keys[2], 'tenant', ask.tenant_limits), buckets.read(keys[3], 'key', ask.key_limits)
local costs = {requests = 1, units = ask.cost_mu, tokens = ask.tokens, concurrency = 1, cancels = 1}

local function held_now()
  return reservations.read(id, {'state', 'class', 'instance', 'why', 'contract_key', 'contract', 'epoch', 'cost_mu',
    'weight'})
end

local function reply(status, ...)
  return {status, cell.now_ms, buckets.levels(tenant), buckets.levels(key), ...}
end

-- What stays out, as an answer; nil for what may have a slot.
local function kept_out(choice, held, contract)
  local refusal = not ask.resumed and not ask.restored and buckets.refusal({tenant, key}, choice.class, costs)
  if refusal then
    -- The contract would have taken it: its evidence says which limit did not.
    if choice.class == 'r' and (choice.why == 'within_contract' or choice.why == 'waited') then
      contracts.count(contract, 'limited:' .. refusal.kind)
    end
    if held.state and queue.drop(id) then grants.grant_all() end
    return reply('refused', refusal.scope, refusal.kind, refusal.window_s, refusal.after_ms)
  elseif choice.why == 'later' then
    queue.stand(id, {
      state = 'waiting', class = 'r', why = 'waited', tenant = ask.tenant, sequences = ask.sequences,
      gateway = ask.gateway, cost_mu = ask.cost_mu, tenant_bucket = tenant.key, key_bucket = key.key,
      contract_key = cell.contract(ask.tenant), spilled = 0, weight = ask.weight,
    }, held.state)
    return reply('later', choice.until_ms, choice.before)
  elseif choice.why == 'over' then
    if held.state then queue.drop(id) end
    contracts.count(contract, 'refused')
    return reply('refused', 'tenant', 'contract', 0, choice.until_ms)
  elseif choice.why == 'no_contract' or choice.why == 'no_right' then
    return reply(choice.why)
  end
end

-- It has no slot: it joins its queue, or is refused where that is full. `blocked`: others waited already.
local function join_queue(choice, contract, blocked)
  local waiting, spilled = cell.waiting_tenants(choice.class), choice.why == 'spilled'
  if redis.call('ZCARD', cell.queue(choice.class, ask.tenant)) >= ask.wait_max then
    if spilled then contracts.count(contract, 'refused') end
    local between_us = tonumber(redis.call('HGET', cell.flight, 'gi') or 0)
    local after_ms = math.ceil(redis.call('ZCARD', waiting) * between_us / 1000)
    return reply('refused', 'cell', 'room', 0, math.max(RETRY_MS_MIN, after_ms))
  end
  redis.call('ZADD', waiting, tenant.virtual, ask.tenant)
  shares.set(tenant.key, ask.tenant, tenant.virtual, ask.weight)
  queue.stand(id, {
    state = 'waiting', class = choice.class, why = spilled and 'spilled' or 'waited', tenant = ask.tenant,
    sequences = ask.sequences, gateway = ask.gateway, cost_mu = ask.cost_mu, tenant_bucket = tenant.key,
    key_bucket = key.key, contract_key = contract and contract.key or '', spilled = spilled and 1 or 0,
    weight = ask.weight, prompt_mu = ask.prompt_mu,
  })
  -- The time between grants runs while somebody waits.
  if not blocked then redis.call('HSET', cell.flight, 'gt', cell.now_us) end
end

-- What a granted request was charged when it began to wait it is not charged again, and what it was charged by then
-- holds: its contract may have ended since.
local function charge(choice, held, contract, place, floor)
  local class, granted = choice.class, held.state == 'granted'
  local contract_key, spilled = '', choice.why == 'spilled'
  if granted then
    contract_key = held.contract_key
  elseif (contract or ask.restored) and (class == 'r' or spilled) then
    contract_key = cell.contract(ask.tenant)
  end
  local request = {
    class = class, contract_key = contract_key, spilled = spilled and '1' or '0', tenant_bucket = tenant.key,
    tenant = ask.tenant, weight = granted and held.weight or ask.weight,
  }
  if granted then
    shares.charge(request, ask.cost_mu - tonumber(held.cost_mu))
  else
    -- What a restored one used before its reservation was lost has drained for the most part.
    local change_mu = ask.restored and 0 or ask.cost_mu
    shares.charge_contract(request, change_mu)
    if class ~= 'r' then
      shares.raise_floor(tenant.virtual, floor)
      tenant.virtual, tenant.weight = tenant.virtual + change_mu / ask.weight, ask.weight
      shares.keep_turn(ask.tenant, tenant.virtual)
    end
    slots.take(class, place[1], ask.sequences)
    if not ask.restored then pace.start_reading(place[1], ask.prompt_mu) end
  end
  if class == 'f' then slots.may_be_preempted(id, place[1], ask.can_resume) end
  return request
end

local function open_reservation(request, choice, place, contract_id)
  local lease = cell.now_ms + ask.lease_ms
  local decided = ',"class":"' .. classes.NAMES[choice.class] .. '","contract":'
    .. (contract_id == '' and 'null' or '"' .. contract_id .. '"')
    .. ',"instance":' .. cjson.encode(place[1]) .. ',"epoch":' .. cjson.encode(place[2]) .. '}'
  reservations.write(id, {
    state = 'open', head = ask.restored and head or head:sub(1, -2) .. decided, crash_event = crash_event,
    charged_mu = ask.cost_mu, charged_tokens = ask.tokens,
    used_mu = 0, prompt = 0, cached = 0, output = 0, delivered = 0, lease = lease,
    tenant_bucket = tenant.key, key_bucket = key.key, class = choice.class, instance = place[1], epoch = place[2],
    sequences = ask.sequences, gateway = ask.gateway, tenant = ask.tenant, contract_key = request.contract_key,
    spilled = request.spilled, why = choice.why, contract = contract_id, weight = request.weight,
    admitted_ms = cell.now_ms,
  })
  reservations.lease(id, lease)
  reservations.keep(id)
  cell.keep(cell.flight)
end

local held = held_now()
if held.state == 'settled' then return reply('already_settled') end
if held.state == 'open' then
  return reply('replayed', classes.NAMES[held.class], held.contract or '', held.instance, held.epoch or '', held.why,
    0, 0, 0)
end
-- Levels were lost and nobody has counted them anew: whoever came now would have all of its limits once more.
if not ask.restored and redis.call('EXISTS', cell.intact()) == 0 then return reply('rebuilding') end

local contract = contracts.in_force(ask.tenant)
local level = contract and contracts.level(contract) or 0
-- It waits for its contract, and that has ended or queues nobody any more: it begins anew.
if held.state == 'waiting' and held.class == 'r' and not (contract and contract.overflow == 'queue') then
  queue.drop(id)
  held = {}
end
local choice = classes.choose(ask, held, contract)
local answer = kept_out(choice, held, contract)
if answer then return answer end
local class, by_share = choice.class, choice.class ~= 'r'
if not by_share and held.state == 'waiting' then
  -- Its turn in its contract's queue has come, and may be the next one's as well.
  queue.remove('r', ask.tenant, id)
  queue.wake_first_of_contract(ask.tenant)
end

local place = places.own(ask, class, held)
if held.state and not place and (held.state == 'granted' or places.unbounded(ask, class)) then
  -- The slot is where this gateway sees no instance, or none is needed any more: it begins anew.
  queue.drop(id)
  grants.grant_all()
  held, tenant.virtual = {}, tonumber(redis.call('HGET', tenant.key, 'v') or 0)
end
local blocked = by_share and redis.call('ZCARD', cell.waiting_tenants(class)) > 0
local floor = by_share and not held.state and shares.floor() or 0
if by_share and not held.state then
  if not place and (not blocked or places.unbounded(ask, class)) then place = places.free(ask, class) end
  tenant.virtual = shares.joined(class, ask.tenant, tenant.virtual, blocked, floor)
end
if by_share and not place then
  if not held.state then
    answer = join_queue(choice, contract, blocked)
    if answer then return answer end
  else
    queue.stand(id, {class = class, tenant = ask.tenant}, true)
  end
  cell.keep(cell.waiting_tenants(class), tenant.key)
  grants.grant_all(id, places.names(ask))
  held = held_now()
  if held.state ~= 'granted' then return reply('waiting', cell.held_up_ms) end
  place = places.named(ask, held.instance)
end

local request = charge(choice, held, contract, place, floor)
buckets.admit(tenant, class, costs, ask.restored)
buckets.admit(key, class, costs, ask.restored)
local contract_id = contract and class == 'r' and contract.id or ''
open_reservation(request, choice, place, contract_id)
local after = class == 'r' and level + ask.cost_mu or level
return reply('reserved', classes.NAMES[class], contract_id, place[1], place[2], choice.why, math.ceil(level),
  math.ceil(after), contract and contract.rate or 0)
