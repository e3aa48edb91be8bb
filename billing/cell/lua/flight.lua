-- What is in flight in the cell: sequences at each instance by class (`<class>:<instance>`), prompts still to be read
-- there (`pl`, `pt`), what was charged in all (`used`), the floor of virtual counters (`vl`). One hash, which a request
-- that is admitted reads once and writes once.
local cell = ...

-- The floor, the total charge, when its TTL was last renewed, and the sequences of a class at an instance.
local function read(class, instance)
  local v = redis.call('HMGET', cell.flight, 'vl', 'used', 'kept', class .. ':' .. instance)
  return {floor = tonumber(v[1] or 0), used_mu = v[2] or 0, kept_us = v[3], sequences = v[4] or 0}
end

local words = {}

-- Adds one request at an instance, to the values as read. `virtual`: its tenant's counter, nil if it takes no turn;
-- `unread_mu`: the prompts to be read there including its own, nil if they are not counted.
local function admit(before, class, instance, sequences, change_mu, virtual, unread_mu)
  local n = 2
  words[1], words[2] = class .. ':' .. instance, before.sequences + sequences
  if change_mu ~= 0 then words[3], words[4], n = 'used', before.used_mu + math.floor(change_mu), 4 end
  if virtual and virtual > before.floor then words[n + 1], words[n + 2], n = 'vl', virtual, n + 2 end
  if unread_mu then
    words[n + 1], words[n + 2] = 'pl:' .. instance, unread_mu
    words[n + 3], words[n + 4], n = 'pt:' .. instance, cell.now_us, n + 4
  end
  local prolongs = cell.is_of_earlier_minute(before.kept_us)
  if prolongs then words[n + 1], words[n + 2], n = 'kept', cell.now_us, n + 2 end
  redis.call('HSET', cell.flight, unpack(words, 1, n))
  if prolongs then cell.keep(cell.flight, cell.open) end
end

return {read = read, admit = admit}
