-- A copy has been deleted, or was never made. Keys: the source's copies. ARGV: its member, the operation that makes it.
local known = redis.call('HGET', KEYS[1], ARGV[1])
if known and string.match(known, '%S+$') == ARGV[2] then
  return redis.call('HDEL', KEYS[1], ARGV[1])
end
return 0
