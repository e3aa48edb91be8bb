-- The cell in which a script runs: its clock, and the names of its keys as billing/wire/redis_keys.py spells them.
-- The first key of every script is the cell's `open`; all other keys stand in the same slot.
-- A request whose lease nobody reaps may stay for days, while the control plane is away: what counts it must not
-- expire before it.
local OPEN_TTL_MS = 7 * 86400 * 1000
local cell, prefix = {OPEN_TTL_MS = OPEN_TTL_MS}, nil

-- Once for each call, before anything else.
function cell.enter(open)
  prefix = open:sub(1, -5)
  local time = redis.call('TIME')
  cell.now_us = time[1] * 1000000 + time[2]
  cell.now_ms = math.floor(cell.now_us / 1000)
  cell.open, cell.room, cell.flight = open, prefix .. 'room', prefix .. 'flight'
  -- Ms after which slots should be granted again, as only the pace of reading holds a request up; 0 where it does not.
  cell.held_up_ms = 0
  cell.reading_rates = {}
end

function cell.usage() return prefix .. 'usage' end
function cell.intact() return prefix .. 'intact' end
function cell.reservation(request_id) return prefix .. 'r:' .. request_id end
function cell.contract(tenant) return prefix .. 'q:' .. tenant end
function cell.waiting_tenants(class) return prefix .. 'w:' .. class end
function cell.queue(class, tenant) return prefix .. 'wl:' .. class .. ':' .. tenant end
function cell.borrowed(instance) return prefix .. 'lent:' .. instance end

-- 0 for a moment that is not known, or is still to come because the clock of Redis went back.
function cell.seconds_since(at_us) return math.max(0, cell.now_us - (at_us or cell.now_us)) / 1000000 end

function cell.keep(...)
  for i = 1, select('#', ...) do redis.call('PEXPIRE', select(i, ...), OPEN_TTL_MS) end
end

-- Returns whether a gateway of this name listens.
function cell.wake(gateway, message) return redis.call('PUBLISH', 'taas:wake:' .. gateway, message) > 0 end

return cell
