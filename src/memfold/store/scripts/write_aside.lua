-- needs restoring
-- needs removing
-- Writes one page more of the log anew, without the entries that go: what a removal of many turns begins with. Nothing of it is seen
-- before forget or rollback puts it in the log's place. A page that was written already is only looked at again.
-- ARGV: fingerprint, building, the present incarnation, the new one, behind which number the page begins, up to which the runs
-- are told or '+', '1' where whatever lies in them goes, most entries, most bytes, member, the number before which states must
-- stay from now on or '', then the runs.
-- Returns how far it came, whether the log ends there, and what goes.
local meta, refused = identify()
if not meta then
  return refused
end
if answered(meta, ARGV[4]) then
  return {'DONE'}
end
if meta.incarnation ~= ARGV[3] then
  return {'MISMATCH', meta.incarnation, int(meta.head)}
end
local clean = held()
if not stage(ARGV[4]) then
  return {'BUSY'}
end
if ARGV[11] ~= '' and not clean then
  hold(meta, ARGV[11], ARGV[10])
end
local staged, cursor = staged_numbers(), tonumber(ARGV[5])
if staged.cursor < cursor then
  return {'LOST'}
end
local written = staged.cursor > cursor
local last = ARGV[6]
if written and (last == '+' or tonumber(last) > staged.cursor) then
  last = int(staged.cursor)
end

local most, room = tonumber(ARGV[8]), tonumber(ARGV[9])
local entries = redis.call('XRANGE', KEYS[LOG], '(' .. ARGV[5] .. '-0', last == '+' and '+' or last .. '-0', 'COUNT', most)
local size, page = 0, {}
for at, entry in ipairs(entries) do
  size = size + #entry[2][2]
  if at > 1 and size > room then
    break
  end
  page[at] = entry
end
local receipt = new_receipt()
carry(not written and staged or nil, page, {unpack(ARGV, 12)}, ARGV[7] == '1', receipt)

local through = #page == #entries and #entries < most
if #page > 0 then
  cursor = sequence_of(page[#page])
end
if through and last ~= '+' then
  cursor = tonumber(last)
end
if not written then
  staged.cursor = cursor
  save_staged(staged)
end
return {'OK', int(cursor), through and last == '+' and 1 or 0, cjson.encode(receipt)}
