-- read_clock.lua -- v1, a part
-- The cell's time and names, for all scripts. Names of keys are those of billing/wire/redis_keys.py, all in this cell's slot.
-- KEYS, ARGV: the fourth key is the cell's `open`. Returns nothing, it defines what the next parts use.
local open = KEYS[4]
local prefix = open:sub(1, -5)
local room_key, flight_key = prefix .. 'room', prefix .. 'flight'
-- Longer than a lease that nobody reaps may wait for the control plane: a count must not vanish under what it counts.
local OPEN_TTL_MS, GRANT_MS = 7 * 86400 * 1000, 3000
-- A gateway comes back for what waits before this has passed; sooner, it is woken.
local WAIT_MS = 45000
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now_ms = math.floor(now_us / 1000)
local function drained(level, limit, minutes)
  if limit < 0 or not level then return 0 end
  return math.max(0, level - limit * minutes)
end
local function minutes_since(at_us) return math.max(0, now_us - (at_us or now_us)) / 60000000 end
