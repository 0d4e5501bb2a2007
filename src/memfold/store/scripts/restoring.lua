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

-- Takes entries out of the log, turns with their ids, and notes what in the receipt.
local function remove(meta, entries, receipt)
  local ids, keys = {}, {}
  for at, entry in ipairs(entries) do
    keys[at] = entry[1]
    if entry[2][1] == 'turn' then
      local turn = cjson.decode(entry[2][2])
      ids[#ids + 1] = turn.id
      meta.bytes = meta.bytes - #turn.content
      receipt.ids[#receipt.ids + 1] = turn.id
      receipt.sequences[#receipt.sequences + 1] = tonumber(string.match(entry[1], '^%d+'))
    end
  end
  if #ids > 0 then
    redis.call('HDEL', KEYS[IDS], unpack(ids))
    meta.count = meta.count - #ids
  end
  if #keys > 0 then
    meta.entries = meta.entries - redis.call('XDEL', KEYS[LOG], unpack(keys))
  end
end

-- After a removal: a new incarnation, every line taken back to the newest kept revision up to `limit`, a receipt. The
-- text still lies in the nodes of the log until they are written anew.
local function begin_anew(meta, incarnation, limit, receipt, member, channel, receipt_s)
  redis.call('HSET', KEYS[META], 'incarnation', incarnation, 'head', int(meta.head), 'entries', int(meta.entries),
    'count', int(meta.count), 'bytes', int(meta.bytes), 'update_ms', int(now_ms()), 'unscrubbed', '1')
  redis.call('UNLINK', KEYS[FRESH_LOG])
  for at, line in ipairs(lines()) do
    local restored, dropped = restore(line, limit)
    resume(line, meta.head, member)
    if at == 1 then
      receipt.restored_to, receipt.dropped = tonumber(redis.call('HGET', KEYS[LINE], 'applied')), dropped
    end
  end
  receipt = cjson.encode(receipt)
  redis.call('SET', KEYS[RECEIPT], receipt, 'EX', receipt_s)
  redis.call('PUBLISH', channel, member)
  return {'OK', int(meta.head), receipt}
end

-- What an earlier run of the same removal answered.
local function answer_again(meta)
  -- Written again: Redis promises a confirmation only for what this connection wrote.
  redis.call('HSET', KEYS[META], 'incarnation', meta.incarnation)
  return {'OK', int(meta.head), redis.call('GET', KEYS[RECEIPT]) or '{}'}
end
