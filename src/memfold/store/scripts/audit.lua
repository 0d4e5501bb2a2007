-- needs restoring
-- Queues a memory that is behind its log although no queue holds it. ARGV: fingerprint, building.
-- Returns how many lines of it that were, and its incarnation.
local meta, refused = identify()
if not meta then
  return refused
end
local found, member = 0, string.match(KEYS[META], '^memfold:{p%d+}:(.*):meta$')
for _, line in ipairs(lines()) do
  local known = redis.call('HMGET', KEYS[LINE + line], 'applied', 'quarantined')
  if tonumber(known[1] or 0) < meta.head and not known[2] and not redis.call('ZSCORE', KEYS[DIRTY + line], member) then
    resume(line, meta.head, member)
    found = found + (redis.call('ZSCORE', KEYS[DIRTY + line], member) and 1 or 0)
  end
end
return {'OK', found, meta.incarnation}
