-- Notes where the rewrites of a file stand, unless somebody else has noted something since it was read.
-- ARGV: field, the value that was read or '', then pairs of field and value.
if (redis.call('HGET', KEYS[1], ARGV[1]) or '') ~= ARGV[2] then
  return 0
end
redis.call('HSET', KEYS[1], unpack(ARGV, 3))
return 1
