-- Levels of limits, of a tenant or of a key on a model. A limit is a kind, a window in seconds and an amount: its
-- level is a leaky bucket that drains the amount in a window. Window 0: it counts what is open, and nothing drains.
-- The key of a bucket says whose it is and nothing else: a limit that changes keeps its level.
local cell = ...
local IDLE_TTL_MS, REBUILT_TTL_MS, CONCURRENCY_RETRY_MS, MINUTE_S = 60000, 600000, 1000, 60
-- What a contract takes is on the contract's level, and not on these.
local NOT_OF_CONTRACTS = {units = true, tokens = true}
-- Fields of limits that an older version knows too, and drains since `t`; others are named `kind:window` and drain
-- since `at`. Beside the field of a level stands that of its limit, with an `l` before it; -1 is no limit.
local SHORT = {['requests:60'] = 'r', ['units:60'] = 'u', ['cancels:60'] = 'x'}
local LONG = {r = 'requests:60', u = 'units:60', x = 'cancels:60'}
-- An older version needs these two in every bucket.
local ALWAYS = {'r', 'u'}

-- `v` and `vw` are of shares.lua.
local function load(key)
  local v = redis.call('HMGET', key, 'at', 'r', 'u', 't', 'c', 'lr', 'lu', 'x', 'lx', 'v', 'vw')
  local stored = {
    r = v[2] or nil, u = v[3] or nil, t = v[4] or nil, c = v[5] or nil, lr = v[6] or nil, lu = v[7] or nil,
    x = v[8] or nil, lx = v[9] or nil, v = v[10] or nil, vw = v[11] or nil,
  }
  if v[1] then
    local words = redis.call('HGETALL', key)
    for i = 1, #words, 2 do stored[words[i]] = words[i + 1] end
  end
  return stored
end

-- Names are made once for all calls.
local made = {}
local function field_of(kind, window_s)
  made[kind] = made[kind] or {}
  if not made[kind][window_s] then
    local name = kind .. ':' .. window_s
    made[kind][window_s] = SHORT[name] or name
  end
  return made[kind][window_s]
end

local function clock_of(field) return LONG[field] and 't' or 'at' end

-- The clock of Redis went back, as another host's may be after a failover: levels drain from now on, and not only
-- once the clock is there again.
local function rewind(key, stored)
  for _, name in ipairs({'t', 'at'}) do
    if stored[name] and tonumber(stored[name]) > cell.now_us then
      redis.call('HSET', key, name, cell.now_us)
      stored[name] = cell.now_us
    end
  end
end

