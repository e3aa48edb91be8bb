-- Slots: sequences in flight at each instance by class, and how many more may start. Classes are r (reserved),
-- o (on-demand), f (flex).
local cell, pace, once = ...

-- The fields of an instance in `room`.
local fields_of = once(function(instance)
  return {'m:' .. instance, 'x:' .. instance, 'd:' .. instance, 'w:' .. instance}
end)

local function take(class, instance, sequences)
  redis.call('HINCRBY', cell.flight, class .. ':' .. instance, sequences)
end

-- Flex requests are kept in the order of preemption: first those that can be resumed elsewhere, of these the youngest.
local function may_be_preempted(request_id, instance, can_resume)
  local key = cell.preemptible(instance)
  redis.call('ZADD', key, (can_resume and 0 or 1e15) - cell.now_ms, request_id)
  cell.keep(key)
end

local function give_back(request_id, class, instance, sequences)
  take(class, instance, -sequences)
  if class == 'f' then redis.call('ZREM', cell.preemptible(instance), request_id) end
end

local function move(request_id, class, from, to, sequences)
  local turn = redis.call('ZSCORE', cell.preemptible(from), request_id)
  give_back(request_id, class, from, sequences)
  take(class, to, sequences)
  if turn then
    redis.call('ZADD', cell.preemptible(to), turn, request_id)
    cell.keep(cell.preemptible(to))
  end
end

-- How many sequences may still start there, nil if nothing bounds them; and whether the instance is idle: then one
-- request of any size may start. On-demand comes before flex wherever it may have the slot. Only flex may use the slots
-- that are kept for contract holders.
local function room_at(instance, class)
  local most = redis.call('HMGET', cell.room, unpack(fields_of(instance)))
  if not most[4] then pace.note(instance) end
  if not most[1] then return nil end
  local flight = redis.call('HMGET', cell.flight, 'o:' .. instance, 'f:' .. instance, 'pl:' .. instance,
    'pt:' .. instance)
  if not cell.reading[instance] then pace.note(instance, most[4], flight[3], flight[4]) end
  local on_demand, flex = tonumber(flight[1] or 0), tonumber(flight[2] or 0)
  local free = tonumber(most[1]) - on_demand - flex
  local for_on_demand = tonumber(most[3] or most[1]) - on_demand
  if class == 'f' then
    free = math.min(free, tonumber(most[2] or most[1]) - flex)
    if free > 0 and for_on_demand > 0 and cell.anybody_waits()
      and redis.call('ZCARD', cell.waiting_tenants('o')) > 0 then
      free = 0
    end
  else
    free = math.min(free, for_on_demand)
  end
  if free > 0 and not pace.may_read(instance) then return 0, false end
  return free, on_demand + flex == 0 and free > 0
end

local function fits(instance, class, sequences)
  local free, idle = room_at(instance, class)
  return not free or free >= sequences or idle
end

-- Where so many sequences may start: at the preferred instance, if there is one, else where the most slots are free.
local function roomiest(instances, class, sequences, preferred)
  local best, most
  for _, instance in ipairs(instances) do
    local free, idle = room_at(instance, class)
    if free and (free >= sequences or idle) then
      if instance == preferred then return instance end
      if not most or free > most then best, most = instance, free end
    end
  end
  return best
end

-- The instances that have such a field in `room`.
local function instances_with(field)
  local names = {}
  for _, name in ipairs(redis.call('HKEYS', cell.room)) do
    if name:sub(1, 2) == field then names[#names + 1] = name:sub(3) end
  end
  return names
end

return {
  take = take, may_be_preempted = may_be_preempted, give_back = give_back, move = move, free = room_at,
  fits = fits, roomiest = roomiest, instances_with = instances_with,
}
