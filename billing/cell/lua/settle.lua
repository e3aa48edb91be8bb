-- settle.lua -- v3
-- Ends a request with its whole event, and corrects its charge. Idempotent by request id.
-- KEYS: {c:CELL}:open, {c:CELL}:b:<tenant>:<model>, {c:CELL}:k:<key id>:<model>
-- ARGV: `SettleAsk` of billing/cell/asks.py (JSON), the event (JSON)
-- Returns: {settled | orphan, now_ms, entry id, `pace_ms`}, or {already_settled, now_ms}; orphan: its reservation
--   was lost
local cell, queue, grants, usage = ...
local read = usage.reader({})

return function(keys, args)
  local ask, event = cjson.decode(args[1]), args[2]

  local held = read(ask.request_id)
  if held.state == 'settled' then return {'already_settled', cell.now_ms} end
  if held.state == 'waiting' or held.state == 'granted' then
    -- It was served without its slot while Redis did not answer: recorded like a request whose reservation is lost.
    queue.drop(ask.request_id)
    grants.grant_all()
    held.state = nil
  end
  if not held.state then
    held.charged_mu, held.charged_tokens, held.tenant_bucket, held.key_bucket = 0, 0, keys[2], keys[3]
    -- The class by which it is charged is lost with the reservation.
    held.class = cjson.decode(event).class == 'reserved' and 'r' or 'o'
    event = event:sub(1, -2) .. ',"orphan":true}'
  end
  local closed = held.state and not held.paused or false
  -- A journal of an earlier version has no tokens.
  local tokens = ask.tokens or held.charged_tokens
  usage.charge(held, ask.cost_mu, tokens, closed, 0, ask.cancelled and closed and 1 or 0)
  local status = held.state and 'settled' or 'orphan'
  return {status, cell.now_ms, usage.record(ask.request_id, held, event, 'settle')}
end
