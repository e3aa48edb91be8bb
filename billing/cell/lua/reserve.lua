-- reserve.lua -- v3
-- Admits a request, lets it wait, or refuses it: by all of its limits at once, by its tenant's contract, by the room there is.
-- Idempotent by request id; a refusal consumes nothing, and neither does waiting.
-- Parts before it: those of every script, then check_limits, choose_class, find_place, stand_in_line.
-- KEYS: {c:CELL}:r:<request id>, {c:CELL}:b:<tenant>:<model>, {c:CELL}:k:<key id>:<model>, {c:CELL}:open
-- ARGV: request id, lease_ms, cost_mu, the tenant's limits (requests a minute, mu a minute, concurrency; -1 = none),
--   the key's limits (the same three), head (JSON, without class, contract, instance and epoch; whole where it was lost), will (JSON), tenant,
--   asked (auto | reserved | on_demand | flex), on_demand (1 = may), weight, sequences, gateway, how many of this tenant may wait (0 = not),
--   cancelled requests a minute (-1 = no limit), 1 where it goes on with an admitted one (2: it is that one, and its reservation was lost), 1 where it could go on elsewhere,
--   mu of its prompt, then instance, epoch of each candidate, best first
-- Returns: {status, now_ms, tenant's levels, key's levels, …}, a level being requests * 1000, mu, open requests; then
--   reserved | replayed: class, contract ('' = none), instance, epoch, why, contract's level before, after, its rate
--   refused: scope, limit, retry_after_ms (-1 = never); later: ms until its contract has drained;
--   waiting: ms after which room should be granted again (0 = no need); already_settled | no_contract | no_right | rebuilding
-- What it used before its reservation was lost has drained for the most part: only what comes is charged.
local new_mu, new_requests = restored and 0 or cost_mu, restored and 0 or 1
local counted_mu = class == 'r' and 0 or new_mu
for _, b in ipairs({tenant, key}) do
  b.r, b.u, b.c = b.max_r < 0 and 0 or b.r + new_requests, b.max_u < 0 and 0 or b.u + counted_mu, b.c + 1
  redis.call('HSET', b.key, 'r', b.r, 'u', b.u, 't', now_us, 'c', b.c, 'lr', b.max_r, 'lu', b.max_u)
  redis.call('PEXPIRE', b.key, OPEN_TTL_MS)
end
if cancels_max >= 0 then redis.call('HSET', tenant.key, 'x', tenant.x, 'lx', cancels_max) end
local spilled = why == 'spilled'
-- What was granted is charged already, as it was when it began to wait: to a contract that may have ended since, by the weight of then.
local granted_mu, charged_by = 0, weight
if state == 'granted' then granted_mu, charged_by = tonumber(held[8]), tonumber(held[9] or weight) end
-- The numbers of its contract may be lost as well, and come back.
local charged_to = state == 'granted' and held[5] or (q or restored) and (class == 'r' or spilled) and contract_key or ''
if state ~= 'granted' then
  if class ~= 'r' then
    set_counter(tenant.key, tenant_id, tenant.v, weight)
    redis.call('HSET', flight_key, 'vl', math.max(vl, tenant.v))
  end
  fly(class, instance, sequences)
  if not restored then start_reading(instance, prompt_mu) end
end
charge(class, charged_to, spilled, tenant.key, tenant_id, new_mu - granted_mu, charged_by)
if class == 'f' then
  redis.call('ZADD', lent_at(instance), (goes_on and 0 or 1e15) - now_ms, request_id)
  redis.call('PEXPIRE', lent_at(instance), OPEN_TTL_MS)
end
local contract = q and class == 'r' and q.id or ''
local lease = now_ms + lease_ms
local facts = ',"class":"' .. NAMES[class] .. '","contract":' .. (contract == '' and 'null' or '"' .. contract .. '"')
  .. ',"instance":' .. cjson.encode(instance) .. ',"epoch":' .. cjson.encode(epoch) .. '}'
redis.call('HSET', reservation, 'state', 'open', 'head', restored and head or head:sub(1, -2) .. facts, 'will', will, 'charged', cost_mu, 'used', 0,
  'p', 0, 'c', 0, 'o', 0, 'd', 0, 'lease', lease, 'tb', tenant.key, 'kb', key.key, 'cls', class, 'inst', instance, 'epoch', epoch,
  'seq', sequences, 'gw', gateway, 'ten', tenant_id, 'qb', charged_to, 'spl', spilled and 1 or 0, 'why', why, 'cid', contract,
  'wt', charged_by, 'at', now_ms)
redis.call('ZADD', open, lease, request_id)
for _, name in ipairs({reservation, open, flight_key}) do redis.call('PEXPIRE', name, OPEN_TTL_MS) end
local after = class == 'r' and level + cost_mu or level
return reply('reserved', NAMES[class], contract, instance, epoch, why, math.ceil(level), math.ceil(after), q and q.rate or 0)
