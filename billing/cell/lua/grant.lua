-- grant.lua -- v2
-- Grants the free slots to waiting requests. After a new plan (`recount`), and in case wake-ups were lost, it first
-- recounts what is in flight, and preempts flex requests that are in the way: their gateway gets `!<request id>`.
-- KEYS: {c:CELL}:open
-- ARGV: `GrantAsk` of billing/cell/asks.py (JSON)
-- Returns: {now_ms, tenants that wait for on-demand, for flex, requests open, `pace_ms`, preempted requests that were
--   signalled again}
local cell, fields, reservations, slots, queue, grants = ...
local LONG_MS = 2000
-- Rounds, of a second each, within which a preempted request should stop. Then it is signalled again, as the message
-- may be lost.
local ROUNDS_TO_STOP = 3
local read = reservations.reader({'state', 'class', 'instance', 'sequences', 'gateway', 'admitted_ms'})
local read_slot = reservations.reader({'gateway', 'sequences'})

-- Sequences in flight by class and instance, and on-demand sequences that have run for long (`l`): their slots do not
-- come free soon.
local function count(open)
  local counted = {}
  local function add(class, instance, sequences)
    local field = class .. ':' .. instance
    counted[field] = (counted[field] or 0) + tonumber(sequences)
  end
  for _, id in ipairs(open) do
    local held = read(id)
    -- The wake-up, or the gateway itself, may have been lost.
    if held.state == 'granted' and not cell.wake(held.gateway, id) then
      queue.drop(id)
    elseif (held.state == 'open' or held.state == 'granted') and (held.instance or '') ~= '' then
      add(held.class, held.instance, held.sequences)
      if held.class == 'o' and cell.now_ms - (held.admitted_ms or cell.now_ms) > LONG_MS then
        add('l', held.instance, held.sequences)
      end
    end
  end
  return counted
end

local function recount(open)
  local counted = count(open)
  for _, field in ipairs(redis.call('HKEYS', cell.flight)) do
    if field:sub(2, 2) == ':' and not counted[field] then redis.call('HDEL', cell.flight, field) end
  end
  for field, sequences in pairs(counted) do redis.call('HSET', cell.flight, field, sequences) end
end

-- Preempts one request. Returns whether it will stop, and whether it was signalled again. It keeps its turn until its
-- slot is free: a request that was signalled in an earlier round is about to stop, or has not got the message.
local function preempt(id, gateway)
  local name = cell.reservation(id)
  local rounds = redis.call('HINCRBY', name, fields.preempt_rounds, 1)
  local asks = rounds % ROUNDS_TO_STOP == 1
  if not asks or cell.wake(gateway or '', '!' .. id) then return true, asks and rounds > 1 end
  -- Nobody listens there now: the next round tries again, and meanwhile another request may stop.
  redis.call('HSET', name, fields.preempt_rounds, 0)
  return false, false
end

-- Preempts as many as exceed what the plan leaves to flex there. Returns how many were signalled again.
local function preempt_at(instance)
  local over, repeats = tonumber(redis.call('HGET', cell.room, 'g:' .. instance)), 0
  for _, id in ipairs(over > 0 and redis.call('ZRANGE', cell.preemptible(instance), 0, -1) or {}) do
    local held = read_slot(id)
    if not held.sequences then
      -- Redis has lost its reservation, so there is no gateway to signal.
      redis.call('ZREM', cell.preemptible(instance), id)
    elseif tonumber(held.sequences) > 0 then
      local stops, again = preempt(id, held.gateway)
      if stops then over = over - held.sequences end
      if again then repeats = repeats + 1 end
    end
    if over <= 0 then break end
  end
  redis.call('HSET', cell.room, 'g:' .. instance, 0)
  return repeats
end

return function(_, args)
  local ask = cjson.decode(args[1])
  local open, repeats = {}, 0
  if ask.recount then
    open = redis.call('ZRANGE', cell.open, 0, -1)
    recount(open)
    for _, instance in ipairs(slots.instances_with('g:')) do repeats = repeats + preempt_at(instance) end
  end
  grants.grant_all()
  return {cell.now_ms, redis.call('ZCARD', cell.waiting_tenants('o')), redis.call('ZCARD', cell.waiting_tenants('f')),
    #open, cell.pace_ms, repeats}
end
