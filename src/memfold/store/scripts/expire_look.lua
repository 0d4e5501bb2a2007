-- Whether something of a memory has expired, and when to look again. ARGV: fingerprint, building, member.
local meta, refused = identify()
if not meta then
  if refused[1] == 'MISSING' then
    redis.call('ZREM', KEYS[EXPIRES], ARGV[3])
  end
  return refused
end
local told = redis.call('HMGET', KEYS[META], 'policy', 'create_ms')
local policy = told[1] and told[1] ~= '' and cjson.decode(told[1]) or {ttl_s = 0, retention_s = 0}
if policy.ttl_s == 0 and policy.retention_s == 0 then
  redis.call('ZREM', KEYS[EXPIRES], ARGV[3])
  return {'OK', meta.incarnation, int(meta.head), '0'}
end
local now, due, cutoff = now_ms(), math.huge, 0
local function ms_of(entry)
  return tonumber(entry[2][4])
end
if policy.ttl_s > 0 then
  -- A copy is as old as its making, whatever the turns are that it was made with.
  local ends = math.max(tonumber(told[2]), last_append_ms()) + policy.ttl_s * 1000
  if ends <= now then
    return {'EXPIRED', meta.incarnation, int(meta.head)}
  end
  due = ends
end
if policy.retention_s > 0 then
  local oldest = redis.call('XRANGE', KEYS[LOG], '-', '+', 'COUNT', 1)[1]
  local first = oldest and ms_of(oldest) or now
  if first + policy.retention_s * 1000 <= now then
    cutoff = now - policy.retention_s * 1000
  end
  due = math.min(due, math.max(first + policy.retention_s * 1000, now + math.min(86400, policy.retention_s / 8) * 1000))
end
redis.call('ZADD', KEYS[EXPIRES], int(due), ARGV[3])
return {'OK', meta.incarnation, int(meta.head), int(cutoff)}
