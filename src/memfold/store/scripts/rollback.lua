-- needs restoring
-- Takes a memory back to a revision: what came later is out of the log, the state is the newest kept one up to there.
-- Numbers that were given are not given again. Running it again with the same new incarnation answers like the first
-- time, for as long as the receipt is kept.
-- ARGV: fingerprint, building, incarnation and sequence of the revision, the new incarnation, expected revision or '',
-- member, channel, seconds to keep the receipt.
local PAGE = 100
local meta, refused = identify()
if not meta then
  return refused
end
if meta.incarnation == ARGV[5] then
  return answer_again(meta)
end
if not expected(meta, ARGV[6]) then
  return {'MISMATCH', meta.incarnation, int(meta.head)}
end
local target = tonumber(ARGV[4])
if meta.incarnation ~= ARGV[3] or target > meta.head then
  return {'FOREIGN', describe()}
end

local receipt = {ids = {}, sequences = {}}
repeat
  local entries = redis.call('XRANGE', KEYS[LOG], '(' .. ARGV[4] .. '-0', '+', 'COUNT', PAGE)
  remove(meta, entries, receipt)
until #entries < PAGE
local skipped, limit = skips(), target
for turn, entry in pairs(skipped) do
  if entry > target then
    skipped[turn] = nil
    -- A state may have passed the turn over before the fold came to the entry that says so.
    limit = math.min(limit, turn - 1)
  end
end
set_skips(skipped)
for _, line in ipairs(lines()) do
  if redis.call('HGET', KEYS[LINE + line], 'reason') == 'LOG_TORN' then
    -- The way out of a log that was found torn: from now on what is left of it is the log.
    meta.entries = redis.call('XLEN', KEYS[LOG])
  end
end
meta.head = target
return begin_anew(meta, ARGV[5], limit, receipt, ARGV[7], ARGV[8], ARGV[9])
