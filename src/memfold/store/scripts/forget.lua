-- needs restoring
-- needs removing
-- Takes turns out of the log, and every state back to before the first of them. Running it again with the same new
-- incarnation answers like the first time, for as long as the receipt is kept.
-- ARGV: fingerprint, building, the present incarnation, the new one, member, channel, seconds to keep the receipt, most entries
-- at once, what write_aside left out as its receipt or '' where it has not run, then the runs of turns that go.
local meta, refused = identify()
if not meta then
  return refused
end
local again = answered(meta, ARGV[4])
if again then
  return again
end
if meta.incarnation ~= ARGV[3] then
  return {'MISMATCH', meta.incarnation, int(meta.head)}
end

local runs, most, receipt = {unpack(ARGV, 10)}, tonumber(ARGV[8])
if ARGV[9] == '' then
  receipt = take_out(meta, runs, false, most)
  if not receipt then
    return {'MANY'}
  end
else
  receipt = cjson.decode(ARGV[9])
  local why = settle(meta, ARGV[4], runs, false, most, receipt)
  if why then
    return {why}
  end
end
if receipt.count == 0 then
  return {'NOTHING', describe()}
end
return begin_anew(meta, ARGV[4], receipt.runs[1][1] - 1, receipt, ARGV[5], ARGV[6], ARGV[7])
