-- What has been copied from an incarnation of the source never becomes a memory. Does nothing if the copy has been made:
-- then it answers with the revision that it was made at.
-- Keys: those of memfold.store.keys.StageKeys, then the copy's meta.
-- ARGV: operation that copies, incarnation of the source, for how many s to remember.
local STAGE, STAGE_LOG, STAGE_IDS, COPY_META = 1, 2, 3, 4
local copy = redis.call('HMGET', KEYS[COPY_META], 'forked_by', 'forked_at')
if copy[1] == ARGV[1] then
  return copy[2]
end
if redis.call('HGET', KEYS[STAGE], 'by') == ARGV[1] then
  redis.call('UNLINK', KEYS[STAGE_LOG], KEYS[STAGE_IDS])
  redis.call('HDEL', KEYS[STAGE], 'by', 'cursor')
end
redis.call('HSET', KEYS[STAGE], 'bar:' .. ARGV[2], int(now_ms()))
redis.call('EXPIRE', KEYS[STAGE], ARGV[3])
return false
