-- Commits a fold by compare-and-set on (incarnation, applied, fence). 1: committed, now or by an earlier run of this
-- very call; 0: lost, somebody else folds or has folded, or the memory is gone.
-- ARGV: fingerprint, incarnation, applied before, fence, applied now, turn of the state, state, its bytes without header,
-- its digest, the log's digest, anchor's place or '' for as it was, anchor, its digest, member, channel,
-- attempts that count on, how many revisions to drop, these, and the anchors to drop.
local meta = identify_line()
if not meta or meta.incarnation ~= ARGV[2] then
  return 0
end
local line = redis.call('HMGET', KEYS[LINE], 'applied', 'fence', 'anchor', 'anchor_digest')
if line[2] ~= ARGV[4] then
  return 0
end
if line[1] == ARGV[5] then
  return 1
end
local applied = tonumber(ARGV[5])
if line[1] ~= ARGV[3] or applied > meta.head then
  return 0
end

local before = redis.call('GET', KEYS[STATE])
if before then
  redis.call('HSET', KEYS[HISTORY], ARGV[3], before)
end
redis.call('SET', KEYS[STATE], ARGV[7])
local anchor, anchor_digest = line[3] or '0.0', line[4] or ''
if ARGV[11] ~= '' then
  anchor, anchor_digest = ARGV[11], ARGV[13]
  redis.call('HSET', KEYS[HISTORY], '@' .. anchor, ARGV[12])
end
local now = int(now_ms())
redis.call('HSET', KEYS[REVISIONS], ARGV[5], string.format(
  '{"anchor":"%s","anchor_digest":"%s","at":%s,"log_digest":"%s","made":"%s","ms":%s,"state_digest":"%s"}',
  anchor, anchor_digest, ARGV[6], ARGV[10], ARGV[2], now, ARGV[9]))
local dropping = tonumber(ARGV[17])
for at = 18, #ARGV do
  redis.call('HDEL', KEYS[HISTORY], ARGV[at])
  if at < 18 + dropping then
    redis.call('HDEL', KEYS[REVISIONS], ARGV[at])
  end
end
redis.call('HSET', KEYS[LINE], 'applied', ARGV[5], 'at', ARGV[6], 'made', ARGV[2], 'log_digest', ARGV[10],
  'state_digest', ARGV[9], 'anchor', anchor, 'anchor_digest', anchor_digest, 'attempts', ARGV[16], 'lease', '0', 'claim', '',
  'owner', '', 'state_bytes', ARGV[8])

if meta.head > applied then
  -- Turns came in meanwhile: due at once, and behind since the oldest of them.
  local entry = redis.call('XRANGE', KEYS[LOG], '(' .. ARGV[5] .. '-0', '+', 'COUNT', 1)[1]
  redis.call('ZADD', KEYS[DIRTY], now, ARGV[14])
  redis.call('ZADD', KEYS[BEHIND], entry and entry[2][4] or now, ARGV[14])
else
  redis.call('ZREM', KEYS[DIRTY], ARGV[14])
  redis.call('ZREM', KEYS[BEHIND], ARGV[14])
end
redis.call('PUBLISH', ARGV[15], ARGV[14])
return 1
