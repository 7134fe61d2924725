-- Compare-and-set of a value. KEYS[1]: its key. ARGV[1]: the new bytes, ARGV[2]: milliseconds to keep them, 0 for ever.
-- Answers 1 where the new bytes stay, 0 where what is there is as new or newer: `supersedes` of encoding.py.
-- Bytes are compared one by one: Lua's own order of strings depends on the server's locale.
local new, old = ARGV[1], redis.call('GET', KEYS[1])

local function order(first, last)
  for place = first, last do
    local one, other = string.byte(new, place) or -1, string.byte(old, place) or -1
    if one ~= other then return one - other end
  end
  return 0
end

if old and #old >= 17 and (string.byte(old, 1) == 1 or string.byte(old, 1) == 2) then
  local by = order(2, 17)
  if by == 0 then by = order(1, 1) end
  if by == 0 then by = order(18, math.max(#new, #old)) end
  if by <= 0 then return 0 end
end
if ARGV[2] == '0' then
  redis.call('SET', KEYS[1], new)
else
  redis.call('SET', KEYS[1], new, 'PX', ARGV[2])
end
return 1
