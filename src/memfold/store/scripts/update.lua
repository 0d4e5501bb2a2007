-- Changes what a client may change. ARGV: fingerprint, expected revision or '', then pairs of field and value.
local incarnation, head, refused = identify(ARGV[1])
if not incarnation then
  return refused
end
if not expected(incarnation, head, ARGV[2]) then
  return {'MISMATCH', incarnation, int(head)}
end
for at = 3, #ARGV, 2 do
  redis.call('HSET', KEYS[META], ARGV[at], ARGV[at + 1])
end
redis.call('HSET', KEYS[META], 'update_ms', int(now_ms()))
return {'OK', describe()}
