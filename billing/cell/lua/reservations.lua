-- A request's reservation, by the names of its fields. `fields` maps them to those in Redis
-- (billing/wire/reservation.py).
local cell, fields = ...

-- The fields asked for, as text; a field that is not there is nil.
local function read(request_id, names)
  local stored, record = {}, {}
  for i, name in ipairs(names) do stored[i] = fields[name] end
  local values = redis.call('HMGET', cell.reservation(request_id), unpack(stored))
  for i, name in ipairs(names) do record[name] = values[i] or nil end
  return record
end

local function write(request_id, record)
  local words, n = {}, 0
  for name, value in pairs(record) do
    words[n + 1], words[n + 2], n = fields[name], value, n + 2
  end
  redis.call('HSET', cell.reservation(request_id), unpack(words))
end

-- The request is looked at again when this lease has passed.
local function lease(request_id, lease_ms)
  redis.call('ZADD', cell.open, lease_ms, request_id)
end

-- For as long as anybody may come for it.
local function keep(request_id) cell.keep(cell.reservation(request_id), cell.open) end

local function forget(request_id)
  redis.call('DEL', cell.reservation(request_id))
  redis.call('ZREM', cell.open, request_id)
end

return {read = read, write = write, lease = lease, keep = keep, forget = forget}
