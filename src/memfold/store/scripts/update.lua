-- Changes what a client may change. ARGV: fingerprint, building, expected revision or '', member,
-- 'look' if something may expire from now on, 'never' if nothing may, or '', then pairs of field and value.
local meta, refused = identify()
if not meta then
  return refused
end
if not expected(meta, ARGV[3]) then
  return {'MISMATCH', meta.incarnation, int(meta.head)}
end
for at = 6, #ARGV, 2 do
  redis.call('HSET', KEYS[META], ARGV[at], ARGV[at + 1])
end
redis.call('HSET', KEYS[META], 'update_ms', int(now_ms()))
if ARGV[5] == 'look' then
  redis.call('ZADD', KEYS[EXPIRES], int(now_ms()), ARGV[4])
elseif ARGV[5] == 'never' then
  redis.call('ZREM', KEYS[EXPIRES], ARGV[4])
end
return {'OK', describe()}
