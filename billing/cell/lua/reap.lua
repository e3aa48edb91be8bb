-- reap.lua -- v1
-- Ends a request whose gateway no longer renews its lease, as its last checkpoint left it.
-- KEYS: {c:CELL}:open
-- ARGV: `ReapAsk` of billing/cell/asks.py (JSON). `watched_lease_ms`: the lease that its reaper has seen unrenewed for
--   long enough, whatever the clock of Redis says by now; 0 = none: only a lease that has passed
-- Returns: {settled, now_ms, entry id, `pace_ms`}, or {leased | dropped | missing | already_settled, now_ms};
--   dropped: it waited, and there is no event
local cell, reservations, queue, grants, usage = ...
local read = usage.reader({'lease'})
local read_event = reservations.reader({'head', 'crash_event'})

return function(_, args)
  local ask = cjson.decode(args[1])
  local id = ask.request_id

  local held = read(id)
  if held.state == 'settled' then return {'already_settled', cell.now_ms} end
  if not held.state then
    redis.call('ZREM', cell.open, id)
    return {'missing', cell.now_ms}
  end
  local lease = tonumber(held.lease)
  if lease > cell.now_ms and lease ~= ask.watched_lease_ms then return {'leased', cell.now_ms} end
  if held.state ~= 'open' then
    queue.drop(id)
    grants.grant_all()
    return {'dropped', cell.now_ms}
  end

  local stored = read_event(id)
  local left = cjson.decode(stored.crash_event)
  local tokens = left.charged_tokens
  if not tokens then
    -- A crash event of an earlier version does not say it. Whatever it charges is billed.
    local billed = left.billed or {prompt = 0, output = 0}
    tokens = billed.prompt + billed.output
  end
  usage.charge(held, left.units_mu, tokens, not held.paused)
  -- After the clock went back, leases end far in the future.
  local ended_ms = string.format('%.0f', math.min(lease, cell.now_ms))
  local event = stored.head:sub(1, -2) .. ',' .. stored.crash_event:sub(2, -2) .. ',"ended_ms":' .. ended_ms .. '}'
  return {'settled', cell.now_ms, usage.record(id, held, event, 'reap')}
end
