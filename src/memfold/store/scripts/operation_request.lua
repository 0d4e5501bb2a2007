-- Enters an operation, with its first lease. Keys: memfold.store.keys.OperationKeys.
-- ARGV: id, entry, holder, lease in ms, where it stands, record, how many are kept.
-- Stored as: fence, ms when it ended or 0, end of its lease, holder, ms of its birth, ms of its last change, where it stands; and
-- apart from that, because looking after it writes it again and again, the record.
local OPS, RECORDS, DUE = 2, 3, 4
if redis.call('HEXISTS', KEYS[META], 'incarnation') == 0 then
  return {'MISSING'}
end
local known = redis.call('HGET', KEYS[OPS], ARGV[1])
if known then
  -- Written again: Redis promises a confirmation only for what this connection wrote.
  redis.call('HSET', KEYS[OPS], ARGV[1], known)
  local holder = string.match(known, '^%d+ %d+ %d+ (%S+) ')
  return {holder == ARGV[3] and 'OK' or 'KNOWN', known, redis.call('HGET', KEYS[RECORDS], ARGV[1])}
end

local excess = redis.call('HLEN', KEYS[OPS]) + 1 - tonumber(ARGV[7])
if excess > 0 then
  local all, ended = redis.call('HGETALL', KEYS[OPS]), {}
  for at = 1, #all, 2 do
    local ended_ms = tonumber(string.match(all[at + 1], '^%d+ (%d+) '))
    if ended_ms > 0 then
      ended[#ended + 1] = {id = all[at], ms = ended_ms}
    end
  end
  if #ended < excess then
    return {'FULL', int(#all / 2 - #ended)}
  end
  table.sort(ended, function(one, other) return one.ms < other.ms or (one.ms == other.ms and one.id < other.id) end)
  for at = 1, excess do
    redis.call('HDEL', KEYS[OPS], ended[at].id)
    redis.call('HDEL', KEYS[RECORDS], ended[at].id)
  end
end

local now = now_ms()
local lease = int(now + tonumber(ARGV[4]))
local stored = table.concat({'1', '0', lease, ARGV[3], int(now), int(now), ARGV[5]}, ' ')
redis.call('HSET', KEYS[OPS], ARGV[1], stored)
redis.call('HSET', KEYS[RECORDS], ARGV[1], ARGV[6])
redis.call('ZADD', KEYS[DUE], lease, ARGV[2])
return {'OK', stored, ARGV[6]}
