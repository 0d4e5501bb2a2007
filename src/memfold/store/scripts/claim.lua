-- needs restoring
-- Takes the right to fold a memory: a higher fence, a lease, one attempt more. Attempts count before the work, so that
-- work which kills its worker is counted. Running it again with the same claim id answers like the first time.
-- ARGV: fingerprint, member, lease in ms, claim id, owner.
local meta = identify_line()
local due = redis.call('ZSCORE', KEYS[DIRTY], ARGV[2])
if not due then
  return false
end
local line = redis.call('HMGET', KEYS[LINE], 'applied', 'fence', 'attempts', 'claim', 'quarantined',
  'log_digest', 'state_digest', 'at', 'anchor', 'anchor_digest')
local applied = tonumber(line[1] or 0)

local function leave()
  redis.call('ZREM', KEYS[DIRTY], ARGV[2])
  redis.call('ZREM', KEYS[BEHIND], ARGV[2])
end

if not meta or line[5] or applied >= meta.head then
  leave()
  return false
end
if held() then
  redis.call('ZADD', KEYS[DIRTY], int(now_ms() + 500), ARGV[2])
  return false
end
if redis.call('XLEN', KEYS[LOG]) ~= meta.entries then
  -- Whoever folds under an earlier claim may have read what is torn: the fence makes that lose.
  redis.call('HINCRBY', KEYS[LINE], 'fence', 1)
  redis.call('HSET', KEYS[LINE], 'quarantined', int(applied + 1), 'reason', 'LOG_TORN')
  leave()
  return {'TORN', redis.call('XLEN', KEYS[LOG]), int(meta.entries)}
end
if meta.last > meta.entries and #redis.call('XRANGE', KEYS[LOG], '(' .. int(applied) .. '-0', '+', 'COUNT', 1) == 0 then
  pass_over(SERVING, applied, meta.head)
  leave()
  return false
end

local fence, attempts = tonumber(line[2] or 0), tonumber(line[3] or 0)
if line[4] ~= ARGV[4] then
  local now = now_ms()
  if tonumber(due) > now then
    return false
  end
  fence, attempts = fence + 1, attempts + 1
  local lease = int(now + tonumber(ARGV[3]))
  redis.call('HSET', KEYS[LINE], 'applied', int(applied), 'fence', int(fence), 'attempts', int(attempts),
    'lease', lease, 'claim', ARGV[4], 'owner', ARGV[5])
  redis.call('ZADD', KEYS[DIRTY], lease, ARGV[2])
end
return {'OK', meta.incarnation, int(applied), int(meta.head), int(fence), int(attempts),
  line[6] or '', line[7] or '', line[8] or '0', line[9] or '0.0', line[10] or '', meta.policy,
  redis.call('HGETALL', KEYS[REVISIONS])}
