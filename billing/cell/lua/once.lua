-- A cache of values that are made from a text: what the requests of a tenant have in common, the names of a cell's
-- keys. Nobody may change a cached value. When it is full, all are dropped and made again when needed.
local TEXTS_MAX = 4096

return function(make)
  local made, count = {}, 0
  return function(text)
    local value = made[text]
    if value == nil then
      if count == TEXTS_MAX then made, count = {}, 0 end
      value = make(text)
      made[text], count = value, count + 1
    end
    return value
  end
end
