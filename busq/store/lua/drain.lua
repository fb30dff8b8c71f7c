--[[
  drain: write down that a worker shall drain and leave. It reads this on its beat.

  Flags    allow-oom
  KEYS     workers, drains
  ARGV     now_ms, worker, whole
           whole: 'pod' when all workers of its host are asked, so that whoever keeps it starts no other in its place;
           else 'worker'
  Uses     clock
  Answers  {'asked'}
           {'silent'}    the same, but its lease has run out: if it does not come back, nobody will read this
           {'missing'}   it is not on the roster; nothing was changed
  Holds    the wish leaves the roster together with the worker.
]]
local lease = redis.call('ZSCORE', workers, worker)
if not lease then return { 'missing' } end
redis.call('HSET', drains, worker, whole)
return { tonumber(lease) > now and 'asked' or 'silent' }
