-- Counts the members of a sorted set by tenant: {tenant, count, tenant, count, ...}. KEYS[1]: the set.
local counts, flat = {}, {}
for _, member in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local tenant = string.match(member, '^[^/]+')
  counts[tenant] = (counts[tenant] or 0) + 1
end
for tenant, count in pairs(counts) do
  flat[#flat + 1] = tenant
  flat[#flat + 1] = count
end
return flat
