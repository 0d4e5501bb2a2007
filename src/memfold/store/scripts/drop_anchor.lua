-- Removes an anchor that was found damaged, unless another has taken its place. ARGV: the damaged bytes.
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('UNLINK', KEYS[1])
end
return 0
