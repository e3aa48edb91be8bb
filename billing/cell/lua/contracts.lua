-- A tenant's contract in the cell: its figures, its level in mu, and how much of its tenant's use spilled over it.
local cell = ...

-- nil if there is none. The allocator writes the figures; `ends` is compared with the clock here.
local function read(key)
  local v = redis.call('HMGET', key, 'id', 'rate', 'burst', 'of', 'spill', 'end', 'u', 't', 'sp', 'st', 'used',
    'borrowed')
  if not v[1] then return nil end
  return {
    key = key, id = v[1], rate = tonumber(v[2]), burst = tonumber(v[3]), overflow = v[4], spill = tonumber(v[5]),
    ends = tonumber(v[6]), used = tonumber(v[7] or 0), used_at = tonumber(v[8] or cell.now_us),
    spilled = tonumber(v[9] or 0), spilled_at = tonumber(v[10] or cell.now_us),
    used_in_all = tonumber(v[11] or 0), borrowed_in_all = tonumber(v[12] or 0),
  }
end

-- The contract if it is in force. If Redis's clock went back, its levels drain from now on.
local function in_force(tenant)
  local contract = read(cell.contract(tenant))
  if not contract then return nil end
  if contract.used_at > cell.now_us then redis.call('HSET', contract.key, 't', cell.now_us) end
  if contract.spilled_at > cell.now_us then redis.call('HSET', contract.key, 'st', cell.now_us) end
  return cell.now_ms < contract.ends and contract or nil
end

local function level(contract)
  return math.max(0, contract.used - (contract.rate or 0) * cell.seconds_since(contract.used_at))
end

local function spill_level(contract)
  if contract.spill < 0 then return 0 end
  return math.max(0, contract.spilled - contract.spill * cell.seconds_since(contract.spilled_at))
end

local function may_spill(contract)
  return contract.overflow == 'spill'
    and spill_level(contract) < (contract.spill < 0 and 1 or contract.spill)
end

-- Counts in its evidence: `refused`, or `limited:<kind>` if a limit refused what the contract had capacity for.
local function count(contract, what) redis.call('HINCRBY', contract.key, what, 1) end

-- What a charge changes of a contract: its level, or that of what spilled; nil where there is no contract.
local function read_level(key, class)
  if class == 'r' then
    local v = redis.call('HMGET', key, 'id', 'rate', 'u', 't', 'used')
    return v[1] and {
      rate = tonumber(v[2]), used = tonumber(v[3] or 0), used_at = tonumber(v[4] or cell.now_us),
      used_in_all = tonumber(v[5] or 0),
    } or nil
  end
  local v = redis.call('HMGET', key, 'id', 'spill', 'sp', 'st', 'borrowed')
  return v[1] and {
    spill = tonumber(v[2]), spilled = tonumber(v[3] or 0), spilled_at = tonumber(v[4] or cell.now_us),
    borrowed_in_all = tonumber(v[5] or 0),
  } or nil
end

-- Charges the additional (or negative) use of it, or beside it if that spilled. `contract`: the contract, if it was
-- read.
local function charge(key, class, spilled, change_mu, contract)
  if class ~= 'r' and not spilled then return end
  contract = contract or read_level(key, class)
  if contract and class == 'r' then
    redis.call('HSET', key, 'u', math.max(0, level(contract) + change_mu), 't', cell.now_us,
      'used', contract.used_in_all + math.floor(change_mu))
  elseif contract then
    redis.call('HSET', key, 'sp', math.max(0, spill_level(contract) + change_mu), 'st', cell.now_us,
      'borrowed', contract.borrowed_in_all + math.floor(change_mu))
  end
end

local function raise(key, used_mu, spilled_mu)
  local contract = read(key)
  if not contract then return end
  redis.call('HSET', key, 'u', math.max(level(contract), used_mu), 't', cell.now_us,
    'sp', math.max(spill_level(contract), spilled_mu), 'st', cell.now_us)
end

return {
  read = read, in_force = in_force, level = level, spill_level = spill_level, may_spill = may_spill,
  count = count, charge = charge, raise = raise,
}
