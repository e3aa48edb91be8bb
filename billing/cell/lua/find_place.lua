-- find_place.lua -- v1, a part
-- Fourth part of reserve: a place on an instance, or in line.
-- KEYS, ARGV: those of reserve.lua. Returns nothing, it defines what the next parts use.
local instance, epoch, blocked
local function candidate(wanted)
  for i = CANDIDATES, #ARGV, 2 do
    if wanted(ARGV[i]) then
      instance, epoch = ARGV[i], ARGV[i + 1]
      return
    end
  end
end
local function seen()
  local names = {}
  for i = CANDIDATES, #ARGV, 2 do names[#names + 1] = ARGV[i] end
  return names
end
-- Where nothing bounds any candidate, a line is no reason to stand in it: no settle would shorten it.
local function unbounded()
  for i = CANDIDATES, #ARGV, 2 do
    if free_at(ARGV[i], class) then return false end
  end
  return #ARGV >= CANDIDATES
end
-- What makes no tokens needs no room, and what runs there already has its own.
if class == 'r' or sequences == 0 or restored and not state then
  candidate(function() return true end)
elseif state == 'granted' then
  candidate(function(name) return name == held[3] end)
end
if state and not instance and (state == 'granted' or unbounded()) then
  -- The place is where this gateway does not see an instance, or none is needed any more: it begins anew.
  drop(request_id)
  grant_all()
  state, tenant.v = nil, tonumber(redis.call('HGET', tenant.key, 'v') or 0)
end
local waiting = prefix .. 'w:' .. (class == 'f' and 'f' or 'o')
local vl = tonumber(redis.call('HGET', flight_key, 'vl') or 0)
if class ~= 'r' and not state then
  blocked = redis.call('ZCARD', waiting) > 0
  if not instance and (not blocked or unbounded()) then candidate(function(name) return fits(name, class, sequences) end) end
  -- Idling earns no credit.
  local least = redis.call('ZSCORE', waiting, tenant_id) or redis.call('ZRANGE', waiting, 0, 0, 'WITHSCORES')[2]
  tenant.v = math.max(tenant.v, tonumber(least or vl))
end
