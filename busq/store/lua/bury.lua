--[[
  bury: an entry that is no job goes to the dead letters, bytes and all.

  Flags    allow-oom
  KEYS     dead, counters, stream
  ARGV     now_ms, group, entry, reason, raw
           raw: the entry's fields and values, MessagePack
  Uses     clock
  Answers  {'buried', letter}
           {'stale'}   the entry is no longer pending: somebody else has dealt with it
  Holds    the letter is written before the entry is removed.
]]
local pending = redis.call('XPENDING', stream, group, entry, entry, 1)
if #pending == 0 then return { 'stale' } end
local letter = redis.call('XADD', dead, '*', 'reason', reason, 'stream', stream, 'entry', entry, 'raw', raw, 'at', stamp)
redis.call('HINCRBY', counters, 'buried', 1)
redis.call('XACK', stream, group, entry)
redis.call('XDEL', stream, entry)
return { 'buried', letter }
