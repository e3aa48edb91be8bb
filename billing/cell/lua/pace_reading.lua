-- pace_reading.lua -- v1, a part
-- Prompts of on-demand and flex are started one after the other, no faster than the engine reads: what it has begun to read it does not
-- put off for an owner who comes, and then the owner would wait for all of it.
-- KEYS, ARGV: none of its own. Returns nothing, it defines what the next parts use.
-- Until the next prompt may start, where nothing else holds somebody up; 0 = nobody is.
local pace_ms = 0
-- How much (mu) is still to be read there, and the rate at which it is (mu per second, 0 = not known).
local function unread(instance)
  local rate = tonumber(redis.call('HGET', room_key, 'w:' .. instance) or 0)
  if rate <= 0 then return 0, 0 end
  local v = redis.call('HMGET', flight_key, 'pl:' .. instance, 'pt:' .. instance)
  -- Redis's clock went back: it is read from now on, not only from when the clock is there again.
  if v[2] and tonumber(v[2]) > now_us then redis.call('HSET', flight_key, 'pt:' .. instance, now_us) end
  return math.max(0, (v[1] or 0) - rate * math.max(0, now_us - (v[2] or now_us)) / 1000000), rate
end
local function start_reading(instance, prompt_mu)
  local level, rate = unread(instance)
  if rate > 0 then redis.call('HSET', flight_key, 'pl:' .. instance, level + prompt_mu, 'pt:' .. instance, now_us) end
end
-- Whether a prompt may start there now.
local function may_read(instance)
  local level, rate = unread(instance)
  if level <= 0 then return true end
  local wait_ms = math.ceil(level / rate * 1000)
  pace_ms = pace_ms == 0 and wait_ms or math.min(pace_ms, wait_ms)
  return false
end
