-- Notes how far an operation has come. Only the newest lease may. Keys: memfold.store.keys.OperationKeys.
-- ARGV: id, entry, fence, holder, where it stands, record or '' where that is as it was, then 'done' and 0, or 'hold' and the
-- lease in ms, or 'wait' and in how many ms it goes on; channel and message for those who may go on at once.
local OPS, RECORDS, DUE = 2, 3, 4
local stored = redis.call('HGET', KEYS[OPS], ARGV[1])
if not stored then
  redis.call('ZREM', KEYS[DUE], ARGV[2])
  return {'MISSING'}
end
local fence, ended, born, changed, where = string.match(stored, '^(%d+) (%d+) %d+ %S+ (%d+) (%d+) (.*)$')
if fence ~= ARGV[3] or (ended ~= '0' and ARGV[7] ~= 'done') then
  return {'LOST', stored, redis.call('HGET', KEYS[RECORDS], ARGV[1])}
end
local now = now_ms()
local lease, holder, ends = '0', '-', '0'
if ARGV[7] == 'done' then
  ends = int(now)
  redis.call('ZREM', KEYS[DUE], ARGV[2])
else
  local due = int(now + tonumber(ARGV[8]))
  redis.call('ZADD', KEYS[DUE], due, ARGV[2])
  if ARGV[7] == 'hold' then
    lease, holder = due, ARGV[4]
  elseif ARGV[8] == '0' then
    redis.call('PUBLISH', ARGV[9], ARGV[10])
  end
end
if ARGV[6] ~= '' or where ~= ARGV[5] then
  changed = int(now)
end
stored = table.concat({fence, ends, lease, holder, born, changed, ARGV[5]}, ' ')
redis.call('HSET', KEYS[OPS], ARGV[1], stored)
if ARGV[6] ~= '' then
  redis.call('HSET', KEYS[RECORDS], ARGV[1], ARGV[6])
end
return {'OK', stored, redis.call('HGET', KEYS[RECORDS], ARGV[1])}
