-- The second model stops folding, and what it has made goes. ARGV: fingerprint, building, member, which model is to stop or ''
-- for any.
local meta, refused = identify()
if not meta then
  return refused
end
if ARGV[2] ~= '' and (ARGV[4] == '' or ARGV[4] == ARGV[2]) then
  redis.call('ZREM', KEYS[DIRTY + BUILDING], ARGV[3])
  redis.call('ZREM', KEYS[BEHIND + BUILDING], ARGV[3])
  redis.call('UNLINK', KEYS[LINE + BUILDING], KEYS[STATE + BUILDING], KEYS[HISTORY + BUILDING], KEYS[REVISIONS + BUILDING])
  redis.call('HDEL', KEYS[META], 'building')
end
return {'OK', meta.incarnation, redis.call('HGET', KEYS[LINE], 'applied') or '0'}
