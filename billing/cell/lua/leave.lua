-- leave.lua -- v1
-- Removes a request from its queue, and gives back a slot that it was granted meanwhile. An open request stays.
-- KEYS: {c:CELL}:open
-- ARGV: `LeaveAsk` of billing/cell/asks.py (JSON). `refused`: its time to wait is over, and its contract counts it
-- Returns: {dropped | missing | open, now_ms, tenants that wait, us between grants, ms after which slots should be
--   granted again (0 = no need)}
local cell, reservations, contracts, queue, grants = ...
local read = reservations.reader({'state', 'class', 'contract_key', 'spilled'})

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
  if queue.drop(ask.request_id) then
    status = 'dropped'
    -- Other requests may have waited behind it.
    grants.grant_all()
  end
  local between_us = math.floor(tonumber(redis.call('HGET', cell.flight, 'gi') or 0))
  return {status, cell.now_ms, waiting, between_us, cell.held_up_ms}
end
