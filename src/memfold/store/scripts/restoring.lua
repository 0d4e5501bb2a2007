-- Put before scripts that need it: taking a line back to a kept revision, and on to the log's end where nothing is left.

local function set_line(line, applied, at, made, log_digest, state_digest, anchor, anchor_digest)
  redis.call('HSET', KEYS[LINE + line], 'applied', applied, 'at', at, 'made', made, 'log_digest', log_digest,
    'state_digest', state_digest, 'anchor', anchor, 'anchor_digest', anchor_digest)
end

-- Claims lose, quarantine ends.
local function free(line)
  redis.call('HINCRBY', KEYS[LINE + line], 'fence', 1)
  redis.call('HSET', KEYS[LINE + line], 'attempts', '0', 'lease', '0', 'claim', '', 'owner', '')
  redis.call('HDEL', KEYS[LINE + line], 'quarantined', 'reason')
end

-- The kept revisions of a line: sequence -> what is known of it.
local function kept(line)
  local flat, revisions = redis.call('HGETALL', KEYS[REVISIONS + line]), {}
  for at = 1, #flat, 2 do
    revisions[tonumber(flat[at])] = cjson.decode(flat[at + 1])
  end
  return revisions
end

-- The newest kept revision up to `limit` of which nothing is missing, or 0.
local function newest(line, revisions, limit, applied)
  local found = 0
  for sequence, revision in pairs(revisions) do
    if sequence <= limit and sequence > found
      and (sequence == applied or redis.call('HEXISTS', KEYS[HISTORY + line], int(sequence)) == 1)
      and (revision.anchor == '0.0' or redis.call('HEXISTS', KEYS[HISTORY + line], '@' .. revision.anchor) == 1) then
      found = sequence
    end
  end
  return found
end

-- Removes what is known of revisions behind `limit`, and the anchors that only they needed. Returns their sequences.
local function drop_behind(line, revisions, limit)
  local dropped, needed = {}, {}
  for sequence, revision in pairs(revisions) do
    if sequence > limit then
      dropped[#dropped + 1] = sequence
      redis.call('HDEL', KEYS[REVISIONS + line], int(sequence))
    else
      needed['@' .. revision.anchor] = true
    end
  end
  for _, field in ipairs(redis.call('HKEYS', KEYS[HISTORY + line])) do
    if (string.sub(field, 1, 1) == '@' and not needed[field]) or (tonumber(field) or 0) > limit then
      redis.call('HDEL', KEYS[HISTORY + line], field)
    end
  end
  return dropped
end

-- Takes a line back to the newest kept revision up to `limit`, or to nothing. Returns its sequence and those dropped.
local function restore(line, limit)
  local applied = tonumber(redis.call('HGET', KEYS[LINE + line], 'applied') or 0)
  local revisions = kept(line)
  local found = newest(line, revisions, limit, applied)
  free(line)
  if found == 0 then
    redis.call('UNLINK', KEYS[STATE + line])
    set_line(line, '0', '0', '', '', '', '0.0', '')
    redis.call('HSET', KEYS[LINE + line], 'state_bytes', '0')
  elseif found < applied then
    local revision, sequence = revisions[found], int(found)
    redis.call('SET', KEYS[STATE + line], redis.call('HGET', KEYS[HISTORY + line], sequence))
    redis.call('HDEL', KEYS[HISTORY + line], sequence)
    set_line(line, sequence, int(revision.at), revision.made, revision.log_digest, revision.state_digest,
      revision.anchor, revision.anchor_digest)
  end
  return found, drop_behind(line, revisions, found)
end

-- Nothing is left to fold behind `applied`: the line stands at the log's end.
local function pass_over(line, applied, head)
  if applied == head then
    return
  end
  redis.call('HSET', KEYS[LINE + line], 'applied', int(head))
  local revision = redis.call('HGET', KEYS[REVISIONS + line], int(applied))
  if revision then
    redis.call('HDEL', KEYS[REVISIONS + line], int(applied))
    redis.call('HSET', KEYS[REVISIONS + line], int(head), revision)
  end
end

-- The line is due at once where something is left to fold, and off the queue where nothing is.
local function resume(line, head, member)
  local applied = redis.call('HGET', KEYS[LINE + line], 'applied') or '0'
  local entry = redis.call('XRANGE', KEYS[LOG], '(' .. applied .. '-0', '+', 'COUNT', 1)[1]
  if entry then
    redis.call('ZADD', KEYS[DIRTY + line], int(now_ms()), member)
    redis.call('ZADD', KEYS[BEHIND + line], entry[2][4], member)
  else
    pass_over(line, tonumber(applied), head)
    redis.call('ZREM', KEYS[DIRTY + line], member)
    redis.call('ZREM', KEYS[BEHIND + line], member)
  end
end

-- So long nothing is heard of whoever writes the log aside before somebody else may, and before folding goes on.
local GIVEN_UP_MS = 30000

-- Whether turns are about to be forgotten, so that nothing may be folded that holds them.
local function held()
  local known = redis.call('HMGET', KEYS[REWRITE], 'holds', 'ms')
  return known[1] and tonumber(known[2]) > now_ms() - GIVEN_UP_MS
end

-- Turns that are passed over: sequence -> that of the entry which says so. Kept as '17:20,45:51'.
local function skips()
  local found = {}
  for turn, entry in string.gmatch(redis.call('HGET', KEYS[META], 'skips') or '', '(%d+):(%d+)') do
    found[tonumber(turn)] = tonumber(entry)
  end
  return found
end

local function set_skips(found)
  local parts = {}
  for turn, entry in pairs(found) do
    parts[#parts + 1] = int(turn) .. ':' .. int(entry)
  end
  table.sort(parts)
  if #parts == 0 then
    redis.call('HDEL', KEYS[META], 'skips')
  else
    redis.call('HSET', KEYS[META], 'skips', table.concat(parts, ','))
  end
end
