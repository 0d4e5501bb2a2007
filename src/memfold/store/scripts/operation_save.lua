-- Notes how far an operation has come. Only the newest lease may. Keys: memfold.store.keys.OperationKeys.
-- ARGV: id, entry, fence, holder, record, then 'done'; or 'hold' and the lease in ms; or 'wait' and in how many ms it goes on.
local OPS, DUE = 2, 3
local stored = redis.call('HGET', KEYS[OPS], ARGV[1])
if not stored then
  redis.call('ZREM', KEYS[DUE], ARGV[2])
  return {'MISSING'}
end
local fence, ended, born = string.match(stored, '^(%d+) (%d+) %d+ %S+ (%d+) ')
if fence ~= ARGV[3] or (ended ~= '0' and ARGV[6] ~= 'done') then
  return {'LOST', stored}
end
local now = now_ms()
local lease, holder, ends = '0', '-', '0'
if ARGV[6] == 'done' then
  ends = int(now)
  redis.call('ZREM', KEYS[DUE], ARGV[2])
else
  local due = int(now + tonumber(ARGV[7]))
  redis.call('ZADD', KEYS[DUE], due, ARGV[2])
  if ARGV[6] == 'hold' then
    lease, holder = due, ARGV[4]
  end
end
stored = table.concat({fence, ends, lease, holder, born, int(now), ARGV[5]}, ' ')
redis.call('HSET', KEYS[OPS], ARGV[1], stored)
return {'OK', stored}
