-- Appends turns, all or none, and marks the memory as behind. Takes the first keys of the memory only, and of a second
-- line as many: see memfold.store.keys.hot_keys.
-- ARGV: fingerprint, building, expected revision or '', backlog limit or 0, incarnation to create or '', member, then of
-- the turns: ids, what was said and nonces, in MessagePack; bytes of each content, in four bytes; their sum; '' where an id
-- comes twice.
local MANY, SECOND, FEW = 1000, 3, 32

local meta, refused = identify()
local creating = refused and refused[1] == 'MISSING' and ARGV[5] ~= ''
if creating then
  meta = {incarnation = ARGV[5], head = 0, last = 0, entries = 0, count = 0, bytes = 0}
elseif refused then
  return refused
end

local ids, turns, nonces = cmsgpack.unpack(ARGV[7]), cmsgpack.unpack(ARGV[8]), cmsgpack.unpack(ARGV[9])
local many = #ids

-- Which of them are here already? The same id with the same bytes is the same turn; with others it is an error.
local known = {}
for from = 1, creating and 0 or many, MANY do
  local found = redis.call('HMGET', KEYS[IDS], unpack(ids, from, math.min(many, from + MANY - 1)))
  for offset, sequence in ipairs(found) do
    if sequence then
      known[from + offset - 1] = sequence
    end
  end
end
local new, reached, content, fresh, told = many, meta.last + many, tonumber(ARGV[11]), nil, {}
if next(known) or ARGV[12] == '' then
  local numbers, given = {}, {}
  new, reached, content, fresh = 0, 0, 0, {}
  for at, id in ipairs(ids) do
    if known[at] then
      numbers[at] = tonumber(known[at])
      local entry = redis.call('XRANGE', KEYS[LOG], known[at] .. '-0', known[at] .. '-0')[1]
      if not entry or entry[2][2] ~= turns[at] then
        return {'CONFLICT', id, known[at]}
      end
    elseif given[id] then
      numbers[at] = numbers[given[id]]
      if turns[given[id]] ~= turns[at] then
        return {'CONFLICT', id, int(numbers[at])}
      end
    else
      new = new + 1
      fresh[new], given[id], numbers[at] = at, at, meta.last + new
      content = content + struct.unpack('>I4', ARGV[10], 4 * at - 3)
    end
    reached = math.max(reached, numbers[at])
    told[at] = int(numbers[at]) .. (given[id] == at and ' 0' or ' 1')
  end
end
-- One string, and none where all are new: clients read a thousand small replies slowly.
told = table.concat(told, ' ')
if new == 0 then
  -- Redis promises a confirmation only for what this connection wrote.
  redis.call('HSET', KEYS[META], 'head', int(meta.head))
  return {'OK', meta.incarnation, int(reached), 0, 0, told}
end

if not expected(meta, ARGV[3]) then
  return {'MISMATCH', meta.incarnation, int(meta.head)}
end
local line = redis.call('HMGET', KEYS[LINE], 'applied', 'quarantined')
local limit, lag = tonumber(ARGV[4]), meta.head - tonumber(line[1] or 0)
-- A single call may go beyond the limit when nothing waits: else it could never be taken.
if limit > 0 and lag > 0 and lag + new > limit then
  if meta.last > meta.entries then
    -- Numbers that nobody bears any more do not wait. They are told apart where few turns wait; where many do, the fold
    -- that is due passes over them.
    local waiting = #redis.call('XRANGE', KEYS[LOG], '(' .. (line[1] or '0') .. '-0', '+', 'COUNT', FEW)
    lag = waiting < FEW and waiting or math.min(lag, meta.entries)
  end
  if lag > 0 and lag + new > limit then
    return {'BACKLOG', int(lag)}
  end
end

local now = int(now_ms())
if creating then
  redis.call('HSET', KEYS[META], 'incarnation', meta.incarnation, 'request_id', '', 'fingerprint', ARGV[1],
    'display_name', '', 'labels', '{}', 'create_ms', now)
end
-- Every turn takes this way: names are looked up before, and things counted by hand.
local call, format, log = redis.call, string.format, KEYS[LOG]
local noted, notes = {}, 0
for offset = 1, new do
  local at, sequence = fresh and fresh[offset] or offset, format('%d', meta.last + offset)
  call('XADD', log, sequence .. '-0', 'turn', turns[at], 'ms', now, 'nonce', nonces[at])
  noted[notes + 1], noted[notes + 2] = ids[at], sequence
  notes = notes + 2
  if notes == 2 * MANY or offset == new then
    call('HSET', KEYS[IDS], unpack(noted, 1, notes))
    notes = 0
  end
end
local head = int(meta.last + new)
redis.call('HSET', KEYS[META], 'head', head, 'last', head, 'entries', int(meta.entries + new),
  'count', int(meta.count + new), 'bytes', int(meta.bytes + content), 'update_ms', now)

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
return {'OK', meta.incarnation, int(reached), marked, marked_building, told}
