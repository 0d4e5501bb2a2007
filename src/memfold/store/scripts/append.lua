-- Appends turns, all or none, and marks the memory as behind. Takes the first keys of the memory only, and of a second
-- line as many: see memfold.store.keys.hot_keys.
-- ARGV: fingerprint, building, expected revision or '', backlog limit or 0, incarnation to create or '', member,
-- then for each turn its id, its bytes, the bytes of its content as a number, and its nonce.
local FIRST, STEP, MANY, SECOND = 7, 4, 1000, 3

local meta, refused = identify()
local creating = refused and refused[1] == 'MISSING' and ARGV[5] ~= ''
if creating then
  meta = {incarnation = ARGV[5], head = 0, last = 0, entries = 0, count = 0, bytes = 0}
elseif refused then
  return refused
end

-- Which of them are here already? The same id with the same bytes is the same turn; with others it is an error.
local known = {}
for from = FIRST, creating and 0 or #ARGV, STEP * MANY do
  local ids = {}
  for at = from, math.min(#ARGV, from + STEP * MANY - 1), STEP do
    ids[#ids + 1] = ARGV[at]
  end
  for offset, sequence in ipairs(redis.call('HMGET', KEYS[IDS], unpack(ids))) do
    known[from + (offset - 1) * STEP] = sequence
  end
end
local placed, fresh, given, reached = {}, {}, {}, 0
for at = FIRST, #ARGV, STEP do
  local id, bytes = ARGV[at], ARGV[at + 1]
  local sequence, duplicate
  if known[at] then
    sequence, duplicate = tonumber(known[at]), 1
    local entry = redis.call('XRANGE', KEYS[LOG], known[at] .. '-0', known[at] .. '-0')[1]
    if not entry or entry[2][2] ~= bytes then
      return {'CONFLICT', id, known[at]}
    end
  elseif given[id] then
    sequence, duplicate = given[id].sequence, 1
    if given[id].bytes ~= bytes then
      return {'CONFLICT', id, int(sequence)}
    end
  else
    sequence, duplicate = meta.last + #fresh + 1, 0
    fresh[#fresh + 1] = at
    given[id] = {sequence = sequence, bytes = bytes}
  end
  placed[#placed + 1] = int(sequence) .. ' ' .. duplicate
  reached = math.max(reached, sequence)
end
-- One string: clients read a thousand small replies slowly.
placed = table.concat(placed, ' ')
if #fresh == 0 then
  -- Redis promises a confirmation only for what this connection wrote.
  redis.call('HSET', KEYS[META], 'head', int(meta.head))
  return {'OK', meta.incarnation, int(reached), 0, 0, placed}
end

if not expected(meta, ARGV[3]) then
  return {'MISMATCH', meta.incarnation, int(meta.head)}
end
local line = redis.call('HMGET', KEYS[LINE], 'applied', 'quarantined')
local limit, lag = tonumber(ARGV[4]), meta.head - tonumber(line[1] or 0)
-- A single call may go beyond the limit when nothing waits: else it could never be taken.
if limit > 0 and lag > 0 and lag + #fresh > limit then
  if meta.last > meta.entries then
    -- Numbers that nobody bears any more do not wait.
    lag = #redis.call('XRANGE', KEYS[LOG], '(' .. (line[1] or '0') .. '-0', '+', 'COUNT', limit)
  end
  if lag > 0 and lag + #fresh > limit then
    return {'BACKLOG', int(lag)}
  end
end

local now, content, ids = int(now_ms()), 0, {}
if creating then
  redis.call('HSET', KEYS[META], 'incarnation', meta.incarnation, 'request_id', '', 'fingerprint', ARGV[1],
    'display_name', '', 'labels', '{}', 'create_ms', now)
end
for offset, at in ipairs(fresh) do
  local sequence = int(meta.last + offset)
  redis.call('XADD', KEYS[LOG], sequence .. '-0', 'turn', ARGV[at + 1], 'ms', now, 'nonce', ARGV[at + 3])
  content = content + tonumber(ARGV[at + 2])
  ids[#ids + 1] = ARGV[at]
  ids[#ids + 1] = sequence
  if #ids == MANY or offset == #fresh then
    redis.call('HSET', KEYS[IDS], unpack(ids))
    ids = {}
  end
end
local head = int(meta.last + #fresh)
redis.call('HSET', KEYS[META], 'head', head, 'last', head, 'entries', int(meta.entries + #fresh),
  'count', int(meta.count + #fresh), 'bytes', int(meta.bytes + content), 'update_ms', now)

-- NX: the entry of a memory that is being folded holds the end of the lease, and must go on holding it.
local function mark(second)
  redis.call('ZADD', KEYS[BEHIND + second], 'NX', now, ARGV[6])
  return redis.call('ZADD', KEYS[DIRTY + second], 'NX', now, ARGV[6])
end
local marked = line[2] and 0 or mark(0)
local marked_building = 0
if ARGV[2] ~= '' and redis.call('HEXISTS', KEYS[LINE + SECOND], 'quarantined') == 0 then
  marked_building = mark(SECOND)
end
return {'OK', meta.incarnation, int(reached), marked, marked_building, placed}
