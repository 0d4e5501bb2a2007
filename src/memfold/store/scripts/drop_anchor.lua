-- An anchor was found damaged or gone: the open block is taken to start at the log's beginning, as the claim's fold now
-- does. Does nothing for a claim that is no longer the newest. ARGV: fingerprint, incarnation, fence, the anchor's place.
local meta = identify_line()
if not meta or meta.incarnation ~= ARGV[2] then
  return 0
end
local line = redis.call('HMGET', KEYS[LINE], 'fence', 'anchor')
if line[1] ~= ARGV[3] or line[2] ~= ARGV[4] then
  return 0
end
redis.call('HDEL', KEYS[HISTORY], '@' .. ARGV[4])
redis.call('HSET', KEYS[LINE], 'anchor', '0.0', 'anchor_digest', '')
return 1
