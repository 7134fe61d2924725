-- Put a folded base in the place of a tail, if neither changed since they were read. KEYS[1]: the tail, KEYS[2]: its base.
-- ARGV[1]: first bytes of the base that was folded, ARGV[2]: SHA-1 of the tail, ARGV[3]: its length, ARGV[4]: new base.
-- What was appended to the tail meanwhile stays in it. Answers 1, or 0 where somebody else was faster.
local tail, length = redis.call('GET', KEYS[1]) or '', tonumber(ARGV[3])
if #tail < length or redis.sha1hex(string.sub(tail, 1, length)) ~= ARGV[2] then return 0 end
if redis.call('GETRANGE', KEYS[2], 0, #ARGV[1] > 0 and #ARGV[1] - 1 or 0) ~= ARGV[1] then return 0 end
local of_tail, of_base = redis.call('PTTL', KEYS[1]), redis.call('PTTL', KEYS[2])
redis.call('SET', KEYS[2], ARGV[4])
if of_tail >= 0 and of_base ~= -1 then
  redis.call('PEXPIRE', KEYS[2], math.max(of_tail, of_base, 1))
end
if #tail == length then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], string.sub(tail, length + 1), 'KEEPTTL')
end
return 1
