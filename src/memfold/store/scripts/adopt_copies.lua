-- A copy is going to be deleted: the copies that were made of it become those of its source, which they came from as well.
-- Does nothing if the source does not know the copy. Keys: the source's copies.
-- ARGV: member of the copy, operation that made it, then pairs of a member and what is noted of it.
local known = redis.call('HGET', KEYS[1], ARGV[1])
if not known or string.match(known, '%S+$') ~= ARGV[2] then
  return 0
end
for at = 3, #ARGV, 2 do
  redis.call('HSETNX', KEYS[1], ARGV[at], ARGV[at + 1])
end
return 1
