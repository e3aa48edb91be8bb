-- forget_instance v1: takes an instance's entry out, unless somebody has written it again since it was read.
-- KEYS: 1 taas:instances, hash instance id -> JSON
-- ARGV: 1 instance id, 2 the entry as it was read
-- Returns: 1 when it was taken out, 0 when another entry stands there, or none

local instances = KEYS[1]
local instance, read = ARGV[1], ARGV[2]

if redis.call('HGET', instances, instance) ~= read then
  return 0
end
redis.call('HDEL', instances, instance)
return 1
