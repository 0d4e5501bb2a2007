-- Holds a claim for longer: its lease ends so long from now. Does nothing for a claim that is no longer the newest.
-- ARGV: fingerprint, incarnation, fence, lease in ms, member.
local meta = identify_line()
if not meta or meta.incarnation ~= ARGV[2] then
  return 0
end
local line = redis.call('HMGET', KEYS[LINE], 'fence', 'claim')
if line[1] ~= ARGV[3] or line[2] == '' then
  return 0
end
local lease = int(now_ms() + tonumber(ARGV[4]))
redis.call('HSET', KEYS[LINE], 'lease', lease)
redis.call('ZADD', KEYS[DIRTY], 'XX', lease, ARGV[5])
return 1
