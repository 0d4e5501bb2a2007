-- Creates a memory. Running it again with the same incarnation or request id answers like the first time.
-- ARGV: fingerprint, incarnation, request id, display name, labels.
local existing = redis.call('HMGET', KEYS[META], 'incarnation', 'request_id', 'fingerprint')
if existing[1] then
  local same_request = ARGV[3] ~= '' and existing[2] == ARGV[3]
  if existing[1] ~= ARGV[2] and not same_request then
    return {'EXISTS'}
  end
  if existing[3] ~= ARGV[1] then
    return {'FINGERPRINT', existing[3]}
  end
  -- Written again: Redis promises a confirmation only for what this connection wrote.
  redis.call('HSET', KEYS[META], 'incarnation', existing[1])
  return {'OK', describe()}
end
local now = int(now_ms())
redis.call('HSET', KEYS[META],
  'incarnation', ARGV[2], 'request_id', ARGV[3], 'fingerprint', ARGV[1], 'display_name', ARGV[4], 'labels', ARGV[5],
  'create_ms', now, 'update_ms', now, 'head', '0', 'count', '0', 'bytes', '0')
return {'OK', describe()}
