-- Deletes a memory with all that is known of it: no key holds its text afterwards.
-- ARGV: fingerprint, incarnation, expected revision or '', member, channel.
local incarnation, head, refused = identify(ARGV[1])
if not incarnation then
  return refused
end
if incarnation ~= ARGV[2] then
  return {'MISSING'}
end
if not expected(incarnation, head, ARGV[3]) then
  return {'MISMATCH', incarnation, int(head)}
end
redis.call('ZREM', KEYS[DIRTY], ARGV[4])
redis.call('ZREM', KEYS[BEHIND], ARGV[4])
redis.call('UNLINK', KEYS[META], KEYS[LOG], KEYS[IDS], KEYS[LINE], KEYS[STATE], KEYS[ANCHOR])
redis.call('PUBLISH', ARGV[5], ARGV[4])
return {'OK', incarnation, int(head)}
