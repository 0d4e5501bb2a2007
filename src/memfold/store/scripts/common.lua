-- Put before every script. Keys of a memory come in the order of memfold.store.keys.MemoryKeys.

local META, LOG, IDS, LINE, DIRTY, BEHIND, STATE, HISTORY, REVISIONS = 1, 2, 3, 4, 5, 6, 7, 8, 9
local FRESH_LOG, FRESH_IDS, REWRITE, RECEIPTS, OPS, RECORDS, FORKS, OPERATIONS, EXPIRES = 10, 11, 12, 13, 14, 15, 16, 17, 18
-- A line's keys are KEYS[LINE + line], KEYS[DIRTY + line] and so on.
local SERVING, BUILDING = 0, 15

-- Lua writes large numbers as 1e+15; Redis must never see that.
local function int(number)
  return string.format('%.0f', number)
end

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- Who the memory is, or why it is not what the caller thinks: (meta, nil) or (nil, reply).
-- ARGV: the fingerprint that serves, the one that is being built or ''.
local function identify()
  local meta = redis.call('HMGET', KEYS[META],
    'incarnation', 'fingerprint', 'building', 'head', 'last', 'entries', 'count', 'bytes')
  if not meta[1] then
    return nil, {'MISSING'}
  end
  local building = meta[3] or ''
  if meta[2] ~= ARGV[1] or building ~= ARGV[2] then
    return nil, {'FINGERPRINT', meta[2], building}
  end
  return {incarnation = meta[1], head = tonumber(meta[4]), last = tonumber(meta[5]), entries = tonumber(meta[6]),
    count = tonumber(meta[7]), bytes = tonumber(meta[8])}, nil
end

-- The memory for a script on one of its lines, that of the fingerprint ARGV[1]; nil where that model does not fold it.
local function identify_line()
  local meta = redis.call('HMGET', KEYS[META],
    'incarnation', 'fingerprint', 'building', 'head', 'last', 'entries', 'policy')
  if not meta[1] or (meta[2] ~= ARGV[1] and meta[3] ~= ARGV[1]) then
    return nil
  end
  return {incarnation = meta[1], head = tonumber(meta[4]), last = tonumber(meta[5]), entries = tonumber(meta[6]),
    policy = meta[7] or ''}
end

-- The lines of a memory that was identified.
local function lines()
  return ARGV[2] == '' and {SERVING} or {SERVING, BUILDING}
end

-- The memory as a client sees it: the fields of the meta hash, then how far its lines are.
local function describe()
  local line = redis.call('HMGET', KEYS[LINE], 'applied', 'state_bytes', 'quarantined')
  local second = ARGV[2] ~= '' and redis.call('HMGET', KEYS[LINE + BUILDING], 'applied', 'quarantined') or {}
  return {redis.call('HGETALL', KEYS[META]), line[1] or '0', line[2] or '0', line[3] or '0', second[1] or '0', second[2] or '0'}
end

local function expected(meta, revision)
  return revision == '' or revision == meta.incarnation .. '.' .. int(meta.head)
end

-- When the last turn came in, be it still there or not; 0 if none ever did. The newest entry knows, unless it is none of a turn
-- or turns behind it were taken out: then the memory does.
local function last_append_ms()
  local noted = tonumber(redis.call('HGET', KEYS[META], 'append_ms') or 0)
  local newest = redis.call('XREVRANGE', KEYS[LOG], '+', '-', 'COUNT', 1)[1]
  return math.max(noted, newest and newest[2][1] == 'turn' and tonumber(newest[2][4]) or 0)
end

-- Before the newest entry goes, or is followed by one of no turn.
local function note_last_append()
  redis.call('HSET', KEYS[META], 'append_ms', int(last_append_ms()))
end
