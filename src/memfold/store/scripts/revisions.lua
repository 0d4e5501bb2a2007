-- Describes a memory and what is known of its kept revisions. ARGV: fingerprint, building.
local meta, refused = identify()
if not meta then
  return refused
end
local reply = {'OK', describe()}
for _, line in ipairs(lines()) do
  reply[#reply + 1] = redis.call('HGETALL', KEYS[REVISIONS + line])
end
return reply
