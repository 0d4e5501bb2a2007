-- needs restoring
-- needs removing
-- Writes the log anew, so many entries at a time, because removed entries leave their text in the nodes of a stream.
-- What is half done is thrown away by the next removal. Returns 1 once nothing is left to do, 2 where somebody else is at it.
-- ARGV: fingerprint, building, entries, bytes.
local meta, refused = identify()
if not meta then
  return refused
end
if redis.call('HEXISTS', KEYS[META], 'unscrubbed') == 0 then
  return {'OK', 1}
end
if not stage('scrub') then
  return {'OK', 2}
end
local last = redis.call('XREVRANGE', KEYS[FRESH_LOG], '+', '-', 'COUNT', 1)[1]
local entries = redis.call('XRANGE', KEYS[LOG], last and '(' .. last[1] or '-', '+', 'COUNT', ARGV[3])
local size, room = 0, tonumber(ARGV[4])
for _, entry in ipairs(entries) do
  if size > room then
    return {'OK', 0}
  end
  redis.call('XADD', KEYS[FRESH_LOG], entry[1], unpack(entry[2]))
  size = size + #entry[2][2]
end
if #entries == tonumber(ARGV[3]) then
  return {'OK', 0}
end
exchange(LOG, FRESH_LOG)
drop_staged()
redis.call('HDEL', KEYS[META], 'unscrubbed')
return {'OK', 1}
