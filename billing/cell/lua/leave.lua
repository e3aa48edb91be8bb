-- leave.lua -- v1
-- Removes a request from its queue, and gives back a slot that it was granted meanwhile. An open request stays, unless
-- it is withdrawn: it was admitted, but its gateway did not get the reply and has refused it.
-- KEYS: {c:CELL}:open
-- ARGV: `LeaveAsk` of billing/cell/asks.py (JSON). `refused`: its time to wait is over, and its contract counts it;
--   `withdrawn`: nobody serves it, so its reservation is given back
-- Returns: {dropped | missing | open, now_ms, tenants that wait, us between grants, `pace_ms`}
local cell, contracts, queue, grants, usage = ...
local read = usage.reader({})

return function(_, args)
  local ask = cjson.decode(args[1])

  local held = read(ask.request_id)
  local class, contract_key = held.class or 'r', held.contract_key or ''
  local waiting = redis.call('ZCARD', cell.waiting_tenants(class == 'f' and 'f' or 'o'))
  if ask.refused and held.state == 'waiting' and (class == 'r' or held.spilled == '1') and contract_key ~= '' then
    local contract = contracts.read(contract_key)
    if contract then contracts.count(contract, 'refused') end
  end
  local status = held.state and 'open' or 'missing'
  if held.state == 'open' and ask.withdrawn then
    usage.withdraw(ask.request_id, held)
    status = 'dropped'
  elseif queue.drop(ask.request_id) then
    status = 'dropped'
    -- Other requests may have waited behind it.
    grants.grant_all()
  end
  local between_us = math.floor(tonumber(redis.call('HGET', cell.flight, 'gi') or 0))
  return {status, cell.now_ms, waiting, between_us, cell.pace_ms}
end
