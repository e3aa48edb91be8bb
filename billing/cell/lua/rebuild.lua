-- rebuild.lua -- v2
-- After Redis has lost something: raises levels to what the ledger says was used, and says that the cell is whole
-- again. What is higher stays.
-- KEYS: {c:CELL}:open
-- ARGV: `RebuildAsk` of billing/cell/asks.py (JSON). `run`: the run of the server, '' where more levels are to come
-- Returns: {now_ms}
local cell, buckets, contracts = ...

return function(_, args)
  local ask = cjson.decode(args[1])
  for _, bucket in ipairs(ask.buckets) do buckets.raise(bucket.key, bucket.levels) end
  for _, contract in ipairs(ask.contracts) do contracts.raise(contract.key, contract.used_mu, contract.spilled_mu) end
  if ask.run ~= '' then redis.call('SET', cell.intact(), ask.run) end
  return {cell.now_ms}
end
