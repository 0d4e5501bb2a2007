-- needs restoring
-- needs removing
-- Takes a memory back to a revision: what came later is out of the log, the state is the newest kept one up to there.
-- Numbers that were given are not given again. Running it again with the same new incarnation answers like the first
-- time, for as long as the receipt is kept.
-- ARGV: fingerprint, building, incarnation of the revision, the new incarnation, member, channel, seconds to keep the receipt,
-- most entries at once, what write_aside left out as its receipt or '' where it has not run, the revision's sequence, expected
-- revision or ''.
local meta, refused = identify()
if not meta then
  return refused
end
local again = answered(meta, ARGV[4])
if again then
  return again
end
if not expected(meta, ARGV[11]) then
  give_up(ARGV[4])
  return {'MISMATCH', meta.incarnation, int(meta.head)}
end
local target = tonumber(ARGV[10])
if meta.incarnation ~= ARGV[3] or target > meta.head then
  return {'FOREIGN', describe()}
end

local limit = target
for turn, entry in pairs(skips()) do
  if entry > target then
    -- A state may have passed the turn over before the fold came to the entry that says so.
    limit = math.min(limit, turn - 1)
  end
end
local runs, most, receipt = {int(target + 1), '+'}, tonumber(ARGV[8])
if ARGV[9] == '' then
  receipt = take_out(meta, runs, true, most)
  if not receipt then
    return {'MANY'}
  end
else
  receipt = cjson.decode(ARGV[9])
  local why = settle(meta, ARGV[4], runs, true, most, receipt)
  if why then
    return {why}
  end
end
for _, line in ipairs(lines()) do
  if redis.call('HGET', KEYS[LINE + line], 'reason') == 'LOG_TORN' then
    -- The way out of a log that was found torn: from now on what is left of it is the log.
    meta.entries = redis.call('XLEN', KEYS[LOG])
  end
end
meta.head = target
return begin_anew(meta, ARGV[4], limit, receipt, ARGV[5], ARGV[6], ARGV[7])
