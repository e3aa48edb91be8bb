-- The class in which a request is admitted, and why; or what keeps it out.
local contracts, queue = ...
local NAMES = {r = 'reserved', o = 'on_demand', f = 'flex'}
local LETTERS = {reserved = 'r', on_demand = 'o', flex = 'f', auto = 'o'}

-- Admitted as what it asked for; nobody may change these.
local ROOM = {o = {class = 'o', why = 'room'}, f = {class = 'f', why = 'room'}}

-- By its contract first. `until_ms`: when the contract would take it, -1 if never; `before`: requests in its queue
-- before this one, each assumed to be as large as this one.
local function by_contract(ask, held, contract)
  local queues, level = contract.overflow == 'queue', contracts.level(contract)
  local room = level < contract.burst
  local before = queues and queue.before_in_contract(ask.tenant, ask.request_id, held.state, room) or 0
  if room and before == 0 then return {class = 'r', why = held.state and 'waited' or 'within_contract'} end
  local until_ms = -1
  if contract.rate > 0 then
    local over_mu = level + before * ask.cost_mu - contract.burst
    until_ms = math.max(1, math.ceil(over_mu / contract.rate * 1000) + 1)
  end
  if queues and until_ms >= 0 and (held.state or before < ask.wait_max) then
    return {class = 'r', why = 'later', until_ms = until_ms, before = before}
  end
  if ask.asked ~= 'reserved' and contracts.may_spill(contract) then return {class = 'o', why = 'spilled'} end
  return {class = 'r', why = 'over', until_ms = until_ms}
end

-- `why`: within_contract, waited, spilled, room, restored; or later, over, no_contract, no_right. A request that waits
-- for a slot keeps the class in which it joined the queue.
local function choose(ask, held, contract)
  if ask.restored and not held.state then return {class = LETTERS[ask.asked], why = 'restored'} end
  if held.state and not (held.class == 'r' and held.state == 'waiting') then
    return {class = held.class, why = held.why}
  end
  if contract and (ask.asked == 'auto' or ask.asked == 'reserved') then return by_contract(ask, held, contract) end
  if ask.asked == 'reserved' then return {class = 'r', why = 'no_contract'} end
  if not ask.may_on_demand and not (contract and ask.sequences == 0) then return {class = 'o', why = 'no_right'} end
  return ROOM[LETTERS[ask.asked]]
end

return {NAMES = NAMES, choose = choose}
