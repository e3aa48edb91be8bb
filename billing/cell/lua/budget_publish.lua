-- budget_publish.lua -- v1
-- Writes what the ledger says of a tenant's budgets, and no longer holds what is in the ledger. What is spent in a
-- period never falls, and its bounds and its limit are the last ones that were read: two processes may write in
-- another order than they have read.
-- KEYS: {b:TENANT}:budgets, {b:TENANT}:held
-- ARGV: `BudgetFigures` of billing/cell/asks.py (JSON)
-- Returns: {now_ms}
local function write(key, each, at_ms)
  local budget = each.budget
  local before = redis.call('HMGET', key, budget .. ':from', budget .. ':spent', budget .. ':at')
  local same, spent = tonumber(before[1] or nil) == each.from_ms, each.spent
  if same then spent = math.max(spent, tonumber(before[2] or 0)) end
  if before[3] and at_ms < tonumber(before[3]) then
    if same then redis.call('HSET', key, budget .. ':spent', spent) end
    return
  end
  redis.call('HSET', key, budget .. ':limit', each.limit, budget .. ':from', each.from_ms, budget .. ':until',
    each.until_ms, budget .. ':spent', spent, budget .. ':at', at_ms)
end

local function forget(keys, request_id)
  local known = redis.call('HGET', keys[2], request_id)
  if not known then return end
  local held = cjson.decode(known)
  for _, budget in ipairs(held.budgets) do redis.call('HINCRBY', keys[1], budget .. ':held', -held.amount) end
  redis.call('HDEL', keys[2], request_id)
end

-- Removes the budgets that are not among these.
local function keep_only(key, budgets)
  local stay = {}
  for _, each in ipairs(budgets) do stay[each.budget] = true end
  for _, field in ipairs(redis.call('HKEYS', key)) do
    if not stay[field:match('^(.-):')] then redis.call('HDEL', key, field) end
  end
end

return function(keys, args)
  local figures = cjson.decode(args[1])
  for _, request_id in ipairs(figures.recorded) do forget(keys, request_id) end
  if figures.all then keep_only(keys[1], figures.budgets) end
  for _, each in ipairs(figures.budgets) do write(keys[1], each, figures.at_ms) end
  local time = redis.call('TIME')
  return {math.floor(time[1] * 1000 + time[2] / 1000)}
end
