-- A kept state was found damaged: it is kept no longer. ARGV: fingerprint, building, sequence, what was known of it.
local meta, refused = identify()
if not meta then
  return refused
end
if redis.call('HGET', KEYS[REVISIONS], ARGV[3]) == ARGV[4] and redis.call('HGET', KEYS[LINE], 'applied') ~= ARGV[3] then
  redis.call('HDEL', KEYS[REVISIONS], ARGV[3])
  redis.call('HDEL', KEYS[HISTORY], ARGV[3])
end
return {'OK'}
