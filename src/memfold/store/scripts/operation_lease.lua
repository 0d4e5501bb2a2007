-- Takes the right to go on with an operation: a higher fence, a lease; its holder has it for longer, under the same fence.
-- Keys: memfold.store.keys.OperationKeys.
-- ARGV: id, entry, holder, lease in ms.
local OPS, RECORDS, DUE = 2, 3, 4
local stored = redis.call('HGET', KEYS[OPS], ARGV[1])
if not stored then
  redis.call('ZREM', KEYS[DUE], ARGV[2])
  return {'MISSING'}
end
local fence, ended, lease, holder, born, changed, where =
  string.match(stored, '^(%d+) (%d+) (%d+) (%S+) (%d+) (%d+) (.*)$')
local record = redis.call('HGET', KEYS[RECORDS], ARGV[1])
if ended ~= '0' then
  redis.call('ZREM', KEYS[DUE], ARGV[2])
  return {'DONE', stored, record}
end
local now = now_ms()
if holder ~= ARGV[3] then
  if tonumber(lease) > now then
    return {'BUSY', stored, record}
  end
  fence = int(tonumber(fence) + 1)
end
lease = int(now + tonumber(ARGV[4]))
stored = table.concat({fence, '0', lease, ARGV[3], born, changed, where}, ' ')
redis.call('HSET', KEYS[OPS], ARGV[1], stored)
redis.call('ZADD', KEYS[DUE], lease, ARGV[2])
return {'OK', stored, record}
