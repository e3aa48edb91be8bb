-- Levels of limits, of a tenant or of a key on a model: each is a leaky bucket that drains its limit in its window.
-- The key of a bucket says whose it is and nothing else: a limit that changes keeps its level.
local cell, limits = ...
local IDLE_TTL_MS, REBUILT_TTL_MS, CONCURRENCY_RETRY_MS, MINUTE_S = 60000, 600000, 1000, 60
-- Work of a contract is on the contract's level and not on these.
local NOT_OF_CONTRACTS = {units = true, tokens = true}
-- Processes of an earlier version need these two in every bucket.
local ALWAYS = {'r', 'u'}

-- Microseconds since a level drained, as this field says (text; false: never). If Redis's clock went back, as at a
-- failover to another host, it drains from now on and not only once the clock is there again.
local function since(key, name, at_us)
  if not at_us then return 0 end
  local since_us = cell.now_us - at_us
  if since_us >= 0 then return since_us end
  redis.call('HSET', key, name, cell.now_us)
  return 0
end

-- A bucket of the values that `plan.read` names. `virtual` is of shares.lua.
local function made(key, scope, plan, values)
  local bucket = {
    key = key, scope = scope, plan = plan, values = values, levels = {0, 0, 0, 0}, open = tonumber(values[2] or 0),
    virtual = tonumber(values[4] or 0), new_virtual = nil,
  }
  local short_us, long_us = since(key, 't', values[3]), plan.is_long and since(key, 'at', values[limits.AT_PLACE]) or 0
  local levels, asked = bucket.levels, plan.limits
  for i = 1, #asked do
    local limit = asked[i]
    local level = values[limit.place]
    if limit.window_s == 0 then
      levels[i] = bucket.open
    elseif not level or level == '0' then
      levels[i] = 0
    else
      local left = level - limit.per_us * (limit.is_long and long_us or short_us)
      levels[i] = left > 0 and left or 0
    end
  end
  return bucket
end

-- A bucket with the current limits. Levels of removed limits are dropped when it is written.
local function read(key, scope, plan)
  return made(key, scope, plan, redis.call('HMGET', key, unpack(plan.read)))
end

local function fields_of(key)
  local fields, words = {}, redis.call('HGETALL', key)
  for i = 1, #words, 2 do fields[words[i]] = words[i + 1] end
  return fields
end

-- A bucket with the limits of its last admission; nil if there is none.
local function read_stored(key)
  if key == '' then return nil end
  local values = redis.call('HMGET', key, unpack(limits.READ))
  if not values[2] then return nil end
  local plan = values[1] and limits.remembered(values[1]) or limits.plan(limits.stored(fields_of(key)))
  return plan.is_long and read(key, nil, plan) or made(key, nil, plan, values)
end

local words = {}

local function write(bucket)
  local plan, levels, n = bucket.plan, bucket.levels, 4
  local asked = plan.limits
  words[1], words[2], words[3], words[4] = 't', cell.now_us, 'c', bucket.open
  for i = 1, #asked do
    local limit, level = asked[i], levels[i]
    if limit.window_s > 0 and not (level == 0 and bucket.values[limit.place] == '0') then
      words[n + 1], words[n + 2], n = limit.field, level, n + 2
    end
  end
  if plan.is_long then words[n + 1], words[n + 2], n = 'at', cell.now_us, n + 2 end
  if bucket.new_virtual then words[n + 1], words[n + 2], n = 'v', bucket.new_virtual, n + 2 end
  redis.call('HSET', bucket.key, unpack(words, 1, n))
end

