--[[
  forget: a worker that is gone and holds nothing leaves the roster.

  Flags    allow-oom
  KEYS     workers, worker_info, drains, streams...
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
local held, read = 0, {}
for i = streams, #KEYS do
  local pending = redis.pcall('XPENDING', KEYS[i], group, '-', '+', 1, worker)
  if not pending.err then -- a queue that nobody has read yet has no group to ask
    held = held + #pending
    read[#read + 1] = KEYS[i]
  end
end
if held > 0 then return { 'holding', held } end
for _, stream in ipairs(read) do redis.call('XGROUP', 'DELCONSUMER', stream, group, worker) end
redis.call('ZREM', workers, worker)
redis.call('HDEL', worker_info, worker)
redis.call('HDEL', drains, worker)
return { 'forgotten' }
