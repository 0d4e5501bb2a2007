-- needs restoring
-- A state was found damaged: the newest kept revision up to a limit takes its place, or nothing, and what came later is
-- folded anew. The fence makes folds in flight lose. ARGV: fingerprint, incarnation, applied, fence, limit, member.
local meta = identify_line()
if not meta or meta.incarnation ~= ARGV[2] then
  return 0
end
local line = redis.call('HMGET', KEYS[LINE], 'applied', 'fence')
if (line[1] or '0') ~= ARGV[3] or (line[2] or '0') ~= ARGV[4] then
  return 0
end
restore(SERVING, tonumber(ARGV[5]))
resume(SERVING, meta.head, ARGV[6])
return 1
