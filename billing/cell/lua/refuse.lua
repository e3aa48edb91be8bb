-- refuse.lua -- v2
-- Counts a request that found no instance as refused in the evidence of the contract that would have applied.
-- KEYS: {c:CELL}:open
-- ARGV: `RefuseAsk` of billing/cell/asks.py (JSON)
-- Returns: {now_ms}
local cell, contracts = ...

return function(_, args)
  local contract = contracts.read(cell.contract(cjson.decode(args[1]).tenant))
  if contract and cell.now_ms < contract.ends then contracts.count(contract, 'refused') end
  return {cell.now_ms}
end
