-- choose_class.lua -- v2, a part
-- Third part of reserve: which class, whether the limits of tenant and key let it pass, and whether its contract takes it now.
-- KEYS, ARGV: those of reserve.lua. Returns nothing, it defines what the next parts use.
local contract_key = prefix .. 'q:' .. tenant_id
local q = read_contract(contract_key)
if q then
  drain_again(contract_key, 't', q.t)
  drain_again(contract_key, 'st', q.st)
end
if q and now_ms >= q.ends then q = nil end
local level = q and contract_level(q) or 0
-- It waits for its contract, and that has ended, or queues nobody any more: it begins anew.
if state == 'waiting' and held[2] == 'r' and not (q and q.of == 'queue') then
  drop(request_id)
  state, held = nil, {}
end
-- Which class: what was decided when it began to wait, else its contract first. Then why; or what keeps it out, and for how many ms.
local function choose()
  if restored and not state then return ({reserved = 'r', on_demand = 'o', flex = 'f'})[asked], 'restored' end
  if state and not (held[2] == 'r' and state == 'waiting') then return held[2], held[4] end
  if q and (asked == 'auto' or asked == 'reserved') then
    local before = q.of == 'queue' and those_before_it(level < q.burst) or 0
    -- Those before it are taken for as large as it is.
    local until_ms = q.rate > 0 and math.max(1, math.ceil((level + before * cost_mu - q.burst) / q.rate * 1000) + 1) or -1
    if level < q.burst and before == 0 then return 'r', state and 'waited' or 'within_contract' end
    if q.of == 'queue' and until_ms >= 0 and (state or before < wait_max) then return 'r', 'later', until_ms, before end
    if asked ~= 'reserved' and q.of == 'spill' and spill_level(q) < (q.spill < 0 and 1 or q.spill) then return 'o', 'spilled' end
    return 'r', 'over', until_ms
  end
  if asked == 'reserved' then return 'r', 'no_contract' end
  if not may_on_demand and not (q and sequences == 0) then return 'o', 'no_right' end
  return asked == 'flex' and 'f' or 'o', 'room'
end
local class, why, until_ms, before = choose()
local reached, of, retry_after_ms = limit_reached(class)
if reached then
  -- The contract would have taken it: its evidence says which limit did not.
  if class == 'r' and (why == 'within_contract' or why == 'waited') then redis.call('HINCRBY', q.key, 'limited:' .. reached, 1) end
  if state and drop(request_id) then grant_all() end
  return reply('refused', of, reached, retry_after_ms)
elseif why == 'later' then
  stand_in_contract_line()
  return reply('later', until_ms, before)
elseif why == 'over' then
  if state then drop(request_id) end
  redis.call('HINCRBY', q.key, 'refused', 1)
  return reply('refused', 'tenant', 'contract', until_ms)
elseif why == 'no_contract' or why == 'no_right' then
  return reply(why)
elseif class == 'r' and state == 'waiting' then
  leave_contract_line()
end
