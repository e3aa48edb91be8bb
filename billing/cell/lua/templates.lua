-- Hashes of which many begin alike: Redis copies one that it has, with its fields and its TTL, in one command. Without
-- a template (it is lost, or this user may not use COPY) the hash is written as a whole.
local cell = ...
local MINUTE_MS = 60000
-- When COPY was last refused. It is not tried again within that minute.
local refused_us

-- Makes the hash a copy, whatever it was. False if it has to be written. `kind`: all that these hashes have in common.
local function copy(name, kind)
  local known = cell.known(kind)
  if cell.is_of_earlier_minute(known.template_us) or not cell.is_of_earlier_minute(refused_us) then return false end
  local copied = redis.pcall('COPY', known.template, name, 'REPLACE')
  if type(copied) == 'table' then refused_us = cell.now_us end
  return copied == 1
end

-- Writes the hash with these names and values, to live for `ttl_ms`; a copy may live for a minute more. The second of a
-- kind in a minute becomes the template for the rest of it.
local function write(name, kind, ttl_ms, ...)
  redis.call('DEL', name)
  redis.call('HSET', name, ...)
  redis.call('PEXPIRE', name, ttl_ms)
  local known = cell.known(kind)
  if not cell.is_of_earlier_minute(known.written_us) and cell.is_of_earlier_minute(refused_us) then
    known.template, known.template_us = cell.template(kind), cell.now_us
    redis.call('HSET', known.template, ...)
    redis.call('PEXPIRE', known.template, ttl_ms + MINUTE_MS)
  end
  known.written_us = cell.now_us
end

return {copy = copy, write = write}
