-- settle.lua -- v2
-- Records what a request has used: so far (checkpoint), in the end (settle), or as last heard of (reap); or takes one out that waits (leave).
-- Idempotent by request id. Room that comes free is granted to those who wait.
-- Parts before it: those of every script, then check_state, charge_buckets.
-- KEYS: {c:CELL}:r:<request id>, {c:CELL}:b:<tenant>:<model>, {c:CELL}:k:<key id>:<model>, {c:CELL}:open, {c:CELL}:usage
-- ARGV: mode, request id, lease_ms, cost_mu, then cumulative tokens: prompt, cached, output, delivered,
--   then the event (settle) or the will (checkpoint), then a new head or '' to keep it, then the instance it moved to, with its epoch
--   (checkpoint; '' = none, '-' = it gives its place up and goes on later as another), then 1 where the caller left before anything was produced (settle). `reap` needs three: instead of lease_ms the lease
--   that its reaper has seen unrenewed for long enough (0 = none: only a lease that has passed); `leave` three: 1 for one that is refused after its wait, which counts as refused of its contract.
-- Returns: {status, now_ms, entry id, ms after which room should be granted again (0 = no need)}: checkpoint: renewed | stale; settle: settled | orphan; reap: settled | leased | dropped;
--   any: already_settled; checkpoint and reap: missing. leave: {dropped | missing | open, now_ms, tenants that wait, us between grants, ms as above}
if state then charge(class, contract_key, spilled, tenant_bucket, tenant, difference_mu, v[14]) end
if mode == 'checkpoint' then
  -- Not the greater of this and the old one: after Redis's clock went back the old one would hold for as long as it went back.
  lease = now_ms + lease_ms
  redis.call('HSET', reservation, 'charged', final_mu, 'used', cost_mu, 'p', prompt, 'c', cached, 'o', output,
    'd', delivered, 'will', text, 'lease', lease)
  if head ~= '' then redis.call('HSET', reservation, 'head', head) end
  local moved_to = ARGV[11]
  if pausing then
    land(class, instance, sequences, request_id)
    redis.call('HSET', reservation, 'inst', '')
  elseif moved_to ~= '' and moved_to ~= instance and not paused then
    local lent = redis.call('ZSCORE', lent_at(instance), request_id)
    land(class, instance, sequences, request_id)
    fly(class, moved_to, sequences)
    if lent then
      redis.call('ZADD', lent_at(moved_to), lent, request_id)
      redis.call('PEXPIRE', lent_at(moved_to), OPEN_TTL_MS)
    end
    redis.call('HSET', reservation, 'inst', moved_to, 'epoch', ARGV[12])
  end
  redis.call('ZADD', open, lease, request_id)
  for _, key in ipairs({reservation, open}) do redis.call('PEXPIRE', key, OPEN_TTL_MS) end
  if pausing then grant_all() end
  return {'renewed', now_ms}
end
redis.call('ZREM', open, request_id)
local entry_id = redis.call('XADD', usage, '*', 'e', text)
redis.call('DEL', reservation)
redis.call('HSET', reservation, 'state', 'settled', 'event', entry_id, 'by', mode)
redis.call('PEXPIRE', reservation, TOMBSTONE_TTL_MS)
if ends then
  land(class, instance, sequences, request_id)
  grant_all()
end
return {state and 'settled' or 'orphan', now_ms, entry_id, pace_ms}
