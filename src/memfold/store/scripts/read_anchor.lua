-- Describes a memory and reads where its open block starts, as one pair; no place where the log is torn.
-- ARGV: fingerprint, building.
local meta, refused = identify()
if not meta then
  return refused
end
if redis.call('XLEN', KEYS[LOG]) ~= meta.entries then
  return {'OK', describe(), '', ''}
end
local line = redis.call('HMGET', KEYS[LINE], 'anchor', 'anchor_digest')
local anchor = line[1] or '0.0'
return {'OK', describe(), anchor, line[2] or '', redis.call('HGET', KEYS[HISTORY], '@' .. anchor)}
