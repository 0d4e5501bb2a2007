-- Put before scripts that need it, behind restoring: turns are taken out of the log, few at once. For many the log is written
-- anew without them first, aside and in pages, and put in its place at once: no script takes long, and nobody ever sees half.
-- Runs are pairs of numbers, ascending: the entries between them, both included, go; where not `whole`, of those only turns,
-- and with them what says that they are passed over.

-- So much a receipt lists; it counts all.
local LISTED = 1000
-- So many removals can be asked for again.
local REMEMBERED = 20

local function sequence_of(entry)
  return tonumber(string.match(entry[1], '^%d+'))
end

local function new_receipt()
  return {count = 0, runs = {}, ids = {}}
end

-- Numbers rise from note to note.
local function note(receipt, sequence, id)
  receipt.count = receipt.count + 1
  if receipt.count <= LISTED then
    receipt.ids[#receipt.ids + 1] = id
  end
  local last = receipt.runs[#receipt.runs]
  if last and last[2] == sequence - 1 then
    last[2] = sequence
  elseif #receipt.runs < LISTED then
    receipt.runs[#receipt.runs + 1] = {sequence, sequence}
  end
end

-- Takes entries out where they lie. nil: there are more than `most`, and nothing was done.
local function take_out(meta, runs, whole, most)
  local entries, skipped = {}, skips()
  for at = 1, #runs, 2 do
    local from, to = runs[at] .. '-0', runs[at + 1] == '+' and '+' or runs[at + 1] .. '-0'
    for _, entry in ipairs(redis.call('XRANGE', KEYS[LOG], from, to, 'COUNT', most + 1)) do
      entries[#entries + 1] = entry
    end
    if #entries > most then
      return nil
    end
  end
  local receipt, ids, gone = new_receipt(), {}, {}
  for _, entry in ipairs(entries) do
    local sequence = sequence_of(entry)
    if entry[2][1] == 'turn' then
      local turn = cjson.decode(entry[2][2])
      ids[#ids + 1] = turn.id
      meta.bytes = meta.bytes - #turn.content
      note(receipt, sequence, turn.id)
      if skipped[sequence] and not whole then
        gone[#gone + 1] = int(skipped[sequence]) .. '-0'
      end
    end
    if whole or entry[2][1] == 'turn' then
      gone[#gone + 1] = entry[1]
    end
  end
  if #gone > 0 then
    note_last_append()
    meta.count = meta.count - #ids
    meta.entries = meta.entries - redis.call('XDEL', KEYS[LOG], unpack(gone))
    -- The text still lies in the nodes of the log until they are written anew.
    redis.call('HSET', KEYS[META], 'unscrubbed', '1')
  end
  if #ids > 0 then
    redis.call('HDEL', KEYS[IDS], unpack(ids))
  end
  return receipt
end

-- How far the log has been written anew, and what was left out: numbers.
local function staged_numbers()
  local names = {'cursor', 'entries', 'count', 'gone_entries', 'gone_count', 'gone_bytes'}
  local found, staged = redis.call('HMGET', KEYS[REWRITE], unpack(names)), {}
  for at, name in ipairs(names) do
    staged[name] = tonumber(found[at] or 0)
  end
  return staged
end

local function save_staged(staged)
  for name, number in pairs(staged) do
    redis.call('HSET', KEYS[REWRITE], name, int(number))
  end
  redis.call('HSET', KEYS[REWRITE], 'ms', int(now_ms()))
end

local function drop_staged()
  redis.call('UNLINK', KEYS[FRESH_LOG], KEYS[FRESH_IDS], KEYS[REWRITE])
end

-- Makes the log that is written aside that of `by`. False: somebody else is at it.
local function stage(by)
  local known = redis.call('HMGET', KEYS[REWRITE], 'by', 'ms')
  if known[1] == by then
    return true
  end
  -- A removal leaves a fresh log as well: those who only want that wait for it.
  if known[1] and known[1] ~= 'scrub' and tonumber(known[2]) > now_ms() - GIVEN_UP_MS then
    return false
  end
  drop_staged()
  redis.call('HSET', KEYS[REWRITE], 'by', by, 'ms', int(now_ms()))
  return true
end

-- Before many turns are forgotten, of which none stands before `first`: from now on readers get what was folded before that, and
-- nothing more is folded.
local function hold(meta, first, member)
  local entry = redis.call('XRANGE', KEYS[LOG], first .. '-0', '+', 'COUNT', 1)[1]
  local limit = entry and sequence_of(entry) - 1 or meta.head
  for at, line in ipairs(lines()) do
    local _, dropped = restore(line, limit)
    resume(line, meta.head, member)
    if at == 1 then
      redis.call('HSET', KEYS[REWRITE], 'holds', cjson.encode(dropped))
    end
  end
end

-- Nothing comes of a removal.
local function give_up(by)
  if redis.call('HGET', KEYS[REWRITE], 'by') == by then
    drop_staged()
  end
end

-- Copies what stays of entries into the fresh log, its turns' ids with it, and notes what goes. `staged` is changed, and where it
-- is nil nothing is: the entries are in the fresh log already.
local function carry(staged, entries, runs, whole, receipt)
  local at, ids = 1, {}
  for _, entry in ipairs(entries) do
    local sequence, is_turn = sequence_of(entry), entry[2][1] == 'turn'
    while runs[at] and runs[at + 1] ~= '+' and tonumber(runs[at + 1]) < sequence do
      at = at + 2
    end
    local goes = runs[at] and tonumber(runs[at]) <= sequence
    if not is_turn and not whole then
      local turn = entry[2][2] .. '-0'
      goes = #redis.call('XRANGE', KEYS[FRESH_LOG], turn, turn) == 0
    end
    local turn = is_turn and (staged or goes) and cjson.decode(entry[2][2])
    if goes and is_turn then
      note(receipt, sequence, turn.id)
    end
    if staged and goes then
      staged.gone_entries = staged.gone_entries + 1
      staged.gone_count = staged.gone_count + (is_turn and 1 or 0)
      staged.gone_bytes = staged.gone_bytes + (is_turn and #turn.content or 0)
    elseif staged then
      redis.call('XADD', KEYS[FRESH_LOG], entry[1], unpack(entry[2]))
      staged.entries = staged.entries + 1
      if is_turn then
        staged.count = staged.count + 1
        ids[#ids + 1] = turn.id
        ids[#ids + 1] = int(sequence)
      end
    end
    if staged then
      staged.cursor = sequence
    end
  end
  if #ids > 0 then
    redis.call('HSET', KEYS[FRESH_IDS], unpack(ids))
  end
end

-- What was written aside takes its place. The old is freed in the background.
local function exchange(old, fresh)
  redis.call('UNLINK', KEYS[old])
  if redis.call('EXISTS', KEYS[fresh]) == 1 then
    redis.call('RENAME', KEYS[fresh], KEYS[old])
  end
end

-- Puts the log that `by` wrote aside in the place of the old one, once it has taken up what came in meanwhile. `receipt` tells what
-- was left out of it so far. Returns nothing, or why it cannot be done yet.
local function settle(meta, by, runs, whole, most, receipt)
  local staged = staged_numbers()
  if redis.call('HGET', KEYS[REWRITE], 'by') ~= by or redis.call('XLEN', KEYS[FRESH_LOG]) ~= staged.entries
    or redis.call('HLEN', KEYS[FRESH_IDS]) ~= staged.count then
    give_up(by)
    return 'LOST'
  end
  local rest = redis.call('XRANGE', KEYS[LOG], '(' .. int(staged.cursor) .. '-0', '+', 'COUNT', most + 1)
  if #rest > most then
    return 'MORE'
  end
  note_last_append()
  carry(staged, rest, runs, whole, receipt)
  exchange(LOG, FRESH_LOG)
  exchange(IDS, FRESH_IDS)
  -- Not what was copied is counted but what was left out: a log that lost entries stays one that did.
  meta.entries, meta.count = meta.entries - staged.gone_entries, meta.count - staged.gone_count
  meta.bytes = meta.bytes - staged.gone_bytes
  receipt.dropped = cjson.decode(redis.call('HGET', KEYS[REWRITE], 'holds') or '[]')
  drop_staged()
  redis.call('HDEL', KEYS[META], 'unscrubbed')
end

-- Turns are passed over only while the entry that says so is there.
local function drop_skips()
  local found = skips()
  for turn, entry in pairs(found) do
    local id = int(entry) .. '-0'
    if #redis.call('XRANGE', KEYS[LOG], id, id) == 0 then
      found[turn] = nil
    end
  end
  set_skips(found)
end

local function remember(incarnation, receipt, receipt_s)
  local known = redis.call('HGETALL', KEYS[RECEIPTS])
  if #known >= 2 * REMEMBERED then
    local oldest, oldest_ms
    for at = 1, #known, 2 do
      local ms = tonumber(string.match(known[at + 1], '^%d+'))
      if not oldest or ms < oldest_ms then
        oldest, oldest_ms = known[at], ms
      end
    end
    redis.call('HDEL', KEYS[RECEIPTS], oldest)
  end
  redis.call('HSET', KEYS[RECEIPTS], incarnation, int(now_ms()) .. ' ' .. receipt)
  redis.call('EXPIRE', KEYS[RECEIPTS], receipt_s)
end

-- After a removal: a new incarnation, every line taken back to the newest kept revision up to `limit`, a receipt. What is half
-- written aside may hold what is gone.
local function begin_anew(meta, incarnation, limit, receipt, member, channel, receipt_s)
  drop_skips()
  drop_staged()
  redis.call('HSET', KEYS[META], 'incarnation', incarnation, 'head', int(meta.head), 'entries', int(meta.entries),
    'count', int(meta.count), 'bytes', int(meta.bytes), 'update_ms', int(now_ms()))
  receipt.dropped = receipt.dropped or {}
  for at, line in ipairs(lines()) do
    local _, dropped = restore(line, limit)
    resume(line, meta.head, member)
    for _, sequence in ipairs(at == 1 and dropped or {}) do
      receipt.dropped[#receipt.dropped + 1] = sequence
    end
  end
  receipt.restored_to = tonumber(redis.call('HGET', KEYS[LINE], 'applied'))
  receipt.head = meta.head
  receipt = cjson.encode(receipt)
  remember(incarnation, receipt, receipt_s)
  redis.call('PUBLISH', channel, member)
  return {'OK', receipt, incarnation}
end

-- What an earlier run of the same removal answered, whatever has been removed since; nil where there was none.
local function answered(meta, incarnation)
  local known = redis.call('HGET', KEYS[RECEIPTS], incarnation)
  if not known and meta.incarnation ~= incarnation then
    return nil
  end
  -- Written again: Redis promises a confirmation only for what this connection wrote.
  redis.call('HSET', KEYS[META], 'incarnation', meta.incarnation)
  return {'OK', known and string.match(known, ' (.*)$') or cjson.encode({head = meta.head}), meta.incarnation}
end
