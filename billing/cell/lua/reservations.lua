-- A request's reservation, by the names of its fields. `fields` maps them to those in Redis
-- (billing/wire/reservation.py).
local cell, fields, templates = ...
-- A settle that is sent again within this time is recognised.
local TOMBSTONE_TTL_MS = 900 * 1000

-- A function that reads these fields of a request, as texts in this order; false: there is no such field. (While a
-- library is loaded there is no `ipairs`, nor anything else that is global.)
local function value_reader(names)
  local stored = {}
  for i = 1, #names do stored[i] = fields[names[i]] end
  return function(request_id) return redis.call('HMGET', cell.reservation(request_id), unpack(stored)) end
end

-- The same by name; a field that is not there is nil.
local function reader(names)
  local read = value_reader(names)
  return function(request_id)
    local record, values = {}, read(request_id)
    for i = 1, #names do record[names[i]] = values[i] or nil end
    return record
  end
end

local function is_there(request_id) return redis.call('EXISTS', cell.reservation(request_id)) == 1 end

local words = {}

local function write(request_id, record)
  local n = 0
  for name, value in pairs(record) do
    words[n + 1], words[n + 2], n = fields[name], value, n + 2
  end
  redis.call('HSET', cell.reservation(request_id), unpack(words, 1, n))
end

-- Begins an open request with what others of its kind have, if there is a template; else it is false.
local function begin_alike(request_id, kind) return templates.copy(cell.reservation(request_id), kind) end
-- Begins it with these names and values, which its kind has.
local function begin(request_id, kind, ...)
  templates.write(cell.reservation(request_id), kind, cell.OPEN_TTL_MS, ...)
end

-- The rest of it: alternating names and values, then the fields that not every request has.
local function open(request_id, record, key_bucket, contract_key, spilled, contract)
  local n = #record
  if key_bucket then record[n + 1], record[n + 2], n = fields.key_bucket, key_bucket, n + 2 end
  if contract_key then record[n + 1], record[n + 2], n = fields.contract_key, contract_key, n + 2 end
  if spilled then record[n + 1], record[n + 2], n = fields.spilled, spilled, n + 2 end
  if contract ~= '' then record[n + 1], record[n + 2] = fields.contract, contract end
  redis.call('HSET', cell.reservation(request_id), unpack(record))
end

-- The reaper checks the request when this lease has passed. The first entry creates the set, which has no TTL yet;
-- `beside_others`: this is not the first.
local function lease(request_id, lease_ms, beside_others)
  if redis.call('ZADD', cell.open, lease_ms, request_id) == 1 and not beside_others then
    redis.call('PEXPIRE', cell.open, cell.OPEN_TTL_MS, 'NX')
  end
end

-- For as long as any process may need it.
local function keep(request_id) redis.call('PEXPIRE', cell.reservation(request_id), cell.OPEN_TTL_MS) end

local function forget(request_id)
  redis.call('DEL', cell.reservation(request_id))
  redis.call('ZREM', cell.open, request_id)
end

-- All that is kept of a request that has ended.
local function close(request_id, by, entry_id)
  local name = cell.reservation(request_id)
  if not templates.copy(name, by) then
    templates.write(name, by, TOMBSTONE_TTL_MS, fields.state, 'settled', fields.ended_by, by)
  end
  redis.call('HSET', name, fields.event, entry_id)
end

return {
  value_reader = value_reader, reader = reader, is_there = is_there, write = write, begin_alike = begin_alike,
  begin = begin, open = open, close = close, lease = lease, keep = keep, forget = forget,
}
