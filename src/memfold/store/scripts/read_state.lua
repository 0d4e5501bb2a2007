-- Describes a memory and reads its state, as one pair. ARGV: fingerprint.
local incarnation, _, refused = identify(ARGV[1])
if not incarnation then
  return refused
end
local fence = redis.call('HGET', KEYS[LINE], 'fence') or '0'
return {'OK', describe(), fence, redis.call('GET', KEYS[STATE])}
