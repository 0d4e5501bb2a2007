-- The second model serves from now on, if its state has come as far as asked, and no less far than that which served.
-- What the first one made goes. ARGV: fingerprint, building, the second model, how far, member, channel.
local meta, refused = identify()
if not meta then
  return refused
end
if ARGV[1] == ARGV[3] then
  -- An earlier run of this script did it.
  redis.call('HSET', KEYS[META], 'fingerprint', ARGV[1])
  return {'OK', meta.incarnation, redis.call('HGET', KEYS[LINE], 'applied') or '0'}
end
if ARGV[2] ~= ARGV[3] then
  return {'OTHER'}
end
local poison = redis.call('HMGET', KEYS[LINE + BUILDING], 'quarantined', 'reason')
if poison[1] then
  return {'QUARANTINED', poison[1], poison[2] or ''}
end
local served = tonumber(redis.call('HGET', KEYS[LINE], 'applied') or 0)
local built = tonumber(redis.call('HGET', KEYS[LINE + BUILDING], 'applied') or 0)
if built < served or built < math.min(tonumber(ARGV[4]), meta.head) then
  return {'BEHIND', int(built), int(meta.head)}
end
redis.call('ZREM', KEYS[DIRTY], ARGV[5])
redis.call('ZREM', KEYS[BEHIND], ARGV[5])
redis.call('UNLINK', KEYS[LINE], KEYS[STATE], KEYS[HISTORY], KEYS[REVISIONS])
redis.call('HSET', KEYS[META], 'fingerprint', ARGV[3])
redis.call('HDEL', KEYS[META], 'building')
redis.call('PUBLISH', ARGV[6], ARGV[5])
return {'OK', meta.incarnation, int(built)}
