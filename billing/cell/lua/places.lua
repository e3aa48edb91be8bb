-- The instance on which a request runs: one of its candidates, {instance, epoch} each, best first.
local slots = ...

local function first(ask, wanted)
  local candidates = ask.candidates
  for i = 1, #candidates do
    if wanted(candidates[i][1]) then return candidates[i] end
  end
end

local function named(ask, instance)
  return first(ask, function(name) return name == instance end)
end

-- The place of a request that needs no free slot: it is reserved, produces no tokens, runs already, or was granted its
-- slot.
local function own(ask, class, held)
  if class == 'r' or ask.sequences == 0 or ask.restored and not held.state then return ask.candidates[1] end
  return held.state == 'granted' and named(ask, held.instance) or nil
end

local function free(ask, class)
  local candidates, sequences = ask.candidates, ask.sequences
  for i = 1, #candidates do
    if slots.fits(candidates[i][1], class, sequences) then return candidates[i] end
  end
end

-- Whether no candidate has a bound: then there is no reason to queue, as nothing would wake the request.
local function unbounded(ask, class)
  if #ask.candidates == 0 then return false end
  return not first(ask, function(name) return slots.free(name, class) end)
end

local function names(ask)
  local found = {}
  for i, candidate in ipairs(ask.candidates) do found[i] = candidate[1] end
  return found
end

return {named = named, own = own, free = free, unbounded = unbounded, names = names}
