-- needs restoring
-- A second model begins to fold the log, from its start, while the first one serves. Doing it twice is doing it once.
-- The keys of the second line are those of the model to begin with. ARGV: fingerprint, building, that model, member,
-- the operation that asks for it.
local meta, refused = identify()
if not meta then
  return refused
end
if redis.call('HEXISTS', KEYS[OPS], ARGV[5]) == 0 then
  return {'MISSING'}
end
if ARGV[1] == ARGV[3] or (ARGV[2] ~= '' and ARGV[2] ~= ARGV[3]) then
  return {'OTHER', meta.incarnation, int(meta.head)}
end
redis.call('HSET', KEYS[META], 'building', ARGV[3])
if ARGV[2] == '' then
  local line = BUILDING
  redis.call('UNLINK', KEYS[LINE + line], KEYS[STATE + line], KEYS[HISTORY + line], KEYS[REVISIONS + line])
  set_line(line, '0', '0', '', '', '', '0.0', '')
  -- Higher than any fence of a line that the model had here before.
  redis.call('HSET', KEYS[LINE + line], 'fence', int(now_ms()), 'attempts', '0', 'lease', '0', 'claim', '', 'owner', '',
    'state_bytes', '0')
  resume(line, meta.head, ARGV[4])
end
return {'OK', meta.incarnation, int(meta.head)}
