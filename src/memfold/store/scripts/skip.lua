-- needs restoring
-- Says in the log that a turn is not to be folded. Folds in flight lose, quarantine ends. Doing it twice is doing it once.
-- ARGV: fingerprint, building, the turn's sequence, nonce, member.
local meta, refused = identify()
if not meta then
  return refused
end
local sequence, skipped = tonumber(ARGV[3]), skips()
if skipped[sequence] then
  redis.call('HSET', KEYS[META], 'incarnation', meta.incarnation)
  return {'OK', meta.incarnation, int(skipped[sequence])}
end
local entry = redis.call('XRANGE', KEYS[LOG], ARGV[3] .. '-0', ARGV[3] .. '-0')[1]
if not entry or entry[2][1] ~= 'turn' then
  return {'NO_TURN'}
end
for _, line in ipairs(lines()) do
  if tonumber(redis.call('HGET', KEYS[LINE + line], 'applied') or 0) >= sequence then
    return {'FOLDED'}
  end
end
note_last_append()
local now, number = int(now_ms()), meta.last + 1
redis.call('XADD', KEYS[LOG], int(number) .. '-0', 'skip', ARGV[3], 'ms', now, 'nonce', ARGV[4])
skipped[sequence] = number
set_skips(skipped)
redis.call('HSET', KEYS[META], 'head', int(number), 'last', int(number), 'entries', int(meta.entries + 1), 'update_ms', now)
for _, line in ipairs(lines()) do
  free(line)
  redis.call('ZADD', KEYS[DIRTY + line], now, ARGV[5])
  redis.call('ZADD', KEYS[BEHIND + line], 'NX', now, ARGV[5])
end
return {'OK', meta.incarnation, int(number)}
