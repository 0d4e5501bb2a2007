-- Describes a memory. ARGV: fingerprint.
local incarnation, _, refused = identify(ARGV[1])
if not incarnation then
  return refused
end
return {'OK', describe()}
