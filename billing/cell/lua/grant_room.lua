-- grant_room.lua -- v1, a part
-- Room that came free goes to those who wait.
-- KEYS, ARGV: none of its own. Returns nothing, it defines what the next parts use.
-- Hand the room there is to those who wait: always to the tenant with the least counter, on-demand before flex.
local function grant_all()
  local instances
  for _, class in ipairs({'o', 'f'}) do
    local waiting = prefix .. 'w:' .. class
    while true do
      local first = redis.call('ZRANGE', waiting, 0, 0, 'WITHSCORES')
      if not first[1] then break end
      local tenant = first[1]
      local request_id = redis.call('ZRANGE', queue_of(class, tenant), 0, 0)[1]
      if not request_id then
        redis.call('ZREM', waiting, tenant)
      else
        local key = prefix .. 'r:' .. request_id
        local v = redis.call('HMGET', key, 'state', 'lease', 'seq', 'gw', 'cost', 'tb', 'qb', 'spl')
        if v[1] ~= 'waiting' or tonumber(v[2]) < now_ms then
          if not drop(request_id) then unqueue(class, tenant, request_id) end
        else
          if not instances then
            instances = {}
            for _, name in ipairs(redis.call('HKEYS', room_key)) do
              if name:sub(1, 2) == 'm:' then instances[#instances + 1] = name:sub(3) end
            end
          end
          local instance = roomiest(instances, class, tonumber(v[3]))
          if not instance then return end
          unqueue(class, tenant, request_id)
          fly(class, instance, tonumber(v[3]))
          charge(class, v[7], v[8] == '1', v[6], tenant, tonumber(v[5]))
          redis.call('HSET', key, 'state', 'granted', 'inst', instance, 'lease', now_ms + GRANT_MS)
          redis.call('ZADD', open, now_ms + GRANT_MS, request_id)
          local last = redis.call('HMGET', flight_key, 'gt', 'gi')
          local since = math.max(0, now_us - (last[1] or now_us))
          redis.call('HSET', flight_key, 'vl', first[2], 'gt', now_us, 'gi', math.floor((last[2] or since) * 0.9 + since * 0.1))
          -- Nobody listens: its gateway is gone, and the place is the next one's.
          if redis.call('PUBLISH', 'taas:wake:' .. v[4], request_id) == 0 then drop(request_id) end
        end
      end
    end
  end
end
