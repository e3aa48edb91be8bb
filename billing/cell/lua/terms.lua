-- The arguments that all requests under the same limits have in common (`ReserveTerms` of billing/cell/asks.py), and
-- the instances that could serve it: each parsed from its JSON once.
local once, limits = ...

local terms = once(function(text)
  local made = cjson.decode(text)
  if made.cancels_per_minute >= 0 then
    table.insert(made.tenant_limits, {'cancels', 60, made.cancels_per_minute})
  end
  made.tenant_plan = limits.plan(made.tenant_limits, made.weight)
  -- A key without limits has no bucket.
  made.key_plan = #made.key_limits > 0 and limits.plan(made.key_limits) or nil
  return {__index = made}
end)

-- {instance, epoch} each, best first.
local candidates = once(function(text) return cjson.decode(text) end)

-- How the head of an event names a candidate, as its last members.
local function members(candidate)
  if not candidate.members then
    candidate.members = ',"instance":' .. cjson.encode(candidate[1]) .. ',"epoch":' .. cjson.encode(candidate[2]) .. '}'
  end
  return candidate.members
end

-- The arguments of a request, including its terms.
local function ask_of(ask_json, terms_json, candidates_json)
  local ask = cjson.decode(ask_json)
  ask.candidates = candidates(candidates_json)
  return setmetatable(ask, terms(terms_json))
end

return {ask_of = ask_of, members = members}
