-- Takes the right to fold a memory: a higher fence, a lease, one attempt more. Attempts count before the work, so that
-- work which kills its worker is counted. Running it again with the same claim id answers like the first time.
-- ARGV: fingerprint, member, lease in ms, claim id, owner.
local incarnation, head = identify(ARGV[1])
local due = redis.call('ZSCORE', KEYS[DIRTY], ARGV[2])
if not due then
  return false
end
local line = redis.call('HMGET', KEYS[LINE], 'applied', 'fence', 'attempts', 'claim')
local applied = tonumber(line[1] or 0)
if not incarnation or applied >= head then
  redis.call('ZREM', KEYS[DIRTY], ARGV[2])
  redis.call('ZREM', KEYS[BEHIND], ARGV[2])
  return false
end
if line[4] == ARGV[4] then
  return {incarnation, int(applied), int(head), line[2], line[3]}
end
local now = now_ms()
if tonumber(due) > now then
  return false
end
local fence, attempts = tonumber(line[2] or 0) + 1, tonumber(line[3] or 0) + 1
local lease = now + tonumber(ARGV[3])
redis.call('HSET', KEYS[LINE], 'applied', int(applied), 'fence', int(fence), 'attempts', int(attempts),
  'lease', int(lease), 'claim', ARGV[4], 'owner', ARGV[5])
redis.call('ZADD', KEYS[DIRTY], int(lease), ARGV[2])
return {incarnation, int(applied), int(head), int(fence), int(attempts)}
