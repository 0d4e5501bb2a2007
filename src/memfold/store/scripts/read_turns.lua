-- Reads log entries in order. ARGV: first sequence, last sequence or 0, how many, most bytes or 0 (one entry comes always), 'newest' or ''.
if redis.call('EXISTS', KEYS[META]) == 0 then
  return {'MISSING'}
end
local first, last = ARGV[1] .. '-0', '+'
if ARGV[2] ~= '0' then
  last = ARGV[2] .. '-0'
end
local entries
if ARGV[5] == 'newest' then
  entries = redis.call('XREVRANGE', KEYS[LOG], last, first, 'COUNT', ARGV[3])
else
  entries = redis.call('XRANGE', KEYS[LOG], first, last, 'COUNT', ARGV[3])
end
local limit, size, taken = tonumber(ARGV[4]), 0, {'OK', redis.call('HGET', KEYS[META], 'skips') or ''}
for _, entry in ipairs(entries) do
  size = size + #entry[2][2]
  if limit > 0 and size > limit and #taken > 2 then
    break
  end
  taken[#taken + 1] = entry
end
return taken
