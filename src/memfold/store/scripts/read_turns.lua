-- Reads log entries in order. ARGV: first sequence, last sequence or 0, how many, most bytes or 0 (one entry comes always), 'newest' or ''.
local STEP = 16

if redis.call('EXISTS', KEYS[META]) == 0 then
  return {'MISSING'}
end
local first, last = ARGV[1] .. '-0', ARGV[2] == '0' and '+' or ARGV[2] .. '-0'
local left, limit, size, taken = tonumber(ARGV[3]), tonumber(ARGV[4]), 0, {'OK', redis.call('HGET', KEYS[META], 'skips') or ''}
while left > 0 do
  -- A few at a time: what goes beyond the limit is read for nothing, and an entry may be large.
  local count, entries = math.min(left, STEP), nil
  if ARGV[5] == 'newest' then
    entries = redis.call('XREVRANGE', KEYS[LOG], last, first, 'COUNT', count)
  else
    entries = redis.call('XRANGE', KEYS[LOG], first, last, 'COUNT', count)
  end
  for _, entry in ipairs(entries) do
    size = size + #entry[2][2]
    if limit > 0 and size > limit and #taken > 2 then
      return taken
    end
    taken[#taken + 1] = entry
  end
  if #entries < count then
    break
  end
  left = left - count
  if ARGV[5] == 'newest' then
    last = '(' .. entries[count][1]
  else
    first = '(' .. entries[count][1]
  end
end
return taken
