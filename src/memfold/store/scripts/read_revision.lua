-- Describes a memory and reads one of its kept revisions. ARGV: fingerprint, building, sequence.
local meta, refused = identify()
if not meta then
  return refused
end
local applied = redis.call('HGET', KEYS[LINE], 'applied')
local blob
if applied == ARGV[3] then
  blob = redis.call('GET', KEYS[STATE])
else
  blob = redis.call('HGET', KEYS[HISTORY], ARGV[3])
end
return {'OK', describe(), redis.call('HGETALL', KEYS[REVISIONS]), blob}
