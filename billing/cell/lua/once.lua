-- Values that are made of a text once, for the many calls in which the same text comes: what a tenant's requests have
-- in common, the names of a cell's keys. Nobody changes a value that was handed out.
-- Of so many texts; then all are forgotten, and made again as they come.
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
