-- Commits a fold by compare-and-set on (incarnation, applied, fence). 1: committed, now or by an earlier run of this
-- very call; 0: lost, somebody else folds or has folded, or the memory is gone.
-- ARGV: fingerprint, incarnation, applied before, fence, applied now, state, its bytes without header, anchor or '', member, channel.
local incarnation, head = identify(ARGV[1])
if incarnation ~= ARGV[2] then
  return 0
end
local line = redis.call('HMGET', KEYS[LINE], 'applied', 'fence')
if line[2] ~= ARGV[4] then
  return 0
end
if line[1] == ARGV[5] then
  return 1
end
local applied = tonumber(ARGV[5])
if line[1] ~= ARGV[3] or applied > head then
  return 0
end
redis.call('SET', KEYS[STATE], ARGV[6])
if ARGV[8] ~= '' then
  redis.call('SET', KEYS[ANCHOR], ARGV[8])
end
redis.call('HSET', KEYS[LINE], 'applied', ARGV[5], 'attempts', '0', 'lease', '0', 'claim', '', 'owner', '',
  'state_bytes', ARGV[7])
if head > applied then
  -- Turns came in meanwhile: due at once, and behind since the oldest of them.
  local entry = redis.call('XRANGE', KEYS[LOG], '(' .. ARGV[5] .. '-0', '+', 'COUNT', 1)[1]
  redis.call('ZADD', KEYS[DIRTY], int(now_ms()), ARGV[9])
  redis.call('ZADD', KEYS[BEHIND], entry[2][4], ARGV[9])
else
  redis.call('ZREM', KEYS[DIRTY], ARGV[9])
  redis.call('ZREM', KEYS[BEHIND], ARGV[9])
end
redis.call('PUBLISH', ARGV[10], ARGV[9])
return 1
