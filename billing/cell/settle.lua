-- settle.lua -- v1
-- Records what a request has used: so far (checkpoint), in the end (settle), or as last heard of (reap). Idempotent by request id.
-- KEYS: {c:CELL}:r:<request id>, {c:CELL}:b:<tenant>:<model>, {c:CELL}:k:<key id>:<model>, {c:CELL}:open, {c:CELL}:usage
-- ARGV: mode, request id, lease_ms, cost_mu, then cumulative tokens: prompt, cached, output, delivered,
--   then the event (settle) or the will (checkpoint), then a new head or '' to keep it. `reap` needs the first two only.
-- Returns: {status, now_ms, entry id}: checkpoint: renewed | stale; settle: settled | orphan; reap: settled | leased;
--   any: already_settled; checkpoint and reap: missing
local reservation, tenant_bucket, key_bucket, open, usage = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local mode, request_id, lease_ms, cost_mu = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local prompt, cached, output, delivered, text, head = ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9], ARGV[10]
local TOMBSTONE_TTL_MS, BUCKET_TTL_MS, OPEN_TTL_MS = 900 * 1000, 60 * 1000, 7 * 86400 * 1000
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now_ms = math.floor(now_us / 1000)
local v = redis.call('HMGET', reservation, 'state', 'charged', 'used', 'p', 'o', 'd', 'lease')
local state, charged_mu, used_mu, lease = v[1], tonumber(v[2] or 0), tonumber(v[3] or 0), tonumber(v[7] or 0)
if state == 'settled' then return {'already_settled', now_ms} end
if not state and mode == 'reap' then redis.call('ZREM', open, request_id) end
if not state and mode ~= 'settle' then return {'missing', now_ms} end
if mode == 'reap' and lease > now_ms then return {'leased', now_ms} end
if mode == 'checkpoint' and (prompt - v[4] < 0 or output - v[5] < 0 or delivered - v[6] < 0) then return {'stale', now_ms} end
if mode == 'reap' then
  local stored = redis.call('HMGET', reservation, 'head', 'will')
  text = stored[1]:sub(1, -2) .. ',' .. stored[2]:sub(2, -2) .. ',"ended_ms":' .. v[7] .. '}'
elseif not state then
  text = text:sub(1, -2) .. ',"orphan":true}'
end
local final_mu = mode == 'settle' and cost_mu or mode == 'reap' and used_mu or math.max(charged_mu, cost_mu)
local difference_mu, closed = final_mu - charged_mu, state and mode ~= 'checkpoint' and 1 or 0
local function drained(level, limit, minutes) return limit < 0 and 0 or math.max(0, level - limit * minutes) end
local function drain_ms(level, limit) return limit > 0 and math.ceil(level / limit * 60000) or 0 end
local buckets = {}
for _, key in ipairs(difference_mu == 0 and closed == 0 and {} or {tenant_bucket, key_bucket}) do
  local b = redis.call('HMGET', key, 'r', 'u', 't', 'c', 'lr', 'lu')
  if b[1] then
    buckets[#buckets + 1] = {key = key, r = b[1], u = b[2], t = b[3], c = b[4], lr = tonumber(b[5]), lu = tonumber(b[6])}
  end
end
for _, b in ipairs(buckets) do
  local minutes = math.max(0, now_us - b.t) / 60000000
  local r, u, c = drained(b.r, b.lr, minutes), drained(b.u, b.lu, minutes), math.max(0, b.c - closed)
  u = b.lu < 0 and 0 or math.max(0, u + difference_mu)
  redis.call('HSET', b.key, 'r', r, 'u', u, 't', now_us, 'c', c)
  redis.call('PEXPIRE', b.key, math.max(c > 0 and OPEN_TTL_MS or BUCKET_TTL_MS, drain_ms(r, b.lr), drain_ms(u, b.lu)))
end
if mode == 'checkpoint' then
  lease = math.max(lease, now_ms + lease_ms)
  redis.call('HSET', reservation, 'charged', final_mu, 'used', cost_mu, 'p', prompt, 'c', cached, 'o', output,
    'd', delivered, 'will', text, 'lease', lease)
  if head ~= '' then redis.call('HSET', reservation, 'head', head) end
  redis.call('ZADD', open, lease, request_id)
  for _, key in ipairs({reservation, open}) do redis.call('PEXPIRE', key, OPEN_TTL_MS) end
  return {'renewed', now_ms}
end
redis.call('ZREM', open, request_id)
local entry_id = redis.call('XADD', usage, '*', 'e', text)
redis.call('DEL', reservation)
redis.call('HSET', reservation, 'state', 'settled', 'event', entry_id, 'by', mode)
redis.call('PEXPIRE', reservation, TOMBSTONE_TTL_MS)
return {state and 'settled' or 'orphan', now_ms, entry_id}
