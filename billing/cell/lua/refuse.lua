-- refuse.lua -- v1
-- A request that was never asked for a place, because no instance is there to have one: the contract that it would have come under counts it.
-- KEYS: {c:CELL}:open, four times. ARGV: tenant. Returns: {now_ms}
local q = read_contract(prefix .. 'q:' .. ARGV[1])
if q and now_ms < q.ends then redis.call('HINCRBY', q.key, 'refused', 1) end
return {now_ms}
