-- rebuild.lua -- v1
-- After Redis has lost something: raises levels to what the ledger says was used, and says that the cell is whole again. What is higher stays.
-- KEYS: {c:CELL}:open, four times. ARGV: the server's run ('' = more is to come), then for each level six: b (a bucket) or q (a contract, and beside it what spilled), its key,
--   requests and mu (b), or mu and spilled mu (q), then the limits by which a bucket drains: requests a minute, mu a minute (-1 = none; q: 0, 0)
-- Returns: {now_ms}
-- By then it has drained.
local REBUILT_TTL_MS = 600000
for i = 2, #ARGV, 6 do
  local key, first, second = ARGV[i + 1], tonumber(ARGV[i + 2]), tonumber(ARGV[i + 3])
  local q = ARGV[i] == 'q' and read_contract(key)
  if q then
    redis.call('HSET', key, 'u', math.max(contract_level(q), first), 't', now_us, 'sp', math.max(spill_level(q), second), 'st', now_us)
  elseif ARGV[i] == 'b' then
    local max_r, max_u = tonumber(ARGV[i + 4]), tonumber(ARGV[i + 5])
    local v = redis.call('HMGET', key, 'r', 'u', 't', 'x', 'lx', 'c')
    local minutes = minutes_since(v[3])
    redis.call('HSET', key, 'r', max_r < 0 and 0 or math.max(drained(v[1], max_r, minutes), first), 'lr', max_r,
      'u', max_u < 0 and 0 or math.max(drained(v[2], max_u, minutes), second), 'lu', max_u, 't', now_us, 'c', v[6] or 0)
    if v[4] then redis.call('HSET', key, 'x', drained(v[4], tonumber(v[5] or -1), minutes)) end
    if not v[6] then redis.call('PEXPIRE', key, REBUILT_TTL_MS) end
  end
end
if ARGV[1] ~= '' then redis.call('SET', prefix .. 'intact', ARGV[1]) end
return {now_ms}
