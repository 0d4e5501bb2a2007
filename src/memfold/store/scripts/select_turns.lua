-- Finds turns by what was said about them, so that their texts need not travel. Keys: the memory's first ones.
-- ARGV: behind which number, up to which, how many entries to look at, and what must match: role, speaker (each may be '') and
-- metadata, as JSON. Returns how far it came, whether that is the end, and runs of numbers.
if redis.call('EXISTS', KEYS[META]) == 0 then
  return {'MISSING'}
end
local wanted = cjson.decode(ARGV[4])
local function matches(turn)
  for key, value in pairs(wanted.metadata) do
    if turn.metadata[key] ~= value then
      return false
    end
  end
  return (wanted.role == '' or wanted.role == turn.role) and (wanted.speaker == '' or wanted.speaker == turn.speaker)
end

local entries = redis.call('XRANGE', KEYS[LOG], '(' .. ARGV[1] .. '-0', ARGV[2] .. '-0', 'COUNT', ARGV[3])
local cursor, reply = 0, {}
for _, entry in ipairs(entries) do
  cursor = tonumber(string.match(entry[1], '^%d+'))
  if entry[2][1] == 'turn' and matches(cjson.decode(entry[2][2])) then
    if reply[#reply] == cursor - 1 then
      reply[#reply] = cursor
    else
      reply[#reply + 1] = cursor
      reply[#reply + 1] = cursor
    end
  end
end
return {'OK', int(cursor), #entries < tonumber(ARGV[3]) and 1 or 0, unpack(reply)}
