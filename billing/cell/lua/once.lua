-- A cache of values that are made from a text: what the requests under the same limits have in common, the names of a
-- cell's keys. A text must not name its tenant: of many tenants' texts hardly any would be found again. Nobody may
-- change a cached value. When its texts are too long together, all values are dropped and made again when needed.
local BYTES_MAX = 1048576

return function(make)
  local made, bytes = {}, 0
  return function(text)
    local value = made[text]
    if value == nil then
      if bytes > BYTES_MAX then made, bytes = {}, 0 end
      value = make(text)
      made[text], bytes = value, bytes + #text
    end
    return value
  end
end
