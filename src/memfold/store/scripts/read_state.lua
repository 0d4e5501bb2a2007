-- Describes a memory and reads its state, as one pair. ARGV: fingerprint, building.
local meta, refused = identify()
if not meta then
  return refused
end
local line = redis.call('HMGET', KEYS[LINE], 'fence', 'at', 'made', 'state_digest')
return {'OK', describe(), line[1] or '0', line[2] or '0', line[3] or '', line[4] or '', redis.call('GET', KEYS[STATE])}
