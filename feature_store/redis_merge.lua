-- Append to a history's tail. KEYS[1]: the tail, KEYS[2]: its base. ARGV[1]: bytes, ARGV[2]: milliseconds for which the
-- newest of them is kept, 0 for ever, ARGV[3]: length from which on a tail takes no more.
-- Answers the tail's new length, or -1 where it is full: it must be folded first.
if redis.call('STRLEN', KEYS[1]) >= tonumber(ARGV[3]) then return -1 end
local length = redis.call('APPEND', KEYS[1], ARGV[1])
local keep = tonumber(ARGV[2])
if keep > 0 then
  for _, key in ipairs(KEYS) do
    if redis.call('PTTL', key) < keep then redis.call('PEXPIRE', key, ARGV[2]) end
  end
end
return length
