-- Nobody folds this line any further until it is freed. Does nothing for a claim that is no longer the newest.
-- ARGV: fingerprint, incarnation, fence, the turn that cannot be folded, why, member.
local meta = identify_line()
if not meta or meta.incarnation ~= ARGV[2] or redis.call('HGET', KEYS[LINE], 'fence') ~= ARGV[3] then
  return 0
end
redis.call('HSET', KEYS[LINE], 'quarantined', ARGV[4], 'reason', ARGV[5], 'lease', '0', 'claim', '', 'owner', '')
redis.call('ZREM', KEYS[DIRTY], ARGV[6])
redis.call('ZREM', KEYS[BEHIND], ARGV[6])
return 1
