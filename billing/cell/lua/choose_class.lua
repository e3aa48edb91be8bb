-- choose_class.lua -- v1, a part
-- Third part of reserve: which class, and whether its contract takes it now.
-- KEYS, ARGV: those of reserve.lua. Returns nothing, it defines what the next parts use.
-- Which class: what was decided when it began to wait, else its contract first.
local contract_key = prefix .. 'q:' .. tenant_id
local q = read_contract(contract_key)
if q then drain_again(contract_key, q.t) end
if q and now_ms >= q.ends then q = nil end
local level = q and contract_level(q) or 0
-- It waits for its contract, and that has ended, or queues nobody any more: it begins anew.
if state == 'waiting' and held[2] == 'r' and not (q and q.of == 'queue') then
  drop(request_id)
  state, held = nil, {}
end
local class, why = held[2], held[4]
if restored and not state then
  class, why = ({reserved = 'r', on_demand = 'o', flex = 'f'})[asked], 'restored'
elseif not state or class == 'r' and state == 'waiting' then
  if q and (asked == 'auto' or asked == 'reserved') then
    local before = q.of == 'queue' and those_before_it(level < q.burst) or 0
    -- Those before it are taken for as large as it is.
    local until_ms = q.rate > 0 and math.max(1, math.ceil((level + before * cost_mu - q.burst) / q.rate * 1000) + 1) or -1
    if level < q.burst and before == 0 then
      class, why = 'r', state and 'waited' or 'within_contract'
      if state then leave_contract_line() end
    elseif q.of == 'queue' and until_ms >= 0 and (state or before < wait_max) then
      stand_in_contract_line()
      return reply('later', until_ms, before)
    elseif asked ~= 'reserved' and q.of == 'spill' and spill_level(q) < (q.spill < 0 and 1 or q.spill) then
      class, why = 'o', 'spilled'
    else
      if state then drop(request_id) end
      redis.call('HINCRBY', q.key, 'refused', 1)
      return reply('refused', 'tenant', 'contract', until_ms)
    end
  elseif asked == 'reserved' then
    return reply('no_contract')
  elseif not may_on_demand and not (q and sequences == 0) then
    return reply('no_right')
  else
    class, why = asked == 'flex' and 'f' or 'o', 'room'
  end
end
