-- Gives a claim up: the memory is due again after a delay. Does nothing for a claim that is no longer the newest.
-- ARGV: fingerprint, incarnation, fence, delay in ms, 1 to give the attempt back, member.
local meta = identify_line()
if not meta or meta.incarnation ~= ARGV[2] then
  return 0
end
local line = redis.call('HMGET', KEYS[LINE], 'fence', 'claim', 'attempts')
if line[1] ~= ARGV[3] or line[2] == '' then
  return 0
end
local attempts = tonumber(line[3])
if ARGV[5] == '1' then
  attempts = math.max(0, attempts - 1)
end
redis.call('HSET', KEYS[LINE], 'attempts', int(attempts), 'lease', '0', 'claim', '', 'owner', '')
redis.call('ZADD', KEYS[DIRTY], 'XX', int(now_ms() + tonumber(ARGV[4])), ARGV[6])
return 1