-- Its limits have changed since the last admission. It remembers the new ones, each also in a field of its own, by
-- which processes of an earlier version drain it.
local function remember(bucket)
  local plan = bucket.plan
  local now, lifted = {'by', plan.text}, fields_of(bucket.key)
  if plan.weight then now[3], now[4] = 'vw', plan.weight end
  for _, limit in ipairs(plan.limits) do
    if limit.window_s > 0 then
      now[#now + 1], now[#now + 2] = 'l' .. limit.field, limit.amount
      lifted['l' .. limit.field], lifted[limit.field] = nil, true
    end
  end
  for name, amount in pairs(lifted) do
    local field = type(amount) == 'string' and name:match('^l(.+)$')
    if field and tonumber(amount) >= 0 then
      now[#now + 1], now[#now + 2], now[#now + 3], now[#now + 4] = field, 0, name, -1
    end
  end
  for _, field in ipairs(ALWAYS) do
    if not lifted[field] then
      now[#now + 1], now[#now + 2], now[#now + 3], now[#now + 4] = field, 0, 'l' .. field, -1
    end
  end
  redis.call('HSET', bucket.key, unpack(now))
end

-- Keeps the bucket until it is empty.
local function ttl_ms(bucket, least_ms)
  local longest = least_ms
  for i, limit in ipairs(bucket.plan.limits) do
    if bucket.levels[i] > 0 and limit.amount > 0 and limit.window_s > 0 then
      longest = math.max(longest, math.ceil(bucket.levels[i] / limit.amount * limit.window_s * 1000))
    end
  end
  return longest
end

-- Which limit refuses a request with these costs by kind: {scope, kind, ms until it would not, window}, with -1 if
-- waiting does not help. Of several it is the one that takes longest to clear; nil if none refuses.
local function refusal(bucket, class, costs, found)
  local levels, asked = bucket.levels, bucket.plan.limits
  for i = 1, #asked do
    local limit = asked[i]
    local cost, amount, level = costs[limit.kind], limit.amount, levels[i]
    if level + cost > limit.most and not (class == 'r' and NOT_OF_CONTRACTS[limit.kind]) then
      local wait_ms = CONCURRENCY_RETRY_MS
      if limit.window_s > 0 then wait_ms = math.ceil((level + cost - amount) * limit.window_s * 1000 / amount) end
      if cost > amount or amount == 0 then wait_ms = -1 end
      if not found or (found.after_ms >= 0 and (wait_ms < 0 or wait_ms > found.after_ms)) then
        found = {scope = bucket.scope, kind = limit.kind, after_ms = wait_ms, window_s = limit.window_s}
      end
    end
  end
  return found
end

-- Admits one more request with these costs. `restored`: it was admitted before, and Redis lost it. Most of what it has
-- used of a minute's limit has drained; what it has used of longer windows has not.
local function admit(bucket, class, costs, restored)
  local levels, asked = bucket.levels, bucket.plan.limits
  bucket.open = bucket.open + 1
  for i = 1, #asked do
    local limit = asked[i]
    if limit.window_s == 0 then
      levels[i] = bucket.open
    elseif limit.kind ~= 'cancels' and not (class == 'r' and NOT_OF_CONTRACTS[limit.kind])
      and not (restored and limit.window_s <= MINUTE_S) then
      levels[i] = levels[i] + costs[limit.kind]
    end
  end
  local values = bucket.values
  if values[1] ~= bucket.plan.text then remember(bucket) end
  write(bucket)
  -- While nothing is open its TTL is short.
  if bucket.open == 1 or cell.is_of_earlier_minute(values[3]) then
    redis.call('PEXPIRE', bucket.key, cell.OPEN_TTL_MS)
  end
end

-- Charges the difference between what a request has used and what it was charged, by kind, and whether it is no longer
-- open. `share_mu`: what counts for its tenant's fair share, with this weight. Returns the tenant's virtual counter if
-- that has changed.
local function correct(key, class, changes, closed, share_mu, weight)
  local bucket = read_stored(key)
  if not bucket then return nil end
  local levels, asked = bucket.levels, bucket.plan.limits
  if closed then bucket.open = math.max(0, bucket.open - 1) end
  for i = 1, #asked do
    local kind = asked[i].kind
    local change = changes[kind]
    if change and change ~= 0 and not (class == 'r' and NOT_OF_CONTRACTS[kind]) then
      local level = levels[i] + change
      levels[i] = level > 0 and level or 0
    end
  end
  -- A bucket that was lost has lost its counter too.
  if share_mu ~= 0 and bucket.values[4] then bucket.new_virtual = bucket.virtual + share_mu / weight end
  write(bucket)
  -- While something is open it has the TTL of its last admission.
  if bucket.open == 0 then redis.call('PEXPIRE', key, ttl_ms(bucket, IDLE_TTL_MS)) end
  return bucket.new_virtual
end

-- Whether any of these changes concerns a bucket.
local function concern(class, changes)
  for kind, change in pairs(changes) do
    if change ~= 0 and not (class == 'r' and NOT_OF_CONTRACTS[kind]) then return true end
  end
  return false
end

-- Raises levels to the ledger's: {kind, window, amount, level} each. A higher level stays.
local function raise(key, raised)
  local together, of = {}, {}
  for i, level in ipairs(raised) do together[i], of[level[1] .. ':' .. level[2]] = level, level[4] end
  for _, limit in ipairs(limits.stored(fields_of(key))) do
    if not of[limit[1] .. ':' .. limit[2]] then together[#together + 1] = limit end
  end
  local bucket = read(key, nil, limits.plan(together))
  for i, limit in ipairs(bucket.plan.limits) do
    bucket.levels[i] = math.max(bucket.levels[i], of[limit.kind .. ':' .. limit.window_s] or 0)
  end
  if bucket.values[1] ~= bucket.plan.text then remember(bucket) end
  write(bucket)
  if not bucket.values[2] then redis.call('PEXPIRE', key, ttl_ms(bucket, REBUILT_TTL_MS)) end
end

-- Appends to a reply, after its first n elements: the number of levels, the open requests, then the levels in the order
-- of the limits, in thousandths. Returns the new number of elements. A missing bucket has no open requests.
local function append_levels(bucket, reply, n)
  if not bucket then
    reply[n + 1], reply[n + 2] = 1, 0
    return n + 2
  end
  local levels, count = bucket.levels, #bucket.plan.limits
  reply[n + 1], reply[n + 2] = count + 1, bucket.open
  for i = 1, count do
    local level = levels[i]
    reply[n + 2 + i] = level == 0 and 0 or math.ceil(level * 1000)
  end
  return n + 2 + count
end

return {
  read = read, refusal = refusal, admit = admit, correct = correct, concern = concern, raise = raise,
  append_levels = append_levels,
}
