-- Adds a page to a copy that is being made. Keys: memfold.store.keys.StageKeys.
-- ARGV: operation id, incarnation of the source, ms until when this is good, behind which sequence it comes, its own last
-- sequence, for how many s it stays, for how many s to remember,
-- then for each entry: sequence, turn's id or '', name of its field, bytes, ms, nonce.
local STAGE, STAGE_LOG, STAGE_IDS = 1, 2, 3
local FIRST, STEP = 8, 6
if redis.call('HEXISTS', KEYS[STAGE], 'bar:' .. ARGV[2]) == 1 or now_ms() > tonumber(ARGV[3]) then
  return {'CHANGED'}
end
local stage = redis.call('HMGET', KEYS[STAGE], 'by', 'cursor')
if stage[1] and stage[1] ~= ARGV[1] and redis.call('EXISTS', KEYS[STAGE_LOG]) == 1 then
  return {'TAKEN'}
end
if ARGV[4] == '0' then
  redis.call('UNLINK', KEYS[STAGE_LOG], KEYS[STAGE_IDS])
elseif stage[2] == ARGV[5] then
  return {'OK'}
elseif stage[2] ~= ARGV[4] then
  return {'LOST'}
end
for at = FIRST, #ARGV, STEP do
  redis.call('XADD', KEYS[STAGE_LOG], ARGV[at] .. '-0', ARGV[at + 2], ARGV[at + 3], 'ms', ARGV[at + 4], 'nonce', ARGV[at + 5])
  if ARGV[at + 1] ~= '' then
    redis.call('HSET', KEYS[STAGE_IDS], ARGV[at + 1], ARGV[at])
  end
end
redis.call('HSET', KEYS[STAGE], 'by', ARGV[1], 'cursor', ARGV[5])
redis.call('EXPIRE', KEYS[STAGE], ARGV[7])
redis.call('EXPIRE', KEYS[STAGE_LOG], ARGV[6])
redis.call('EXPIRE', KEYS[STAGE_IDS], ARGV[6])
return {'OK'}
