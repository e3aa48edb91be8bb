-- rebuild.lua -- v2
-- After Redis has lost data: raises levels to those of the ledger, and marks the cell as intact. A higher level stays.
-- KEYS: {c:CELL}:open
-- ARGV: `RebuildAsk` of billing/cell/asks.py (JSON). `run`: the run of the server, '' if more levels follow
-- Returns: {now_ms}
local cell, buckets, contracts = ...

return function(_, args)
  local ask = cjson.decode(args[1])
  for _, bucket in ipairs(ask.buckets) do buckets.raise(bucket.key, bucket.levels) end
  for _, contract in ipairs(ask.contracts) do contracts.raise(contract.key, contract.used_mu, contract.spilled_mu) end
  if ask.run ~= '' then redis.call('SET', cell.intact(), ask.run) end
  return {cell.now_ms}
end
