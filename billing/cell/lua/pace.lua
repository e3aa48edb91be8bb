-- Prompts of on-demand and flex start one after the other, no faster than the engine reads: a prompt that it has
-- begun to read it does not put off for a contract holder who comes, and that one would wait for all of it.
local cell = ...

-- How much (mu) is still to be read there, and the rate at which it is (mu a second, 0 = not known).
local function unread(instance)
  local rate = tonumber(cell.reading_rates[instance] or redis.call('HGET', cell.room, 'w:' .. instance) or 0)
  if rate <= 0 then return 0, 0 end
  local v = redis.call('HMGET', cell.flight, 'pl:' .. instance, 'pt:' .. instance)
  -- The clock of Redis went back: it is read from now on.
  if v[2] and tonumber(v[2]) > cell.now_us then redis.call('HSET', cell.flight, 'pt:' .. instance, cell.now_us) end
  return math.max(0, (v[1] or 0) - rate * cell.seconds_since(v[2] or nil)), rate
end

local function start_reading(instance, prompt_mu)
  local level, rate = unread(instance)
  if rate > 0 then
    redis.call('HSET', cell.flight, 'pl:' .. instance, level + prompt_mu, 'pt:' .. instance, cell.now_us)
  end
end

-- Whether a prompt may start there now.
local function may_read(instance)
  local level, rate = unread(instance)
  if level <= 0 then return true end
  local wait_ms = math.ceil(level / rate * 1000)
  cell.held_up_ms = cell.held_up_ms == 0 and wait_ms or math.min(cell.held_up_ms, wait_ms)
  return false
end

return {start_reading = start_reading, may_read = may_read}
