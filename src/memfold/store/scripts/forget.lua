-- needs restoring
-- Takes turns out of the log, and every state back to before the first of them. Running it again with the same new
-- incarnation answers like the first time, for as long as the receipt is kept.
-- ARGV: fingerprint, building, the present incarnation, the new one, member, channel, seconds to keep the receipt,
-- then the sequences, ascending.
local FIRST, PAGE = 8, 100
local meta, refused = identify()
if not meta then
  return refused
end
if meta.incarnation == ARGV[4] then
  return answer_again(meta)
end
if meta.incarnation ~= ARGV[3] then
  return {'MISMATCH', meta.incarnation, int(meta.head)}
end

local skipped, entries, receipt = skips(), {}, {ids = {}, sequences = {}}
for at = FIRST, #ARGV do
  local entry = redis.call('XRANGE', KEYS[LOG], ARGV[at] .. '-0', ARGV[at] .. '-0')[1]
  if entry and entry[2][1] == 'turn' then
    entries[#entries + 1] = entry
    local note = skipped[tonumber(ARGV[at])]
    if note then
      -- Nothing is left to pass over.
      entries[#entries + 1] = redis.call('XRANGE', KEYS[LOG], int(note) .. '-0', int(note) .. '-0')[1]
      skipped[tonumber(ARGV[at])] = nil
    end
  end
  if #entries >= PAGE or at == #ARGV then
    remove(meta, entries, receipt)
    entries = {}
  end
end
if #receipt.sequences == 0 then
  return {'NOTHING', describe()}
end
set_skips(skipped)
return begin_anew(meta, ARGV[4], receipt.sequences[1] - 1, receipt, ARGV[5], ARGV[6], ARGV[7])
