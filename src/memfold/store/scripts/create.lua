-- Creates a memory. Running it again with the same incarnation or request id answers like the first time.
-- ARGV: fingerprint, '', incarnation, request id, display name, labels, policy or '', member if it may expire or ''.
local existing = redis.call('HMGET', KEYS[META], 'incarnation', 'request_id', 'fingerprint', 'building')
if existing[1] then
  local same_request = ARGV[4] ~= '' and existing[2] == ARGV[4]
  if existing[1] ~= ARGV[3] and not same_request then
    return {'EXISTS'}
  end
  local building = existing[4] or ''
  if existing[3] ~= ARGV[1] or building ~= ARGV[2] then
    return {'FINGERPRINT', existing[3], building}
  end
  -- Written again: Redis promises a confirmation only for what this connection wrote.
  redis.call('HSET', KEYS[META], 'incarnation', existing[1])
  return {'OK', describe()}
end
local now = int(now_ms())
redis.call('HSET', KEYS[META],
  'incarnation', ARGV[3], 'request_id', ARGV[4], 'fingerprint', ARGV[1], 'display_name', ARGV[5], 'labels', ARGV[6],
  'create_ms', now, 'update_ms', now, 'head', '0', 'last', '0', 'entries', '0', 'count', '0', 'bytes', '0')
if ARGV[7] ~= '' then
  redis.call('HSET', KEYS[META], 'policy', ARGV[7])
end
if ARGV[8] ~= '' then
  redis.call('ZADD', KEYS[EXPIRES], now, ARGV[8])
end
return {'OK', describe()}
