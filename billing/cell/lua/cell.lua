-- The cell in which a script runs: its clock, and the names of its keys as billing/wire/redis_keys.py spells them.
-- The first key of every script is the cell's `open`; all other keys are in the same hash slot.
local once = ...
-- While the control plane is away a request may stay open for days: its keys must not expire before it.
local OPEN_TTL_MS = 7 * 86400 * 1000
local MINUTE_US = 60000000
local cell = {OPEN_TTL_MS = OPEN_TTL_MS}
local names, minute_us, reservation_of, reservation_name, somebody_waits

local names_of = once(function(open)
  local prefix = open:sub(1, -5)
  return {
    prefix = prefix, room = prefix .. 'room', flight = prefix .. 'flight', usage = prefix .. 'usage',
    intact = prefix .. 'intact', reservation = prefix .. 'r:', waiting = {o = prefix .. 'w:o', f = prefix .. 'w:f'},
    kinds = once(function() return {} end),
  }
end)

-- Once for each call, before anything else.
function cell.enter(open)
  if open ~= cell.open then
    names = names_of(open)
    cell.open, cell.room, cell.flight = open, names.room, names.flight
  end
  local time = redis.call('TIME')
  local now_us = time[1] * 1000000 + time[2]
  cell.now_us, cell.now_ms = now_us, (now_us - now_us % 1000) / 1000
  minute_us = now_us - now_us % MINUTE_US
  -- Ms after which `grant` should be called, if only the pace of prefills holds a waiting request up; else 0.
  cell.pace_ms = 0
  -- Figures of instances that pace.lua has read.
  cell.reading = {}
  reservation_of, somebody_waits = nil, nil
end

function cell.usage() return names.usage end
function cell.intact() return names.intact end
function cell.reservation(request_id)
  if request_id ~= reservation_of then
    reservation_of, reservation_name = request_id, names.reservation .. request_id
  end
  return reservation_name
end
function cell.contract(tenant) return names.prefix .. 'q:' .. tenant end
function cell.waiting_tenants(class) return names.waiting[class] or names.prefix .. 'w:' .. class end
function cell.queue(class, tenant) return names.prefix .. 'wl:' .. class .. ':' .. tenant end
-- What templates.lua knows of a kind of hash, and the key of its template.
function cell.known(kind) return names.kinds(kind) end
function cell.template(kind) return names.prefix .. 'like:' .. redis.sha1hex(kind) end
-- Open flex requests of an instance, in the order of preemption.
function cell.preemptible(instance) return names.prefix .. 'lent:' .. instance end

-- 0 for an unknown moment, and for one in the future because Redis's clock went back.
function cell.seconds_since(at_us) return math.max(0, cell.now_us - (at_us or cell.now_us)) / 1000000 end

-- Whether another minute has begun. The TTL of keys that are written all the time is renewed once a minute.
function cell.is_of_earlier_minute(at_us)
  at_us = tonumber(at_us or nil)
  return not at_us or at_us < minute_us or at_us >= minute_us + MINUTE_US
end

function cell.keep(...)
  for i = 1, select('#', ...) do redis.call('PEXPIRE', select(i, ...), OPEN_TTL_MS) end
end

-- Whether the cell's levels exist, and whether anything that is rare may exist: a reservation of this request, a
-- contract of its tenant, a request that waits for a slot. All in one command: a key that is named five times counts
-- five.
function cell.read_markers(request_id, tenant)
  local intact = names.intact
  local found = redis.call('EXISTS', intact, intact, intact, intact, intact, cell.reservation(request_id),
    cell.contract(tenant), names.waiting.o, names.waiting.f)
  if found == 5 then somebody_waits = false end
  return found >= 5, found ~= 5
end

-- Whether any request waits for a slot. True may be out of date, false is not.
function cell.anybody_waits()
  if somebody_waits == nil then
    somebody_waits = redis.call('EXISTS', names.waiting.o, names.waiting.f) > 0
  end
  return somebody_waits
end

function cell.begins_to_wait(class, tenant, virtual)
  redis.call('ZADD', names.waiting[class], virtual, tenant)
  somebody_waits = true
end

-- Returns whether a gateway of this name listens.
function cell.wake(gateway, message) return redis.call('PUBLISH', 'taas:wake:' .. gateway, message) > 0 end

return cell
