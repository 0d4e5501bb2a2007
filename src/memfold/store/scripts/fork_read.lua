-- Enters a copy at its source, then reads a page of the log, and with the last page what is kept of the states.
-- ARGV: fingerprint, building, incarnation or '', revision or '' for the log's end, member of the copy, operation id,
-- entries behind which sequence, most entries, most bytes.
local STEP = 50

local meta, refused = identify()
if not meta then
  return refused
end
if redis.call('HEXISTS', KEYS[OPS], ARGV[6]) == 0 then
  -- The memory that was to be copied is gone, and this is another one.
  return {'MISSING'}
end
if ARGV[3] ~= '' and ARGV[3] ~= meta.incarnation then
  return {'CHANGED', meta.incarnation, int(meta.head)}
end
local revision = ARGV[4] == '' and meta.head or tonumber(ARGV[4])
if revision > meta.head then
  return {'AHEAD', meta.incarnation, int(meta.head)}
end
redis.call('HSET', KEYS[FORKS], ARGV[5], int(revision) .. ' ' .. ARGV[6])

local entries, size, full, cursor = {}, 0, false, ARGV[7]
local most, most_bytes = tonumber(ARGV[8]), tonumber(ARGV[9])
local last = int(revision) .. '-0'
while not full do
  local some = redis.call('XRANGE', KEYS[LOG], '(' .. cursor .. '-0', last, 'COUNT', STEP)
  for _, entry in ipairs(some) do
    size = size + #entry[2][2]
    full = #entries > 0 and (#entries >= most or size > most_bytes)
    if full then
      break
    end
    entries[#entries + 1] = entry
    cursor = string.match(entry[1], '^%d+')
  end
  if #some < STEP then
    break
  end
end

local reply = {'OK', meta.incarnation, int(revision), int(now_ms()), entries}
if full then
  return reply
end
-- Checkpoints up to the revision, and the anchors that they stand on.
local function upto(key)
  local found = {}
  for _, field in ipairs(redis.call('HKEYS', KEYS[key])) do
    if tonumber(string.match(field, '^@?(%d+)')) <= revision then
      found[#found + 1] = field
      found[#found + 1] = redis.call('HGET', KEYS[key], field)
    end
  end
  return found
end
reply[6] = redis.call('HGETALL', KEYS[META])
reply[7] = redis.call('HGETALL', KEYS[LINE])
reply[8] = redis.call('GET', KEYS[STATE]) or ''
reply[9] = upto(REVISIONS)
reply[10] = upto(HISTORY)
return reply
