-- Counts the turns whose numbers lie in some runs: pairs of numbers, both included. Looks at no more than so many entries.
-- KEYS[1]: the log. ARGV: how many, then the runs.
-- Returns the count, how many of the runs it is through with, and how far it came in the next, or 0.
local left, count = tonumber(ARGV[1]), 0
for at = 2, #ARGV, 2 do
  local entries = redis.call('XRANGE', KEYS[1], ARGV[at] .. '-0', ARGV[at + 1] .. '-0', 'COUNT', left)
  for _, entry in ipairs(entries) do
    count = count + (entry[2][1] == 'turn' and 1 or 0)
  end
  if #entries == left then
    return {int(count), int((at - 2) / 2), string.match(entries[left][1], '^%d+')}
  end
  left = left - #entries
end
return {int(count), int((#ARGV - 1) / 2), '0'}
