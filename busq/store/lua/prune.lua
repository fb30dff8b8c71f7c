--[[
  prune: drop what has expired from the indexes of a shard, a bounded number at a time.

  Flags    allow-oom
  KEYS     cancelled, tombstones, succeeded, failed, cancelled_jobs, suspects
  ARGV     now_ms, limit, suspect_ms
  Uses     clock
  Answers  {'pruned', tombstones, jobs, suspects}
  Holds    members of the cancelled set that stand for live jobs or unread entries have no expiry and stay.
]]
local over = redis.call('ZRANGEBYSCORE', cancelled, '-inf', stamp, 'LIMIT', 0, limit)
if #over > 0 then
  redis.call('ZREM', cancelled, unpack(over))
  redis.call('HDEL', tombstones, unpack(over))
end
local jobs = 0
for _, index in ipairs({ succeeded, failed, cancelled_jobs }) do
  local ended = redis.call('ZRANGEBYSCORE', index, '-inf', stamp, 'LIMIT', 0, limit)
  if #ended > 0 then jobs = jobs + redis.call('ZREM', index, unpack(ended)) end
end
local old = redis.call('ZRANGEBYSCORE', suspects, '-inf', string.format('%.0f', now - tonumber(suspect_ms)), 'LIMIT', 0, limit)
if #old > 0 then redis.call('ZREM', suspects, unpack(old)) end
return { 'pruned', #over, jobs, #old }
