-- A state was found damaged: forget it, and have the whole log folded anew. The fence makes folds in flight lose.
-- ARGV: fingerprint, incarnation, applied, fence, member.
local incarnation, head = identify(ARGV[1])
if incarnation ~= ARGV[2] then
  return 0
end
local line = redis.call('HMGET', KEYS[LINE], 'applied', 'fence')
if line[1] ~= ARGV[3] or (line[2] or '0') ~= ARGV[4] then
  return 0
end
redis.call('UNLINK', KEYS[STATE], KEYS[ANCHOR])
redis.call('HSET', KEYS[LINE], 'applied', '0', 'fence', int(tonumber(ARGV[4]) + 1), 'attempts', '0', 'lease', '0',
  'claim', '', 'owner', '', 'state_bytes', '0')
if head > 0 then
  local now = int(now_ms())
  redis.call('ZADD', KEYS[DIRTY], now, ARGV[5])
  redis.call('ZADD', KEYS[BEHIND], now, ARGV[5])
end
return 1