local function add(bucket, field, kind, window_s, amount)
  local stored = bucket.stored
  local level = bucket.open
  if window_s > 0 then
    level = math.max(0, (stored[field] or 0) - amount * cell.seconds_since(stored[clock_of(field)]) / window_s)
  end
  local limit = {field = field, kind = kind, window_s = window_s, amount = amount, level = level}
  bucket.limits[#bucket.limits + 1] = limit
  bucket.by_field[field] = limit
end

local function add_stored(bucket)
  for name, amount in pairs(bucket.stored) do
    local field = name:sub(1, 1) == 'l' and name:sub(2)
    if field and not bucket.by_field[field] and tonumber(amount) >= 0 then
      local kind, window_s = (LONG[field] or field):match('^(%a+):(%d+)$')
      add(bucket, field, kind, tonumber(window_s), tonumber(amount))
    end
  end
end

-- A bucket by the limits that hold now: {{kind, window, amount}, …}. Those that were lifted are forgotten.
local function read(key, scope, limits)
  local stored = load(key)
  rewind(key, stored)
  local bucket = {key = key, scope = scope, stored = stored, open = tonumber(stored.c or 0),
                  virtual = tonumber(stored.v or 0), limits = {}, by_field = {}}
  for _, limit in ipairs(limits) do
    add(bucket, field_of(limit[1], limit[2]), limit[1], limit[2], limit[3])
  end
  return bucket
end

-- A bucket by the limits that it was last admitted by; nil where there is none.
local function read_stored(key)
  local stored = load(key)
  if not stored.c then return nil end
  local bucket = {key = key, stored = stored, open = tonumber(stored.c), virtual = tonumber(stored.v or 0),
                  limits = {}, by_field = {}}
  add_stored(bucket)
  return bucket
end

local function write(bucket)
  local stored, words, n = bucket.stored, {'t', cell.now_us, 'c', bucket.open}, 4
  for _, limit in ipairs(bucket.limits) do
    local field = limit.field
    if limit.window_s > 0 then
      words[n + 1], words[n + 2], n = field, limit.level, n + 2
      if tonumber(stored['l' .. field]) ~= limit.amount then
        words[n + 1], words[n + 2], n = 'l' .. field, limit.amount, n + 2
      end
      if clock_of(field) == 'at' then words[n + 1], words[n + 2], n = 'at', cell.now_us, n + 2 end
    end
  end
  for _, field in ipairs(ALWAYS) do
    if not bucket.by_field[field] and not stored[field] then
      words[n + 1], words[n + 2], words[n + 3], words[n + 4], n = field, 0, 'l' .. field, -1, n + 4
    end
  end
  if bucket.weight then
    words[n + 1], words[n + 2], words[n + 3], words[n + 4] = 'v', bucket.virtual, 'vw', bucket.weight
  end
  redis.call('HSET', bucket.key, unpack(words))
end

-- Until the bucket is empty.
local function ttl_ms(bucket, least_ms)
  local longest = least_ms
  for _, limit in ipairs(bucket.limits) do
    if limit.amount > 0 and limit.window_s > 0 then
      longest = math.max(longest, math.ceil(limit.level / limit.amount * limit.window_s * 1000))
    end
  end
  return longest
end

-- Which limit refuses a request of such costs by kind: {scope, kind, ms until it would not, window}, -1 where no
-- time helps. Of several it is the one that takes longest to clear; nil where none refuses.
local function refusal(both, class, costs)
  local found
  for _, bucket in ipairs(both) do
    for _, limit in ipairs(bucket.limits) do
      local cost, amount = costs[limit.kind], limit.amount
      local counts = class ~= 'r' or not NOT_OF_CONTRACTS[limit.kind]
      if counts and limit.level + cost > amount * (1 + 1e-9) then
        local wait_ms = CONCURRENCY_RETRY_MS
        if limit.window_s > 0 then
          wait_ms = math.ceil((limit.level + cost - amount) * limit.window_s * 1000 / amount)
        end
        if cost > amount or amount == 0 then wait_ms = -1 end
        if not found or (found.after_ms >= 0 and (wait_ms < 0 or wait_ms > found.after_ms)) then
          found = {scope = bucket.scope, kind = limit.kind, after_ms = wait_ms, window_s = limit.window_s}
        end
      end
    end
  end
  return found
end

-- One request more, of such costs. `restored`: it was admitted before, and Redis lost it; what it has used of a
-- minute has drained for the most part, what it has used of longer windows has not.
local function admit(bucket, class, costs, restored)
  bucket.open = bucket.open + 1
  for _, limit in ipairs(bucket.limits) do
    local counts = class ~= 'r' or not NOT_OF_CONTRACTS[limit.kind]
    if limit.window_s == 0 then
      limit.level = bucket.open
    elseif counts and limit.kind ~= 'cancels' and not (restored and limit.window_s <= MINUTE_S) then
      limit.level = limit.level + costs[limit.kind]
    end
  end
  for name, amount in pairs(bucket.stored) do
    local field = name:sub(1, 1) == 'l' and name:sub(2)
    if field and not bucket.by_field[field] and tonumber(amount) >= 0 then
      redis.call('HSET', bucket.key, field, 0, name, -1)
    end
  end
  write(bucket)
  redis.call('PEXPIRE', bucket.key, cell.OPEN_TTL_MS)
end

-- What a request has used more (or less) than it was charged, by kind, and whether it is open no more. `share`: what
-- that is of its tenant's fair share, {mu, weight}. Returns the tenant's virtual counter where that has changed.
local function correct(tenant_key, key_key, class, changes, closed, share)
  local changed = closed
  for kind, change in pairs(changes) do
    changed = changed or change ~= 0 and not (class == 'r' and NOT_OF_CONTRACTS[kind])
  end
  local virtual
  for _, key in ipairs(changed and {tenant_key, key_key} or {}) do
    local bucket = read_stored(key)
    if bucket then
      if closed then bucket.open = math.max(0, bucket.open - 1) end
      for _, limit in ipairs(bucket.limits) do
        local counts = class ~= 'r' or not NOT_OF_CONTRACTS[limit.kind]
        limit.level = math.max(0, limit.level + (counts and changes[limit.kind] or 0))
      end
      local weight_now = bucket.stored.vw
      if share and key == tenant_key and weight_now then
        virtual = bucket.virtual + share.mu / (share.weight or weight_now)
        bucket.virtual, bucket.weight = virtual, weight_now
      end
      write(bucket)
      -- While something is open it has the time that its last admission gave it.
      if bucket.open == 0 then redis.call('PEXPIRE', key, ttl_ms(bucket, IDLE_TTL_MS)) end
    end
  end
  return virtual
end

-- Raise levels to what the ledger says: {kind, window, amount, level} each. What is higher stays.
local function raise(key, levels)
  local bucket = read(key, nil, levels)
  add_stored(bucket)
  for i, level in ipairs(levels) do
    if level[2] > 0 then bucket.limits[i].level = math.max(bucket.limits[i].level, level[4]) end
  end
  write(bucket)
  if not bucket.stored.c then redis.call('PEXPIRE', key, ttl_ms(bucket, REBUILT_TTL_MS)) end
end

-- For an answer: what is open, then the levels in the order of the limits, in thousandths.
local function levels(bucket)
  local found = {bucket.open}
  for i, limit in ipairs(bucket.limits) do found[i + 1] = math.ceil(limit.level * 1000) end
  return found
end

return {read = read, refusal = refusal, admit = admit, correct = correct, raise = raise, levels = levels}
