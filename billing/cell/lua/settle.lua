-- settle.lua -- v2
-- Records what a request has used: so far (checkpoint), in the end (settle), or as last heard of (reap); or takes one out that waits (leave).
-- Idempotent by request id. Room that comes free is granted to those who wait.
-- Parts before it: those of every script, then check_state.
-- KEYS: {c:CELL}:r:<request id>, {c:CELL}:b:<tenant>:<model>, {c:CELL}:k:<key id>:<model>, {c:CELL}:open, {c:CELL}:usage
-- ARGV: mode, request id, lease_ms, cost_mu, then cumulative tokens: prompt, cached, output, delivered,
--   then the event (settle) or the will (checkpoint), then a new head or '' to keep it, then the instance it moved to, with its epoch
--   (checkpoint, '' = none), then 1 where the caller left before anything was produced (settle). `reap` and `leave` need the first two only.
-- Returns: {status, now_ms, entry id}: checkpoint: renewed | stale; settle: settled | orphan; reap: settled | leased | dropped;
--   any: already_settled; checkpoint and reap: missing. leave: {dropped | missing | open, now_ms, tenants that wait, us between grants}
local final_mu = mode == 'settle' and cost_mu or mode == 'reap' and used_mu or math.max(charged_mu, cost_mu)
local difference_mu, closed = final_mu - charged_mu, state and mode ~= 'checkpoint' and 1 or 0
local function drain_ms(level, limit) return limit > 0 and math.ceil(level / limit * 60000) or 0 end
local buckets = {}
for _, key in ipairs(difference_mu == 0 and closed == 0 and {} or {tenant_bucket, key_bucket}) do
  local b = redis.call('HMGET', key, 'r', 'u', 't', 'c', 'lr', 'lu', 'x', 'lx')
  if b[1] then
    buckets[#buckets + 1] = {key = key, r = b[1], u = b[2], t = b[3], c = b[4], lr = tonumber(b[5]), lu = tonumber(b[6]),
                             x = b[7], lx = tonumber(b[8] or -1)}
  end
end
for _, b in ipairs(buckets) do
  local minutes = minutes_since(b.t)
  local r, u, c = drained(b.r, b.lr, minutes), drained(b.u, b.lu, minutes), math.max(0, b.c - closed)
  u = b.lu < 0 and 0 or math.max(0, u + difference_mu)
  local x = drained(b.x, b.lx, minutes) + (closed == 1 and ARGV[13] == '1' and b.lx >= 0 and 1 or 0)
  redis.call('HSET', b.key, 'r', r, 'u', u, 't', now_us, 'c', c)
  if b.lx >= 0 then redis.call('HSET', b.key, 'x', x) end
  redis.call('PEXPIRE', b.key,
    math.max(c > 0 and OPEN_TTL_MS or BUCKET_TTL_MS, drain_ms(r, b.lr), drain_ms(u, b.lu), drain_ms(x, b.lx)))
end
if state then charge(class, contract_key, spilled, tenant_bucket, tenant, difference_mu) end
if mode == 'checkpoint' then
  lease = math.max(lease, now_ms + lease_ms)
  redis.call('HSET', reservation, 'charged', final_mu, 'used', cost_mu, 'p', prompt, 'c', cached, 'o', output,
    'd', delivered, 'will', text, 'lease', lease)
  if head ~= '' then redis.call('HSET', reservation, 'head', head) end
  local moved_to = ARGV[11]
  if moved_to ~= '' and moved_to ~= instance then
    fly(class, instance, -sequences)
    fly(class, moved_to, sequences)
    redis.call('HSET', reservation, 'inst', moved_to, 'epoch', ARGV[12])
  end
  redis.call('ZADD', open, lease, request_id)
  for _, key in ipairs({reservation, open}) do redis.call('PEXPIRE', key, OPEN_TTL_MS) end
  return {'renewed', now_ms}
end
redis.call('ZREM', open, request_id)
local entry_id = redis.call('XADD', usage, '*', 'e', text)
redis.call('DEL', reservation)
redis.call('HSET', reservation, 'state', 'settled', 'event', entry_id, 'by', mode)
redis.call('PEXPIRE', reservation, TOMBSTONE_TTL_MS)
if state then
  fly(class, instance, -sequences)
  grant_all()
end
return {state and 'settled' or 'orphan', now_ms, entry_id}
