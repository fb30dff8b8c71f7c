-- Uses clock, names
-- A rule ends. What it has brought about is kept for as long as the record of a cancelled job.
local function retire(number, scope, state)
  redis.call('HDEL', rules, number)
  local left = redis.call('HKEYS', rules)
  for k = #left, 1, -1 do
    if not string.match(left[k], '^%d+$') then table.remove(left, k) end
  end
  if #left == 0 then redis.call('DEL', rules) end
  local own = prefix .. 'scope:' .. scope
  if redis.call('EXISTS', own) == 0 then return end
  redis.call('HSET', own, 'state', state, 'ended', stamp)
  redis.call('PEXPIRE', own, keep_ended_ms)
  if tonumber(redis.call('HGET', own, 'unfinished') or 0) == 0 then redis.call('PUBLISH', done_prefix .. scope, state) end
end
