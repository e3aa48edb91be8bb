-- show_instance v1: puts an instance's entry in place of the one that was read, unless somebody has changed or removed it since.
-- KEYS: 1 taas:instances, hash instance id -> JSON
-- ARGV: 1 instance id, 2 the entry as it was read, 3 the entry to show
-- Returns: 1 when it was written, 0 when another entry stands there, or none

local instances = KEYS[1]
local instance, read, shown = ARGV[1], ARGV[2], ARGV[3]

if redis.call('HGET', instances, instance) ~= read then
  return 0
end
redis.call('HSET', instances, instance, shown)
return 1
