-- budget_hold.lua -- v1
-- Holds the most that a request may cost against its budgets, or refuses it. Later it lowers what is held to what the
-- request did cost, or gives it back. Idempotent by request id. Amounts are whole micro-dollars.
-- KEYS: {b:TENANT}:budgets, {b:TENANT}:held
-- ARGV: `BudgetAsk` of billing/cell/asks.py (JSON)
-- Returns: {status, now_ms}, and behind `used_up` and `busy` the budget and when its period ends in ms (0 = never).
--   held: this amount is held now. missing: nothing is held. used_up: too much of the period is spent for it.
--   busy: it would fit without what other requests hold. unknown: Redis does not have one of the budgets
local TTL_MS = 7 * 86400 * 1000

local function change_held(key, held, delta)
  for _, budget in ipairs(held.budgets) do redis.call('HINCRBY', key, budget .. ':held', delta) end
end

-- The reply if one of the budgets has no room for the amount; of several used up ones, that of the one that is so for
-- longest. Else nil.
local function no_room(key, ask, now_ms)
  local busy, full, longest
  for _, budget in ipairs(ask.budgets) do
    local found = redis.call('HMGET', key, budget .. ':limit', budget .. ':until', budget .. ':spent',
      budget .. ':held')
    local limit, ends = tonumber(found[1] or nil), tonumber(found[2] or 0)
    if not limit then return {'unknown', now_ms} end
    -- Billing has not begun the next period yet: nothing is spent in it.
    local spent = ends > 0 and ends <= now_ms and 0 or tonumber(found[3] or 0)
    if spent + ask.amount > limit then
      local lasts = ends > 0 and ends or math.huge
      if not full or lasts > longest then full, longest = {'used_up', now_ms, budget, ends}, lasts end
    end
    if spent + tonumber(found[4] or 0) + ask.amount > limit then busy = {'busy', now_ms, budget, ends} end
  end
  return full or busy
end

return function(keys, args)
  local ask = cjson.decode(args[1])
  local time = redis.call('TIME')
  local now_ms = math.floor(time[1] * 1000 + time[2] / 1000)
  local known = redis.call('HGET', keys[2], ask.request_id)
  local held = known and cjson.decode(known)
  if ask.budgets then
    if held then return {'held', now_ms} end
    local reply = no_room(keys[1], ask, now_ms)
    if reply then return reply end
    held = {amount = 0, budgets = ask.budgets, cell = ask.cell, at_ms = now_ms}
  elseif not held then
    return {'missing', now_ms}
  end
  change_held(keys[1], held, ask.amount - held.amount)
  held.amount = ask.amount
  if ask.amount > 0 or ask.budgets then
    redis.call('HSET', keys[2], ask.request_id, cjson.encode(held))
    redis.call('PEXPIRE', keys[2], TTL_MS)
  else
    redis.call('HDEL', keys[2], ask.request_id)
  end
  return {'held', now_ms}
end
