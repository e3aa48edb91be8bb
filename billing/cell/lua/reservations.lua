-- A request's reservation, by the names of its fields. `fields` maps them to those in Redis
-- (billing/wire/reservation.py).
local cell, fields = ...

-- A function that reads these fields of a request, as text; a field that is not there is nil. (While a library is
-- loaded there is no `ipairs`, nor anything else that is global.)
local function reader(names)
  local stored = {}
  for i = 1, #names do stored[i] = fields[names[i]] end
  return function(request_id)
    local record, values = {}, redis.call('HMGET', cell.reservation(request_id), unpack(stored))
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

-- An open request: alternating names and values, then the fields that not every request has.
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

return {reader = reader, is_there = is_there, write = write, open = open, lease = lease, keep = keep, forget = forget}
