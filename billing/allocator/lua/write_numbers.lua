-- write_numbers.lua -- v1
-- Writes what a round of the allocator decided for a cell, unless another allocator has written since this round read it.
-- KEYS: {c:CELL}:room, then the contracts' hashes to write.
-- ARGV: the memory that the round read ('' = none), the keys' time to live in ms, how many fields of `room` to write and these with their
--   values, how many fields of `room` to remove and these; then for each contract how many fields and these with their values.
-- Returns: 1, or 0 where nothing was written.
local room_key, read, ttl_ms = KEYS[1], ARGV[1], tonumber(ARGV[2])
if (redis.call('HGET', room_key, 's') or '') ~= read then return 0 end
local at = 3
local function take(values_each)
  local first = at + 1
  at = first + tonumber(ARGV[at]) * values_each
  return first, at - 1
end
local function write(key)
  local first, last = take(2)
  for i = first, last, 2 do redis.call('HSET', key, ARGV[i], ARGV[i + 1]) end
  redis.call('PEXPIRE', key, ttl_ms)
end
write(room_key)
local first, last = take(1)
for i = first, last do redis.call('HDEL', room_key, ARGV[i]) end
for i = 2, #KEYS do write(KEYS[i]) end
return 1
