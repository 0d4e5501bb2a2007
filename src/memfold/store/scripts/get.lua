-- Describes a memory. ARGV: fingerprint, building.
local meta, refused = identify()
if not meta then
  return refused
end
return {'OK', describe()}
