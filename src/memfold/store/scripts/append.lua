-- Appends turns, all or none, and marks the memory as behind.
-- ARGV: fingerprint, expected revision or '', backlog limit or 0, incarnation to create or '', member,
-- then for each turn its id, its bytes, and the bytes of its content as a number.
local FIRST, STEP = 6, 3

local incarnation, head, refused = identify(ARGV[1])
local creating = refused and refused[1] == 'MISSING' and ARGV[4] ~= ''
if creating then
  incarnation, head = ARGV[4], 0
elseif refused then
  return refused
end

-- Which of them are here already? The same id with the same bytes is the same turn; with others it is an error.
local placed, fresh, given, last = {}, {}, {}, 0
for at = FIRST, #ARGV, STEP do
  local id, bytes = ARGV[at], ARGV[at + 1]
  local known = not creating and redis.call('HGET', KEYS[IDS], id)
  local sequence, duplicate
  if known then
    sequence, duplicate = tonumber(known), 1
    local entry = redis.call('XRANGE', KEYS[LOG], known .. '-0', known .. '-0')[1]
    if not entry or entry[2][2] ~= bytes then
      return {'CONFLICT', id, known}
    end
  elseif given[id] then
    sequence, duplicate = given[id].sequence, 1
    if given[id].bytes ~= bytes then
      return {'CONFLICT', id, int(sequence)}
    end
  else
    sequence, duplicate = head + #fresh + 1, 0
    fresh[#fresh + 1] = at
    given[id] = {sequence = sequence, bytes = bytes}
  end
  placed[#placed + 1] = int(sequence)
  placed[#placed + 1] = duplicate
  last = math.max(last, sequence)
end

local marked = 0
if #fresh > 0 then
  if not expected(incarnation, head, ARGV[2]) then
    return {'MISMATCH', incarnation, int(head)}
  end
  -- A single call may go beyond the limit when nothing waits: else it could never be taken.
  local lag = head - tonumber(redis.call('HGET', KEYS[LINE], 'applied') or 0)
  local limit = tonumber(ARGV[3])
  if limit > 0 and lag > 0 and lag + #fresh > limit then
    return {'BACKLOG', int(lag)}
  end
  local now, content = int(now_ms()), 0
  if creating then
    redis.call('HSET', KEYS[META], 'incarnation', incarnation, 'request_id', '', 'fingerprint', ARGV[1],
      'display_name', '', 'labels', '{}', 'create_ms', now)
  end
  for offset, at in ipairs(fresh) do
    local sequence = int(head + offset)
    redis.call('XADD', KEYS[LOG], sequence .. '-0', 'turn', ARGV[at + 1], 'ms', now)
    redis.call('HSET', KEYS[IDS], ARGV[at], sequence)
    content = content + tonumber(ARGV[at + 2])
  end
  redis.call('HINCRBY', KEYS[META], 'count', #fresh)
  redis.call('HINCRBY', KEYS[META], 'bytes', int(content))
  redis.call('HSET', KEYS[META], 'update_ms', now)
  -- NX: the entry of a memory that is being folded holds the end of the lease, and must go on holding it.
  marked = redis.call('ZADD', KEYS[DIRTY], 'NX', now, ARGV[5])
  redis.call('ZADD', KEYS[BEHIND], 'NX', now, ARGV[5])
end
-- Also where nothing is new: Redis promises a confirmation only for what this connection wrote.
redis.call('HSET', KEYS[META], 'head', int(head + #fresh))
return {'OK', incarnation, int(last), marked, placed}
