-- Limits as they are asked with, {{kind, window in s, amount}, …}, made into a plan of a bucket: which of its fields
-- are read, and by how much each level drains. Window 0: it counts what is open, and nothing drains.
local once = ...
-- Fields of limits that processes of an earlier version know, too, and drain since `t`. Others are named `kind:window`
-- and drain since `at`.
local SHORT = {['requests:60'] = 'r', ['units:60'] = 'u', ['cancels:60'] = 'x'}
local LONG = {r = 'requests:60', u = 'units:60', x = 'cancels:60'}
-- Fields that are read of every bucket, in this order; then `at` and the others, if there are any.
local READ = {'by', 'c', 't', 'v', 'r', 'u', 'x'}
local PLACES = {r = 5, u = 6, x = 7}
local AT_PLACE = 8

-- `limits`: kind, window_s, amount, `most` (the amount, and what sums may be off by), and for those with a window
-- `field`, `place` among those read, `per_us` that drains, `is_long` (it drains since `at`). `text`: those with a
-- window, and the weight of a tenant (nil for a key), as the bucket remembers them.
local function plan(limits, weight)
  local made = {limits = {}, read = {unpack(READ)}, is_long = false, weight = weight}
  made.text = weight and 'w=' .. weight .. ' ' or ''
  for i, asked in ipairs(limits) do
    local limit = {kind = asked[1], window_s = asked[2], amount = asked[3], most = asked[3] * (1 + 1e-9)}
    made.limits[i] = limit
    if limit.window_s > 0 then
      local name = limit.kind .. ':' .. limit.window_s
      limit.field, limit.per_us = SHORT[name] or name, limit.amount / limit.window_s / 1000000
      limit.place, limit.is_long = PLACES[limit.field], not SHORT[name]
      if limit.is_long then
        made.is_long, made.read[AT_PLACE] = true, 'at'
        limit.place = #made.read + 1
        made.read[limit.place] = limit.field
      end
      made.text = made.text .. limit.field .. '=' .. string.format('%.17g', limit.amount) .. ' '
    end
  end
  return made
end

-- From the text that a bucket has.
local remembered = once(function(text)
  local limits = {}
  for field, amount in text:gmatch('(%S+)=(%S+) ') do
    local kind, window_s = (LONG[field] or field):match('^(%a+):(%d+)$')
    if kind then limits[#limits + 1] = {kind, tonumber(window_s), tonumber(amount)} end
  end
  return plan(limits)
end)

-- Of a whole bucket: beside the field of a level stands that of its limit, with an `l` before it; -1 is no limit. It
-- has the limits also as an older version wrote them.
local function stored(fields)
  local limits = {}
  for name, amount in pairs(fields) do
    local field = name:match('^l(.+)$')
    local kind, window_s = (LONG[field] or field or ''):match('^(%a+):(%d+)$')
    if kind and tonumber(amount) >= 0 then
      limits[#limits + 1] = {kind, tonumber(window_s), tonumber(amount)}
    end
  end
  return limits
end

return {plan = plan, remembered = remembered, stored = stored, READ = READ, AT_PLACE = AT_PLACE}
