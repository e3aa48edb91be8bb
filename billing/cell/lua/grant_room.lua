-- grant_room.lua -- v1, a part
-- Room that came free goes to those who wait.
-- KEYS, ARGV: none of its own. Returns nothing, it defines what the next parts use.
-- Requests that one run looks at: a crowd whose gateway died must not hold up the cell. The next run goes on.
local LOOKS_MAX = 200
-- Instances that have such a field in `room`.
local function names_of(field)
  local names = {}
  for _, name in ipairs(redis.call('HKEYS', room_key)) do
    if name:sub(1, 2) == field then names[#names + 1] = name:sub(3) end
  end
  return names
end
-- The first request of this tenant that waits, and what is known of it. Whether its gateway lives is seen when it is told of its place, not by
-- its lease: that says nothing when Redis's clock has jumped.
local function first_waiting(class, tenant)
  local request_id = redis.call('ZRANGE', queue_of(class, tenant), 0, 0)[1]
  if not request_id then
    redis.call('ZREM', prefix .. 'w:' .. class, tenant)
    return nil
  end
  local v = redis.call('HMGET', prefix .. 'r:' .. request_id, 'state', 'lease', 'seq', 'gw', 'cost', 'tb', 'qb', 'spl', 'wt', 'pmu')
  if v[1] == 'waiting' then return request_id, v end
  if not drop(request_id) then unqueue(class, tenant, request_id) end
end
local function grant_place(class, tenant, counter, request_id, v, instance)
  unqueue(class, tenant, request_id)
  fly(class, instance, tonumber(v[3]))
  start_reading(instance, tonumber(v[10] or 0))
  charge(class, v[7], v[8] == '1', v[6], tenant, tonumber(v[5]), v[9])
  redis.call('HSET', prefix .. 'r:' .. request_id, 'state', 'granted', 'inst', instance, 'lease', now_ms + GRANT_MS)
  redis.call('ZADD', open, now_ms + GRANT_MS, request_id)
  local last = redis.call('HMGET', flight_key, 'gt', 'gi', 'vl')
  local since = math.max(0, now_us - (last[1] or now_us))
  redis.call('HSET', flight_key, 'vl', math.max(counter, last[3] or 0), 'gt', now_us, 'gi', math.floor((last[2] or since) * 0.9 + since * 0.1))
end
-- Hand the room there is to those who wait: always to the tenant with the least counter, on-demand before flex.
-- Who asks now (`asking`) has its answer in hand: it needs no wake, and only what it can see (`seen`) is a place for it.
local function grant_all(asking, seen)
  local instances, looks = nil, 0
  for _, class in ipairs({'o', 'f'}) do
    while true do
      local first = redis.call('ZRANGE', prefix .. 'w:' .. class, 0, 0, 'WITHSCORES')
      if not first[1] then break end
      looks = looks + 1
      if looks > LOOKS_MAX then return end
      local request_id, v = first_waiting(class, first[1])
      if request_id then
        instances = instances or names_of('m:')
        local instance = roomiest(request_id == asking and seen or instances, class, tonumber(v[3]))
        if not instance then break end
        -- Nobody listens: its gateway is gone, and the place is the next one's.
        local heard = request_id == asking or redis.call('PUBLISH', 'taas:wake:' .. v[4], request_id) > 0
        if heard then grant_place(class, first[1], first[2], request_id, v, instance) else drop(request_id) end
      end
    end
  end
end
