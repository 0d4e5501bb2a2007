-- An operation that copies has failed: nobody finishes the copy any more. 0: it has been made.
-- Keys: those of memfold.store.keys.StageKeys, then the copy's meta. ARGV: the operation, for how many s to remember.
local STAGE, STAGE_LOG, STAGE_IDS, COPY_META = 1, 2, 3, 4
if redis.call('HGET', KEYS[COPY_META], 'forked_by') == ARGV[1] then
  return 0
end
if redis.call('HGET', KEYS[STAGE], 'by') == ARGV[1] then
  redis.call('UNLINK', KEYS[STAGE_LOG], KEYS[STAGE_IDS])
  redis.call('HDEL', KEYS[STAGE], 'by', 'cursor')
end
redis.call('HSET', KEYS[STAGE], 'done:' .. ARGV[1], '')
redis.call('EXPIRE', KEYS[STAGE], ARGV[2])
return 1
