-- find_room.lua -- v1, a part
-- Sequences in flight and room, an instance.
-- KEYS, ARGV: none of its own. Returns nothing, it defines what the next parts use.
-- Flex requests by instance, in the order in which they give way: those that can go on elsewhere first, of these the youngest.
local function lent_at(instance) return prefix .. 'lent:' .. instance end
local function fly(class, instance, sequences) redis.call('HINCRBY', flight_key, class .. ':' .. instance, sequences) end
local function land(class, instance, sequences, request_id)
  fly(class, instance, -sequences)
  if class == 'f' then redis.call('ZREM', lent_at(instance), request_id) end
end
-- Sequences that may still start there; nil where nothing bounds them. An idle instance takes one request of any size.
-- On-demand comes before flex wherever it may have the place: on what is kept for owners, flex only.
local function free_at(instance, class)
  local most = redis.call('HMGET', room_key, 'm:' .. instance, 'x:' .. instance, 'd:' .. instance)
  if not most[1] then return nil end
  local flight = redis.call('HMGET', flight_key, 'o:' .. instance, 'f:' .. instance)
  local o, f = tonumber(flight[1] or 0), tonumber(flight[2] or 0)
  local free, for_on_demand = tonumber(most[1]) - o - f, tonumber(most[3] or most[1]) - o
  if class == 'f' then
    free = math.min(free, tonumber(most[2] or most[1]) - f)
    if free > 0 and for_on_demand > 0 and redis.call('ZCARD', prefix .. 'w:o') > 0 then free = 0 end
  else
    free = math.min(free, for_on_demand)
  end
  if free > 0 and not may_read(instance) then return 0, false end
  return free, o + f == 0 and free > 0
end
local function fits(instance, class, sequences)
  local free, idle = free_at(instance, class)
  return not free or free >= sequences or idle
end
-- The instance with the most room, for so many sequences.
local function roomiest(instances, class, sequences)
  local best, most
  for _, instance in ipairs(instances) do
    local free, idle = free_at(instance, class)
    if free and (free >= sequences or idle) and (not most or free > most) then best, most = instance, free end
  end
  return best
end
