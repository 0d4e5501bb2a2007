-- Put before every script. Keys of a memory come in the order of memfold.store.keys.MemoryKeys.

local META, LOG, IDS, LINE, STATE, ANCHOR, DIRTY, BEHIND = 1, 2, 3, 4, 5, 6, 7, 8

-- Lua writes large numbers as 1e+15; Redis must never see that.
local function int(number)
  return string.format('%.0f', number)
end

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- Who the memory is, or why it is not what the caller thinks: (incarnation, head, nil) or (nil, nil, reply).
local function identify(fingerprint)
  local meta = redis.call('HMGET', KEYS[META], 'incarnation', 'fingerprint', 'head')
  if not meta[1] then
    return nil, nil, {'MISSING'}
  end
  if meta[2] ~= fingerprint then
    return nil, nil, {'FINGERPRINT', meta[2]}
  end
  return meta[1], tonumber(meta[3]), nil
end

-- The memory as a client sees it: the fields of the meta hash, then applied and the state's bytes.
local function describe()
  local line = redis.call('HMGET', KEYS[LINE], 'applied', 'state_bytes')
  return {redis.call('HGETALL', KEYS[META]), line[1] or '0', line[2] or '0'}
end

local function expected(incarnation, head, revision)
  return revision == '' or revision == incarnation .. '.' .. int(head)
end
