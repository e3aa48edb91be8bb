-- check_state.lua -- v1, a part
-- First part of settle: what is there to settle, and whether it may be.
-- KEYS, ARGV: those of settle.lua. Returns nothing, it defines what the next parts use.
local reservation, tenant_bucket, key_bucket, usage = KEYS[1], KEYS[2], KEYS[3], KEYS[5]
local mode, request_id, lease_ms, cost_mu = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local prompt, cached, output, delivered, text, head = ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9], ARGV[10]
local TOMBSTONE_TTL_MS, BUCKET_TTL_MS = 900 * 1000, 60 * 1000
local v = redis.call('HMGET', reservation, 'state', 'charged', 'used', 'p', 'o', 'd', 'lease', 'cls', 'inst', 'seq', 'ten', 'qb', 'spl', 'wt')
local state, charged_mu, lease = v[1], tonumber(v[2] or 0), tonumber(v[7] or 0)
-- What a reaped request is charged in the end: what its event says.
local reaped_mu
local class, instance, sequences, tenant, contract_key, spilled = v[8] or 'r', v[9] or '?', tonumber(v[10] or 0), v[11], v[12] or '', v[13] == '1'
if mode == 'leave' then
  local waiting = redis.call('ZCARD', prefix .. 'w:' .. (class == 'f' and 'f' or 'o'))
  local refused = lease_ms == 1 and state == 'waiting' and (class == 'r' or spilled) and contract_key ~= ''
  if refused and redis.call('EXISTS', contract_key) == 1 then redis.call('HINCRBY', contract_key, 'refused', 1) end
  local status = drop(request_id) and 'dropped' or (state and 'open' or 'missing')
  -- Who only waited may have been what others waited behind.
  if status == 'dropped' then grant_all() end
  return {status, now_ms, waiting, math.floor(tonumber(redis.call('HGET', flight_key, 'gi') or 0)), pace_ms}
end
if state == 'settled' then return {'already_settled', now_ms} end
if not state and mode == 'reap' then redis.call('ZREM', open, request_id) end
if not state and mode ~= 'settle' then return {'missing', now_ms} end
-- A lease that is still the one the reaper has watched was not renewed, whatever Redis's clock says by now.
if mode == 'reap' and lease > now_ms and lease ~= lease_ms then return {'leased', now_ms} end
if state == 'waiting' or state == 'granted' then
  if mode == 'checkpoint' then return {'missing', now_ms} end
  drop(request_id)
  grant_all()
  if mode == 'reap' then return {'dropped', now_ms} end
  -- Served without its place, while Redis did not answer: recorded like any whose reservation is lost.
  state = nil
end
if mode == 'checkpoint' and (prompt - v[4] < 0 or output - v[5] < 0 or delivered - v[6] < 0) then return {'stale', now_ms} end
if mode == 'reap' then
  local stored = redis.call('HMGET', reservation, 'head', 'will')
  reaped_mu = cjson.decode(stored[2]).units_mu
  -- A clock that went back leaves leases that end in times to come.
  text = stored[1]:sub(1, -2) .. ',' .. stored[2]:sub(2, -2) .. ',"ended_ms":' .. string.format('%.0f', math.min(lease, now_ms)) .. '}'
elseif not state then
  -- Its reservation is lost, and with it the class by which it is charged.
  class = cjson.decode(text).class == 'reserved' and 'r' or 'o'
  text = text:sub(1, -2) .. ',"orphan":true}'
end
