-- charge_buckets.lua -- v2, a part
-- Second part of settle: what tenant and key are charged, and given back. A request that pauses counts again when it goes on.
-- What is reserved is charged to its contract alone.
-- KEYS, ARGV: those of settle.lua. Returns nothing, it defines what the next parts use.
local final_mu = mode == 'settle' and cost_mu or mode == 'reap' and reaped_mu or math.max(charged_mu, cost_mu)
local paused, pausing = instance == '', mode == 'checkpoint' and ARGV[11] == '-' and instance ~= ''
local ends = state and not paused and (mode ~= 'checkpoint' or pausing)
local difference_mu, closed = final_mu - charged_mu, ends and 1 or 0
local counted_mu = class == 'r' and 0 or difference_mu
local function drain_ms(level, limit) return limit > 0 and math.ceil(level / limit * 60000) or 0 end
local buckets = {}
for _, key in ipairs(counted_mu == 0 and closed == 0 and {} or {tenant_bucket, key_bucket}) do
  local b = redis.call('HMGET', key, 'r', 'u', 't', 'c', 'lr', 'lu', 'x', 'lx')
  if b[1] then
    buckets[#buckets + 1] = {key = key, r = b[1], u = b[2], t = b[3], c = b[4], lr = tonumber(b[5]), lu = tonumber(b[6]),
                             x = b[7], lx = tonumber(b[8] or -1)}
  end
end
for _, b in ipairs(buckets) do
  local minutes = minutes_since(b.t)
  local r, u, c = drained(b.r, b.lr, minutes), drained(b.u, b.lu, minutes), math.max(0, b.c - closed)
  if pausing then r = math.max(0, r - 1) end
  u = b.lu < 0 and 0 or math.max(0, u + counted_mu)
  local x = drained(b.x, b.lx, minutes) + (closed == 1 and ARGV[13] == '1' and b.lx >= 0 and 1 or 0)
  redis.call('HSET', b.key, 'r', r, 'u', u, 't', now_us, 'c', c)
  if b.lx >= 0 then redis.call('HSET', b.key, 'x', x) end
  redis.call('PEXPIRE', b.key,
    math.max(c > 0 and OPEN_TTL_MS or BUCKET_TTL_MS, drain_ms(r, b.lr), drain_ms(u, b.lu), drain_ms(x, b.lx)))
end
