-- Adds the last page to a copy, and makes it a memory.
-- Keys: those of memfold.store.keys.StageKeys, then meta, log, ids, line, state, history, revisions, dirty, behind, expires.
-- ARGV: operation id, incarnation of the source, ms until when this is good, how many entries are staged, for how many s to
-- remember, what to remember, member, in how many ms to see whether something has expired or '', the state or '',
-- then five lists, each with its length in front: entries (as in fork_page), meta, line, history, revisions.
local STAGE, STAGE_LOG, STAGE_IDS = 1, 2, 3
local COPY_META, COPY_LOG, COPY_IDS, COPY_LINE, COPY_STATE, COPY_HISTORY, COPY_REVISIONS = 4, 5, 6, 7, 8, 9, 10
local COPY_DIRTY, COPY_BEHIND, COPY_EXPIRES = 11, 12, 13
local done, now = 'done:' .. ARGV[1], now_ms()
local remembered = redis.call('HGET', KEYS[STAGE], done)
if remembered then
  -- Also when it has been deleted since: whoever repeats this must not make it again.
  redis.call('HSET', KEYS[STAGE], done, remembered)
  return {remembered == '' and 'CLOSED' or 'OK', remembered}
end
if redis.call('EXISTS', KEYS[COPY_META]) == 1 then
  return {'EXISTS'}
end
if redis.call('HEXISTS', KEYS[STAGE], 'bar:' .. ARGV[2]) == 1 or now > tonumber(ARGV[3]) then
  return {'CHANGED'}
end
local by = redis.call('HGET', KEYS[STAGE], 'by')
if by and by ~= ARGV[1] and redis.call('EXISTS', KEYS[STAGE_LOG]) == 1 then
  return {'TAKEN'}
end
if ARGV[4] == '0' then
  redis.call('UNLINK', KEYS[STAGE_LOG], KEYS[STAGE_IDS])
elseif by ~= ARGV[1] or redis.call('XLEN', KEYS[STAGE_LOG]) ~= tonumber(ARGV[4]) then
  return {'LOST'}
end

for from, to in pairs({[STAGE_LOG] = COPY_LOG, [STAGE_IDS] = COPY_IDS}) do
  if redis.call('EXISTS', KEYS[from]) == 1 then
    redis.call('RENAME', KEYS[from], KEYS[to])
    redis.call('PERSIST', KEYS[to])
  end
end
local at = 10
local function each(step, act)
  local count = tonumber(ARGV[at])
  for from = at + 1, at + count, step do
    act(from)
  end
  at = at + count + 1
end
local function fill(key)
  each(2, function(from) redis.call('HSET', KEYS[key], ARGV[from], ARGV[from + 1]) end)
end
each(6, function(from)
  redis.call('XADD', KEYS[COPY_LOG], ARGV[from] .. '-0', ARGV[from + 2], ARGV[from + 3],
    'ms', ARGV[from + 4], 'nonce', ARGV[from + 5])
  if ARGV[from + 1] ~= '' then
    redis.call('HSET', KEYS[COPY_IDS], ARGV[from + 1], ARGV[from])
  end
end)
fill(COPY_META)
fill(COPY_LINE)
fill(COPY_HISTORY)
fill(COPY_REVISIONS)
if ARGV[9] ~= '' then
  redis.call('SET', KEYS[COPY_STATE], ARGV[9])
end
now = int(now)
redis.call('HSET', KEYS[COPY_META], 'create_ms', now, 'update_ms', now)
if redis.call('HGET', KEYS[COPY_META], 'head') ~= redis.call('HGET', KEYS[COPY_LINE], 'applied') then
  redis.call('ZADD', KEYS[COPY_DIRTY], now, ARGV[7])
  redis.call('ZADD', KEYS[COPY_BEHIND], now, ARGV[7])
end
if ARGV[8] ~= '' then
  redis.call('ZADD', KEYS[COPY_EXPIRES], int(now + tonumber(ARGV[8])), ARGV[7])
end
redis.call('HDEL', KEYS[STAGE], 'by', 'cursor')
redis.call('HSET', KEYS[STAGE], done, ARGV[6])
redis.call('EXPIRE', KEYS[STAGE], ARGV[5])
return {'OK', ARGV[6]}
