-- Deletes a memory with all that is known of it: no key holds its text afterwards.
-- ARGV: fingerprint, building, incarnation, expected revision or '', member, channel.
local meta, refused = identify()
if not meta then
  return refused
end
if meta.incarnation ~= ARGV[3] then
  return {'MISSING'}
end
if not expected(meta, ARGV[4]) then
  return {'MISMATCH', meta.incarnation, int(meta.head)}
end
for _, line in ipairs(lines()) do
  redis.call('ZREM', KEYS[DIRTY + line], ARGV[5])
  redis.call('ZREM', KEYS[BEHIND + line], ARGV[5])
  redis.call('UNLINK', KEYS[LINE + line], KEYS[STATE + line], KEYS[HISTORY + line], KEYS[REVISIONS + line])
end
for _, operation in ipairs(redis.call('HKEYS', KEYS[OPS])) do
  redis.call('ZREM', KEYS[OPERATIONS], ARGV[5] .. '|' .. operation)
end
redis.call('ZREM', KEYS[EXPIRES], ARGV[5])
redis.call('UNLINK', KEYS[META], KEYS[LOG], KEYS[IDS], KEYS[FRESH_LOG], KEYS[FRESH_IDS], KEYS[REWRITE], KEYS[RECEIPTS],
  KEYS[OPS], KEYS[RECORDS], KEYS[FORKS])
redis.call('PUBLISH', ARGV[6], ARGV[5])
return {'OK', meta.incarnation, int(meta.head)}
