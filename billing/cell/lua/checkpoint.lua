-- checkpoint.lua -- v1
-- Records what a request has used so far and renews its lease. It may have moved to another instance, or give its slot
-- back because it was preempted (`pauses`), to resume later as another request.
-- KEYS: {c:CELL}:open
-- ARGV: `CheckpointAsk` of billing/cell/asks.py (JSON; instance '': where it is), the crash event (JSON),
--   a new head of the event, or '' to keep it
-- Returns: {renewed | stale | missing | already_settled, now_ms}; stale: a later one is recorded
local cell, reservations, slots, grants, usage = ...
local read = usage.reader({'prompt', 'output', 'delivered'})

return function(_, args)
  local ask, crash_event, head = cjson.decode(args[1]), args[2], args[3]
  local id = ask.request_id

  local held = read(id)
  if held.state == 'settled' then return {'already_settled', cell.now_ms} end
  if held.state ~= 'open' then return {'missing', cell.now_ms} end
  if ask.prompt < tonumber(held.prompt) or ask.output < tonumber(held.output)
    or ask.delivered < tonumber(held.delivered) then
    return {'stale', cell.now_ms}
  end

  local pauses = ask.pauses and not held.paused
  local moves = ask.instance ~= '' and ask.instance ~= held.instance and not held.paused
  -- A charge above the use stays until it ends. A preempted request counts as a request again when it resumes.
  local charged_mu = math.max(held.charged_mu, ask.cost_mu)
  -- Tokens are charged from the start, for the most that it may produce.
  local tokens = pauses and ask.prompt + ask.output or math.max(held.charged_tokens, ask.prompt + ask.output)
  usage.charge(held, charged_mu, tokens, pauses, pauses and -1 or 0)

  -- Not the later of this and the old lease: after Redis's clock went back the old one would hold for too long.
  local lease = cell.now_ms + ask.lease_ms
  local record = {
    charged_mu = charged_mu, charged_tokens = tokens,
    used_mu = ask.cost_mu, prompt = ask.prompt, cached = ask.cached, output = ask.output,
    delivered = ask.delivered, crash_event = crash_event, lease = lease,
  }
  if head ~= '' then record.head = head end
  if pauses then
    slots.give_back(id, held.class, held.instance, held.sequences)
    record.instance = ''
  elseif moves then
    slots.move(id, held.class, held.instance, ask.instance, held.sequences)
    record.instance, record.epoch = ask.instance, ask.epoch
  end
  reservations.write(id, record)
  reservations.lease(id, lease)
  if pauses then grants.grant_all() end
  return {'renewed', cell.now_ms}
end
