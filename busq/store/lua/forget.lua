--[[
  forget: a worker that is gone and holds nothing leaves the roster.

  Flags    allow-oom
  KEYS     workers, worker_info, streams...
  ARGV     now_ms, group, worker, own_wish
           own_wish: '1' when the worker itself says good-bye, lease or not
  Uses     clock
  Answers  {'forgotten'}
           {'holding', entries}   it still has pending entries; nothing was changed
           {'alive'}              its lease is good; nothing was changed
  Holds    a consumer with pending entries is never deleted: its entries would be lost with it.
]]
local lease = redis.call('ZSCORE', workers, worker)
if own_wish ~= '1' and lease and tonumber(lease) > now then return { 'alive' } end
local held = 0
for i = streams, #KEYS do
  if redis.call('EXISTS', KEYS[i]) == 1 then
    held = held + #redis.call('XPENDING', KEYS[i], group, '-', '+', 1, worker)
  end
end
if held > 0 then return { 'holding', held } end
for i = streams, #KEYS do
  if redis.call('EXISTS', KEYS[i]) == 1 then redis.call('XGROUP', 'DELCONSUMER', KEYS[i], group, worker) end
end
redis.call('ZREM', workers, worker)
redis.call('HDEL', worker_info, worker)
return { 'forgotten' }
