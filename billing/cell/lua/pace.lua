-- Prefills of on-demand and flex start one after the other, no faster than the engine reads: an engine does not
-- interrupt a prefill for a contract holder's request, which would have to wait for all of it.
local cell = ...
-- Nobody may change it.
local UNKNOWN = {rate = 0, unread_mu = 0}

-- Figures of an instance: its prefill rate (mu a second, 0 = unknown), how much of its prompts was unread, and as of
-- when.
local function note(instance, rate, level, at_us)
  if not rate then
    cell.reading[instance] = UNKNOWN
    return UNKNOWN
  end
  rate = tonumber(rate)
  local unread_mu = 0
  if rate > 0 then
    -- Redis's clock went back: prefills count from now on.
    if at_us and tonumber(at_us) > cell.now_us then
      redis.call('HSET', cell.flight, 'pt:' .. instance, cell.now_us)
    end
    unread_mu = math.max(0, (level or 0) - rate * cell.seconds_since(at_us or nil))
  end
  local noted = {rate = rate, unread_mu = unread_mu}
  cell.reading[instance] = noted
  return noted
end

local function of(instance)
  if cell.reading[instance] then return cell.reading[instance] end
  local rate = redis.call('HGET', cell.room, 'w:' .. instance)
  if not rate or tonumber(rate) <= 0 then return note(instance) end
  local v = redis.call('HMGET', cell.flight, 'pl:' .. instance, 'pt:' .. instance)
  return note(instance, rate, v[1], v[2])
end

-- The prompts still to be read, with this one; nil if they are not counted.
local function with_prompt(instance, prompt_mu)
  local reading = of(instance)
  if reading.rate <= 0 then return nil end
  reading.unread_mu = reading.unread_mu + prompt_mu
  return reading.unread_mu
end

-- What an instance is to read of a request's prompt: less where some of it should be cached.
local function to_read(request, instance)
  local prompt_mu = tonumber(request.prompt_mu or 0)
  if request.prefers ~= instance then return prompt_mu end
  return math.max(0, prompt_mu - tonumber(request.cached_mu or 0))
end

local function start_reading(instance, prompt_mu)
  local unread_mu = with_prompt(instance, prompt_mu)
  if unread_mu then
    redis.call('HSET', cell.flight, 'pl:' .. instance, unread_mu, 'pt:' .. instance, cell.now_us)
  end
end

-- Whether a prompt may start there now.
local function may_read(instance)
  local reading = of(instance)
  if reading.unread_mu <= 0 then return true end
  local wait_ms = math.ceil(reading.unread_mu / reading.rate * 1000)
  cell.pace_ms = cell.pace_ms == 0 and wait_ms or math.min(cell.pace_ms, wait_ms)
  return false
end

return {note = note, with_prompt = with_prompt, start_reading = start_reading, to_read = to_read, may_read = may_read}
