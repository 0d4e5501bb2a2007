-- Whose turn it is to look at everything, and where the last look ended. false: somebody else's.
-- KEYS[1]: a hash. ARGV: who asks, for how many ms, where a look has ended or ''.
local known = redis.call('HMGET', KEYS[1], 'holder', 'until', 'place')
if known[1] and known[1] ~= ARGV[1] and tonumber(known[2]) > now_ms() then
  return false
end
local place = ARGV[3] ~= '' and ARGV[3] or known[3] or '0:0:0'
redis.call('HSET', KEYS[1], 'holder', ARGV[1], 'until', int(now_ms() + tonumber(ARGV[2])), 'place', place)
return place
