-- share_cells.lua -- v1
-- Divides the busy cells among the billing processes that are alive. A cell is held by one process at a time; what a dead one held is free.
-- KEYS: taas:allocators (hash: cell -> holder), taas:allocators:alive (sorted set: process by the end of its lease, ms).
-- ARGV: the process that asks, its lease in ms (0: it leaves), how many of the cells it cannot give away now, these cells, then all other busy cells.
-- Returns: the cells that it holds from now on.
local holders_key, alive_key = KEYS[1], KEYS[2]
local me, lease_ms, pinned = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local FIRST = 4
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

redis.call('ZREMRANGEBYSCORE', alive_key, '-inf', now_ms - 1)
-- Redis's clock may have gone back: no lease holds for longer than one that is given now.
for _, name in ipairs(lease_ms > 0 and redis.call('ZRANGEBYSCORE', alive_key, '(' .. (now_ms + lease_ms), '+inf') or {}) do
  redis.call('ZADD', alive_key, now_ms + lease_ms, name)
end
if lease_ms > 0 then
  redis.call('ZADD', alive_key, now_ms + lease_ms, me)
  redis.call('PEXPIRE', alive_key, lease_ms)
else
  redis.call('ZREM', alive_key, me)
end
local alive, processes = {}, 0
for _, name in ipairs(redis.call('ZRANGE', alive_key, 0, -1)) do
  alive[name] = true
  processes = processes + 1
end
local busy = {}
for i = FIRST, #ARGV do busy[ARGV[i]] = true end
local holder_of, listed = {}, redis.call('HGETALL', holders_key)
for i = 1, #listed, 2 do
  local cell, holder = listed[i], listed[i + 1]
  if alive[holder] and (holder ~= me or busy[cell]) then
    holder_of[cell] = holder
  else
    redis.call('HDEL', holders_key, cell)
  end
end
if lease_ms == 0 then return {} end

local fair = math.ceil((#ARGV - FIRST + 1) / processes)
local held, free = {}, {}
for i = FIRST, #ARGV do
  local cell = ARGV[i]
  if holder_of[cell] == me then
    held[#held + 1] = cell
  elseif not holder_of[cell] then
    free[#free + 1] = cell
  end
end
for _, cell in ipairs(free) do
  if #held >= fair then break end
  redis.call('HSET', holders_key, cell, me)
  held[#held + 1] = cell
end
-- The first cells are those that it cannot give away, so giving begins at the end.
while #held > fair and #held > pinned do
  redis.call('HDEL', holders_key, table.remove(held))
end
return held
